"""Every exit status, and the one line that goes with it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from conftest import (
    HELLO,
    KEY,
    TOP,
    Result,
    Run,
    cases,
    judged,
    needs,
    needs_file,
    refused,
    said,
)
from server import HANG, RESET, STREAM_HEAD, Api, chunk, completion, event, refusing, reply

ERRORS: dict[str, tuple[str, Any, int, str]] = {
    # status line, body, exit status, what is said
    "xAI, flat": (
        "400 Bad Request",
        {
            "code": "invalid-argument",
            "error": "Incorrect API key provided: xa***jU. You can obtain an API key from"
            " https://console.x.ai.",
        },
        4,
        "400 Bad Request: Incorrect API key provided: xa***jU. You can obtain an API key from"
        " https://console.x.ai.",
    ),
    "a string alone": (
        "400 Bad Request",
        "Multi Agent requests are not allowed on chat completions",
        4,
        "400 Bad Request: Multi Agent requests are not allowed on chat completions",
    ),
    "xAI, no credentials": (
        "401 Unauthorized",
        {"code": "unauthenticated:no-credentials", "error": "No credentials presented."},
        4,
        "401 Unauthorized: No credentials presented.",
    ),
    "xAI, no credits": (
        "403 Forbidden",
        {"code": "permission-denied", "error": "Your team x has used all available credits"},
        4,
        "403 Forbidden: Your team x has used all available credits",
    ),
    "OpenAI, nested": (
        "404 Not Found",
        {"error": {"message": "No such model", "type": "not_found", "code": None}},
        4,
        "404 Not Found: No such model; -m or XCHAT_MODEL names another",
    ),
    "an empty body": ("411 Length Required", b"", 4, "411 Length Required: no reason given"),
    "xAI, gone": (
        "410 Gone",
        {"error": "Live search is deprecated."},
        4,
        "410 Gone: Live search is deprecated.",
    ),
    "plain text": ("413 Payload Too Large", b"too large", 4, "413 Payload Too Large: too large"),
    "plain text on two lines": (
        "422 Unprocessable Entity",
        b"Failed to deserialize the JSON body:\n messages[0].content: invalid type\n",
        4,
        "422 Unprocessable Entity: Failed to deserialize the JSON body:\n messages[0].content:"
        " invalid type",
    ),
    "FastAPI": (
        "422 Unprocessable Entity",
        {"detail": [{"loc": ["body"], "msg": "field required"}]},
        4,
        "422 Unprocessable Entity: body: field required",
    ),
    "429 for want of credit": (
        "429 Too Many Requests",
        {"code": "Some resource has been exhausted", "error": "used all available credits or"},
        4,
        "429 Too Many Requests: used all available credits or",
    ),
    "429 for haste, with an internal mark": (
        "429 Too Many Requests",
        {"code": 429, "error": "Slow down [WKE=personal-team-blocked:spending]"},
        5,
        "429 Too Many Requests: Slow down",
    ),
    "a message alone": ("408 Request Timeout", {"message": "late"}, 5, "408 Request Timeout: late"),
    "JSON inside JSON": (
        "500 Internal Server Error",
        {"code": 500, "error": '{"error": {"message": "twice encoded"}}'},
        5,
        "500 Internal Server Error: twice encoded",
    ),
    "an error without words": (
        "503 Service Unavailable",
        {"error": {"code": 1}},
        5,
        '503 Service Unavailable: {"error": {"code": 1}}',
    ),
    "a page with a title": ("521", b"<!DOCTYPE html><title>x</title>", 5, "521: x"),
    "a page without a title": ("521", b"<!DOCTYPE html><p>x", 5, "521: a page of HTML"),
    "brackets": ("529 Overloaded", b"[[[[[[[[[[", 5, "529 Overloaded: [[[[[[[[[["),
    "brackets without an end": ("530 X", b"[" * 90000, 5, f"530 X: {'[' * 90000}"),
    "control characters": (
        "418 I'm",
        b"\x1b]0;title\x07\xff\x00 \xe2\x80\xaereversed\n",
        4,
        "418 I'm: \x1b]0;title\x07\ufffd\x00 \u202ereversed",
    ),
    "200, xAI": (
        "200 OK",
        {"code": "unavailable", "error": "Try later"},
        5,
        "error in the reply: Try later",
    ),
    "200, nested, with status 503": (
        "200 OK",
        {"error": {"message": "overloaded", "code": 503}},
        5,
        "error in the reply: overloaded",
    ),
    "200, nested, with status 404": (
        "200 OK",
        {"error": {"message": "no such model", "code": 404}},
        4,
        "error in the reply: no such model; -m or XCHAT_MODEL names another",
    ),
    "200, nested, with status 429": (
        "200 OK",
        {"error": {"message": "slow down", "code": 429}},
        5,
        "error in the reply: slow down",
    ),
    "200, xAI, an invalid argument": (
        "200 OK",
        {"code": "invalid-argument", "error": "stop is not supported"},
        4,
        "error in the reply: stop is not supported",
    ),
    "200, xAI, an invalid argument in words": (
        "200 OK",
        {"code": "Client specified an invalid argument", "error": "no"},
        4,
        "error in the reply: no",
    ),
    "200, no credit": (
        "200 OK",
        {"error": "The team has used all available credits"},
        4,
        "error in the reply: The team has used all available credits",
    ),
}


@cases(("status_line", "body", "status", "message"), ERRORS)
def test_an_error_is_told_in_the_words_of_the_api(
    status_line: str, body: Any, status: int, message: str
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    if status_line == "200 OK":
        assert judged(data) == ("", message, status)
    else:
        failure = refused(status_line, data, key=KEY)
        assert (failure.message, failure.exit_code) == (message, status)


@pytest.mark.parametrize("name", ["xAI, flat", "control characters", "200, no credit"])
def test_an_error_is_one_line_and_one_status(api: Api, run: Run, name: str) -> None:
    status_line, body, status, message = ERRORS[name]
    api.will(reply(body, status_line))
    message = re.sub(r"[\0-\x20\u202e]+", " ", message)
    assert run("Hi") == Result(b"", said(api, message), status)
    assert len(api.requests) == 1


def test_an_error_without_a_request_id(api: Api, run: Run) -> None:
    api.will([b"HTTP/1.1 502 Oops\r\n\r\nbroken"])
    assert run("Hi") == Result(b"", f"xchat: {api.host}: 502 Oops: broken\n", 5)


@pytest.mark.parametrize(
    ("status", "location"),
    [
        *((status, "https://evil.test/") for status in (301, 302, 303, 307, 308)),
        *((302, location) for location in ("/v1/other", "http://[", "")),
    ],
)
def test_a_redirect_is_not_followed(api: Api, run: Run, status: int, location: str) -> None:
    head = f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 999\r\n\r\n"
    api.will([head.encode()])
    where = f" (to {location})" if location else ""
    message = f"xchat: {api.host}: {status} Moved: redirects are not followed{where}\n"
    assert run("Hi") == Result(b"", message, 4)


@pytest.mark.parametrize("location", ["https://login.test/?a=b", "/v2/chat"])
def test_where_a_redirect_points_is_told(api: Api, run: Run, location: str) -> None:
    api.will(reply(b"", "307 Moved", Location=location))
    words = f"307 Moved: redirects are not followed (to {location})"
    assert run("Hi") == Result(b"", said(api, words), 4)


def test_a_redirect_whose_body_never_comes_is_told_at_once(api: Api, run: Run) -> None:
    api.will([b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 9\r\n\r\n", HANG])
    message = f"xchat: {api.host}: 302 Found: redirects are not followed (to /x)\n"
    assert run("--timeout", "15", "Hi", timeout=12) == Result(b"", message, 4)


def test_the_body_of_a_redirect_or_an_error_is_not_read_to_its_end(api: Api, run: Run) -> None:
    sent: list[int] = []

    def send(connection: socket.socket) -> None:
        connection.sendall(b"x" * (1 << 20))
        sent.append(1)

    api.will([b"HTTP/1.1 503 No\r\n\r\n", *[send] * 500])
    assert run("Hi", "--timeout", "20").status == 5
    assert len(sent) < 100


def test_an_error_is_told_even_if_its_body_is_cut_short(api: Api, run: Run) -> None:
    api.will([b"HTTP/1.1 502 Oops\r\nContent-Length: 99\r\n\r\nbroken"])
    assert run("Hi") == Result(b"", f"xchat: {api.host}: 502 Oops: broken\n", 5)


def test_nobody_listens(run: Run) -> None:
    with refusing() as server:
        port = server.getsockname()[1]
        result = run("Hi", env={"XCHAT_BASE_URL": f"http://127.0.0.1:{port}/v1"})
    assert result == Result(b"", f"xchat: 127.0.0.1:{port}: Connection refused\n", 3)


def test_no_such_host(run: Run) -> None:
    env = {"XCHAT_BASE_URL": "https://xchat.invalid/v1", "XAI_API_KEY": "k"}
    result = run("Hi", env=env)
    assert (result.out, result.status) == (b"", 3)
    assert result.err.startswith("xchat: xchat.invalid: cannot find the host: ")


@cases(
    ("steps", "message"),
    {
        "closes": ([], "closed the connection without an answer"),
        "closes in the headers": ([b"HTTP/1.1 200 OK\r\nContent-"], None),
        "resets": ([RESET], "Connection reset by peer"),
        "resets in the headers": (
            [b"HTTP/1.1 200 OK\r\nContent-", RESET],
            "Connection reset by peer",
        ),
        "speaks SSH": ([b"SSH-2.0-OpenSSH_9.2\r\n"], None),
        "a header without an end": ([b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000], None),
        "too many headers": ([b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000], None),
        "a status that is no number": ([b"HTTP/1.1 abc\r\n\r\n"], None),
    },
)
def test_no_answer(api: Api, run: Run, steps: list[Any], message: str | None) -> None:
    api.will(steps)
    result = run("Hi")
    assert (result.out, result.status) == (b"", 3) or (message is None and result.status == 1)
    assert result.err.startswith(f"xchat: {api.host}: {message or ''}")
    assert result.err.count("\n") == 1


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"


@cases(
    "steps",
    {
        "silence": [HANG],
        "silence after the headers": [HEAD, HANG],
        "headers without an end": [
            b"HTTP/1.1 200 OK\r\n",
            *[b"X-%d: y\r\n" % n for n in range(99)],
            HANG,
        ],
        "a header that drips": [b"HTTP/1.1 200 OK\r\n", *[b"X", 0.05] * 1000],
        "a body that drips": [HEAD, *[b" ", 0.05] * 1000],
        "a chunk that drips": [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            *[b"0", 0.05] * 1000,
        ],
    },
)
def test_the_deadline_is_for_the_whole_answer(api: Api, run: Run, steps: list[Any]) -> None:
    api.will(steps)
    start = time.monotonic()
    result = run("--timeout", "2", "Hi")  # which waits for 30 s at most
    assert time.monotonic() - start > 2
    what = "not the whole answer" if steps[0] == HEAD and steps[1] == b" " else "no answer"
    message = f"xchat: {api.host}: {what} within 2 s; --timeout sets a longer limit\n"
    assert result == Result(b"", message, 3)


def test_the_deadline_after_half_a_reply(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD, event(chunk("Hel")), HANG])
    result = run("--stream", "--timeout", "2", "Hi")
    words = "not the whole answer within 2 s; --timeout sets a longer limit"
    assert result == Result(b"Hel\n", said(api, words), 3)


def test_the_deadline_before_a_reply(api: Api, run: Run) -> None:
    api.will([HANG])
    result = run("--stream", "--timeout", "1", "Hi")
    words = "no answer within 1 s; --timeout sets a longer limit"
    assert result == Result(b"", said(api, words, request_id=""), 3)


def test_an_error_whose_body_drips_past_the_deadline_keeps_its_status(api: Api, run: Run) -> None:
    drips: list[Any] = [b"wrong key ", 0.05] * 200
    api.will([b"HTTP/1.1 401 No\r\n\r\n", *drips])
    result = run("--timeout", "1", "Hi")
    assert result.status == 4
    assert result.err.startswith(f"xchat: {api.host}: 401 No: wrong key wrong key")


def test_the_deadline_may_come_from_the_environment(api: Api, run: Run) -> None:
    api.will([HANG], reply(completion()))
    assert run("Hi", env={"XCHAT_TIMEOUT": "0.5"}).status == 3
    assert run("Hi", "--timeout", "1e300", env={"XCHAT_TIMEOUT": "0.5"}).status == 0


def test_connecting_has_10_seconds_at_most(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        fill = [socket.socket() for _ in range(8)]
        for client in fill:  # the queue of connections is full, the next one is not answered
            client.setblocking(False)
            client.connect_ex(address)
        env = {"XCHAT_BASE_URL": f"http://127.0.0.1:{address[1]}/v1"}
        result = run("--timeout", "1", "Hi", env=env)
        message = f"xchat: 127.0.0.1:{address[1]}: no connection within 1 s\n"
        assert result == Result(b"", message, 3)
        for client in fill:
            client.close()


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_it_without_a_word(api: Api, run: Run, number: signal.Signals) -> None:
    asked = threading.Event()
    api.will([lambda _connection: asked.set(), HANG])
    process = run.start("Hi")
    assert asked.wait(20)
    process.send_signal(number)
    assert (process.wait(20), process.stdout.read(), process.stderr.read()) == (-number, b"", b"")


def test_two_signals_at_once_end_it_without_a_word(api: Api, run: Run) -> None:
    asked = threading.Semaphore(0)
    for _ in range(8):
        api.will([lambda _connection: asked.release(), HANG])
        process = run.start("Hi")
        assert asked.acquire(timeout=20)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (-signal.SIGTERM, -signal.SIGINT)
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")


def test_a_signal_ends_it_while_standard_input_is_silent(api: Api, run: Run) -> None:
    processes = [run.start(stdin=subprocess.PIPE) for _ in SIGNALS]
    for process, number in zip(processes, SIGNALS, strict=True):
        assert process.stderr.readline().startswith(b"xchat: still waiting for")
        process.send_signal(number)
        assert process.wait(20) == -number
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
        process.stdin.close()


def test_a_signal_that_the_parent_ignores_stays_ignored(api: Api, run: Run) -> None:
    asked, told = threading.Event(), threading.Event()
    api.will([lambda _connection: asked.set(), told, *reply(completion())])
    run.by_shell('trap "" INT TERM; exec "$@"')
    process = run.start("Hi")
    assert asked.wait(20)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    told.set()
    assert (process.wait(20), process.stdout.read()) == (0, b"Hello\n")


@needs("bash")
def test_a_loop_of_bash_ends_with_the_interrupt(api: Api, run: Run) -> None:
    asked = threading.Event()
    api.will([lambda _connection: asked.set(), HANG])
    script = 'for i in 1 2 3; do "$@" Hi; echo "after $i"; done'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *run.command],
        env=run.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert asked.wait(20)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=20)[0] == b""
    assert len(api.requests) == 1


def test_a_long_message_is_cut(api: Api, run: Run) -> None:
    api.will(reply(json.dumps({"error": "x" * 5000}).encode(), "400 Bad"))
    result = run("Hi")
    assert result.status == 4
    assert len(result.err) < 1000
    assert result.err.endswith("xxx (request id req-7)\n")


@cases(
    ("answer", "args", "out", "message", "status"),
    {
        "a reply at the token limit": (
            reply(completion("Hel", finish_reason="length")),
            [],
            b"Hel\n",
            "HOST: the reply is cut",
            1,
        ),
        "a file that is missing": (
            None,
            ["-f", "nowhere"],
            b"",
            "-f nowhere: No such file or directory\n",
            2,
        ),
        "a wrong value": (
            None,
            ["-t", "warm"],
            b"",
            "-t: expected a number from 0 to 2, not 'warm'\n",
            2,
        ),
        "an unknown option": (None, ["--zzz"], b"", "no such option: --zzz", 2),
        "the deadline": ([HANG], ["--timeout", "1"], b"", "HOST: no answer within 1 s", 3),
        "an error of the caller": (
            reply({"error": "no"}, "400 Bad"),
            [],
            b"",
            "HOST: 400 Bad: no",
            4,
        ),
        "an error of the server": (
            reply({"error": "no"}, "500 Bad"),
            [],
            b"",
            "HOST: 500 Bad: no",
            5,
        ),
    },
)
def test_quiet_silences_warnings_but_no_error(
    api: Api, run: Run, answer: Any, args: list[str], out: bytes, message: str, status: int
) -> None:
    api.extra_fields = {"zzz"}
    if answer:
        api.will(answer)
    result = run("-q", "-p", "zzz=1", *args, "Hi")  # an unknown field is a warning
    assert (result.out, result.status) == (out, status)
    assert result.err.startswith(f"xchat: {message.replace('HOST', api.host)}")
    assert result.err.count("\n") == 1


def test_what_quiet_silences_is_told_without_it(api: Api, run: Run) -> None:
    api.extra_fields = {"zzz"}
    api.will(*[reply(completion())] * 3)
    assert run("-p", "zzz=1", "Hi").err.startswith("xchat: -p: unknown request field")
    for option in ("-q", "--quiet"):
        assert run("-p", "zzz=1", "Hi", option) == HELLO


@needs_file(str(TOP / "xchat.py"))
def test_want_of_memory_is_one_line(run: Run) -> None:
    script = "import sys, xchat; xchat.read_bytes = lambda file: [0] * (1 << 60)"
    script += "; sys.exit(xchat.main())"
    run.command = [sys.executable, "-c", script]
    result = run("--dry-run", stdin=b"Hi", env={"PYTHONPATH": str(TOP)})
    assert result == Result(b"", "xchat: not enough memory\n", 1)
