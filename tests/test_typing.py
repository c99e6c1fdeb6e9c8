"""What is typed and not meant: dashes, other tools' options, names of files, overwritten files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import TOP, File, Result, Run, body_of
from server import Api, completion, reply

import xchat


def told(*args: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is said of arguments that are no good."""
    monkeypatch.setattr(sys, "argv", ["xchat", *args])
    with pytest.raises(click.UsageError) as caught:
        xchat.xchat.make_context("xchat", list(args))
    return xchat.explain_usage(caught.value)


ONE_DASH = {
    "a system message": (["-system", "Be brief", "Hi"], "-system", "--system"),
    "a model": (["-model", "grok-4", "Hi"], "-model", "--model"),
    "a model and an equals sign": (["Hi", "-model=grok-4"], "-model", "--model"),
    "a file of output": (["-output", "r.md", "Hi"], "-output", "--output"),
    "a file": (["-file", "c.yaml"], "-file", "--file"),
    "help": (["-help"], "-help", "--help"),
    "the version": (["-version"], "-version", "--version"),
    "a stream": (["-stream", "Hi"], "-stream", "--stream"),
    "no stream": (["-no-stream", "Hi"], "-no-stream", "--no-stream"),
    "no standard input": (["-no-stdin", "Hi"], "-no-stdin", "--no-stdin"),
    "a limit": (["-max-tokens", "5", "Hi"], "-max-tokens", "--max-tokens"),
    "a dry run": (["-dry-run", "Hi"], "-dry-run", "--dry-run"),
    "a temperature": (["-temperature", "0", "Hi"], "-temperature", "--temperature"),
    "JSON": (["-n", "-json", "Hi"], "-json", "--json"),
    "after a value": (["-s", "x", "-quiet", "Hi"], "-quiet", "--quiet"),
    "in place of a value": (["-o", "-stream", "Hi"], "-stream", "--stream"),
    "two dashes for one": (["--s", "Be brief", "Hi"], "--s", "-s"),
    "three dashes": (["---model", "m", "Hi"], "---model", "--model"),
    "an em dash": (["—model", "m", "Hi"], "—model", "--model"),
    "an en dash": (["\u2013s", "Be brief", "Hi"], "\u2013s", "-s"),
    "a minus sign": (["\u2212n", "Hi"], "\u2212n", "-n"),
}


@pytest.mark.parametrize("name", ONE_DASH)
def test_a_wrong_number_of_dashes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    args, typed, meant = ONE_DASH[name]
    message = f"no such option: {typed}; did you mean '{meant}'?"
    assert told(*args, monkeypatch=monkeypatch) == message


def test_one_dash_for_two_is_status_2_and_nothing_is_sent_or_written(api: Api, run: Run) -> None:
    before = os.listdir(run.home)
    message = "xchat: no such option: -output; did you mean '--output'?\n"
    assert run("-output", "r.md", "Hi") == Result(b"", message, 2)
    assert (os.listdir(run.home), api.requests) == (before, [])


@pytest.mark.parametrize(
    ("args", "messages"),
    [
        (["--", "-system", "—model"], ["-system —model"]),
        (["-sshort", "-mm", "Hi"], ["short", "Hi"]),
        (["-nsBe brief", "Hi"], ["Be brief", "Hi"]),
        (["-s=x", "-n", "—", "\u2013y", "Hi"], ["=x", "— \u2013y Hi"]),
        (["a-model", "of", "—dashes", "model"], ["a-model of —dashes model"]),
    ],
    ids=["after two dashes", "short options", "clusters", "dashes of prose", "words"],
)
def test_what_is_no_wrong_number_of_dashes(run: Run, args: list[str], messages: list[str]) -> None:
    body = body_of(run("--dry-run", *args))
    assert [message["content"] for message in body["messages"]] == messages


UNKNOWN = {
    # by another name
    "--api-key": "use XAI_API_KEY",
    "--key": "use XAI_API_KEY",
    "--base-url": "use XCHAT_BASE_URL",
    "--api-base": "use XCHAT_BASE_URL",
    "--url": "use XCHAT_BASE_URL",
    "--header": "use XCHAT_HEADERS",
    "--continue": "use -a -f FILE",
    "--chat": "use -a -f FILE",
    "--session": "use -a -f FILE",
    "--history": "use -f FILE",
    "--messages": "use -f FILE",
    "--attachment": "use -i FILE for an image, or standard input",
    "--system-prompt": "use -s TEXT",
    "--debug": "use -v",
    "--format": "use --schema or --json",
    "--prompt": "use arguments or standard input",
    # fields of the API
    "--top-p": "use -p top_p=VALUE",
    "--top_p": "use -p top_p=VALUE",
    "--seed": "use -p seed=VALUE",
    "--stop": "use -p stop=VALUE",
    "--tools": "use -p tools=VALUE",
    "--reasoning-effort": "use -p reasoning_effort=VALUE",
    "--max-completion-tokens": "use -p max_completion_tokens=VALUE",
    # misspelt
    "--modle": "did you mean '--model'?",
    "--modell": "did you mean '--model'?",
    "--sytem": "did you mean '--system'?",
    "--temprature": "did you mean '--temperature'?",
    "--max_tokens": "did you mean '--max-tokens'?",
    "--ouput": "did you mean '--output'?",
    "--timout": "did you mean '--timeout'?",
    "--retry": "did you mean '--retries'?",
    "--steam": "did you mean '--stream'?",
    "--dryrun": "did you mean '--dry-run'?",
    # never the opposite
    "--no-steam": "did you mean '--no-stream'?",
    "--nostream": "did you mean '--no-stream'?",
    "--no-streaming": "did you mean '--no-stream'?",
    "--nostdin": "did you mean '--no-stdin'?",
    "--no-quiet": "see xchat --help",
    "--no-append": "see xchat --help",
    "--noquiet": "see xchat --help",
    # nor something far away
    "--output-format": "see xchat --help",
    "--cache": "see xchat --help",
    "--color": "see xchat --help",
    "--async": "see xchat --help",
    "-c": "see xchat --help",
    "-5": "a prompt that begins with - goes after --",
}


@pytest.mark.parametrize("option", UNKNOWN)
def test_an_option_that_there_is_not(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    message = told(option, "x", monkeypatch=monkeypatch)
    assert message == f"no such option: {option}; {UNKNOWN[option]}"


def test_an_option_of_another_tool_is_status_2(api: Api, run: Run) -> None:
    message = "xchat: no such option: --api-key; use XAI_API_KEY\n"
    assert run("--api-key", "xai-0123456789", "Hi") == Result(b"", message, 2)
    assert api.requests == []


def only(name: str, way: str) -> str:
    return f"xchat: {name}: only the name is sent; to send the file: {way}\n"


NAMES = {
    "a word": (["Summarize", "a.txt"], only("a.txt", 'xchat "Summarize" <a.txt')),
    "a path": (["Summarize", "./no_dot"], only("./no_dot", 'xchat "Summarize" <./no_dot')),
    "an at sign": (["Summarize", "@a.txt"], only("@a.txt", 'xchat "Summarize" <a.txt')),
    "an at sign alone": (["@no_dot"], only("@no_dot", 'xchat "Summarize" <no_dot')),
    "several": (
        ["Compare", "a.txt", "ü.txt", "a.txt"],
        only("a.txt", 'xchat "Summarize" <a.txt'),
    ),
    "a descriptor": (["Compare", "/dev/fd/0"], only("/dev/fd/0", 'xchat "Summarize" </dev/fd/0')),
    "a system message": (["-s", "a.txt", "Hi"], only("a.txt", "-S a.txt")),
    "an at sign in it": (["-s", "@ü.txt", "Hi"], only("@ü.txt", "-S ü.txt")),
    "a file that there is not": (["Summarize", "b.txt", "@b", "and/or", "..."], ""),
    "a sentence": (["Summarize a.txt"], ""),
    "a word without a dot": (["Summarize", "no_dot"], ""),
    "a directory": (["What", "is", ".", "..", "./", "/"], ""),
    "a sentence of the system": (["-s", "Be brief.", "Hi."], ""),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_file_is_sent_with_a_warning(run: Run, file: File, name: str) -> None:
    for path in ("a.txt", "ü.txt", "no_dot"):
        file("text", path)
    args, warning = NAMES[name]
    result = run("--dry-run", *args)
    assert (result.err, result.status) == (warning, 0)
    assert run("-q", "--dry-run", *args) == Result(result.out, "", 0)


def test_a_substitution_of_the_shell_is_a_name(run: Run, file: File) -> None:
    file("text", "a.txt")
    script = 'exec "$@" --dry-run Compare /dev/fd/7 7<a.txt'
    run.command = ["sh", "-c", script, "sh", *run.command]
    result = run()
    assert result.err == only("/dev/fd/7", 'xchat "Summarize" </dev/fd/7')


def test_the_text_of_a_file_as_a_system_message(run: Run, file: File) -> None:
    rules = "Be brief.\n\n  Don't use 'no'.\n" * 10_000  # more than an argument may hold
    file(f"\ufeff{rules}", "rules.txt")
    file("Second", "more")
    file("system: F\nhistory: [user: U]\n", "c")
    args = ["-S", "rules.txt", "-f", "c", "-s", "S1", "--system-file", "more", "-s", "S2", "Hi"]
    body = body_of(run("--dry-run", *args))
    assert [[*message.values()] for message in body["messages"]] == [
        ["system", "S1"],
        ["system", "S2"],
        ["system", rules],
        ["system", "Second"],
        ["system", "F"],
        ["user", "U"],
        ["user", "Hi"],
    ]


def test_a_system_message_on_standard_input(run: Run) -> None:
    body = body_of(run("--dry-run", "-S", "-", "Hi", stdin=b"rules"))
    assert [message["content"] for message in body["messages"]] == ["rules", "Hi"]


def test_the_system_message_of_a_file_begins_a_conversation(api: Api, run: Run, file: File) -> None:
    api.will(reply(completion()))
    file("Be brief", "rules.txt")
    assert run("-af", "c.yaml", "-S", "rules.txt", "Q") == Result(b"Hello\n", "", 0)
    text = (run.home / "c.yaml").read_text()
    assert text == "- system: Be brief\n- user: Q\n- assistant: Hello\n"


BAD_RULES = {
    "missing": (["-S", "none"], "-S none: No such file or directory"),
    "a directory": (["-S", "."], "-S .: Is a directory"),
    "blank": (["-S", "blank"], "-S blank: is empty"),
    "no name": (["-S", ""], "-S: is empty"),
    "binary": (["-S", "binary"], "-S binary: binary data, not text: NUL at byte 7"),
    "read twice": (
        ["-S", "-", "-f", "-"],
        "'-' is given more than once, but standard input can be read only once",
    ),
    "read beside the prompt": (
        ["-S", "-", "-"],
        "'-' is given more than once, but standard input can be read only once",
    ),
    "not read": (["-nS", "-"], "'-' and -n cannot be combined"),
}


@pytest.mark.parametrize("name", BAD_RULES)
def test_a_wrong_system_file_is_one_line_and_nothing_is_sent(
    api: Api, run: Run, file: File, name: str
) -> None:
    file(" \n", "blank")
    file(b"\x7fELF\2\1\1\0\0\0", "binary")
    args, message = BAD_RULES[name]
    assert run(*args, "Hi", stdin=b"x") == Result(b"", f"xchat: {message}\n", 2)
    assert api.requests == []


OVERWRITTEN = {
    "a conversation": (["-f", "c"], "c", "c", "-f reads; -a appends to a conversation"),
    "by another path": (["-f", "c"], "./c", "c", "-f reads; -a appends to a conversation"),
    "by a link": (["-f", "c"], "symbolic", "c", "-f reads; -a appends to a conversation"),
    "by a hard link": (["-f", "hard"], "c", "c", "-f reads; -a appends to a conversation"),
    "one of two": (["-f", "d", "-f", "c"], "c", "c", "-f reads; -a appends to a conversation"),
    "an image": (["-i", "i.png"], "i.png", "i.png", "-i reads"),
    "rules": (["-S", "c"], "c", "c", "-S reads"),
    "a schema": (["--schema", "s"], "s", "s", "--schema reads"),
    "a field": (["-p", "tools=@s"], "s", "s", "-p reads"),
}


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_the_output_never_replaces_what_the_same_run_reads(
    api: Api, run: Run, file: File, tmp_path: Path, name: str
) -> None:
    for path in ("c", "d"):
        file("- user: U\n", path)
    file("{}", "s")
    file("x", "i.png")
    (tmp_path / "symbolic").symlink_to("c")
    os.link(tmp_path / "c", tmp_path / "hard")
    args, output, read, words = OVERWRITTEN[name]
    old = (tmp_path / read).read_bytes()
    for more in ([], ["--dry-run"]):
        result = run(*args, *more, "-o", output, "Hi")
        assert result == Result(b"", f"xchat: -o would replace {output}, which {words}\n", 2)
    assert (tmp_path / read).read_bytes() == old
    assert api.requests == []


def test_standard_input_may_be_edited_in_place(api: Api, run: Run, file: File) -> None:
    api.will(reply(completion()), reply(completion()))
    file("Helo", "n.txt")
    for args in (["-s", "Fix the spelling"], ["-S", "/dev/stdin", "Fix"]):
        with (run.home / "n.txt").open("rb") as stdin:
            assert run(*args, "-o", "n.txt", stdin=stdin) == Result(b"", "", 0)
    assert (run.home / "n.txt").read_text() == "Hello\n"


def test_the_output_may_be_a_device_or_another_file(api: Api, run: Run, file: File) -> None:
    api.will(reply(completion()), reply(completion()))
    file("- user: U\n", "c")
    assert run("-f", "c", "-o", "d") == Result(b"", "", 0)
    assert run("-f", "c", "-o", "/dev/null") == Result(b"", "", 0)


MISSING = {
    "click": ([], "xchat: click is missing; install it, as by: apt install python3-click\n"),
    "requests": (
        [],
        "xchat: requests is missing; install it, as by: apt install python3-requests\n",
    ),
    "yaml": (
        ["--dry-run", "-f", "c.yaml"],
        "xchat: yaml is missing; install it, as by: apt install python3-yaml\n",
    ),
}


@pytest.mark.parametrize("module", MISSING)
def test_a_module_that_is_not_installed(run: Run, file: File, module: str) -> None:
    file("- user: U\n", "c.yaml")
    args, message = MISSING[module]
    hidden = f"import sys; sys.modules['{module}'] = None; sys.argv[0] = 'xchat'; "
    script = f"{hidden}sys.path.insert(0, {str(TOP)!r}); import xchat; xchat.main()"
    command = [sys.executable, "-c", script, *args, "Hi"]
    env = {**run.env, "XAI_API_KEY": "xai-0123456789"}
    result = subprocess.run(command, env=env, cwd=run.home, capture_output=True, check=False)
    assert (result.stdout, result.stderr.decode(), result.returncode) == (b"", message, 2)
