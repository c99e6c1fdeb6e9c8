"""What people try first, and what they are told: texts, pipes, empty variables, addresses."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import File, Result, Run, Shell, body_of, needs_file
from network import HOST, Proxy
from server import STREAM_HEAD, Api, completion, reply, stream

HELLO = Result(b"Hello\n", "", 0)
KEY = "xai-abcDEF0123456789"
WAY_OUT = '; to send plain text, use standard input, as in: xchat "Summarize" <notes.txt'

LOG = """2026-08-22 12:00:01 INFO server: started on port 8080
2026-08-22 12:00:02 ERROR db: connection refused: retrying
2026-08-22 12:00:05 INFO server: stopped
"""
PYTHON = '''"""Say hello."""
import sys


def main() -> int:
    print("hello", file=sys.stderr)
    return 0
'''
PACKAGE = """{
  "name": "left-pad",
  "version": "1.3.0",
  "description": "Pad on the left",
  "main": "index.js",
  "scripts": {"test": "node test"},
  "license": "MIT"
}
"""
FRONT_MATTER = "---\ntitle: Notes\ndate: today\n---\n\n# Notes\n\nSome text: more of it.\n"
MARKDOWN = "# Notes\n\nSome *text*, and `code`.\n\n* one\n* two\n"
MEETING = "Present: Ann, Bob\nAgenda: the budget\n"
PLAIN = "Dear Ann,\nthank you for the letter.\n"
SCRIPT = "#!/bin/sh\nset -e\nif [ -f x ]; then\n\techo yes\nfi\n"
CSV = "name,age\nAnn,7\nBob,8\n"
HTML = "<!DOCTYPE html>\n<html><body>Hi: there</body></html>\n"
TEXTS = {
    "app.log": LOG,
    "main.py": PYTHON,
    "package.json": PACKAGE,
    "post.md": FRONT_MATTER,
    "README.md": MARKDOWN,
    "meeting.txt": MEETING,
    "letter.txt": PLAIN,
    "run.sh": SCRIPT,
    "table.csv": CSV,
    "page.html": HTML,
    "asterisks.md": "* eggs\n* milk\n",
    "emphasis.md": "*very* important\n",
    "one.txt": "hello",
    "number.txt": "42\n",
    "half.json": '{"name": "left-pad", "version"',
    "half.jsonl": '{"role": "user", "content": "a"}\n{"role": "us',
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_given_as_a_conversation(api: Api, run: Run, file: File, name: str) -> None:
    result = run("-f", file(TEXTS[name], name), "Summarize")
    assert (result.out, result.status, result.err.count("\n")) == (b"", 2, 1)
    assert result.err.startswith(f"xchat: {name}: ")
    assert result.err.endswith(f"{WAY_OUT}\n")
    assert api.requests == []


WORDS = {
    "package.json": "not a conversation: it has no known key",
    "meeting.txt": "not a conversation: it has no known key",
    "post.md": "line 4: a second YAML document",
    "letter.txt": "expected a list of messages, or a mapping with 'system' and 'history'; found"
    ' "Dear Ann, thank you for the letter."',
    "one.txt": "expected a list of messages, or a mapping with 'system' and 'history';"
    ' found "hello"',
}


@pytest.mark.parametrize("name", WORDS)
def test_a_text_that_parses_is_told_what_it_is(run: Run, file: File, name: str) -> None:
    result = run("--dry-run", "-f", file(TEXTS[name], name), "Summarize")
    assert result == Result(b"", f"xchat: {name}: {WORDS[name]}{WAY_OUT}\n", 2)


OTHERS = {
    "json log": '{"level": "info", "message": "started"}\n',
    "list": "- eggs\n- milk\n",
    "twice": "Note: eggs\nNote: milk\n",
    "exclamation": "!important eggs\n",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_text_that_looks_like_yaml(run: Run, file: File, name: str) -> None:
    result = run("--dry-run", "-f", file(OTHERS[name]), "Summarize")
    assert (result.out, result.status, result.err.count("\n")) == (b"", 2, 1)
    assert result.err.endswith(f"{WAY_OUT}\n")


def test_the_way_out_works(api: Api, run: Run, tmp_path: Path) -> None:
    api.will(reply(completion()))
    (tmp_path / "notes.txt").write_text(LOG)
    with (tmp_path / "notes.txt").open("rb") as notes:
        assert run("Summarize", stdin=notes) == HELLO
    assert api.body["messages"] == [{"role": "user", "content": f"Summarize\n\n{LOG}"}]


EMPTY = "xchat: standard input was empty; only the arguments are sent; use -n to ignore it\n"


@pytest.mark.parametrize("stdin", [b"", b"\n", b" \t\r\n"])
def test_words_with_an_empty_pipe_get_one_warning(api: Api, run: Run, stdin: bytes) -> None:
    api.will(reply(completion()), reply(completion()))
    assert run("Review", "this", stdin=stdin) == Result(b"Hello\n", EMPTY, 0)
    assert run("-q", "Review", "this", stdin=stdin) == HELLO
    contents = [request.json["messages"][0]["content"] for request in api.requests]
    assert contents == ["Review this"] * 2


def test_words_with_an_empty_file_get_one_warning(api: Api, run: Run, tmp_path: Path) -> None:
    api.will(reply(completion()))
    (tmp_path / "diff").touch()
    with (tmp_path / "diff").open("rb") as empty:
        assert run("Review this", stdin=empty) == Result(b"Hello\n", EMPTY, 0)


def test_what_is_no_pipe_gets_no_warning(api: Api, run: Run) -> None:
    api.will(*[reply(completion()) for _ in range(3)])
    assert run("Hi") == HELLO  # standard input is /dev/null
    assert run("-n", "Hi", stdin=b"") == HELLO
    run.command = ["sh", "-c", 'exec "$@" <&-', "sh", *run.command]
    assert run("Hi") == HELLO


def test_a_pipe_that_nobody_writes_to_ends_with_the_timeout(api: Api, run: Run) -> None:
    process = run.start("--timeout", "1", "Hi", stdin=subprocess.PIPE)
    assert process.wait(20) == 2
    message = "xchat: standard input: nothing came within 1 s; use -n to ignore it\n"
    assert (process.stdout.read(), process.stderr.read().decode()) == (b"", message)
    process.stdin.close()
    assert api.requests == []


def test_one_byte_in_time_is_waited_for_to_the_end(run: Run) -> None:
    process = run.start("--dry-run", "--timeout", "2", "Hi", stdin=subprocess.PIPE)
    process.stdin.write(b"x")
    process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2.5)
    out, err = process.communicate(b"y", timeout=20)
    assert (err, process.returncode) == (b"", 0)
    assert b'"content":"Hi\\n\\nxy"' in out


WAITING = "xchat: still waiting for standard input"


def test_a_pipe_that_is_silent_for_10_seconds_gets_one_hint(run: Run) -> None:
    """All that has to wait that long does so at the same time."""
    cases: dict[str, list[str]] = {
        "words": ["Hi"],
        "none": [],
        "file": ["-f", "-", "Hi"],
        "quiet": ["-q", "Hi"],
        "silent for ever": ["--timeout", "11", "Hi"],
    }
    start = time.monotonic()
    processes = {
        name: run.start("--dry-run", *args, stdin=subprocess.PIPE) for name, args in cases.items()
    }
    screen, there = pty.openpty()
    processes["terminal"] = run.start("--dry-run", "Hi", stdin=subprocess.PIPE, stderr=there)
    os.close(there)
    hint = processes["words"].stderr.readline().decode()
    assert time.monotonic() - start >= 10
    assert processes["none"].stderr.readline().decode() == f"{WAITING}\n"
    assert processes["file"].stderr.readline().decode() == f"{WAITING}\n"
    assert read_line(screen) == f"{WAITING}; use -n to ignore it\r\n"
    assert processes["silent for ever"].wait(20) == 2
    silent = processes.pop("silent for ever")
    assert silent.stderr.read().decode() == (
        f"{WAITING}; use -n to ignore it\n"
        "xchat: standard input: nothing came within 11 s; use -n to ignore it\n"
    )
    silent.stdin.close()
    assert hint == f"{WAITING}; use -n to ignore it\n"
    for name, process in processes.items():
        out, err = process.communicate(b"- user: late", timeout=20)
        assert (err or b"", process.returncode) == (b"", 0), name
        prompt = json.loads(out)["messages"][0]["content"]
        expected = {"none": "- user: late", "file": "late"}
        assert prompt == expected.get(name, "Hi\n\n- user: late"), name
    os.close(screen)


def read_line(screen: int) -> str:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(screen, 1)
    return line.decode()


RAW = [
    ('{"system": "one\ntwo"}', 1),
    ('[\n {"user": "one\r\ntwo"}\n]', 2),
    ('[{"user": "a"},\n {"user": "one\n\ntwo"},\n]', 2),
    ('{"user": "a"}\n{"user": "one\ntwo"}\n', 2),
    ('{"model": "m",\n\n "system": "one\n"}', 3),
    ('{"user\n": "c"}', 1),
    ('{"model": grok-4, "messages": [\n {"user": "one\ntwo"}]}', 2),  # no JSON before that
    ('[{"user": "ok"}, {user: "a\nb"}]', 1),
]


@pytest.mark.parametrize(("text", "line"), RAW, ids=range(len(RAW)))
def test_a_line_break_inside_a_string_of_json(run: Run, file: File, text: str, line: int) -> None:
    result = run("--dry-run", "-f", file(text), "Hi")
    message = f"xchat: c: line {line}: a line break in a string; write \\n\n"
    assert result == Result(b"", message, 2)


def test_a_line_break_inside_a_string_of_a_schema_or_a_field(run: Run, file: File) -> None:
    name = file('{"type": "one\ntwo"}')
    message = "c: line 1: a line break in a string; write \\n"
    assert run("--dry-run", "--schema", name, "Hi") == Result(b"", f"xchat: {message}\n", 2)
    result = run("--dry-run", "-p", f"tools=@{name}", "Hi")
    assert result == Result(b"", f"xchat: -p tools: {message}\n", 2)


def test_a_line_break_inside_a_string_of_yaml_is_yaml(run: Run, file: File) -> None:
    body = body_of(run("--dry-run", "-f", file('system: "one\n  two"\n'), "Hi"))
    assert body["messages"][0]["content"] == "one two"


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_20000_unknown_fields_get_one_warning(run: Run, file: File, form: str) -> None:
    fields = {"model": "m", **{f"f{number}": number for number in range(20_000)}}
    if form == "json":
        name = file(json.dumps(fields))
    else:
        name = file("".join(f"{key}: {value}\n" for key, value in fields.items()))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run("--dry-run", "-f", name, "Hi", timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    warning = "unknown request fields, sent as given: f0, f1, f2 and 19997 more"
    assert (result.err, result.status) == (f"xchat: c: {warning}\n", 0)
    assert len(json.loads(result.out)) == 20_002
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


@pytest.mark.parametrize("option", ["-m", "-o", "-f", "-i", "--schema"])
def test_an_empty_value_is_told_to_be_empty(api: Api, run: Run, option: str) -> None:
    process = run.start(option, "", "Hi", stdin=subprocess.PIPE)
    assert process.wait(20) == 2
    assert process.stderr.read().decode() == f"xchat: {option}: is empty\n"
    assert process.stdout.read() == b""
    process.stdin.close()
    assert api.requests == []


def test_one_empty_value_among_several_is_told(run: Run) -> None:
    for option in ("-f", "-i"):
        result = run("--dry-run", option, "", option, "x", "Hi")
        assert result == Result(b"", f"xchat: {option}: is empty\n", 2)


SCHEMA = {"type": "object", "properties": {"ä": {"type": "string"}}}


@pytest.mark.parametrize("form", ["{}", " \n{}\n"])
def test_a_schema_may_be_the_argument_itself(api: Api, run: Run, form: str) -> None:
    api.will(reply(completion('{"ä": "b"}')))
    schema = form.replace("{}", json.dumps(SCHEMA, ensure_ascii=False))
    assert run("--schema", schema, "Hi") == Result('{"ä": "b"}\n'.encode(), "", 0)
    assert api.body["response_format"]["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize("schema", ['{"type": "object"', '{"type" "object"}', "{", '{"a": NaN}'])
def test_a_schema_in_the_argument_that_is_malformed(run: Run, schema: str) -> None:
    result = run("--dry-run", "--schema", schema, "Hi")
    assert (result.out, result.status, result.err.count("\n")) == (b"", 2, 1)
    assert result.err.startswith("xchat: --schema: ")


def test_accept_names_first_what_is_asked_for(api: Api, run: Run) -> None:
    api.will(reply(completion()), [STREAM_HEAD + stream("Hello")])
    assert run("Hi") == HELLO
    assert run("--stream", "Hi") == HELLO
    accepts = [request.headers["accept"] for request in api.requests]
    assert accepts == [
        "application/json, text/event-stream",
        "text/event-stream, application/json",
    ]


AFTER = "; a prompt that begins with - goes after --"


@pytest.mark.parametrize("prompt", ["-x is what?", "-5 degrees is how much in Fahrenheit?"])
def test_a_prompt_that_looks_like_an_option(api: Api, run: Run, prompt: str) -> None:
    api.will(reply(completion()))
    result = run(prompt)
    assert (result.out, result.status, result.err.count("\n")) == (b"", 2, 1)
    assert result.err.startswith("xchat: no such option: -")
    assert result.err.endswith(f"{AFTER}\n")
    assert run("--", prompt) == HELLO
    assert api.body["messages"] == [{"role": "user", "content": prompt}]


def test_an_option_that_is_misspelt_gets_no_such_advice(run: Run) -> None:
    result = run("--strem", "Hi")
    assert (result.out, result.status) == (b"", 2)
    assert "goes after --" not in result.err


def test_the_version_is_told(run: Run) -> None:
    long = run("--version")
    assert re.fullmatch(rb"xchat \d+\.\d+\.\d+\n", long.out)
    assert run("-V") == long == Result(long.out, "", 0)


APPENDS = [
    ("exec >log; echo one; xchat -o {} Hi; echo two", "/dev/stdout"),
    ("exec >log; echo one; xchat -o {} Hi; echo two", "/dev/fd/1"),
    pytest.param(
        "exec >log; echo one; xchat -o {} Hi; echo two",
        "/proc/self/fd/1",
        marks=needs_file("/proc/self"),
    ),
    ("exec 3>log; echo one >&3; xchat -o {} Hi; echo two >&3", "/dev/fd/3"),
    ("exec 2>log; echo one >&2; xchat -o {} Hi; echo two >&2", "/dev/stderr"),
    ("exec 2>log; echo one >&2; xchat -o {} Hi; echo two >&2", "/dev/fd/2"),
]


@pytest.mark.parametrize(("script", "name"), APPENDS)
def test_a_redirected_file_is_added_to_where_the_shell_is(
    shell: Shell, shell_api: Api, tmp_path: Path, script: str, name: str
) -> None:
    shell_api.will(reply(completion()))
    (tmp_path / "log").write_text("an old and much longer line than those that come\n")
    inode = (tmp_path / "log").stat().st_ino
    result = shell(script.format(name))
    assert (result.out, result.err, result.status) == (b"", "", 0)
    assert (tmp_path / "log").read_text() == "one\nHello\ntwo\n"
    assert (tmp_path / "log").stat().st_ino == inode
    assert sorted(os.listdir(tmp_path)) == ["bin", "log"]


def test_a_file_that_the_shell_appends_to_keeps_its_lines(
    shell: Shell, shell_api: Api, tmp_path: Path
) -> None:
    shell_api.will(reply(completion()))
    (tmp_path / "log").write_text("one\n")
    assert shell("xchat -o /dev/stdout Hi >>log; echo two >>log").status == 0
    assert (tmp_path / "log").read_text() == "one\nHello\ntwo\n"


def test_a_failure_adds_nothing_to_a_redirected_file(
    shell: Shell, shell_api: Api, tmp_path: Path
) -> None:
    shell_api.will(reply({"error": "no"}, "400 Bad Request"))
    result = shell("exec 3>log; echo one >&3; xchat -o /dev/fd/3 Hi")
    message = f"xchat: {shell_api.host}: 400 Bad Request: no (request id req-7)\n"
    assert result == Result(b"", message, 4)
    assert (tmp_path / "log").read_text() == "one\n"


@pytest.mark.parametrize(
    "name",
    [
        "/dev/fd/9",
        pytest.param("/proc/self/fd/9", marks=needs_file("/proc/self")),
        "/dev/fd/99999999999999999999",
    ],
)
def test_a_descriptor_that_is_not_open_is_told_before_a_reply_is_paid_for(
    api: Api, run: Run, name: str
) -> None:
    api.will(reply(completion()))
    result = run("-o", name, "Hi")
    api.scripts.clear()
    assert (result.out, result.status, result.err.count("\n")) == (b"", 2, 1)
    assert result.err.startswith(f"xchat: {name}: ")
    assert api.requests == []


def test_a_reader_that_has_gone_ends_it_as_without_the_option(api: Api, run: Run) -> None:
    api.will(reply(completion()), reply(completion()))
    for args in ([], ["-o", "/dev/stdout"]):
        read, write = os.pipe()
        os.close(read)
        result = run(*args, "Hi", stdout=write)
        os.close(write)
        assert (result.err, result.status) == ("", -signal.SIGPIPE)


PLAIN_URLS = ["http://ollama:11434/v1", "http://192.168.1.20:8080/v1", "http://[2001:db8::1]/v1"]


@pytest.mark.parametrize("url", [*PLAIN_URLS, "http://localhost.test/v1", "http://0.0.0.0/v1"])
def test_plain_http_to_another_host_with_a_key(run: Run, url: str) -> None:
    process = run.start(stdin=-1, env={"XCHAT_BASE_URL": url, "XAI_API_KEY": KEY})
    assert process.wait(20) == 2
    message = (
        "xchat: XCHAT_BASE_URL: plain http would show the key to the network: use https,"
        " or unset XAI_API_KEY\n"
    )
    assert (process.stdout.read(), process.stderr.read().decode()) == (b"", message)
    process.stdin.close()


@pytest.mark.parametrize("url", [*PLAIN_URLS, f"http://{HOST}/v1"])
def test_plain_http_to_any_host_without_a_key(run: Run, url: str) -> None:
    """A proxy stands for the network, which the test does not have."""
    with Proxy(*reply(completion())) as proxy:
        env = {"XCHAT_BASE_URL": url, "HTTP_PROXY": f"http://{proxy.host}", "XAI_API_KEY": " "}
        assert run("Hi", env=env) == HELLO
    assert proxy.asked[0].startswith(f"POST {url}/chat/completions HTTP/1.1\r\n")
    assert "authorization" not in proxy.asked[0].lower()


def test_plain_http_to_loopback_with_a_key(api: Api, run: Run) -> None:
    api.key = KEY
    api.will(reply(completion()))
    assert run("Hi", env={"XAI_API_KEY": KEY}) == HELLO


NO_KEY = (
    "xchat: no API key: set XAI_API_KEY, or XAI_API_KEY_FILE to a file that holds it"
    " (keys: https://console.x.ai)\n"
)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"XCHAT_BASE_URL": ""},
        {"XCHAT_BASE_URL": "https://api.x.ai/v1"},
        {"XCHAT_BASE_URL": "https://API.x.ai:443/v1/"},
    ],
    ids=str,
)
def test_the_api_itself_wants_a_key(run: Run, env: dict[str, str]) -> None:
    assert run("Hi", env=env) == Result(b"", NO_KEY, 2)


def test_whether_another_server_wants_a_key_is_its_own_affair(api: Api, run: Run) -> None:
    api.will(reply(completion()), reply({"error": "no key"}, "401 Unauthorized"))
    assert run("Hi") == HELLO
    message = "401 Unauthorized: no key; no key was sent (request id req-7)"
    assert run("Hi") == Result(b"", f"xchat: {api.host}: {message}\n", 4)
    assert all("authorization" not in request.headers for request in api.requests)
