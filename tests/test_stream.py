"""Streamed replies: each event written when it arrives, and half a reply never a success."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
import re
import signal
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, Run, Screen, cases, judged, needs_file, said
from server import (
    HANG,
    RESET,
    STOP,
    STREAM_HEAD,
    USAGE,
    Api,
    chunk,
    completion,
    event,
    reply,
    stream,
)

TEXTS = ["Grü", "ße,\n", "", " 世界 ", "🌍\u2028\u0085!"]
TEXT = "".join(TEXTS)
BODY = stream(*TEXTS)
OUT = TEXT.encode() + b"\n"


def chunked(blocks: list[bytes]) -> list[Any]:
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    return [head, *[b"%x\r\n%b\r\n" % (len(block), block) for block in blocks], b"0\r\n\r\n"]


def split(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def with_header(header: bytes, body: bytes) -> list[Any]:
    return [STREAM_HEAD.replace(b"\r\n\r\n", b"\r\n" + header + b"\r\n\r\n") + body]


ENDED = BODY.removesuffix(event(b"[DONE]"))
MANY_LINES = BODY.replace(b'"choices": ', b'\ndata: "choices": ')
MESSAGE = {"role": "assistant", "content": TEXT}


def body(*events: Any) -> bytes:
    return b"".join(map(event, events))


@cases(
    "blocks",
    {
        "at once": [BODY],
        "byte by byte": split(BODY, 1),
        "in sevens": split(BODY, 7),
        "CRLF": [BODY.replace(b"\n", b"\r\n")],
        "CR": [BODY.replace(b"\n", b"\r")],
        "CRLF, byte by byte": split(BODY.replace(b"\n", b"\r\n"), 1),
        "a byte-order mark": [b"\xef\xbb\xbf" + BODY],
        "a byte-order mark, byte by byte": split(b"\xef\xbb\xbf" + BODY, 1),
        "comments": [b": hello\n\n:\n\n" + BODY.replace(b"\n\n", b"\n\n: alive\n\n")],
        "other fields": [BODY.replace(b"data: ", b"event: x\nid: 1\nretry: 9\ndata:")],
        "an unknown field first": [b"x: y\n" + BODY],
        "an event on two lines": [MANY_LINES],
        "no line break at the end": [BODY.removesuffix(b"\n\n")],
        "more after the end": [BODY, event(b"after the end"), b"data"],
        "no end mark": [ENDED],
        "no finish reason": [body(chunk(TEXT), b"[DONE]")],
        "half an end mark": [event(chunk(TEXT, finish_reason="stop")), b"data: [DO"],
        "a finish reason and a comment": [body(chunk(TEXT), STOP), b": end"],
        "a delta that is null": [body(chunk(TEXT), chunk(delta=None, finish_reason="stop"))],
        "an error after the end": [body(chunk(TEXT), STOP, {"error": "too late"})],
        "a completion": [json.dumps(completion(TEXT)).encode()],
        "a completion on many lines": [json.dumps(completion(TEXT), indent=1).encode()],
    },
)
def test_every_way_to_write_a_stream(blocks: list[bytes]) -> None:
    assert judged(*blocks) == (TEXT, "", 0)


@cases(
    "steps",
    {
        "byte by byte": [STREAM_HEAD, *split(BODY, 1)],
        "with its length": with_header(b"Content-Length: %d" % len(BODY), BODY),
        "in chunks of a byte": chunked(split(BODY, 1)),
        "in chunks of 100 bytes": chunked(split(BODY, 100)),
        "gzip": with_header(b"Content-Encoding: gzip", gzip.compress(BODY)),
        "reset after the end": [STREAM_HEAD, BODY, RESET],
        "silence after the end": [STREAM_HEAD, BODY, HANG],
        "text/plain": [STREAM_HEAD.replace(b"text/event-stream", b"text/plain"), BODY],
        "no content type": [b"HTTP/1.1 200 OK\r\n\r\n", BODY],
        "no end mark, before its length": with_header(b"Content-Length: 99999", ENDED),
        "a completion instead": reply(completion(TEXT)),
        "a completion called a stream": [STREAM_HEAD, json.dumps(completion(TEXT)).encode()],
    },
)
def test_every_way_to_send_a_stream(api: Api, run: Run, steps: list[Any]) -> None:
    api.will(steps)
    assert run("--stream", "Hi") == Result(OUT, "", 0)


def test_a_stream_that_nobody_asked_for(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD + BODY])
    assert run("--no-stream", "Hi") == Result(OUT, "", 0)


HEARTBEATS = {
    "no data": b"",
    "a blank": b" ",
    "an empty text": b'""',
    "null": b"null",
    "a word": b"keepalive",
    "two words": b"still working",
    "a list": b"[]",
    "a number": b"12 34",
    "a mapping": b"{}",
    "Anthropic's": b'{"type": "ping"}',
    "a progress": b'{"object": "progress", "progress": 0.5}',
    "no choices": b'{"choices": []}',
    "a code that is fine": b'{"code": 0, "message": "ok"}',
    "no error": b'{"error": null}',
}


@cases("data", HEARTBEATS)
@pytest.mark.parametrize("place", ["first", "in the middle", "before the end mark"])
def test_a_heartbeat_is_passed_over_and_the_end_decides(place: str, data: bytes) -> None:
    events = [chunk("Hel"), chunk("lo"), STOP, b"[DONE]"]
    at = {"first": 0, "in the middle": 1, "before the end mark": 3}[place]
    events.insert(at, data)
    assert judged(body(*events)) == ("Hello", "", 0)
    words = f"{CUT}the stream ended without a finish reason"
    assert judged(body(chunk("Hel"), data)) == ("Hel", words, 1)


def test_a_heartbeat_through_the_command(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD + body(b"keepalive", chunk("Hel"), b'""', chunk("lo"), STOP)])
    assert run("--stream", "Hi") == Result(b"Hello\n", "", 0)


ONCE: dict[str, list[Any]] = {
    # the events of one text, "Hello"
    "the whole message with the last chunk": [
        chunk("Hel"),
        chunk("lo"),
        chunk(delta={}, message={"content": "Hello"}, finish_reason="stop"),
    ],
    "MiniMax: a completion at the end": [chunk("Hel"), chunk("lo"), completion("Hello")],
    "Perplexity: all so far beside each delta": [
        chunk("Hel", message={"content": "Hel"}),
        chunk("lo", message={"content": "Hello"}),
        chunk("", message={"content": "Hello"}, finish_reason="stop"),
    ],
    "a message of which a part is new": [chunk("Hel"), completion("Hello")],
    "a message that is trimmed": [chunk("Hello"), completion("Hel")],
    "an empty delta beside the message": [
        chunk("", message={"content": "Hello"}, finish_reason="stop")
    ],
    "no delta beside the message": [
        chunk(delta=None, message={"content": "Hello"}, finish_reason="stop")
    ],
    "an empty message beside the delta": [
        chunk("Hello", message={"content": ""}, finish_reason="stop")
    ],
    "messages in place of deltas": [
        {"choices": [{"message": {"content": "Hel"}}]},
        {"choices": [{"message": {"content": "lo"}, "finish_reason": "stop"}]},
    ],
}


@cases("events", ONCE)
def test_a_text_that_comes_twice_counts_once(events: list[Any]) -> None:
    assert judged(body(*events)) == ("Hello", "", 0)


def test_a_message_that_repeats_the_deltas_is_written_once(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD + body(*ONCE["MiniMax: a completion at the end"])])
    assert run("--stream", "Hi") == Result(b"Hello\n", "", 0)


ORDINARY: list[Any] = [
    USAGE,
    chunk(),
    chunk(""),
    chunk(delta={"role": "assistant"}),
    chunk(delta={"role": "assistant", "content": None}),
    chunk(delta={"content": None, "reasoning_content": "Hm", "tool_calls": None}),
    chunk(delta=None),
    chunk(finish_reason=None, logprobs=None),
    chunk("another choice", index=1),
    chunk(delta={"content": [{"type": "reasoning", "text": "Hm"}]}),
    {"choices": None},
    {"choices": {}, "error": None},
    {"choices": [None, 1, "x"]},
    {},
]


HALVES = "\ud83c", "\udf0d"  # of 🌍
LONE = "\ufffd"

SPLIT = {
    # the pieces of text; what they are together
    "two halves": (HALVES, "🌍"),
    "two halves in texts": (["a" + HALVES[0], HALVES[1] + "b"], "a🌍b"),
    "an empty text between": ([HALVES[0], "", HALVES[1]], "🌍"),
    "twice": ([*HALVES, *HALVES], "🌍🌍"),
    "between whole ones": (["🌍" + HALVES[0], HALVES[1] + "🌍"], "🌍🌍🌍"),
    "the first alone": ([HALVES[0]], LONE),
    "the first before a text": ([HALVES[0], "a"], LONE + "a"),
    "the first before nothing": (["a" + HALVES[0], "", ""], "a" + LONE),
    "the second alone": ([HALVES[1]], LONE),
    "the second before a text": (["a", HALVES[1] + "b"], f"a{LONE}b"),
    "the first twice": ([HALVES[0], HALVES[0], HALVES[1]], f"{LONE}🌍"),
    "the wrong way round": ([HALVES[1], HALVES[0]], LONE + LONE),
}


def escaped(*texts: str) -> list[bytes]:
    """The events of a stream as a server in JavaScript sends them: halves as \\u escapes."""
    chunks = [*map(chunk, texts), STOP]
    return [b"data: " + json.dumps(data).encode() + b"\n\n" for data in chunks]


@cases(("texts", "whole"), SPLIT)
def test_a_surrogate_pair_that_is_split_over_two_events_is_one_character(
    texts: Sequence[str], whole: str
) -> None:
    events = [*escaped(*texts), event(b"[DONE]")]
    assert judged(*events) == (whole, "", 0)
    assert judged(b"".join(events)) == (whole, "", 0)


@pytest.mark.parametrize("args", [[], ["--stream"], ["-o", "out"], ["-af", "c.json"], ["-x"]])
def test_a_surrogate_pair_that_is_split_wherever_it_goes(
    api: Api, run: Run, args: list[str]
) -> None:
    first, *rest = escaped("🌍" + HALVES[0], HALVES[1] + "🌍")
    api.will([STREAM_HEAD, first, 0.05, *rest, event(b"[DONE]")])
    out = b"" if "-o" in args else "🌍🌍🌍\n".encode()
    field = [] if "--stream" in args else ["-p", "stream=true"]
    assert run(*args, *field, "Hi") == Result(out, "", 0)
    if "-o" in args:
        assert (run.home / "out").read_text() == "🌍🌍🌍\n"
    if "-af" in args:
        assert json.loads((run.home / "c.json").read_text())[-1]["content"] == "🌍🌍🌍"


def test_a_surrogate_pair_that_is_split_is_one_character_on_a_terminal(
    api: Api, run: Run, screen: Screen
) -> None:
    first, *rest = escaped(*HALVES)
    api.will([STREAM_HEAD, first, 0.05, *rest, event(b"[DONE]")])
    assert run("-q", "Hi", stdout=screen.theirs).status == 0
    assert screen.close() == "🌍\r\n".encode()


def test_the_text_before_half_of_a_pair_is_written_when_it_arrives(api: Api, run: Run) -> None:
    written = threading.Event()
    first, *rest = escaped("one " + HALVES[0], HALVES[1] + "two")
    api.will([STREAM_HEAD, first, written, *rest])
    process = run.start("--stream", "Hi")
    assert os.read(process.stdout.fileno(), 100) == b"one "
    written.set()
    assert process.communicate(timeout=20) == ("🌍two\n".encode(), b"")


def test_half_of_a_pair_at_the_end_of_a_reply_that_is_cut_short(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD, *escaped("Hel" + HALVES[0])[:1]])
    result = run("--stream", "Hi")
    assert (result.out, result.status) == (f"Hel{LONE}\n".encode(), 1)
    assert result.err.startswith(f"xchat: {api.host}: {CUT}")


def test_the_choices_of_a_stream_may_come_in_any_order() -> None:
    def choices(*pairs: tuple[int, str]) -> dict[str, Any]:
        several = [{"index": index, "delta": {"content": text}} for index, text in pairs]
        return {**chunk(), "choices": several}

    events = [
        chunk("no ", index=1),
        choices((1, "no "), (0, "one ")),
        choices((2, "no "), (1, "no "), (0, "two ")),
        chunk(finish_reason="length", index=1),
        choices((0, "three"), (1, "no")),
        STOP,
    ]
    assert judged(body(*events, b"[DONE]")) == ("one two three", "", 0)


def test_the_text_of_a_chunk_may_be_a_list_of_parts() -> None:
    contents: list[Any] = [
        [{"type": "text", "text": "one "}, {"type": "text", "text": "two "}],
        "three ",
        [{"type": "text", "text": HALVES[0]}],
        [{"type": "text", "text": HALVES[1]}],
        [],
        [{"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": None}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}],
        [{"type": "reasoning", "text": "Hm"}],
        [None, 1, [], {}],
        [{"type": "output_text", "text": " four"}, " five"],
    ]
    chunks = [chunk(delta={"content": content}) for content in contents]
    events = [b"data: " + json.dumps(data).encode() + b"\n\n" for data in chunks]
    assert judged(*events, event(STOP)) == ("one two three 🌍 four five", "", 0)


WHOLE_EVENT = event(chunk("lo", finish_reason="stop"))


CUT = "the reply is cut short: "


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("first", [b"", event(chunk("Hel"))], ids=["the first", "the second"])
def test_the_end_of_a_stream_ends_its_last_event(first: bytes, end: bytes) -> None:
    whole = ("Hello" if first else "lo", "", 0)
    assert judged(first, WHOLE_EVENT.strip() + end) == whole
    assert judged(first + WHOLE_EVENT.strip() + end) == whole


def test_the_end_of_a_stream_ends_an_event_of_several_lines() -> None:
    last = WHOLE_EVENT.strip().replace(b'"choices": ', b'\ndata: "choices": ')
    assert judged(event(chunk("Hel")) + b"event: x\n" + last) == ("Hello", "", 0)


@pytest.mark.parametrize("send", [lambda blocks: [STREAM_HEAD, *blocks], chunked])
def test_the_end_of_the_body_ends_the_last_event(api: Api, run: Run, send: Any) -> None:
    api.will(send([event(chunk("Hel")), WHOLE_EVENT.strip()]))
    assert run("--stream", "Hi") == Result(b"Hello\n", "", 0)


HALF_EVENTS = {
    "almost whole": WHOLE_EVENT[:-10],
    "its beginning": WHOLE_EVENT[:20],
    "a brace": b"data: {",
    "no data": b"data:",
    "half a name": b"id: 1\ndata",
    "a brace after other fields": b"event: x\nid: 1\ndata: {",
    "another field": b"event: x\n",
    "a brace after a comment": b": comment\ndata: {",
}


@cases("half", HALF_EVENTS)
def test_half_an_event_of_a_dying_stream_is_cut_short(half: bytes) -> None:
    words = f"{CUT}the stream ended without a finish reason"
    assert judged(half) == ("", words, 1)
    assert judged(event(chunk("Hel")) + half) == ("Hel", words, 1)
    assert judged(event(chunk("Hel")), half) == ("Hel", words, 1)


@pytest.mark.parametrize("way", ["closed", "chunked", "chunked and broken", "reset"])
def test_a_dying_stream_is_cut_short(api: Api, run: Run, way: str) -> None:
    blocks = [event(chunk("Hel")), HALF_EVENTS["almost whole"]]
    steps: list[Any] = chunked(blocks) if "chunked" in way else [STREAM_HEAD, *blocks]
    if way == "chunked and broken":
        steps = [*steps[:-1], b"99\r\ndata: {"]
    api.will([*steps, 0.1, RESET] if way == "reset" else steps)
    result = run("--stream", "Hi")
    assert (result.out, result.status, result.err.count("\n")) == (b"Hel\n", 1, 1)
    assert result.err.startswith(f"xchat: {api.host}: {CUT}")


def test_chunks_without_text_are_ordinary() -> None:
    events = [part for odd in ORDINARY for part in (odd, chunk("x"))]
    whole = ("x" * len(ORDINARY), "", 0)
    assert judged(body(*events, STOP, *ORDINARY, b"[DONE]")) == whole


NOT_WHOLE = {
    # the events; the text; why; the status
    "no finish reason": (
        body(chunk("Hel")),
        "Hel",
        f"{CUT}the stream ended without a finish reason",
        1,
    ),
    "a line break before the end": (
        body(chunk("Hel\n")),
        "Hel\n",
        f"{CUT}the stream ended without a finish reason",
        1,
    ),
    "nonsense alone": (
        body(b"nonsense"),
        "",
        "the server's answer is not a chat completion: nonsense",
        1,
    ),
    "nonsense, and the end mark": (
        body(b"nonsense", b"[DONE]"),
        "",
        "the server's answer is not a chat completion: nonsense",
        1,
    ),
    "a completion of the older API": (
        body({"choices": [{"text": "Hello", "index": 0, "finish_reason": "stop"}]}),
        "",
        "the server's answer is not a chat completion:"
        ' {"choices": [{"text": "Hello", "index": 0, "finish_reason": "stop"}]}',
        1,
    ),
    "broken JSON after a text": (
        body(chunk("Hel"), b"{broken}", chunk("lo"), STOP),
        "Hel",
        f"{CUT}broken JSON: {{broken}}",
        1,
    ),
    "half a chunk that the server ended": (
        body(chunk("Hel"), b'{"choices": [{"de', STOP),
        "Hel",
        f'{CUT}broken JSON: {{"choices": [{{"de',
        1,
    ),
    "broken JSON alone": (
        body(b"{broken}"),
        "",
        "the server's answer is not a chat completion: {broken}",
        1,
    ),
    "half an end mark": (
        body(chunk("Hel"), b"[DONE"),
        "Hel",
        f"{CUT}the stream ended without a finish reason",
        1,
    ),
    "nothing": (b"", "", "the server's answer is not a chat completion: an empty body", 1),
    "a comment": (b": nothing\n\n", "", f"{CUT}the stream ended without a finish reason", 1),
    "the end mark alone": (body(b"[DONE]"), "", "the reply is empty", 1),
    "a finish reason without a text": (
        body(STOP, b"[DONE]"),
        "",
        "the reply is empty: finish reason 'stop'",
        1,
    ),
    "a refusal": (
        body(*[chunk(delta={"refusal": text}) for text in ("I ", "can't ", "help.")], STOP),
        "",
        "the reply is empty: I can't help.",
        1,
    ),
    "a tool call": (
        body(chunk(delta={"tool_calls": [{"id": "1"}]}), STOP),
        "",
        "the reply is a tool call, not text",
        1,
    ),
    "a tool call after a sentence": (
        body(
            chunk("Let me look."),
            chunk(delta={"tool_calls": [{"id": "1"}]}),
            chunk(finish_reason="tool_calls"),
        ),
        "Let me look.",
        "the reply is cut off by a tool call (finish reason 'tool_calls')",
        1,
    ),
    "reasoning alone": (
        body(chunk(delta={"reasoning": "Hm"}), chunk(finish_reason="length"), b"[DONE]"),
        "",
        "the reply is empty: the model only reasoned; -p reasoning_effort=low or a larger"
        " --max-tokens may help (finish reason 'length')",
        1,
    ),
    "the token limit": (
        body(chunk("Hel"), chunk(finish_reason="length"), b"[DONE]"),
        "Hel",
        "the reply is cut off at the token limit (finish reason 'length')",
        1,
    ),
    "the content filter": (
        body(chunk("Hel", finish_reason="content_filter")),
        "Hel",
        "the reply is cut off by the content filter (finish reason 'content_filter')",
        1,
    ),
}


@cases(("data", "text", "why", "status"), NOT_WHOLE)
def test_half_a_reply_is_never_a_success(data: bytes, text: str, why: str, status: int) -> None:
    assert judged(data) == (text, why, status)


@pytest.mark.parametrize("option", ["--stream", "--no-stream"])
def test_half_a_reply_is_written_and_never_a_success(api: Api, run: Run, option: str) -> None:
    data, text, why, status = NOT_WHOLE["broken JSON after a text"]
    api.will([STREAM_HEAD + data])
    assert run(option, "Hi") == Result(f"{text}\n".encode(), said(api, why), status)


def test_a_malformed_event_in_mid_stream(api: Api, run: Run) -> None:
    is_written = threading.Event()
    rest = event(b"{broken") + event(chunk("lo", finish_reason="stop"))
    api.will([STREAM_HEAD + event(chunk("Hel")), is_written, rest])
    process = run.start("--stream", "Hi")
    assert process.stdout.read(3) == b"Hel"
    is_written.set()
    out, err = process.communicate(timeout=20)
    words = f"{CUT}broken JSON: {{broken"
    assert (out, err.decode(), process.returncode) == (b"\n", said(api, words), 1)


def test_the_deadline_holds_for_a_stream_that_drips_comments(api: Api, run: Run) -> None:
    drip: list[Any] = [b": alive\n\n", 0.05]
    api.will([STREAM_HEAD, event(chunk("Hel")), *drip * 1000])
    result = run("--stream", "--timeout", "2", "Hi")  # which waits for 30 s at most
    message = "not the whole answer within 2 s; --timeout sets a longer limit (request id req-7)"
    assert result == Result(b"Hel\n", f"xchat: {api.host}: {message}\n", 3)


def test_each_event_is_written_when_it_arrives(api: Api, run: Run) -> None:
    written = threading.Event()
    api.will([STREAM_HEAD, event(chunk("one ")), written, event(chunk("two")), event(STOP)])
    process = run.start("--stream", "Hi")
    assert os.read(process.stdout.fileno(), 100) == b"one "
    written.set()
    assert process.communicate(timeout=20) == (b"two\n", b"")


def test_each_event_of_a_compressed_stream_is_written_when_it_arrives(api: Api, run: Run) -> None:
    press = zlib.compressobj(wbits=31)
    first = press.compress(event(chunk("one "))) + press.flush(zlib.Z_SYNC_FLUSH)
    last = press.compress(stream("two")) + press.flush()
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    written = threading.Event()
    api.will([head, first, written, last])
    process = run.start("--stream", "Hi")
    assert os.read(process.stdout.fileno(), 100) == b"one "
    written.set()
    assert process.communicate(timeout=20) == (b"two\n", b"")


@pytest.mark.parametrize("size", [1, 9, 10, 11, 14])
@pytest.mark.parametrize("args", [["--stream"], ["--no-stream"]])
def test_gzip_that_ends_before_its_first_byte_of_text(
    api: Api, run: Run, args: list[str], size: int
) -> None:
    begin = gzip.compress(stream("Hello"))[:size]
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    api.will([head, begin])
    words = "the reply is cut short: its compressed data is not complete"
    assert run(*args, "Hi") == Result(b"", said(api, words), 1)


def test_half_a_gzip_body_is_not_whole(api: Api, run: Run) -> None:
    half = gzip.compress(stream(*[f"{n} " for n in range(1000)]))[:-200]
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    api.will([head, half])
    result = run("--stream", "Hi")
    assert result.out.startswith(b"0 1 2 3 ")
    assert result.status == 1
    assert result.err.startswith(f"xchat: {api.host}: {CUT}")


def test_all_at_once_is_written_only_when_it_is_whole(api: Api, run: Run) -> None:
    asked, finish = threading.Event(), threading.Event()
    api.will([STREAM_HEAD, event(chunk("one ")), lambda _: asked.set(), finish, event(STOP)])
    process = run.start("Hi")
    assert asked.wait(20)
    os.set_blocking(process.stdout.fileno(), False)
    time.sleep(0.2)
    assert process.stdout.read() is None
    finish.set()
    assert process.wait(20) == 0
    assert process.stdout.read() == b"one \n"


def test_10000_events_in_one_read(api: Api, run: Run) -> None:
    texts = [f"{n} " for n in range(10_000)]
    api.will([STREAM_HEAD, stream(*texts)])
    assert run("--stream", "Hi") == Result("".join(texts).encode() + b"\n", "", 0)


def test_the_body_asks_for_a_stream_and_with_u_for_its_usage(api: Api, run: Run) -> None:
    api.will(reply(completion()), reply(completion()))
    assert run("--stream", "Hi").status == 0
    assert run("--stream", "-u", "Hi").status == 0
    start = b'{"model":"grok-4","messages":[{"role":"user","content":"Hi"}],"stream":true'
    assert [request.body for request in api.requests] == [
        start + b"}",
        start + b',"stream_options":{"include_usage":true}}',
    ]


@pytest.mark.parametrize(
    ("args", "file", "fields"),
    [
        ([], "{}", {}),
        (["--no-stream"], "{}", {}),
        ([], "stream: true", {"stream": True}),
        ([], "stream: false", {"stream": False}),
        (["--stream"], "stream: false", {"stream": True}),
        (["-u"], "stream: true", {"stream": True, "stream_options": {"include_usage": True}}),
        (["-u"], "stream: false", {"stream": False}),
        (["-u"], "{}", {}),
        (
            ["--stream", "-u"],
            "stream: false",
            {"stream": True, "stream_options": {"include_usage": True}},
        ),
        (["--no-stream"], "stream: true\nstream_options: {include_usage: true}", {}),
        (
            [],
            "stream_options: {include_usage: false}",
            {"stream_options": {"include_usage": False}},
        ),
        (
            ["--stream", "-u"],
            "stream_options: {include_usage: false}",
            {"stream": True, "stream_options": {"include_usage": False}},
        ),
    ],
)
def test_the_option_wins_over_the_file(
    run: Run, args: list[str], file: str, fields: dict[str, Any]
) -> None:
    (run.home / "c").write_text(file)
    body = json.loads(run("--dry-run", *args, "-f", "c", "Hi").out)
    assert {name: body[name] for name in body if name not in ("model", "messages")} == fields


def test_a_streaming_dry_run_is_a_conversation_file_for_the_same_body(run: Run) -> None:
    first = run("--dry-run", "--stream", "Hi")
    (run.home / "r.json").write_bytes(first.out)
    assert run("--dry-run", "-f", "r.json") == first


def test_a_stream_in_a_file_is_written_as_it_comes(api: Api, run: Run) -> None:
    written = threading.Event()
    api.will([STREAM_HEAD, event(chunk("one ")), written, event(STOP)])
    (run.home / "c").write_text("stream: true")
    process = run.start("-f", "c", "Hi")
    assert os.read(process.stdout.fileno(), 100) == b"one "
    written.set()
    assert process.wait(20) == 0


CONTROLS = [
    ("Hello\n\tworld", b"Hello\r\n\tworld\r\n"),
    ("\x1b]0;title\x07\x1b[2J", b"^[]0;title^G^[[2J\r\n"),
    ("\r\x08\x00\x7f", b"^M^H^@^?\r\n"),
    ("\x9b2J\x80", b"<U+009B>2J<U+0080>\r\n"),
    ("\u202eabc\u2066", b"<U+202E>abc<U+2066>\r\n"),
    ("Grüße 世界 🌍", "Grüße 世界 🌍\r\n".encode()),
]


@pytest.mark.parametrize(("text", "out"), CONTROLS)
@pytest.mark.parametrize("option", ["--stream", "--no-stream"])
def test_control_characters_are_shown_on_a_terminal_and_not_obeyed(
    api: Api, run: Run, screen: Screen, text: str, out: bytes, option: str
) -> None:
    api.will([STREAM_HEAD, *[event(chunk(char)) for char in text], event(STOP)])
    assert run("-q", option, "Hi", stdout=screen.theirs).status == 0
    assert screen.close() == out


def test_a_terminal_gets_a_stream_unless_told_otherwise(api: Api, run: Run, screen: Screen) -> None:
    api.will(reply(completion()), reply(completion()))
    assert run("Hi", stdout=screen.theirs).status == 0
    assert run("Hi", "--no-stream", stdout=screen.theirs).status == 0
    assert screen.close() == b"Hello\r\nHello\r\n"
    assert [request.json.get("stream") for request in api.requests] == [True, None]


def test_half_a_reply_leaves_the_cursor_on_a_fresh_line(api: Api, run: Run, screen: Screen) -> None:
    api.will([STREAM_HEAD, event(chunk("Hel"))])
    assert run("Hi", stdout=screen.theirs, stderr=screen.theirs).status == 1
    assert screen.close().startswith(b"Hel\r\nxchat: 127.0.0.1:")


ERASE = b"\r\x1b[K"


def test_a_status_line_while_nothing_comes(api: Api, run: Run, screen: Screen) -> None:
    thinking, go = threading.Event(), threading.Event()
    hm = event(chunk(delta={"reasoning_content": "Hm"}))
    api.will([thinking, STREAM_HEAD, hm, go, event(chunk("Hello")), 1.2, event(STOP)])
    process = run.start("Hi", stdout=screen.theirs, stderr=screen.theirs)
    for _ in range(2):
        assert re.fullmatch(rb"\r\x1b\[Kwaiting for grok-4, \d s", screen.read_until(b" s"))
    thinking.set()
    assert re.fullmatch(re.escape(ERASE) + rb"thinking, \d s", screen.read_until(b" s"))
    go.set()
    assert process.wait(20) == 0
    assert re.fullmatch(rb"(\r\x1b\[Kthinking, \d s)*\r\x1b\[KHello\r\n", screen.close())


def test_the_status_line_is_erased_before_an_error(api: Api, run: Run, screen: Screen) -> None:
    api.will([1.2, *reply({"error": "no"}, "400 Bad")])
    assert run("Hi", stderr=screen.theirs).status == 4
    out = screen.close()
    assert re.match(rb"(\r\x1b\[Kwaiting for grok-4, \d s)+\r\x1b\[Kxchat: ", out)


def test_the_status_line_stays_within_a_narrow_window(api: Api, run: Run) -> None:
    screen = Screen(columns=10)
    api.will([1.2, *reply(completion())])
    assert run("-m", "a\nü", "Hi", stderr=screen.theirs, env={"TERM": "xterm"}).status == 0
    assert screen.close() == ERASE + b"waiting f" + ERASE


@pytest.mark.parametrize(
    ("args", "term"), [(["-q"], "xterm"), ([], "dumb"), ([], "")], ids=["quiet", "dumb", "none"]
)
def test_no_status_line(api: Api, run: Run, args: list[str], term: str) -> None:
    screen = Screen()
    env = {"TERM": term} if term else {}
    api.will([1.2, *reply(completion())])
    assert run("Hi", *args, stderr=screen.theirs, env=env) == Result(b"Hello\n", "", 0)
    assert screen.close() == b""


def test_no_status_line_in_a_pipe(api: Api, run: Run) -> None:
    api.will([1.2, *reply(completion())])
    assert run("Hi", env={"TERM": "xterm"}) == Result(b"Hello\n", "", 0)


@pytest.mark.parametrize("came", ["nothing", "a status line", "half a line"])
def test_an_interrupt_leaves_the_cursor_on_a_fresh_line(
    api: Api, run: Run, screen: Screen, came: str
) -> None:
    asked = threading.Event()
    events = [event(chunk("Hel"))] if came == "half a line" else []
    api.will([lambda _connection: asked.set(), STREAM_HEAD, *events, HANG])
    process = run.start("Hi", stdout=screen.theirs, stderr=screen.theirs)
    assert asked.wait(20)
    expected = {"nothing": b"", "a status line": ERASE, "half a line": b"\r\n"}[came]
    if came != "nothing":
        screen.read_until(b"Hel" if events else b"1 s")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == -signal.SIGINT
    assert screen.close() == expected


def test_an_interrupt_ends_it_while_nobody_reads_the_pipe(api: Api, run: Run) -> None:
    sent = threading.Event()
    texts = [event(chunk("x" * 1000))] * 300
    api.will([STREAM_HEAD, *texts, lambda _connection: sent.set(), HANG])
    process = run.start("--stream", "Hi")
    assert sent.wait(20)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == -signal.SIGINT


def test_the_connection_is_closed_when_the_reader_goes(api: Api, run: Run) -> None:
    gone = threading.Event()

    def wait_for_the_end(connection: Any) -> None:
        HANG(connection)
        gone.set()

    first = threading.Event()
    api.will([STREAM_HEAD, event(chunk("one\n")), first, event(chunk("two")), wait_for_the_end])
    process = run.start("--stream", "Hi")
    assert process.stdout.readline() == b"one\n"
    process.stdout.close()
    first.set()
    assert process.wait(20) == -signal.SIGPIPE
    assert process.stderr.read() == b""
    assert gone.wait(20)


@needs_file("/proc/self/status")
def test_a_slow_reader_does_not_fill_the_memory(api: Api, run: Run) -> None:
    """A server that floods: what is not read yet stays with the server."""
    flood = b"".join(event(chunk("x" * 1000)) for _ in range(1000))
    api.will([STREAM_HEAD, *[flood] * 60])
    process = run.start("--stream", "Hi")
    time.sleep(2)
    memory = Path(f"/proc/{process.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
    assert int(memory) < 80_000  # KiB
    process.stdout.close()
    assert process.wait(20) == -signal.SIGPIPE


@needs_file("/dev/full")
def test_a_full_disk_during_a_stream_is_one_line(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD, BODY])
    with open("/dev/full", "wb") as full:
        result = run("--stream", "Hi", stdout=full)
    assert result.status == 1
    assert result.err == "xchat: standard output: No space left on device\n"


def pieces_of(body: bytes) -> list[bytes]:
    """Cut the bytes at random places."""
    cuts = sorted(random.choices(range(len(body) + 1), k=random.randrange(6)))
    ends = [0, *cuts, len(body)]
    return [body[a:b] for a, b in itertools.pairwise(ends) if a < b]


def mutate(body: bytes) -> bytes:
    data = bytearray(body)
    for _ in range(random.randrange(4)):
        place = random.randrange(len(data) + 1)
        end = min(place + random.randrange(12), len(data))
        junk = [
            b"",
            b"\r",
            b"\n\n",
            b"data:",
            b"\xff",
            b"{",
            b"null",
            b"[DONE]",
            b"\x00",
            b'"',
            b"9",
        ]
        data[place:end] = random.choice(junk)
    return bytes(data)


def test_10000_splittings_of_a_good_stream_are_the_same_text() -> None:
    random.seed(1)
    for _ in range(10_000):
        ending = random.choice([b"\n", b"\r\n", b"\r"])
        blocks = pieces_of(BODY.replace(b"\n", ending))
        assert judged(*blocks) == (TEXT, "", 0), blocks


def test_10000_mutations_of_a_stream_are_a_text_or_one_clean_line() -> None:
    random.seed(2)
    failures = 0
    for _ in range(10_000):
        blocks = pieces_of(mutate(BODY))
        start = time.process_time()
        text, words, status = judged(*blocks)
        assert time.process_time() - start < 1, blocks
        text.encode()
        failures += bool(words)
        assert status in ((1, 4, 5) if words else (0,))
    assert 1000 < failures < 9000


@cases(
    ("odd", "status", "why"),
    {
        "llama.cpp's own field": (b'error: {"code": 500, "message": "full"}\n\n', 5, "full"),
        "the event's name": (b"event: error\ndata: backend died\n\n", 5, "backend died"),
        "the event's name, an object": (b'event: error\ndata: {"a": "b"}\n\n', 5, '{"error": {"a'),
        "inside the delta": (event(chunk(delta={"error": "died"})), 5, "died"),
        "a page": (event(b"<html><title>502 Bad Gateway</title>"), 1, "502 Bad Gateway"),
        "words": (event(b"Internal Server Error"), 1, "Internal Server Error"),
        "an object": (event({"ok": False, "description": "no"}), 1, '{"ok": false'),
        "problem+json": (event({"status": 500, "title": "no"}), 1, '{"status": 500'),
    },
)
def test_half_a_reply_with_an_end_mark_is_no_success(odd: bytes, status: int, why: str) -> None:
    out, words, exit_status = judged(event(chunk("Hel")) + odd, event(b"[DONE]"))
    assert (out, exit_status) == ("Hel", status)
    assert why in words


@pytest.mark.parametrize("beat", [b"", b'""', b"null", b"keepalive", b'{"type": "ping"}', b"{}"])
def test_half_beats_and_an_end_mark_are_a_whole_reply(beat: bytes) -> None:
    blocks = [event(chunk("Hel")), event(beat), event(chunk("lo")), event(b"[DONE]")]
    assert judged(*blocks) == ("Hello", "", 0)


def test_the_first_finish_reason_counts() -> None:
    cut, end = chunk("Hel", finish_reason="length"), chunk(finish_reason="stop")
    assert judged(event(cut), event(end), event(b"[DONE]"))[2] == 1


def test_choices_that_are_a_number_are_one_line(api: Api, run: Run) -> None:
    api.will(reply({"choices": 5}))
    result = run("Hi")
    assert (result.out, result.status, result.err.count("\n")) == (b"", 1, 1)
