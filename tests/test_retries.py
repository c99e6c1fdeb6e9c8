"""What is posted again, and above all what is not."""

from __future__ import annotations

import email.utils
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import KEY, Result, Run, Shell, cases, needs, said
from server import (
    HANG,
    RESET,
    STREAM_HEAD,
    Api,
    chunk,
    completion,
    event,
    perform,
    read_request,
    refusing,
    reply,
)

AGAIN = r"xchat: 127\.0\.0\.1:\d+: (.*); trying again in (\d+\.\d) s"

ANSWER = reply(completion())


def waits(result: Result) -> list[tuple[str, float]]:
    """The reason and the seconds of each announced wait."""
    return [(why, float(wait)) for why, wait in re.findall(AGAIN, result.err)]


def overloaded(**headers: str) -> list[Any]:
    return reply({"error": "Slow down"}, "429 Too Many", **headers)


def test_nothing_is_posted_again_unless_asked_for(api: Api, run: Run) -> None:
    api.will(overloaded())
    assert run("Hi").status == 5
    assert len(api.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_what_cannot_have_produced_a_reply_is_posted_again(api: Api, run: Run, status: int) -> None:
    api.key = KEY
    api.will(reply({"error": "no"}, f"{status} No", Retry_After="0.1"), ANSWER)
    result = run("--retries", "3", "Hi", env={"XAI_API_KEY": KEY})
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert re.fullmatch(AGAIN + "\n", result.err)
    ((why, wait),) = waits(result)
    assert why == f"{status} No: no (request id req-7)"
    assert 0.1 <= wait <= 1.2
    assert len(api.requests) == 2
    assert api.requests[0] == api.requests[1]


def test_the_environment_asks_for_retries(api: Api, run: Run) -> None:
    api.will(overloaded(Retry_After="0"), ANSWER)
    assert run("Hi", "-q", env={"XCHAT_RETRIES": "1"}) == Result(b"Hello\n", "", 0)
    assert run("Hi", env={"XCHAT_RETRIES": "-1"}).status == 2


def test_at_most_as_often_as_asked_for(api: Api, run: Run) -> None:
    api.will(*[overloaded(Retry_After="0.01")] * 3)
    result = run("--retries", "2", "Hi")
    assert (result.out, result.status, len(waits(result))) == (b"", 5, 2)
    assert result.err.splitlines()[-1].endswith("429 Too Many: Slow down (request id req-7)")


ONCE = {
    # the answer, the exit status
    "status 400": (reply(b"no", "400 Bad"), 4),
    "status 401": (reply(b"no", "401 No"), 4),
    "status 403": (reply(b"no", "403 No"), 4),
    "status 404": (reply(b"no", "404 No"), 4),
    "status 408": (reply(b"no", "408 Late"), 5),
    "status 422": (reply(b"no", "422 No"), 4),
    "a redirect": (reply(b"", "302 Found", Location="/"), 4),
    "no credit": (reply({"error": "used all available credits"}, "429 No"), 4),
    "no credit, by the code": (
        reply({"error": {"message": "x", "code": "insufficient_quota"}}, "429 No"),
        4,
    ),
    "a gateway's page": (reply(b"<html><title>Busy</title>", "503 No", Retry_After="0.01"), 5),
    "a gateway's text": (reply(b"no healthy upstream", "503 No", Retry_After="0.01"), 5),
    "nothing of a gateway": (reply(b"", "500 No", Retry_After="0.01"), 5),
    "a long wait": (overloaded(Retry_After="121"), 5),
    "an endless wait": (overloaded(Retry_After="99999999999999999999"), 5),
    "a wait until a far date": (
        overloaded(Retry_After=email.utils.formatdate(time.time() + 3600, usegmt=True)),
        5,
    ),
    "an error inside a 200": (reply({"error": {"message": "overloaded", "code": 503}}), 5),
    "no completion": (reply(b"no completion"), 1),
    "an empty reply": (reply(completion("")), 1),
    "a reply at the token limit": (reply(completion("x", finish_reason="length")), 1),
    "no answer": ([], 3),
    "a reset": ([RESET], 3),
    "half the headers": ([b"HTTP/1.1 200 OK\r\nContent-Le"], 1),
    "half a body": ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"], 1),
    "nonsense": ([b"nonsense\r\n\r\n"], 3),
    "an empty stream": ([STREAM_HEAD], 1),
    "half a stream": ([STREAM_HEAD, event(chunk("Hel")), RESET], 1),
    "an error first in a stream": (
        [STREAM_HEAD, event({"error": {"message": "overloaded", "code": 503}})],
        5,
    ),
    "an error in a stream": ([STREAM_HEAD, event(chunk("Hel")), event({"error": "overloaded"})], 5),
    "silence": ([HANG], 3),
    "a silent stream": ([STREAM_HEAD, HANG], 3),
}


@cases(("answer", "status"), ONCE)
def test_what_may_have_been_paid_for_or_will_not_help_is_posted_once(
    api: Api, run: Run, answer: list[Any], status: int
) -> None:
    api.will(answer)
    timeout = "2" if HANG in answer else "20"
    result = run("--retries", "5", "--stream", "--timeout", timeout, "Hi")
    assert result.status == status
    assert result.err.count("\n") == 1
    assert waits(result) == []
    time.sleep(0.1)
    assert len(api.requests) == 1


@pytest.mark.parametrize("status", [502, 504, *range(520, 528), 530])
def test_what_a_gateway_says_is_posted_once(api: Api, run: Run, status: int) -> None:
    api.will(reply(b"upstream", f"{status} Gateway", Retry_After="0.01"))
    result = run("--retries", "3", "Hi")
    assert result == Result(b"", said(api, f"{status} Gateway: upstream"), 5)
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    "value",
    [
        "-5",
        "soon",
        "",
        "1e3",
        "٣",
        "Fri, 99 Nov 2026 99:00:00 GMT",
        "0",
        "Sun, 06 Nov 1994 08:49:37 GMT",
    ],
)
def test_a_retry_after_that_says_nothing_counts_as_absent(api: Api, run: Run, value: str) -> None:
    head = f"HTTP/1.1 503 No\r\nContent-Length: 2\r\nRetry-After: {value}\r\n\r\n{{}}"
    api.will([head.encode()], ANSWER)
    result = run("--retries", "1", "Hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    ((_why, wait),) = waits(result)
    assert 1 <= wait <= 2


def test_a_retry_after_that_is_a_date(api: Api, run: Run) -> None:
    date = email.utils.formatdate(time.time() + 5, usegmt=True)
    api.will(overloaded(Retry_After=date), ANSWER)
    start = time.monotonic()
    result = run("--retries", "1", "Hi")
    ((_why, wait),) = waits(result)
    assert 2 < wait <= 6.1
    assert time.monotonic() - start >= wait


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_longer_than_we_wait_is_told(api: Api, run: Run, status: int) -> None:
    api.will(reply({"error": "busy"}, f"{status} No", Retry_After="300"))
    result = run("--retries", "3", "Hi")
    assert result == Result(b"", said(api, f"{status} No: busy; the server asks to wait 300 s"), 5)


def test_a_retry_after_that_is_a_date_is_told_in_seconds(api: Api, run: Run) -> None:
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    api.will(reply({"error": "busy"}, "503 No", Retry_After=date))
    result = run("--retries", "3", "Hi")
    words = "503 No: busy; the server asks to wait {} s"
    match = re.fullmatch(re.escape(said(api, words)).replace(r"\{\}", r"(\d+)"), result.err)
    assert match
    assert 3400 < int(match[1]) <= 3600
    assert (result.out, result.status) == (b"", 5)


def test_waits_grow_and_stay_within_the_deadline(api: Api, run: Run) -> None:
    api.will(*[reply({"error": "no"}, "503 No")] * 9)
    result = run("--retries", "9", "--timeout", "6", "Hi")
    assert (result.out, result.status) == (b"", 5)
    said = [wait for _why, wait in waits(result)]
    assert sum(said) < 6
    assert len(api.requests) == len(said) + 1
    api.scripts.clear()
    assert sum(said) < 6
    assert 1 <= said[0] <= 2
    assert all(2**n <= wait <= 2 ** (n + 1) for n, wait in enumerate(said))


def test_a_wait_that_ends_after_the_deadline_is_not_begun(api: Api, run: Run) -> None:
    api.will(overloaded(Retry_After="60"))
    assert run("--retries", "9", "--timeout", "50", "Hi").status == 5  # run() waits for 30 s


def test_a_connection_that_is_refused_is_tried_again(run: Run) -> None:
    with refusing() as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        process = run.start("--retries", "9", "Hi", env={"XCHAT_BASE_URL": url})
        line = process.stderr.readline().decode()
        assert re.fullmatch(AGAIN + "\n", line)
        assert "Connection refused; trying again" in line
        server.listen()
        connection, _address = server.accept()
        with connection:
            read_request(connection)
            perform(ANSWER, connection)
    assert process.communicate(timeout=30)[0] == b"Hello\n"
    assert process.returncode == 0


class Busy(Api):
    """A server that answers 8 at a time, and the others with 429; it counts what it answered."""

    def __init__(self) -> None:
        super().__init__()
        self.places = threading.BoundedSemaphore(8)
        self.answered: list[str] = []
        self.is_full = threading.Event()

    def serve(self, connection: socket.socket) -> None:
        with connection:
            request = read_request(connection)
            prompt = request.json["messages"][0]["content"]
            if not self.places.acquire(blocking=False):
                self.is_full.set()
                script = overloaded(Retry_After="1")
            else:
                assert self.is_full.wait(20)  # the first 8 hold their places until others come
                self.answered.append(prompt)
                self.places.release()
                script = reply(completion(f"re: {prompt}"))
            connection.sendall(b"".join(step for step in script if isinstance(step, bytes)))


@pytest.fixture
def busy(shell: Shell) -> Iterator[Busy]:
    """The server that xchat asks in scripts, and the list of prompts."""
    server = Busy()
    shell.env["XCHAT_BASE_URL"] = server.url
    (shell.home / "list").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    yield server
    server.close()


PROMPTS = sorted(f"prompt {n}" for n in range(32))


@needs("xargs")
def test_32_at_a_time_under_xargs(shell: Shell, busy: Busy) -> None:
    line = "tr '\\n' '\\0' <list | xargs -0 -P 32 -n 1 xchat -q --retries 30 -n --"
    out = shell(line, timeout=120).out.decode()
    assert sorted(busy.answered) == PROMPTS
    assert sorted(out.splitlines()) == [f"re: {prompt}" for prompt in PROMPTS]


@needs("parallel")
def test_32_at_a_time_under_parallel(shell: Shell, busy: Busy) -> None:
    line = "parallel -j 32 --joblog log --resume-failed xchat -q -n -- {} :::: list 2>/dev/null"
    out = ""
    for _ in range(20):
        is_done = len(busy.answered) == len(PROMPTS)
        out += shell(line, timeout=120).out.decode()
        if is_done:  # and the last time asked for nothing
            break
    assert sorted(busy.answered) == PROMPTS  # each was paid for exactly once
    assert sorted(out.splitlines()) == [f"re: {prompt}" for prompt in PROMPTS]
