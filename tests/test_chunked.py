"""A chunked body that ends too early, wherever that is: told in plain words."""

from __future__ import annotations

import json
import re

import pytest
from conftest import HELLO, Run, cases
from server import Api, chunk, completion, event

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: {}\r\nx-request-id: req-7\r\nTransfer-Encoding: chunked\r\n"
)


def chunked_head(kind: str) -> bytes:
    return CHUNKED.replace(b"{}", kind.encode()) + b"\r\n"


def in_a_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


HALF = event(chunk("Hel"))
PLACES = {
    "before the first chunk": b"",
    "in its size": b"1",
    "after its size": b"1f",
    "in the line break after its size": b"1f\r",
    "before its data": b"1f\r\n",
    "in its data": b"1f\r\ndata: ",
    "after its data": b"7\r\ndata: x",
    "in the line break after its data": b"7\r\ndata: x\r",
    "before the last chunk": b"7\r\ndata: x\r\n",
    "where a size is none": b"zz\r\nx\r\n0\r\n\r\n",
}
PROGRAMMERS = r"invalid literal|int\(\)|base 16|IncompleteRead|InvalidChunk|b'|bytes|Errno|Error\("


@cases("rest", PLACES)
def test_a_chunked_stream_that_is_cut(api: Api, run: Run, rest: bytes) -> None:
    api.will([chunked_head("text/event-stream") + in_a_chunk(HALF) + rest])
    result = run("--stream", "Hi")
    assert (result.out, result.status, result.err.count("\n")) == (b"Hel\n", 1, 1)
    assert result.err.startswith(f"xchat: {api.host}: the reply is cut short: ")
    assert not re.search(PROGRAMMERS, result.err)


@pytest.mark.parametrize("place", ["before the first chunk", "in its data", "where a size is none"])
def test_a_chunked_completion_that_is_cut(api: Api, run: Run, place: str) -> None:
    half = json.dumps(completion()).encode()[:60]
    api.will([chunked_head("application/json") + in_a_chunk(half) + PLACES[place]])
    result = run("--no-stream", "Hi")
    assert (result.out, result.status, result.err.count("\n")) == (b"", 1, 1)
    assert result.err.startswith(f"xchat: {api.host}: the reply is cut short: ")
    assert not re.search(PROGRAMMERS, result.err)


def test_a_chunked_completion_without_its_last_chunk(api: Api, run: Run) -> None:
    body = json.dumps(completion()).encode()
    api.will([chunked_head("application/json") + in_a_chunk(body)])
    result = run("--no-stream", "Hi")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert result.err.startswith(f"xchat: {api.host}: the reply is cut short: ")
    assert not re.search(PROGRAMMERS, result.err)


def test_a_stream_that_is_cut_once_it_has_finished_is_whole(api: Api, run: Run) -> None:
    whole = event(chunk("Hello")) + event(chunk(finish_reason="stop"))
    api.will([chunked_head("text/event-stream") + in_a_chunk(whole) + b"1f"])
    assert run("--stream", "Hi") == HELLO
