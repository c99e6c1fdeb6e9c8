"""The request: which bytes are posted, and which value wins."""

from __future__ import annotations

import json

import pytest
from conftest import File, Result, Run
from server import Api, completion, reply


def test_only_what_was_given_is_sent(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    assert run("Hi") == Result(b"Hello\n", "", 0)
    assert api.requests[0].body == (
        b'{"model":"grok-4","messages":[{"role":"user","content":"Hi"}]}'
    )


def test_the_headers(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    assert run("Hi").status == 0
    version = run("--version").out.decode().split()[1]
    assert api.requests[0].headers == {
        "host": api.host,
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(api.requests[0].body)),
        "user-agent": f"xchat/{version}",
    }


def test_every_option_is_a_field(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    result = run("-m", "grok-4.7", "-t", "0.5", "--max-tokens", "9", "-s", "One", "-s", "Two", "Hi")
    assert result == Result(b"Hello\n", "", 0)
    assert api.body == {
        "model": "grok-4.7",
        "messages": [
            {"role": "system", "content": "One"},
            {"role": "system", "content": "Two"},
            {"role": "user", "content": "Hi"},
        ],
        "temperature": 0.5,
        "max_completion_tokens": 9,
    }


def test_the_body_is_utf_8_and_not_escaped(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    text = "Grüße 🌍\u2028\x7f</script>\\"
    assert run(stdin=text.encode()).status == 0
    assert f'"content":"{text}\\"'.encode() in api.requests[0].body


@pytest.mark.parametrize(
    ("args", "env", "model"),
    [
        ([], {}, "grok-4"),
        ([], {"XCHAT_MODEL": ""}, "grok-4"),
        ([], {"XCHAT_MODEL": "environment"}, "environment"),
        (["-f", "one"], {"XCHAT_MODEL": "environment"}, "one"),
        (["-f", "one", "-f", "two"], {"XCHAT_MODEL": "environment"}, "two"),
        (["-f", "two", "-f", "one"], {"XCHAT_MODEL": "environment"}, "one"),
        (["-m", "option", "-f", "one"], {"XCHAT_MODEL": "environment"}, "option"),
    ],
)
def test_command_line_then_files_then_environment_then_default(
    run: Run, file: File, args: list[str], env: dict[str, str], model: str
) -> None:
    file("model: one\ntemperature: 1", "one")
    file('{"model": "two"}', "two")
    result = run("--dry-run", *args, "Hi", env=env)
    assert json.loads(result.out)["model"] == model


def test_options_win_over_the_fields_of_files(run: Run, file: File) -> None:
    name = file("temperature: 1\nmax_completion_tokens: 5\nseed: 7\n")
    body = json.loads(run("--dry-run", "-f", name, "-t", "0", "--max-tokens", "9", "Hi").out)
    assert (body["temperature"], body["max_completion_tokens"], body["seed"]) == (0, 9, 7)


def test_a_dry_run_writes_the_bytes_that_are_posted_and_a_newline(
    api: Api, run: Run, file: File
) -> None:
    name = file("system: Grüße\ntop_p: 0.95\nhistory:\n- user: [{type: text, text: 🌍}]\n")
    args = ["-t", "1", "-f", name, "-s", "One", "Two", "-"]
    dry = run("--dry-run", *args, stdin=b"three")
    api.will(reply(completion()))
    assert run(*args, stdin=b"three") == Result(b"Hello\n", "", 0)
    assert dry == Result(api.requests[0].body + b"\n", "", 0)


def test_a_dry_run_is_a_conversation_file_for_the_same_body(run: Run, file: File) -> None:
    first = run("--dry-run", "-m", "m", "-t", "0.3", "-s", "One", "-s", "", "🌍\u2028\x01")
    again = run("--dry-run", "-f", file(first.out, "r.json"))
    assert again == first


def test_a_dry_run_needs_no_key_and_sends_nothing(api: Api, run: Run) -> None:
    del run.env["XCHAT_BASE_URL"]
    assert run("--dry-run", "Hi").status == 0
    run.env["XCHAT_BASE_URL"] = "nonsense"
    assert run("--dry-run", "Hi").status == 0
    assert api.requests == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--modell", "x"], "no such option: --modell; did you mean '--model'?\n"),
        (["--fil", "x"], "no such option: --fil; did you mean '--file'?\n"),
        (["-t", "nan"], "-t: expected a number from 0 to 2, not 'nan'\n"),
        (["--timeout", "inf"], "--timeout: expected a number of seconds above 0, not 'inf'\n"),
        (["--temp", "1"], "no such option: --temp; did you mean '--temperature'?\n"),
        (["--msg"], "no such option: --msg; see xchat --help\n"),
        (["--zzz"], "no such option: --zzz; see xchat --help\n"),
        (["-5", "+", "3"], "no such option: -5; a prompt that begins with - goes after --\n"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_sent(
    api: Api, run: Run, args: list[str], message: str
) -> None:
    result = run("Hi", *args)
    assert (result.out, result.status) == (b"", 2)
    assert result.err.startswith("xchat: ")
    assert result.err.endswith(message)
    assert result.err.count("\n") == 1
    assert api.requests == []


ZERO_TO_TWO = "expected a number from 0 to 2"
SECONDS = "expected a number of seconds above 0"
COUNT = "expected a whole number above 0"
COUNT_OR_0 = "expected a whole number, 0 or more"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-t", "warm"], f"-t: {ZERO_TO_TWO}, not 'warm'"),
        (["-t", "2.5"], f"-t: {ZERO_TO_TWO}, not '2.5'"),
        (["--temperature", "-0.1"], f"-t: {ZERO_TO_TWO}, not '-0.1'"),
        (["-t", ""], f"-t: {ZERO_TO_TWO}, not ''"),
        (["--max-tokens", "0"], f"--max-tokens: {COUNT}, not '0'"),
        (["--max-tokens", "1.5"], f"--max-tokens: {COUNT}, not '1.5'"),
        (["--max-tokens", "9" * 400], f"--max-tokens: {COUNT}, not '{'9' * 400}'"),
        (["--timeout", "0"], f"--timeout: {SECONDS}, not '0'"),
        (["--timeout", "1e999"], f"--timeout: {SECONDS}, not '1e999'"),
        (["--retries", "-1"], f"--retries: {COUNT_OR_0}, not '-1'"),
        (["--retries", "inf"], f"--retries: {COUNT_OR_0}, not 'inf'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_value_is_one_line_that_names_the_option_and_nothing_is_sent(
    api: Api, run: Run, args: list[str], message: str
) -> None:
    assert run("Hi", *args) == Result(b"", f"xchat: {message}\n", 2)
    assert api.requests == []


def test_a_missing_value_is_one_line_that_names_the_option(api: Api, run: Run) -> None:
    result = run("Hi", "-s")
    assert (result.out, result.status) == (b"", 2)
    assert result.err.startswith("xchat: ")
    assert "-s" in result.err  # among click's words
    assert result.err.endswith("; see xchat --help\n")
    assert result.err.count("\n") == 1
    assert api.requests == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("XCHAT_TIMEOUT", "soon", SECONDS),
        ("XCHAT_TIMEOUT", "-1", SECONDS),
        ("XCHAT_RETRIES", "two", COUNT_OR_0),
    ],
)
def test_a_wrong_value_in_the_environment_names_the_variable(
    run: Run, name: str, value: str, message: str
) -> None:
    result = run("--dry-run", "Hi", env={name: value})
    assert result == Result(b"", f"xchat: {name}: {message}, not '{value}'\n", 2)
    assert run("--dry-run", "Hi", env={name: ""}).status == 0


def test_max_tokens_replaces_its_old_name_in_a_file(run: Run, file: File) -> None:
    name = file("max_tokens: 5")
    body = json.loads(run("--dry-run", "-f", name, "--max-tokens", "9", "Hi").out)
    assert (body["max_completion_tokens"], "max_tokens" in body) == (9, False)
    assert json.loads(run("--dry-run", "-f", name, "Hi").out)["max_tokens"] == 5


def test_a_model_in_the_environment_that_is_not_text(run: Run) -> None:
    result = run("--dry-run", "Hi", env={"XCHAT_MODEL": "\udcff"})
    assert (result.out, result.status) == (b"", 2)
    assert result.err.startswith("xchat: XCHAT_MODEL: ")


def test_help_fits_a_screen_and_says_what_the_double_dash_is_for(run: Run) -> None:
    for option in ("-h", "--help"):
        result = run(option)
        assert (result.err, result.status) == ("", 0)
        lines = result.out.decode().splitlines()
        assert max(map(len, lines)) <= 80
        assert len(lines) <= 50
        assert 'xchat -n -- "$line"' in result.out.decode()


def test_version(run: Run) -> None:
    import xchat

    assert run("--version") == Result(f"xchat {xchat.__version__}\n".encode(), "", 0)
