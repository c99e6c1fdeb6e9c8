"""The reply: its text on standard output, and nothing that is not whole passed off as one."""

from __future__ import annotations

import gzip
import json
import os
import pty
import signal
import socket
import subprocess
import time
import tracemalloc
import zlib
from typing import Any

import pytest
from conftest import File, Result, Run, cases, judged, limit, needs_file, needs_limit, said
from server import HANG, RESET, STREAM_HEAD, Api, chunk, completion, event, reply


def changed(path: str, value: Any) -> Any:
    """A completion with one thing in it replaced, as in "choices.0.message"."""
    body = completion()
    *above, last = path.split(".")
    place: Any = body
    for key in above:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    return body


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("Hello", b"Hello\n"),
        ("Hello\n", b"Hello\n"),
        ("Hello\n\n", b"Hello\n\n"),
        ("\r\n\t Hello \r", b"\r\n\t Hello \r\n"),
        ("\n", b"\n"),
        ("Grüße 🌍\u2028\x85", "Grüße 🌍\u2028\x85\n".encode()),
        ("\x1b]0;title\x07\x00\x9b", "\x1b]0;title\x07\x00\x9b\n".encode()),
        ("\ud83d half \udc00", "\ufffd half \ufffd\n".encode()),
        ("\ufeffmark", "\ufeffmark\n".encode()),
    ],
)
def test_the_text_is_written_byte_for_byte(api: Api, run: Run, text: str, out: bytes) -> None:
    api.will(reply(completion(text)))
    assert run("Hi", env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}) == Result(out, "", 0)


def test_a_large_reply_is_written_whole(api: Api, run: Run) -> None:
    text = "0123456789abcdef" * (1 << 20)
    api.will(reply(completion(text)))
    assert run("Hi").out == text.encode() + b"\n"


def test_the_reply_is_one_write(api: Api, run: Run) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    api.will(reply(completion("x" * 50_000)))
    with ours, theirs:
        assert run("Hi", stdout=theirs).status == 0
        assert ours.recv(1 << 20) == b"x" * 50_000 + b"\n"


NO_REASONS = {
    "null": {"finish_reason": None},
    "empty": {"finish_reason": ""},
    "nothing but the text": {"message": {"content": "Hello"}, "finish_reason": None},
    "other nulls": {"message": {"content": "Hello", "tool_calls": None, "refusal": None}},
}
NATURAL = ("stop", "STOP", "end_turn", "stop_sequence", "eos", "eos_token", "complete", "COMPLETED")


@cases("change", NO_REASONS | {name: {"finish_reason": name} for name in NATURAL})
def test_a_natural_end_or_none_is_no_failure(change: dict[str, Any]) -> None:
    assert judged(encoded(completion(**change))) == ("Hello", "", 0)
    if reason := change.get("finish_reason"):
        events = event(chunk("Hello")) + event(chunk(finish_reason=reason))
        assert judged(events) == ("Hello", "", 0)


CUTS = {
    # the finish reason, and what it is called
    "the token limit": ("length", " at the token limit"),
    "Anthropic's token limit": ("max_tokens", " at the token limit"),
    "Gemini's token limit": ("MAX_TOKENS", " at the token limit"),
    "Mistral's context": ("model_length", " at the token limit"),
    "the content filter": ("content_filter", " by the content filter"),
    "a tool call": ("tool_calls", " by a tool call"),
    "a function call": ("function_call", " by a tool call"),
    "Anthropic's tool call": ("tool_use", " by a tool call"),
    "OpenRouter and Mistral": ("error", ""),
    "vLLM and SGLang": ("abort", ""),
    "DeepSeek": ("insufficient_system_resource", ""),
    "Gemini": ("SAFETY", ""),
    "Gemini's citations": ("RECITATION", ""),
    "Cohere": ("ERROR_TOXIC", ""),
    "Anthropic": ("pause_turn", ""),
    "unknown": ("something new", ""),
    "a number": (3, ""),
}


@cases(("reason", "why"), CUTS)
def test_a_finish_reason_that_is_no_natural_end(reason: Any, why: str) -> None:
    whole = ("Hel", f"the reply is cut off{why} (finish reason {str(reason)!r})", 1)
    assert judged(encoded(completion("Hel", finish_reason=reason))) == whole
    events = [chunk("Hel"), chunk(finish_reason=reason), b"[DONE]"]
    assert judged(*map(event, events)) == whole


def test_a_finish_reason_through_the_command(api: Api, run: Run) -> None:
    api.will(reply(completion("Hel", finish_reason="SAFETY")))
    words = "the reply is cut off (finish reason 'SAFETY')"
    assert run("Hi") == Result(b"Hel\n", said(api, words), 1)


def encoded(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def test_the_first_of_several_choices() -> None:
    body = completion("one")
    body["choices"] += completion("two")["choices"]
    assert judged(encoded(body)) == ("one", "", 0)


@pytest.mark.parametrize("args", [[], ["--stream"]])
def test_the_choice_with_index_0_wherever_it_stands(api: Api, run: Run, args: list[str]) -> None:
    body = completion("one")
    others = [completion("two", index=1), completion("three", index=2, finish_reason="length")]
    body["choices"] = [choice for other in others for choice in other["choices"]] + body["choices"]
    api.will(reply(body))
    assert run(*args, "Hi") == Result(b"one\n", "", 0)


def test_a_single_choice_may_leave_its_index_out() -> None:
    body = completion("one")
    del body["choices"][0]["index"]
    assert judged(encoded(body)) == ("one", "", 0)
    assert judged(encoded(completion("one", index=None))) == ("one", "", 0)


def test_the_content_may_be_a_list_of_parts_of_which_the_text_counts() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://x.test", "text": "no"}}
    parts: list[Any] = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
        {"type": "text", "text": "Grüße "},
        image,
        *(None, 1, [], {}, {"type": "text"}, {"type": "text", "text": None}),
        {"type": "output_text", "text": "🌍", "annotations": []},
        "!\n",
    ]
    assert judged(encoded(completion(message={"content": parts}))) == ("Grüße 🌍!\n", "", 0)


@cases(
    "part",
    {
        "reasoning": {"type": "reasoning", "text": "Hm"},
        "thinking": {"type": "thinking", "text": "Hm", "thinking": "Hm"},
        "parts as the text": {"type": "text", "text": [{"type": "text", "text": "no"}]},
    },
)
def test_a_part_that_is_no_text_part_is_no_text(part: Any) -> None:
    text = {"type": "text", "text": "Hello"}
    assert judged(encoded(completion(message={"content": [part, text]}))) == ("Hello", "", 0)


@cases(
    "content",
    {
        "no parts": [],
        "an image": [{"type": "image_url"}],
        "an empty text": [{"type": "text", "text": ""}],
    },
)
def test_a_list_of_parts_without_text_is_empty(content: list[Any]) -> None:
    body = completion(message={"content": content})
    assert judged(encoded(body)) == ("", "the reply is empty: finish reason 'stop'", 1)


ONLY_REASONED = (
    "the reply is empty: the model only reasoned; -p reasoning_effort=low or a larger"
    " --max-tokens may help"
)
NO_COMPLETION = "the server's answer is not a chat completion: "

NOT_WHOLE: dict[str, tuple[Any, str]] = {
    # what the server says; why the status is 1
    "an empty text": (
        completion(message={"content": ""}),
        "the reply is empty: finish reason 'stop'",
    ),
    "no text": (completion(message={"content": None}), "the reply is empty: finish reason 'stop'"),
    "no text and no finish reason": (
        completion(message={"content": None}, finish_reason=None),
        "the reply is empty",
    ),
    "no text at the token limit": (
        completion(message={"content": None}, finish_reason="length"),
        "the reply is cut off at the token limit (finish reason 'length')",
    ),
    "xAI: reasoning alone": (completion(""), ONLY_REASONED),
    "vLLM: reasoning alone, to the token limit": (
        completion(message={"content": None, "reasoning": "Hm"}, finish_reason="length"),
        f"{ONLY_REASONED} (finish reason 'length')",
    ),
    "OpenRouter: reasoning in parts too": (
        completion(
            message={"content": "", "reasoning": "Hm", "reasoning_details": [{"text": "Hm"}]}
        ),
        ONLY_REASONED,
    ),
    "reasoning that the filter ended": (
        completion(None, finish_reason="content_filter"),
        f"{ONLY_REASONED} (finish reason 'content_filter')",
    ),
    "a refusal": (
        completion(message={"content": None, "refusal": "I won't."}),
        "the reply is empty: I won't.",
    ),
    "a tool call": (
        completion(message={"tool_calls": [{"id": "1"}]}, finish_reason="tool_calls"),
        "the reply is a tool call, not text (finish reason 'tool_calls')",
    ),
    "an empty body": (b"", f"{NO_COMPLETION}an empty body"),
    "a word": (b"OK", f"{NO_COMPLETION}OK"),
    "a page": (
        b"<html>Log in",
        f"{NO_COMPLETION}a page of HTML; is it a login page of the network?",
    ),
    "another mapping": (b'{"request_id": "1"}', f'{NO_COMPLETION}{{"request_id": "1"}}'),
    "the older API": (
        b'{"choices": [{"text": "Hello"}]}',
        f'{NO_COMPLETION}{{"choices": [{{"text": "Hello"}}]}}',
    ),
    "Ollama's own API": (
        b'{"message":"Hel"}\n{"message":"lo"}\n{"done":true}',
        f'{NO_COMPLETION}{{"message":"Hel"}}\n{{"message":"lo"}}\n{{"done":true}}',
    ),
    "a list": (b"[]", f"{NO_COMPLETION}[]"),
    "null": (b"null", f"{NO_COMPLETION}null"),
    "no choices": (b'{"choices": []}', f'{NO_COMPLETION}{{"choices": []}}'),
    "an empty choice": (b'{"choices": [{}]}', f'{NO_COMPLETION}{{"choices": [{{}}]}}'),
    "a choice that is a number": (b'{"choices": [4]}', f'{NO_COMPLETION}{{"choices": [4]}}'),
    "choices that are a mapping": (
        b'{"choices": {"0": 1}}',
        f'{NO_COMPLETION}{{"choices": {{"0": 1}}}}',
    ),
    "a message that is null": (
        changed("choices.0.message", None),
        "the reply is empty: finish reason 'stop'",
    ),
    "a text that is a mapping": (
        changed("choices.0.message", {"content": {"a": 1}}),
        "the reply is empty: finish reason 'stop'",
    ),
    "brackets without an end": (b"[" * 100_000, f"{NO_COMPLETION}{'[' * 100_000}"),
    "a number without an end": (
        b'{"choices": [' + b"9" * 5000,
        f'the reply is cut short: broken JSON: {{"choices": [{"9" * 5000}',
    ),
}


@cases(("body", "why"), NOT_WHOLE)
def test_what_is_no_text_is_told_in_words(body: Any, why: str) -> None:
    assert judged(encoded(body)) == ("", why, 1)


HALF = json.dumps(completion("Grüße, {[\n 🌍"))


@cases(
    ("cut", "text"),
    {
        "before the text": (HALF.index('"content": "') + 3, ""),
        "at the text": (HALF.index('"content": "') + 12, ""),
        "in an escape": (HALF.index("\\u00fc") + 4, "Gr"),
        "behind an escape": (HALF.index("\\u00fc") + 6, "Grü"),
        "in a pair of escapes": (HALF.index("\\ud83c") + 6, "Grüße, {[\n \ufffd"),
        "at a backslash": (HALF.index("\\n") + 1, "Grüße, {["),
        "behind the text": (HALF.index('", "reasoning'), "Grüße, {[\n 🌍"),
        "in the next key": (HALF.index("reasoning") + 4, "Grüße, {[\n 🌍"),
        "behind the next key": (HALF.index("_content") + 9, "Grüße, {[\n 🌍"),
        "behind the message": (HALF.index('"finish_reason') - 2, "Grüße, {[\n 🌍"),
        "in a number": (HALF.index("4121500") + 3, "Grüße, {[\n 🌍"),
        "before the last byte": (-1, "Grüße, {[\n 🌍"),
    },
)
def test_what_came_of_a_completion_that_is_cut_is_written(cut: int, text: str) -> None:
    out, words, status = judged(HALF[:cut].encode())
    assert (out, status) == (text, 1)
    assert words.startswith("the reply is cut short: broken JSON: ")


def test_a_completion_that_is_cut_anywhere_is_a_beginning_of_it() -> None:
    text = 'Grüße, {[\n 🌍\\"'
    for body in (json.dumps(completion(text)), json.dumps(completion(text), ensure_ascii=False)):
        seen = [judged(body.encode()[:cut]) for cut in range(len(body.encode()))]
        assert all(status == 1 for _out, _words, status in seen)
        outs = [out.rstrip("\ufffd") for out, _words, _status in seen]
        assert all(text.startswith(out) for out in outs)
        assert outs == sorted(outs, key=len)
        assert outs[-1] == text


@cases(
    "cut",
    {
        "reasoning before it": '{"reasoning": {"content": "no"}, "content": "Hel',
        "annotations before it": '{"annotations": [{"content": "no"}], "content": "Hel',
        "parts": '{"content": [{"type": "text", "text": "He"}, {"type": "text", "text": "l',
    },
)
def test_the_content_of_half_a_message_is_the_messages_own(cut: str) -> None:
    assert judged(f'{{"choices": [{{"index": 0, "message": {cut}'.encode())[::2] == ("Hel", 1)


def test_half_an_error_is_told_in_its_words() -> None:
    out, words, status = judged(b'{"error": {"message": "boom", "code": 400}')
    assert (out, words, status) == ("", "error in the reply: boom", 4)


@pytest.mark.parametrize("odd", ["[", "{", ",", '"', "\\", '{"a":'], ids=repr)
def test_a_mebibyte_of_odd_json_takes_bounded_time(odd: str) -> None:
    start = time.process_time()
    assert judged(b'{"choices": ' + odd.encode() * (1 << 20))[2] == 1
    assert time.process_time() - start < 5


def test_a_completion_whose_connection_breaks_is_written(api: Api, run: Run, file: File) -> None:
    cut = reply(completion("Hel" * 99), content_length="99999")
    api.will(cut, cut)
    words = said(api, "the reply is cut short: closed the connection in the middle")
    assert run("Hi") == Result(b"Hel" * 99 + b"\n", words, 1)
    name = file("yesterday's", "report")
    assert run("-o", name, "Hi") == Result(b"Hel" * 99 + b"\n", words, 1)
    assert (run.home / name).read_text() == "yesterday's"


@pytest.mark.parametrize("name", ["a word", "xAI: reasoning alone"])
def test_what_is_no_text_ends_in_status_1(api: Api, run: Run, name: str) -> None:
    body, why = NOT_WHOLE[name]
    api.will(reply(body))
    assert run("Hi") == Result(b"", said(api, why), 1)


FAILURES: dict[str, tuple[list[Any], list[str], int]] = {
    # what the server does; the options; the status
    "cut off at the token limit": (reply(completion("Hel", finish_reason="length")), [], 1),
    "cut off by a tool call": (reply(completion("Hel", finish_reason="tool_calls")), [], 1),
    "empty": (reply(completion("")), [], 1),
    "no completion": (reply(b"OK"), [], 1),
    "not JSON": (reply(completion("Hello")), ["--schema", "{}"], 1),
    "an empty block": (reply(completion("```\n\n```")), ["-x"], 1),
    "cut short": ([STREAM_HEAD + event(chunk("Hel"))], ["--stream"], 1),
    "reset": ([STREAM_HEAD + event(chunk("Hel")), RESET], ["--stream"], 1),
    "broken": ([STREAM_HEAD + event(chunk("Hel")) + event(b"{")], ["--stream"], 1),
    "an error beside choices": (reply({**completion("Hel"), "error": "died"}), [], 5),
    "an error in the stream": (
        [STREAM_HEAD + event(chunk("Hel")) + event({"detail": "died"}) + event(b"[DONE]")],
        ["--stream"],
        5,
    ),
    "no model": (reply({"error": "unknown model"}), [], 4),
    "refused": (reply({"error": "no"}, "400 Bad"), [], 4),
    "overloaded": (reply({"error": "no"}, "503 Busy"), [], 5),
    "too late": ([STREAM_HEAD + event(chunk("Hel")), HANG], ["--timeout", "2"], 3),
    "no answer": ([], [], 3),
}


@cases(("steps", "args", "status"), FAILURES)
def test_a_failure_leaves_both_files_as_they_were(
    api: Api, run: Run, file: File, steps: list[Any], args: list[str], status: int
) -> None:
    talk = "- user: Hi\n- assistant: Hello\n"
    name, report = file(talk), file("yesterday's", "report")
    api.will(steps)
    result = run("-af", name, "-o", report, *args, "And?")
    assert (result.status, result.err.count("\n")) == (status, 1)
    assert sorted(path.name for path in run.home.iterdir()) == [name, report]
    assert (run.home / name).read_text() == talk
    assert (run.home / report).read_text() == "yesterday's"


@cases(
    "steps",
    {
        "before its length": [
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            b'{"choices": [{"mess',
        ],
        "in a chunk": [b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"cho'],
        "reset after a chunk": [
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"cho\r\n',
            RESET,
        ],
        "before the last chunk": [
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"cho\r\n'
        ],
        "where a size is none": [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"
        ],
        "reset before its length": [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{", RESET],
        "gzip that is none": [
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 8\r\n\r\nnot gzip"
        ],
    },
)
def test_a_body_that_is_cut_short(api: Api, run: Run, steps: list[Any]) -> None:
    api.will(steps)
    result = run("Hi")
    assert (result.out, result.status) == (b"", 1)
    assert result.err.startswith(f"xchat: {api.host}: the reply is cut short: ")
    assert result.err.count("\n") == 1


BODY = json.dumps(completion("Grüße"), ensure_ascii=False).encode()


@cases(
    "steps",
    {
        "gzip": reply(gzip.compress(BODY), Content_Encoding="gzip"),
        "deflate": reply(zlib.compress(BODY), Content_Encoding="deflate"),
        "another character set": reply(BODY, content_type="text/html; charset=ISO-8859-1"),
        "a byte-order mark": reply(b"\xef\xbb\xbf" + BODY, content_type="text/plain"),
        "ended by closing": [b"HTTP/1.1 200 OK\r\n\r\n", BODY],
        "HTTP/1.0": [b"HTTP/1.0 200 OK\r\n\r\n", BODY],
        "byte by byte": [b"HTTP/1.1 200\r\nContent-Length: %d\r\n\r\n" % len(BODY)]
        + [BODY[i : i + 1] for i in range(len(BODY))],
        "chunks with extensions": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]
        + [b"3;x=y\r\n%b\r\n" % BODY[i : i + 3] for i in range(0, len(BODY) - 2, 3)]
        + [b"%x\r\n%b\r\n" % (len(BODY) % 3, BODY[-(len(BODY) % 3) :]) if len(BODY) % 3 else b""]
        + [b"0\r\n\r\n"],
        "100 first": [b"HTTP/1.1 100 Continue\r\n\r\n", *reply(BODY)],
        "status 201": reply(BODY, "201 Created"),
    },
)
def test_every_way_to_send_a_body(api: Api, run: Run, steps: list[Any]) -> None:
    api.will(steps)
    assert run("Hi") == Result("Grüße\n".encode(), "", 0)


def test_bytes_that_are_not_utf_8_become_the_replacement_character(api: Api, run: Run) -> None:
    api.will(reply(BODY.replace("ü".encode(), b"\xfc")))
    assert run("Hi") == Result("Gr\ufffdße\n".encode(), "", 0)


def test_a_reply_of_more_than_64_mib_is_not_held(api: Api, run: Run) -> None:
    block = b" " * (1 << 20)
    api.will([b"HTTP/1.1 200 OK\r\n\r\n", *[block] * 66])
    result = run("Hi")
    assert result == Result(b"", f"xchat: {api.host}: the reply is larger than 64 MiB\n", 1)


BLOCK = 1 << 16
NO_EVENTS = {
    "comments": b":\n",
    "known fields": b"id:\n",
    "unknown fields": b"xy\n",
    "blank lines": b"\n",
    "lines of one event": b"data:xy\n",
    "a comment without an end": b":",
}


@cases("unit", NO_EVENTS)
def test_what_is_no_event_yet_is_not_held_as_lines(unit: bytes) -> None:
    block = unit * (BLOCK // len(unit))
    end = b"\n\n" + event(chunk("Hello", finish_reason="stop"))
    tracemalloc.start()
    assert judged(*[block] * 8, end) == ("Hello", "", 0)
    _size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 << 20  # of 512 KiB; a line would cost 40 bytes at least


def test_16_mib_of_escapes_cost_little_time() -> None:
    text = '\\"\u202e\ud83d<' * (1 << 19)
    start = time.process_time()
    whole = (text.replace("\ud83d", "\ufffd"), "", 0)
    assert judged(json.dumps(completion(text)).encode()) == whole
    assert time.process_time() - start < 10


@needs_limit
def test_a_gzip_bomb_is_not_held(api: Api, run: Run) -> None:
    bomb = gzip.compress(b" " * (400 << 20))
    api.will(reply(bomb, Content_Encoding="gzip"), reply(bomb, "500 No", Content_Encoding="gzip"))
    # urllib3 2.3, which Debian 13 has, takes 12 s
    result = run("Hi", preexec_fn=lambda: limit(60), timeout=300)
    assert (result.out, result.status) == (b"", 1)
    assert "the reply is larger than 64 MiB" in result.err
    result = run("Hi", preexec_fn=limit, timeout=300)
    assert (result.out, result.status) == (b"", 5)
    assert "500 No: no reason given" in result.err


@pytest.mark.parametrize("encoding", ["br, gzip", "xz", "compress"])
def test_a_compression_that_nobody_asked_for_and_nobody_reads_is_named(
    api: Api, run: Run, encoding: str
) -> None:
    api.will(reply(b"\x0b\x02\x80abc", content_encoding=encoding))
    message = f"cannot read a reply that is compressed as {encoding!r} (request id req-7)"
    assert run("Hi") == Result(b"", f"xchat: {api.host}: {message}\n", 1)


def test_a_body_that_is_compressed_twice_is_refused(api: Api, run: Run) -> None:
    api.will(reply(gzip.compress(gzip.compress(BODY)), Content_Encoding="gzip, gzip"))
    result = run("Hi")
    assert (result.out, result.status) == (b"", 1)
    assert "cannot read a reply that is compressed as 'gzip, gzip'" in result.err


@needs_file("/dev/full")
@pytest.mark.parametrize("args", [["Hi"], ["--dry-run", "Hi"], ["--help"], ["--version"]])
def test_a_full_disk_is_told(api: Api, run: Run, args: list[str]) -> None:
    if args == ["Hi"]:
        api.will(reply(completion()))
    with open("/dev/full", "wb") as full:
        result = run(*args, stdout=full)
    assert (result.err, result.status) == (
        "xchat: standard output: No space left on device\n",
        1,
    )


@pytest.mark.parametrize("args", [["Hi"], ["--dry-run", "Hi"], ["--help"], ["--version"]])
def test_closed_standard_output_is_told_before_anything_is_sent(
    api: Api, run: Run, args: list[str]
) -> None:
    run.by_shell('exec "$@" >&-')
    assert run(*args).status == 1
    assert run(*args).err == "xchat: standard output: closed\n"


@pytest.mark.parametrize(
    "where",
    ["2>&-", pytest.param("2>/dev/full", marks=needs_file("/dev/full")), "2>&1 >/dev/null | :"],
)
def test_standard_error_that_takes_nothing_changes_no_status(run: Run, where: str) -> None:
    script = f'{{ "$@" -f nowhere; echo $? >status; }} {where}'
    subprocess.run(["sh", "-c", script, "sh", *run.command], env=run.env, cwd=run.home, check=False)
    assert (run.home / "status").read_text() == "2\n"


def test_a_reader_that_is_gone_ends_it_by_sigpipe(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    read, write = os.pipe()
    os.close(read)
    result = run("Hi", stdout=write)
    os.close(write)
    assert (result.err, result.status) == ("", -13)


def test_a_blocked_sigpipe_is_no_success(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    read, write = os.pipe()
    os.close(read)
    blocked = {signal.SIGPIPE}
    result = run(
        "Hi", stdout=write, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    )
    os.close(write)
    assert (result.err, result.status) == ("", 141)


def test_a_full_pipe_that_does_not_block_gets_all(api: Api, run: Run) -> None:
    api.will(reply(completion("x" * 500_000)))
    read, write = os.pipe()
    os.set_blocking(write, False)
    process = run.start("Hi", stdout=write)
    os.close(write)
    with open(read, "rb") as file:
        assert len(file.read()) == 500_001
    assert process.wait(20) == 0
    assert process.stderr.read() == b""


def test_a_reply_goes_to_a_terminal(api: Api, run: Run) -> None:
    api.will(reply(completion("Grüße")))
    ours, theirs = pty.openpty()
    assert run("Hi", stdout=theirs).status == 0
    assert os.read(ours, 100) == "Grüße\r\n".encode()
    os.close(ours)
    os.close(theirs)
