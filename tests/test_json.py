"""--json: the body of the reply, or the events of a stream, byte for byte and at the end."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from typing import Any

import pytest
from conftest import File, Result, Run, cases, judged, said
from server import STREAM_HEAD, Api, chunk, completion, event, reply, stream

BODIES = {
    "on several lines": json.dumps(completion(), indent=1).encode() + b"\n",
    "escapes and odd numbers": b'\n {"choices":[{"message":{"content":"\\u00e9\\ud83c\\udf0d"}}],'
    b'"x":1e400,"x":2}',
    "a byte-order mark": b"\xef\xbb\xbf" + json.dumps(completion("\x1b[1m")).encode(),
    "not UTF-8": b'{"choices":[{"message":{"content":"\xff\xe9"}}]}\n',
}


@cases("body", BODIES)
def test_json_is_the_body_as_it_came(api: Api, run: Run, body: bytes) -> None:
    api.will(
        reply(body), reply(gzip.compress(body), content_encoding="gzip", content_type="text/plain")
    )
    out = body if body.endswith(b"\n") else body + b"\n"
    assert run("--json", "Hi") == Result(out, "", 0)
    assert run("--json", "Hi", env={"LC_ALL": "C"}) == Result(out, "", 0)


def test_json_of_a_stream_is_its_events_as_they_came_and_written_once(api: Api, run: Run) -> None:
    gate, asked = threading.Event(), threading.Event()
    first = b": comment\r\n" + event(chunk(delta={"reasoning_content": "Hm"}))
    rest = stream("a", "\x80") + b"\xff after the end"
    api.will([STREAM_HEAD + first, lambda _connection: asked.set(), gate, rest])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        process = run.start("--json", "-p", "stream=true", "Hi", stdout=theirs)
        assert asked.wait(20)
        ours.settimeout(0.3)
        with pytest.raises(TimeoutError):
            ours.recv(1)
        gate.set()
        ours.settimeout(20)
        out = ours.recv(1 << 20)
        assert (process.wait(20), process.stderr.read()) == (0, b"")
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
    assert out.startswith(first + rest[: rest.index(b"[DONE]")])


def test_json_with_stream_is_a_usage_error(api: Api, run: Run) -> None:
    message = "--json and --stream cannot be combined"
    for args in (["--json", "--stream"], ["--stream", "--json", "-o", "out"]):
        assert run(*args, "Hi") == Result(b"", f"xchat: {message}\n", 2)
    assert (api.requests, list(run.home.iterdir())) == ([], [])
    api.will(reply(completion()))
    assert run("--json", "--no-stream", "Hi").status == 0


@cases(
    ("answer", "out", "status"),
    {
        "at the token limit": (reply(completion("Hel", finish_reason="length")), None, 1),
        "a body that is cut short": (
            reply(b'{"choices": [', content_length="99"),
            b'{"choices": [\n',
            1,
        ),
        "a page": (reply(b"<html>\xff"), b"<html>\xff\n", 1),
        "an error inside a 200": (
            reply({"error": "no", "code": "x"}),
            b'{"error": "no", "code": "x"}\n',
            5,
        ),
        "an error": (reply({"error": "no"}, "400 Bad Request"), b'{"error": "no"}\n', 4),
        "a stream without an end": ([STREAM_HEAD + event(chunk("Hel"))], event(chunk("Hel")), 1),
    },
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


ERROR = b'{"error": {"code": "model_gone", "message": "gone"}}'


@pytest.mark.parametrize(
    ("status", "exit_status"), [("400 Bad", 4), ("503 Busy", 5), ("302 Found", 4)]
)
def test_json_writes_the_body_of_an_error_too(
    api: Api, run: Run, status: str, exit_status: int
) -> None:
    api.will(reply(ERROR, status), reply(ERROR, status))
    plain = run("Hi")
    assert (plain.out, plain.status) == (b"", exit_status)
    assert run("--json", "Hi") == Result(ERROR + b"\n", plain.err, exit_status)


def test_json_writes_an_error_in_a_reply(api: Api, run: Run) -> None:
    api.will(reply(ERROR + b"\n"))
    result = run("--json", "Hi")
    assert result == Result(ERROR + b"\n", said(api, "error in the reply: gone"), 5)


def test_json_writes_the_error_of_the_last_attempt_only(api: Api, run: Run) -> None:
    api.will(reply(b'"busy"', "503 Busy", Retry_After="0.01"), reply(ERROR, "400 Bad"))
    result = run("-q", "--json", "--retries", "1", "Hi")
    assert result == Result(ERROR + b"\n", said(api, "400 Bad: gone"), 4)


def test_json_writes_no_error_into_a_file(api: Api, run: Run, file: File) -> None:
    name = file("yesterday's", "report")
    api.will(reply(ERROR, "400 Bad"))
    assert run("--json", "-o", name, "Hi") == Result(ERROR + b"\n", said(api, "400 Bad: gone"), 4)
    assert (run.home / name).read_text() == "yesterday's"


TOOL_CALL = {"content": None, "tool_calls": [{"id": "1", "function": {"name": "look"}}]}
TOOL_CALLS = {
    "a tool call": completion(message=TOOL_CALL, finish_reason="tool_calls"),
    "Gemini: a natural end": completion(message=TOOL_CALL),
    "no finish reason": completion(message=TOOL_CALL, finish_reason=None),
    "Anthropic": completion(message=TOOL_CALL, finish_reason="tool_use"),
    "a sentence first": completion(
        message={**TOOL_CALL, "content": "Let me look."}, finish_reason="tool_calls"
    ),
    "a function call": completion(
        message={"content": "", "function_call": {"name": "look"}}, finish_reason="function_call"
    ),
}


@cases("body", TOOL_CALLS)
def test_json_of_a_tool_call_is_a_whole_reply(body: Any) -> None:
    data = json.dumps(body).encode()
    assert judged(data, is_raw=True)[1:] == ("", 0)
    message = body["choices"][0]["message"]
    events = event(chunk(delta=message)) + event(chunk(finish_reason="tool_calls"))
    assert judged(events, is_raw=True)[1:] == ("", 0)
    assert judged(events)[2] == 1


@cases("reason", {"the token limit": "length", "an error": "error", "the filter": "content_filter"})
def test_json_of_half_a_tool_call_is_none(reason: str) -> None:
    body = completion(message=TOOL_CALL, finish_reason=reason)
    assert judged(json.dumps(body).encode(), is_raw=True)[2] == 1


def test_json_of_a_tool_call_through_the_command(api: Api, run: Run) -> None:
    body = json.dumps(TOOL_CALLS["a tool call"]).encode()
    api.will(reply(body), reply(body))
    assert run("--json", "Hi") == Result(body + b"\n", "", 0)
    words = "the reply is a tool call, not text (finish reason 'tool_calls')"
    assert run("Hi") == Result(b"", said(api, words), 1)


def test_json_writes_nothing_where_there_is_no_body(api: Api, run: Run) -> None:
    api.will(reply(b"", "400 Bad"))
    result = run("--json", "Hi")
    assert result == Result(b"", said(api, "400 Bad: no reason given"), 4)


def test_json_and_a_part_of_the_text_exclude_each_other(api: Api, run: Run) -> None:
    message = "--json and -x cannot be combined"
    assert run("--json", "-x", "Hi") == Result(b"", f"xchat: {message}\n", 2)
    assert api.requests == []
