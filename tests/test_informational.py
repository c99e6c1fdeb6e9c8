"""Informational responses (RFC 9110, 15.2) are passed over, whichever they are."""

from __future__ import annotations

import time

import pytest
import trustme
from conftest import HELLO, Result, Run, cases, said
from network import tls_for
from server import STREAM_HEAD, Api, completion, reply, stream

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
ONES = {
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "102": b"HTTP/1.1 102 Processing\r\n\r\n",
    "103": HINTS,
    "104": b"HTTP/1.1 104 Upload Resumption Supported\r\n\r\n",
    "199": b"HTTP/1.1 199 Odd\r\nContent-Length: 5\r\n\r\n",
    "with a length": b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n",
    "chunked": b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n",
    "that closes": b"HTTP/1.1 103 Early Hints\r\nConnection: close\r\n\r\n",
    "of HTTP/1.0": b"HTTP/1.0 103 Early Hints\r\n\r\n",
    "several": HINTS * 3 + b"HTTP/1.1 100 Continue\r\n\r\n" + HINTS,
    "very many": HINTS * 1000,
}


@cases("ones", ONES)
def test_an_informational_response_is_passed_over(api: Api, run: Run, ones: bytes) -> None:
    api.will([ones, *reply(completion())])
    assert run("Hi") == HELLO
    assert len(api.requests) == 1


def test_one_in_pieces_before_a_stream(api: Api, run: Run) -> None:
    pieces = [HINTS[n : n + 7] for n in range(0, len(HINTS), 7)]
    api.will([*[step for piece in pieces for step in (piece, 0.01)], STREAM_HEAD + stream("Hello")])
    assert run("--stream", "Hi") == HELLO


def test_one_over_https(run: Run, authority: trustme.CA, bundle: str) -> None:
    api = Api(tls=tls_for(authority, "127.0.0.1"))
    api.will([HINTS, *reply(completion())])
    assert run("Hi", env={"XCHAT_BASE_URL": api.url, "SSL_CERT_FILE": bundle}) == HELLO
    api.close()
    assert (len(api.requests), api.problems) == (1, [])


@pytest.mark.parametrize("status", ["400 Bad Request", "503 No"])
def test_an_error_behind_one_is_told(api: Api, run: Run, status: str) -> None:
    api.will([HINTS * 2, *reply({"error": "no"}, status)])
    assert run("Hi") == Result(b"", said(api, f"{status}: no"), 4 if status[0] == "4" else 5)


def test_the_headers_of_one_are_not_those_of_the_response(api: Api, run: Run) -> None:
    ones = b"HTTP/1.1 103 Early Hints\r\nx-request-id: early\r\nContent-Encoding: gzip\r\n\r\n"
    api.will([ones, *reply(b"no", "400 Bad")])
    assert run("Hi") == Result(b"", said(api, "400 Bad: no"), 4)


def test_nothing_behind_one_is_no_answer(api: Api, run: Run) -> None:
    api.will([HINTS])
    message = f"xchat: {api.host}: closed the connection without an answer\n"
    assert run("--retries", "3", "Hi") == Result(b"", message, 3)


def test_a_flood_of_them_ends_by_the_deadline(api: Api, run: Run) -> None:
    api.will([HINTS * 100, 0.01] * 10_000)
    start = time.monotonic()
    result = run("--timeout", "1", "Hi")
    assert time.monotonic() - start < 20
    words = "no answer within 1 s; --timeout sets a longer limit"
    assert result == Result(b"", said(api, words, request_id=""), 3)
