"""The connection that is made while the prompt is still being written."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
import trustme
from conftest import HELLO, KEY, Result, Run, cases
from network import ESTABLISHED, HOST, SOCKS_OK, URL, Proxy, Socks, tls_for, tunnel
from server import RESET, Api, Step, completion, perform, reply, reset

NOTHING = "bad request line: ''"  # what a server thinks of a connection on which nothing is sent


class Early(Api):
    """A server with TLS, which tells when a client is connected, before there is a request.

    before, after   the steps of each connection before its handshake, and after it
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.connections = 0
        self.connected = threading.Semaphore(0)
        self.before: list[list[Step]] = []
        self.after: list[list[Step]] = []
        super().__init__()
        self.url = f"https://{self.host}/v1"

    def serve(self, connection: socket.socket) -> None:
        self.connections += 1
        try:
            perform(self.before.pop(0) if self.before else [], connection)
            connection = self.context.wrap_socket(connection, server_side=True)
        except OSError:
            connection.close()
            return
        if self.after:
            with connection:
                perform(self.after.pop(0), connection)
            self.connected.release()
        else:
            self.connected.release()
            try:
                super().serve(connection)
            except ConnectionResetError:  # it was closed before its session tickets were read
                self.problems.append(NOTHING)

    def wait_for_client(self) -> None:
        assert self.connected.acquire(timeout=20)


@pytest.fixture
def early(run: Run, authority: trustme.CA, bundle: str) -> Iterator[Early]:
    server = Early(tls_for(authority, "127.0.0.1", HOST))
    run.env |= {"XCHAT_BASE_URL": server.url, "SSL_CERT_FILE": bundle}
    with contextlib.closing(server):
        yield server
    assert server.scripts == []


def start(run: Run, *args: str) -> Any:
    """Begin a run, whose prompt is not there yet."""
    return run.start(*args, stdin=subprocess.PIPE)


def finish(process: Any, prompt: bytes = b"Hi") -> Result:
    """Give a run its prompt."""
    out, err = process.communicate(prompt, timeout=30)
    return Result(out, err.decode(), process.returncode)


def wait_for_connection(early: Early, number: int = 1) -> None:
    """Wait until so many clients are connected, whose handshake may still last."""
    end = time.monotonic() + 20
    while early.connections < number:
        assert time.monotonic() < end
        time.sleep(0.001)


def wait_for_failure(process: Any) -> None:
    """Wait until the client knows that there is no connection."""
    while b" s: no connection: " not in process.stderr.readline():
        assert process.poll() is None


def test_the_connection_stands_before_the_prompt(early: Early, run: Run) -> None:
    early.will(reply(completion()))
    process = start(run)
    early.wait_for_client()
    assert early.requests == []
    assert finish(process) == HELLO
    assert early.body["messages"] == [{"role": "user", "content": "Hi"}]
    assert (early.connections, early.problems) == (1, [])


def test_a_handshake_that_lasts_is_waited_for(early: Early, run: Run) -> None:
    early.will(reply(completion()))
    early.before = [[0.5]]
    process = start(run)
    wait_for_connection(early)
    assert finish(process) == HELLO
    assert (early.connections, early.problems) == (1, [])


@pytest.mark.parametrize("prompt", [b"", b" \n", b"\xff"], ids=["empty", "blank", "not-utf-8"])
def test_a_prompt_that_is_bad_has_connected_and_sent_nothing(
    early: Early, run: Run, prompt: bytes
) -> None:
    process = start(run)
    early.wait_for_client()
    assert finish(process, prompt).status == 2
    early.close()
    assert (early.connections, early.requests, early.problems) == (1, [], [NOTHING])


@pytest.mark.parametrize(
    "step",
    [b"", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", RESET],
    ids=["closed", "408", "reset"],
)
def test_an_idle_connection_that_the_server_closes_costs_a_second_one(
    early: Early, run: Run, step: Step
) -> None:
    early.after = [[step]]
    early.will(reply(completion()))
    process = start(run)
    early.wait_for_client()
    assert finish(process) == HELLO
    assert (early.connections, len(early.requests), early.problems) == (2, 1, [])


def test_an_idle_connection_is_not_used_after_4_seconds(early: Early, run: Run) -> None:
    early.will(reply(completion()))
    process = start(run, "-v")
    early.wait_for_client()
    time.sleep(4)
    assert (early.connections, early.problems) == (1, [])
    result = finish(process)
    assert (result.out, result.status) == (b"Hello\n", 0)
    early.close()
    assert (early.connections, len(early.requests), early.problems) == (2, 1, [NOTHING])
    steps = [line.partition(" s: ")[2] for line in result.err.splitlines() if line[:1] == "*"]
    connecting = [step for step in steps if step.startswith(("connected", "the early"))]
    assert connecting == ["connected", "the early connection is not used", "connected"]


def test_a_failure_without_a_prompt_is_forgotten(early: Early, run: Run) -> None:
    early.before = [[RESET]]
    early.will(reply(completion()))
    process = start(run, "-v")
    wait_for_failure(process)
    result = finish(process)
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert (early.connections, early.problems) == (2, [])


def test_a_failure_that_lasts_is_told_once(early: Early, run: Run) -> None:
    early.before = [[RESET], [RESET]]
    process = start(run, "-v")
    wait_for_failure(process)
    result = finish(process)
    assert (result.out, result.status) == (b"", 3)
    assert result.err.count("xchat: ") == 1
    assert early.connections == 2


def test_a_connection_that_is_reset_at_once_is_told_in_words(early: Early, run: Run) -> None:
    early.before = [[RESET]] * 2  # the second is for a machine so slow that the first is early
    result = run("-n", "Hi")
    words = ["closed the connection without an answer", "Connection reset by peer"]
    assert (result.out, result.status) == (b"", 3)
    assert result.err in [f"xchat: {early.host}: {word}\n" for word in words]


def test_a_second_attempt_has_a_connection_of_its_own(early: Early, run: Run) -> None:
    early.will(reply({}, "503 Service Unavailable", retry_after="0"), reply(completion()))
    process = start(run, "-q", "--retries", "1")
    early.wait_for_client()
    assert finish(process) == HELLO
    assert (early.connections, len(early.requests), early.problems) == (2, 2, [])


def test_the_time_begins_when_the_prompt_is_there(early: Early, run: Run) -> None:
    early.will([0.5, *reply(completion())])
    process = start(run, "--timeout", "2")
    early.wait_for_client()
    time.sleep(2)
    assert finish(process) == HELLO


@pytest.mark.parametrize(
    ("args", "status"), [(["--dry-run"], 0), (["-t", "9"], 2), (["-o", "no/such/file"], 2)]
)
def test_a_run_that_will_not_ask_does_not_connect(
    early: Early, run: Run, args: list[str], status: int
) -> None:
    assert run(*args, stdin=b"Hi").status == status
    assert early.connections == 0


def ask_through(proxy: Proxy, run: Run, early: Early, scheme: str = "http") -> None:
    """Have the server asked through a proxy, which alone can find it."""
    early.host = HOST
    early.key = KEY
    proxy_url = f"{scheme}://joe:hunter2@{proxy.host}"
    run.env |= {"XCHAT_BASE_URL": URL, "XAI_API_KEY": KEY, "ALL_PROXY": proxy_url}


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_is_asked_to_connect_before_the_prompt(
    early: Early, run: Run, authority: trustme.CA, scheme: str
) -> None:
    early.will(reply(completion()))
    tls = tls_for(authority, "127.0.0.1") if scheme == "https" else None
    with Proxy(ESTABLISHED, tunnel(early.port), tls=tls) as proxy:
        ask_through(proxy, run, early, scheme)
        process = start(run)
        early.wait_for_client()
        assert len(proxy.asked) == 1
        assert finish(process) == HELLO
    assert (len(proxy.asked), early.connections, early.problems) == (1, 1, [])


def test_a_socks_proxy_is_asked_before_the_prompt(early: Early, run: Run) -> None:
    pytest.importorskip("socks", reason="PySocks is not installed")
    early.will(reply(completion()))
    with Socks(SOCKS_OK, tunnel(early.port)) as proxy:
        proxy.password = ("joe", "hunter2")
        ask_through(proxy, run, early, "socks5h")
        process = start(run)
        early.wait_for_client()
        assert finish(process) == HELLO
    assert (len(proxy.asked), early.connections, early.problems) == (1, 1, [])


@cases(
    ("answer", "message"),
    {
        "it refuses": (b"HTTP/1.1 403 No\r\n\r\n", "403 No"),
        "it is overloaded": (b"HTTP/1.1 503 No\r\n\r\n", "503 No"),
        "it hangs up": (b"", "closed the connection without an answer"),
    },
)
def test_a_proxy_that_fails_early_is_told_when_the_prompt_is_there(
    early: Early, run: Run, answer: bytes, message: str
) -> None:
    with Proxy(answer) as proxy:
        ask_through(proxy, run, early)
        process = start(run, "-v")
        wait_for_failure(process)
        assert process.poll() is None
        result = finish(process)
    assert (result.out, result.status) == (b"", 3)
    assert result.err.splitlines()[-1] == f"xchat: {HOST}: the proxy {proxy.host} failed: {message}"
    assert result.err.count("xchat: ") == 1
    assert early.requests == []


def test_a_proxy_that_fails_early_is_no_error_where_nothing_is_asked(
    early: Early, run: Run
) -> None:
    with Proxy(b"HTTP/1.1 403 No\r\n\r\n") as proxy:
        ask_through(proxy, run, early)
        process = start(run)
        while not proxy.asked:
            time.sleep(0.01)
        result = finish(process, b"")
    assert (result.out, result.status, result.err.count("\n")) == (b"", 2, 1)
    assert "standard input was empty" in result.err


def test_over_plain_http_there_is_nothing_to_gain(api: Api, run: Run) -> None:
    assert run(stdin=b"").status == 2
    assert len(api.threads) == 1


def test_the_end_does_not_disturb_openssl_at_work(early: Early, run: Run) -> None:
    store = Path(run.env["SSL_CERT_FILE"])
    store.write_bytes(Path(certifi.where()).read_bytes() * 12 + store.read_bytes())
    for number in range(1, 5):
        process = start(run)
        wait_for_connection(early, number)  # after which the store is read
        assert finish(process, b"").status == 2
    early.close()
    assert early.requests == []


def test_an_answer_to_half_a_request_is_read(early: Early, run: Run) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(100_000)
        perform(reply(b"too long", "413 Content Too Large"), connection)
        time.sleep(0.5)
        reset(connection)

    early.after = [[refuse]]
    result = run(stdin=b"x" * 16_000_000)
    message = f"xchat: {early.host}: 413 Content Too Large: too long (request id req-7)\n"
    assert result == Result(b"", message, 4)
