"""The request: which bytes are posted, and which value wins."""

from __future__ import annotations

import json

import pytest
from conftest import HELLO, File, Result, Run
from server import STREAM_HEAD, Api, completion, reply, stream


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


def test_accept_names_first_what_is_asked_for(api: Api, run: Run) -> None:
    api.will(reply(completion()), [STREAM_HEAD + stream("Hello")])
    assert run("Hi") == HELLO
    assert run("--stream", "Hi") == HELLO
    accepts = [request.headers["accept"] for request in api.requests]
    assert accepts == [
        "application/json, text/event-stream",
        "text/event-stream, application/json",
    ]


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


def test_max_tokens_replaces_its_old_name_in_a_file(run: Run, file: File) -> None:
    name = file("max_tokens: 5")
    body = json.loads(run("--dry-run", "-f", name, "--max-tokens", "9", "Hi").out)
    assert (body["max_completion_tokens"], "max_tokens" in body) == (9, False)
    assert json.loads(run("--dry-run", "-f", name, "Hi").out)["max_tokens"] == 5
