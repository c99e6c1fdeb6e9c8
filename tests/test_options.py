"""-p, --schema, -i in the request; -x, --json, -o, -u for the reply; and all of them together."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import os
import pty
import re
import signal
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, Run
from server import HANG, STREAM_HEAD, USAGE, Api, chunk, completion, event, reply, stream

File = Callable[..., str]


def body_of(result: Result) -> Any:
    assert (result.err, result.status) == ("", 0)
    return json.loads(result.out)


# -p ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("7", 7),
        ("0.5", 0.5),
        ("-1e3", -1000),
        ("true", True),
        ("null", None),
        ('["a", "b"]', ["a", "b"]),
        (' {"a": {}} ', {"a": {}}),
        ('"7"', "7"),
        ('"@x"', "@x"),
        ("text", "text"),
        ("", ""),
        ("a=b", "a=b"),
        ("True", "True"),
        ("NaN", "NaN"),
        ("[1,]", "[1,]"),
        ("1 2", "1 2"),
        ("x@y", "x@y"),
        ("é🌍", "é🌍"),
    ],
)
def test_a_value_is_json_when_it_parses_as_json_else_text(run: Run, value: str, sent: Any) -> None:
    assert body_of(run("--dry-run", "-p", f"user={value}", "Hi"))["user"] == sent


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ('{"type": "json_object"}', {"type": "json_object"}),
        ("type: json_object  # a comment\n", {"type": "json_object"}),
        ("- one\n- two\n", ["one", "two"]),
        ("just text\n", "just text"),
    ],
)
def test_a_value_may_come_from_a_json_or_yaml_file(
    run: Run, file: File, content: str, value: Any
) -> None:
    name = file(content, "a=@b")
    assert body_of(run("--dry-run", "-p", f"user=@{name}", "Hi"))["user"] == value
    out = run("--dry-run", "-p", "user=@-", "Hi", stdin=content.encode())
    assert body_of(out)["user"] == value


def test_a_later_param_wins_and_any_param_wins_over_a_file(run: Run, file: File) -> None:
    name = file("seed: 1\nmax_tokens: 5\ntemperature: 1\n")
    args = ["-p", "seed=2", "--param", "seed=3", "-p", "max_completion_tokens=9", "-t", "0"]
    body = body_of(run("--dry-run", "-f", name, *args, "Hi"))
    del body["messages"]
    assert body == {
        "model": "grok-4",
        "temperature": 0,
        "seed": 3,
        "max_completion_tokens": 9,
    }


def test_a_param_asks_for_a_stream(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD + stream("Hello")])
    assert run("-p", "stream=true", "Hi") == Result(b"Hello\n", "", 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("temprature", "; did you mean 'temperature'?"),
        ("max_new_thing", ""),
    ],
)
def test_an_unknown_field_is_sent_with_a_warning(
    api: Api, run: Run, name: str, message: str
) -> None:
    api.extra_fields = {name}
    api.will(reply(completion()), reply(completion()))
    warning = f"xchat: -p: unknown request field '{name}', sent as given{message}\n"
    assert run("-p", f"{name}=1", "Hi") == Result(b"Hello\n", warning, 0)
    assert api.body[name] == 1
    assert run("-q", "-p", f"{name}=1", "Hi") == Result(b"Hello\n", "", 0)


DEEP = "[" * 60_000


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-p", "seed"], "-p seed: expected NAME=VALUE or NAME=@FILE"),
        (["-p", "=7"], "-p =7: expected NAME=VALUE or NAME=@FILE"),
        (["-p", "seed=@none"], "-p seed: none: No such file or directory"),
        (["-p", "seed=@empty"], "-p seed: empty: empty; expected JSON or YAML"),
        (["-p", 'tools={"a":1,"a":2}'], "-p tools: duplicate key 'a'"),
        (["-p", f"tools={DEEP}"], "-p tools: nested more than 100 levels deep"),
        (
            ["-p", 'user="\\ud800"'],
            "-p user: holds half of a surrogate pair, which is no character",
        ),
        (
            ["-p", "messages=[]"],
            "-p messages: not a field for an option; messages come from -s, -f and the prompt",
        ),
        (
            ["-p", "system=x"],
            "-p system: not a field for an option; messages come from -s, -f and the prompt",
        ),
        (["-p", "mesages=[]"], "-p mesages: unknown key 'mesages'; did you mean 'messages'?"),
        (
            ["-p", "model=a", "-m", "b"],
            "-p model: the option for this field is given too; drop one",
        ),
        (
            ["-p", "max_tokens=1", "--max-tokens", "2"],
            "-p max_tokens: the option for this field is given too; drop one",
        ),
        (
            ["-p", "stream=true", "--no-stream"],
            "-p stream: the option for this field is given too; drop one",
        ),
        (
            ["-p", "response_format=1", "--schema", "schema"],
            "-p response_format: the option for this field is given too; drop one",
        ),
        (["--json", "-x"], "--json writes all that came and -x a part of the text; drop one"),
        (["--schema", "none"], "none: No such file or directory"),
        (["--schema", "list"], "list: expected a JSON Schema, found a list"),
        (["--schema", "date"], "date: YAML reads 2024-01-01 as a date; quote it"),
        (["-i", "none.png"], "none.png: No such file or directory"),
        (["-i", "schema"], "schema: not an image in JPEG, PNG or WebP"),
        (["-i", "ftp://x/y.png"], "ftp://x/y.png: No such file or directory"),
        (["-f-", "-i-"], "'-' is given more than once, but standard input can be read only once"),
        (
            ["-p", "a=@-", "-"],
            "'-' is given more than once, but standard input can be read only once",
        ),
        (["--schema", "-", "-n"], "'-' reads standard input and -n forbids it; drop one"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_sent(
    api: Api, run: Run, file: File, args: list[str], message: str
) -> None:
    file("{}", "schema")
    file("[]", "list")
    file("const: 2024-01-01", "date")
    file("", "empty")
    assert run(*args, "Hi", stdin=b"{}") == Result(b"", f"xchat: {message}\n", 2)
    assert api.requests == []


# --schema ------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
YAML_SCHEMA = "type: object\nproperties:\n  name: {type: string}\nrequired: [name]\n"


@pytest.mark.parametrize("content", [json.dumps(SCHEMA), YAML_SCHEMA])
def test_a_schema_becomes_the_response_format(api: Api, run: Run, file: File, content: str) -> None:
    api.will(reply(completion('{"name": "Ada"}')))
    assert run("--schema", file(content), "Who?") == Result(b'{"name": "Ada"}\n', "", 0)
    assert api.body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "reply", "schema": SCHEMA, "strict": True},
    }


@pytest.mark.parametrize("args", [[], ["--stream"], ["-x"], ["--json"], ["-o", "out"]])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ada", "the reply is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ('{"name": NaN}', "the reply is not JSON: NaN is not JSON"),
    ],
)
def test_with_a_schema_the_reply_must_be_json(
    api: Api, run: Run, file: File, args: list[str], text: str, message: str
) -> None:
    is_stream = "--stream" in args
    api.will([STREAM_HEAD + stream(text)] if is_stream else reply(completion(text)))
    result = run("--schema", file("{}"), *args, "Who?")
    assert (result.err, result.status) == (f"xchat: {message}\n", 1)
    out = json.dumps(completion(text)) if args == ["--json"] else "" if "-o" in args else text
    assert result.out.decode() == (out and out + "\n")
    assert not (run.home / "out").exists()


def test_with_extract_what_is_extracted_must_be_json(api: Api, run: Run, file: File) -> None:
    api.will(*[reply(completion('Here:\n```json\n{"a": 1}\n```\n'))] * 2)
    assert run("--schema", file("{}"), "-x", "Hi") == Result(b'{"a": 1}\n', "", 0)
    assert run("--schema", file("{}"), "Hi").status == 1


# -i ------------------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
IMAGES = {"png": PNG, "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF", "webp": b"RIFF\x0a\0\0\0WEBPVP8 "}


def image_part(url: str) -> Any:
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(name: str, data: bytes) -> str:
    return f"data:image/{name};base64,{base64.b64encode(data).decode()}"


def test_images_follow_the_text_of_the_prompt_as_parts(api: Api, run: Run, file: File) -> None:
    urls = ["https://example.org/a.gif", "HTTP://example.org/b", "data:image/png;base64,AA=="]
    files = [
        arg for name, data in IMAGES.items() for arg in ("-i", file(data, f"no-suffix-{name}"))
    ]
    api.will(reply(completion()))
    args = [*files, *(arg for url in urls for arg in ("--image", url))]
    assert run("-s", "S", *args, "What", "is this?") == Result(b"Hello\n", "", 0)
    parts = [image_part(data_url(name, data)) for name, data in IMAGES.items()]
    assert api.body["messages"] == [
        {"role": "system", "content": "S"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                *parts,
                *map(image_part, urls),
            ],
        },
    ]


def test_an_image_may_be_standard_input(run: Run) -> None:
    body = body_of(run("--dry-run", "-i", "-", "What?", stdin=PNG))
    text = {"type": "text", "text": "What?"}
    assert body["messages"][0]["content"] == [text, image_part(data_url("png", PNG))]


def test_an_image_alone_is_a_prompt(run: Run, file: File) -> None:
    body = body_of(run("--dry-run", "-n", "-i", file(PNG), "-s", "Read it"))
    assert body["messages"][1] == {"role": "user", "content": [image_part(data_url("png", PNG))]}


# -x ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no code", "no code\n"),
        ("inline ``` code ``` here", "inline ``` code ``` here\n"),
        ("Do:\n```sh\nls\n```\nor\n```\nno\n```\n", "ls\n"),
        ("```\none\n\n  two\n```", "one\n\n  two\n"),
        ("~~~ python title=`x`\n1\n```\n~~~\n", "1\n```\n"),
        ("````md\n```\ninner\n```\n````\n", "```\ninner\n```\n"),
        ("```\none\n`````  \ntwo", "one\n"),
        ("```\none\n``` not an end\ntwo\n```", "one\n``` not an end\ntwo\n"),
        ("1. Do\n\n   ```sh\n   ls\n     -l\n   ```\n", "ls\n  -l\n"),
        ("```sh\r\nls\r\n```\r\n", "ls\r\n"),
        ("```sh\nnever closed", "never closed\n"),
        ("```one` two\n```\nthree\n```", "three\n"),
        ("Run:\n\n- ```sh\n  ls\n  ```\n\nThen:\n```\nno\n```\n", "ls\n"),
        ("1. ```sh\n   make\n     all\n   ```\n2. ```sh\n   no\n   ```\n", "make\n  all\n"),
        ('```\n"""\n    ```\n    x\n    ```\n"""\n```', '"""\n    ```\n    x\n    ```\n"""\n'),
        ("``\nno\n``", "``\nno\n``\n"),
        ("é\n```\n🌍\u2028\n```", "🌍\u2028\n"),
    ],
)
def test_the_inside_of_the_first_fenced_block_is_extracted(
    api: Api, run: Run, text: str, code: str
) -> None:
    api.will(reply(completion(text)), [STREAM_HEAD + stream(*text)])
    assert run("-x", "Hi") == Result(code.encode(), "", 0)
    assert run("-x", "--stream", "Hi") == Result(code.encode(), "", 0)


def test_an_empty_block_is_no_reply(api: Api, run: Run) -> None:
    api.will(reply(completion("Do:\n```\n\n```\n")))
    assert run("-x", "Hi") == Result(b"", "xchat: the code block is empty\n", 1)


def test_extracting_from_a_reply_that_is_cut_off(api: Api, run: Run) -> None:
    api.will(reply(completion("Do:\n```sh\nls", finish_reason="length")))
    result = run("-x", "Hi")
    assert (result.out, result.status) == (b"ls\n", 1)


def test_20_mb_without_a_block_are_extracted_in_time(api: Api, run: Run) -> None:
    text = "   `` ~~ \n" * 2_000_000
    api.will(reply(completion(text)))
    assert run("-x", "Hi", timeout=20).out == text.encode()


# --json --------------------------------------------------------------------------------------

BODIES = [
    json.dumps(completion(), indent=1).encode() + b"\n",
    b'\n {"choices":[{"message":{"content":"\\u00e9\\ud83c\\udf0d"}}],"x":1e400,"x":2}',
    b"\xef\xbb\xbf" + json.dumps(completion("\x1b[1m")).encode(),
    b'{"choices":[{"message":{"content":"\xff\xe9"}}]}\n',
]


@pytest.mark.parametrize("body", BODIES)
def test_json_is_the_body_as_it_came(api: Api, run: Run, body: bytes) -> None:
    api.will(
        reply(body), reply(gzip.compress(body), content_encoding="gzip", content_type="text/plain")
    )
    out = body if body.endswith(b"\n") else body + b"\n"
    assert run("--json", "Hi") == Result(out, "", 0)
    assert run("--json", "Hi", env={"LC_ALL": "C"}) == Result(out, "", 0)


def test_json_of_a_stream_is_its_events_as_they_come(api: Api, run: Run) -> None:
    gate = threading.Event()
    first = b": comment\r\n" + event(chunk(delta={"reasoning_content": "Hm"}))
    rest = stream("a", "\x80") + b"\xff after the end"
    api.will([STREAM_HEAD + first, gate, rest])
    process = run.start("--json", "--stream", "Hi")
    assert process.stdout.read(len(first)) == first
    gate.set()
    out, err = process.communicate(timeout=20)
    assert out.startswith(rest[: rest.index(b"[DONE]")])
    assert (err, process.returncode) == (b"", 0)


@pytest.mark.parametrize(
    ("answer", "out", "status"),
    [
        (reply(completion("Hel", finish_reason="length")), None, 1),
        (reply(b'{"choices": [', content_length="99"), b'{"choices": [\n', 1),
        (reply(b"<html>\xff"), b"<html>\xff\n", 1),
        (reply({"error": "no", "code": "x"}), b'{"error": "no", "code": "x"}\n', 5),
        (reply({"error": "no"}, "400 Bad Request"), b"", 4),
        ([STREAM_HEAD + event(chunk("Hel"))], event(chunk("Hel")), 1),
    ],
)
def test_json_of_a_reply_that_is_not_whole(
    api: Api, run: Run, answer: list[Any], out: bytes | None, status: int
) -> None:
    api.will(answer)
    result = run("--json", "Hi")
    if out is None:
        out = json.dumps(completion("Hel", finish_reason="length")).encode() + b"\n"
    assert (result.out, result.status) == (out, status)
    assert result.err.count("\n") == 1


# -o ------------------------------------------------------------------------------------------


def test_the_output_takes_the_place_of_the_file_and_keeps_its_mode(
    api: Api, run: Run, tmp_path: Path
) -> None:
    api.will(reply(completion("One")), reply(completion("Two")), reply(completion("Three")))
    run.command = ["sh", "-c", 'umask 027; exec "$@"', "sh", *run.command]
    out = tmp_path / "out"
    assert run("-o", "out", "Hi") == Result(b"", "", 0)
    assert (out.read_text(), stat.S_IMODE(out.stat().st_mode)) == ("One\n", 0o640)
    out.chmod(0o604)
    before = out.stat().st_ino
    assert run("-o", "./out", "Hi") == Result(b"", "", 0)
    assert (out.read_text(), stat.S_IMODE(out.stat().st_mode)) == ("Two\n", 0o604)
    assert out.stat().st_ino != before
    (tmp_path / "link").symlink_to("out")
    assert run("-o", "link", "Hi").status == 0
    assert (tmp_path / "link").is_symlink()
    assert out.read_text() == "Three\n"
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]


NOT_WHOLE: list[Any] = [
    reply(completion("Hel", finish_reason="length")),
    reply(completion(None)),
    reply(b"{"),
    reply({"error": "no"}, "400 Bad Request"),
    [STREAM_HEAD + event(chunk("Hel"))],
    [],
]


@pytest.mark.parametrize("answer", NOT_WHOLE)
def test_a_failure_leaves_the_file_as_it_was(
    api: Api, run: Run, file: File, tmp_path: Path, answer: list[Any]
) -> None:
    name = file("yesterday's", "report")
    api.will(answer, answer)
    result = run("-o", name, "Hi")
    assert (result.out, result.err.count("\n")) == (b"", 1)
    assert result.status != 0
    assert (tmp_path / name).read_text() == "yesterday's"
    assert run("-o", "new", "Hi").status == result.status
    assert os.listdir(tmp_path) == [name]


def test_a_full_disk_leaves_the_file_as_it_was(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    name = file("yesterday's", "report")
    api.will(reply(completion("x" * 9999)))
    run.command = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", *run.command]
    assert run("-o", name, "Hi") == Result(b"", "xchat: report: File too large\n", 1)
    assert (tmp_path / name).read_text() == "yesterday's"
    assert os.listdir(tmp_path) == [name]


def test_a_turn_that_cannot_be_added_leaves_the_output_as_it_was(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    file("yesterday's", "report")
    (tmp_path / "c").mkdir()
    file("- user: a\n", "c/c")
    gate = threading.Event()
    api.will([gate, *reply(completion())])
    process = run.start("-o", "report", "-af", "c/c", "Hi")
    while not api.requests:
        assert process.poll() is None
    file("broken", "c/c")
    gate.set()
    assert process.wait(20) == 1
    assert (tmp_path / "report").read_text() == "yesterday's"
    assert sorted(os.listdir(tmp_path)) == ["c", "report"]


def test_a_device_or_a_pipe_is_written_to(api: Api, run: Run, tmp_path: Path) -> None:
    api.will(*[reply(completion()) for _ in range(4)])
    assert run("-o", "/dev/null", "Hi") == Result(b"", "", 0)
    assert run("-o", "/dev/stdout", "Hi") == Result(b"Hello\n", "", 0)
    assert run("-o", "-", "Hi") == Result(b"Hello\n", "", 0)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(tmp_path / "pipe")
    process = run.start("-o", "pipe", "Hi")
    assert (tmp_path / "pipe").read_text() == "Hello\n"
    assert process.wait(20) == 0


def test_the_output_needs_no_standard_output(api: Api, run: Run, tmp_path: Path) -> None:
    api.will(reply(completion()))
    run.command = ["sh", "-c", 'exec "$@" >&-', "sh", *run.command]
    assert run("-o", "out", "Hi") == Result(b"", "", 0)
    assert (tmp_path / "out").read_text() == "Hello\n"


def test_an_interrupt_leaves_no_file_behind(api: Api, run: Run, tmp_path: Path) -> None:
    gate = threading.Event()
    api.will([gate, *reply(completion())])
    process = run.start("-o", "out", "Hi")
    while not api.requests:
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM
    gate.set()
    assert os.listdir(tmp_path) == []


# -u ------------------------------------------------------------------------------------------

FACTS = {
    "model": "grok-4.7",
    "prompt_tokens": 197,
    "completion_tokens": 2,
    "reasoning_tokens": 146,
    "total_tokens": 345,
    "cost_usd": 0.00041215,
    "request_id": "req-7",
}


def facts_of(err: str) -> Any:
    assert err.count("\n") == 1
    facts = json.loads(err)
    assert 0 <= facts.pop("seconds") < 20
    return facts


def test_usage_is_one_line_of_json_on_standard_error(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    result = run("-qu", "Hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert list(json.loads(result.err)) == [
        "model",
        "prompt_tokens",
        "completion_tokens",
        "reasoning_tokens",
        "total_tokens",
        "cost_usd",
        "seconds",
        "request_id",
    ]
    assert facts_of(result.err) == FACTS


def test_usage_of_a_stream_is_the_last_that_it_tells(api: Api, run: Run) -> None:
    early = {**chunk("Hello"), "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    last = {**USAGE, "usage": completion()["usage"], "model": ""}
    last["usage"]["prompt_tokens_details"] = {"cached_tokens": 192}
    end = event(chunk(finish_reason="stop")) + event(last) + event(b"[DONE]")
    api.will([STREAM_HEAD + event(early) + end])
    result = run("--stream", "-u", "Hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert facts_of(result.err) == {**FACTS, "cached_tokens": 192}


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {},
        "none",
        {"cost_in_usd_ticks": None, "prompt_tokens_details": None},
        {"cost_in_usd_ticks": "1", "prompt_tokens_details": [1]},
    ],
)
def test_usage_tells_only_what_the_api_tells(api: Api, run: Run, usage: Any) -> None:
    api.will(reply({**completion(), "usage": usage}))
    result = run("-u", "Hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert facts_of(result.err) == {"model": "grok-4.7", "request_id": "req-7"}


def test_usage_is_told_of_a_reply_that_is_not_whole_but_not_of_none(api: Api, run: Run) -> None:
    api.will(
        reply(completion("Hel", finish_reason="length")),
        reply({"error": "no"}, "400 Bad Request"),
    )
    result = run("-u", "Hi")
    usage, message = result.err.splitlines(keepends=True)
    assert (facts_of(usage), result.status) == (FACTS, 1)
    assert message.startswith("xchat: ")
    assert run("-u", "Hi").err.count("\n") == 1


def test_usage_of_numbers_that_are_none(api: Api, run: Run) -> None:
    usage = b'{"prompt_tokens": 1e999, "total_tokens": "7", "cost_in_usd_ticks": 9%0400d}' % 0
    body = json.dumps({**completion(), "usage": None}).encode()
    api.will(reply(body.replace(b'"usage": null', b'"usage": ' + usage)))
    result = run("-u", "Hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert facts_of(result.err) == {"model": "grok-4.7", "request_id": "req-7"}


def test_a_signal_ends_it_without_a_word_on_usage(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD + event(chunk("Hel")), HANG])
    process = run.start("-u", "--stream", "Hi")
    assert process.stdout.read(3) == b"Hel"
    process.terminate()
    assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == -signal.SIGTERM


def test_usage_does_not_show_the_key(api: Api, run: Run) -> None:
    api.key = "xai-secret-key"
    api.will(reply({**completion(), "model": "m xai-secret-key"}))
    result = run("-u", "Hi", env={"XAI_API_KEY": api.key})
    assert "secret" not in result.err
    assert facts_of(result.err)["model"] == "m [the key]"


def test_a_word_that_looks_like_a_file_is_none(run: Run) -> None:
    result = run("--dry-run", "-p", "user=a=@-", stdin=b"Hi")
    assert body_of(result)["messages"] == [{"role": "user", "content": "Hi"}]
    assert body_of(result)["user"] == "a=@-"


def test_a_date_is_no_row_of_numbers(run: Run, file: File) -> None:
    result = run("--dry-run", "-p", f"user=@{file('2024-01-01')}", "Hi")
    assert result == Result(
        b"", "xchat: -p user: c: YAML reads 2024-01-01 as a date; quote it\n", 2
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "'': is a directory"),
        ("none/", "none/: is a directory"),
        ("loop", "loop: Too many levels of symbolic links"),
    ],
)
def test_what_cannot_be_a_file_is_refused(run: Run, path: str, message: str) -> None:
    (run.home / "loop").symlink_to("loop")
    env = {"XCHAT_BASE_URL": "http://127.0.0.1:9/v1"}
    assert run("-o", path, "Hi", env=env) == Result(b"", f"xchat: {message}\n", 2)


# Together ------------------------------------------------------------------------------------

CODE = '# T\n```json\n{"a": 1}\n```\n'
REQUEST = [["-p", "seed=7"], ["--schema", "schema"], ["-i", "image"], ["-f", "c"], ["-m", "m"]]


@pytest.mark.parametrize("options", [*([option] for option in REQUEST), REQUEST], ids=str)
@pytest.mark.parametrize("way", [[], ["--stream"], ["--no-stream"]], ids=str)
def test_a_dry_run_writes_what_is_posted_for_every_option(
    api: Api, run: Run, file: File, options: list[list[str]], way: list[str]
) -> None:
    file("{}", "schema")
    file(PNG, "image")
    file("system: é\nhistory:\n- user: '1'\ntop_p: 0.95\n", "c")
    args = [arg for option in [*options, ["-s", "S", "-t", "0"], way] for arg in option]
    api.will([STREAM_HEAD + stream("1")] if "--stream" in way else reply(completion("1")))
    assert run(*args, "Q", "-", stdin=b"more").status == 0
    dry = run("--dry-run", *args, "Q", "-", stdin=b"more")
    assert dry == Result(api.requests[0].body + b"\n", "", 0)
    again = run("--dry-run", "-f", file(dry.out, "r.json"))
    assert again == dry
    if "-f" not in args:
        assert run("--dry-run", *args, "-x", "-u", "-af", "new", "Q", "-", stdin=b"more") == dry
        assert not (run.home / "new").exists()
    in_file = run("--dry-run", *args, "-o", "out", "Q", "-", stdin=b"more")
    assert in_file == Result(b"", "", 0)
    assert (run.home / "out").read_bytes() == dry.out


# to a pipe and to a terminal
WAYS = [([], False), (["--stream"], False), ([], True)]
FORMS = [[], ["-x"], ["--json"]]
OUTPUTS = [[], ["-o", "out"], ["-af", "new"], ["-u"], ["--schema", "schema"]]


@pytest.mark.parametrize(("way", "is_terminal"), WAYS, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("outputs", [*itertools.combinations(OUTPUTS, 2)], ids=str)
def test_every_form_of_output_goes_with_every_other(
    api: Api,
    run: Run,
    file: File,
    way: list[str],
    form: list[str],
    outputs: list[list[str]],
    is_terminal: bool,
) -> None:
    args = [arg for option in [way, form, *outputs] for arg in option]
    text = '{"a": 1}' if "--schema" in args and form != ["-x"] else CODE
    file("{}", "schema")
    is_live = is_terminal and not form and "-o" not in args
    body = stream(text) if way or is_live else json.dumps(completion(text)).encode()
    api.will([STREAM_HEAD + body] if way or is_live else reply(body))
    if is_terminal:
        here, there = pty.openpty()
        process = run.start(*args, "Q", stdout=there)
        os.close(there)
        out = read_terminal(here)
        err = process.communicate(timeout=20)[1].decode()
        status = process.returncode
    else:
        result = run(*args, "Q")
        out, err, status = result.out, result.err, result.status
    assert status == 0
    expected = {"-x": b'{"a": 1}', "--json": body}.get("".join(form), text.encode())
    expected = expected.rstrip(b"\n") + b"\n" * (2 if way and form == ["--json"] else 1)
    if "-o" in args:
        assert out == b""
        out = (run.home / "out").read_bytes()
    assert out == expected
    if "-af" in args:
        assert text.splitlines()[0] in (run.home / "new").read_text()
    assert bool(err) == ("-u" in args)
    if err:
        assert json.loads(err)["model"] == "grok-4.7"


def read_terminal(fd: int) -> bytes:
    out = b""
    try:
        while block := os.read(fd, 65536):
            out += block
    except OSError:
        pass
    os.close(fd)
    return out.replace(b"\r\n", b"\n")


def test_a_terminal_that_is_named_is_shown_the_controls_too(api: Api, run: Run) -> None:
    api.will(reply(completion("\x1b]0;t\x07")))
    here, there = pty.openpty()
    process = run.start("-o", os.ttyname(there), "Hi")
    assert process.wait(20) == 0
    os.close(there)
    assert read_terminal(here) == b"^[]0;t^G\n"


def test_a_terminal_is_shown_the_controls_of_a_body(api: Api, run: Run) -> None:
    api.will(reply(b'{"choices":[{"message":{"content":"\x1b]0;t\x07\xff\xc2\x9b"}}]}'))
    here, there = pty.openpty()
    process = run.start("--json", "Hi", stdout=there)
    os.close(there)
    out = read_terminal(here).decode()
    assert process.wait(20) == 1  # control characters are not JSON
    assert '"^[]0;t^G\ufffd<U+009B>"' in out


@pytest.mark.parametrize("option", ["-f", "-o", "-i", "--schema"])
def test_the_shell_completes_files(run: Run, option: str) -> None:
    env = {"_XCHAT_COMPLETE": "bash_complete", "COMP_WORDS": f"xchat {option} ", "COMP_CWORD": "2"}
    assert run(env=env) == Result(b"file,\n", "", 0)


def test_the_shell_completes_options_and_no_roles(run: Run) -> None:
    def completed(words: str) -> set[str]:
        number = str(len(words.split(" ")) - 1)
        env = {"_XCHAT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
        return set(re.findall(r"^plain,(.*)$", run(env=env).out.decode(), re.MULTILINE))

    help_text = run("--help").out.decode()
    assert completed("xchat --") == set(re.findall(r"(?<=[ ,/] )--[a-z-]+", help_text))
    for words in ("xchat ", "xchat -s ", "xchat -m ", "xchat -p ", "xchat as", "xchat -s sys"):
        assert completed(words) == set()


def test_the_completion_of_a_shell_is_a_process_of_its_own(run: Run) -> None:
    out = subprocess.run(
        run.command, env={**run.env, "_XCHAT_COMPLETE": "bash_source"}, stdout=-1, check=True
    ).stdout
    assert b"complete" in out
