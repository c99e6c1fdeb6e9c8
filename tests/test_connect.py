"""A connection is made to the first address that answers, and to one only."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Result, Run, needs_file, serve
from network import Proxy
from server import Api, completion, refusing, reply

NAME = "addresses.test"


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as server:
        server.bind(("::1", 0))
        return True
    return False


pytestmark = pytest.mark.skipif(not has_ipv6(), reason="there is no ::1 on this machine")

# stands for a name server: the addresses of NAME are those of the environment
LOOK_UP = f"""
import os, socket
look_up = socket.getaddrinfo
def getaddrinfo(host, *args, **kwargs):
    hosts = os.environ["ADDRESSES"].split() if host == "{NAME}" else [host]
    return [found for host in hosts for found in look_up(host, *args, **kwargs)]
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture
def api(run: Run, tmp_path: Path) -> Iterator[Api]:
    """The server on 127.0.0.1, which is the second address of its name."""
    (tmp_path / "sitecustomize.py").write_text(LOOK_UP)
    server = Api()
    server.host = f"{NAME}:{server.port}"
    server.url = f"http://{server.host}/v1"
    run.env |= {"PYTHONPATH": str(tmp_path), "ADDRESSES": "::1 127.0.0.1"}
    yield from serve(run, server)


@contextlib.contextmanager
def silent(port: int, host: str = "::1") -> Iterator[None]:
    """Have an address that never answers: the queue of a listener there is full."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(8):
            client = stack.enter_context(socket.socket(family))
            client.setblocking(False)
            client.connect_ex((host, port))
        yield


def connecting(result: Result) -> list[str]:
    """The addresses that were tried."""
    return re.findall(r"connecting to (\S+) port", result.err)


def test_a_silent_address_costs_a_quarter_of_a_second(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    with silent(api.port):
        result = run("-v", "Hi")
    assert (result.out, result.status, len(api.requests)) == (b"Hello\n", 0, 1)
    assert connecting(result) == ["::1", "127.0.0.1"]
    begin, end = (
        float(time) for time in re.findall(r"\* (\d+\.\d+) s: connect(?:ing to ::1|ed)", result.err)
    )
    assert 0.25 <= end - begin < 5  # where each address is given its time, 10


def test_after_an_address_that_refuses_the_next_is_tried_at_once(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    result = run("-v", "Hi")
    assert (result.out, result.status, len(api.requests)) == (b"Hello\n", 0, 1)
    assert connecting(result) == ["::1", "127.0.0.1"]
    assert "s: Connection refused\n" in result.err


def test_the_first_address_is_enough_if_it_answers(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    with silent(api.port):
        result = run("-v", "Hi", env={"ADDRESSES": "127.0.0.1 ::1"})
    assert (result.out, result.status, connecting(result)) == (b"Hello\n", 0, ["127.0.0.1"])


def test_families_take_turns(api: Api, run: Run) -> None:
    """Of three dead IPv6 addresses before an IPv4 one, only the first is waited for."""
    api.will(reply(completion()))
    with silent(api.port):
        result = run("-v", "Hi", env={"ADDRESSES": "::1 ::1 ::1 127.0.0.1"})
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert connecting(result) == ["::1", "127.0.0.1"]


def test_all_addresses_that_refuse_are_one_line(run: Run, api: Api) -> None:
    with refusing() as server:
        host = f"{NAME}:{server.getsockname()[1]}"
        result = run("Hi", env={"XCHAT_BASE_URL": f"http://{host}/v1"})
    assert result == Result(b"", f"xchat: {host}: Connection refused\n", 3)


def test_one_that_refuses_and_one_that_is_silent(run: Run, api: Api) -> None:
    with refusing() as server, silent(server.getsockname()[1]):
        host = f"{NAME}:{server.getsockname()[1]}"
        env = {"XCHAT_BASE_URL": f"http://{host}/v1"}
        result = run("--timeout", "1.5", "Hi", env=env)
    assert result == Result(b"", f"xchat: {host}: no connection within 1.5 s\n", 3)


def test_a_proxy_with_a_silent_address_costs_as_little(run: Run, api: Api) -> None:
    with Proxy(*reply(completion())) as proxy, silent(proxy.port):
        env = {"http_proxy": f"http://{NAME}:{proxy.port}"}
        result = run("-v", "Hi", env={**env, "XCHAT_BASE_URL": "http://elsewhere.test/v1"})
    assert (result.out, result.status, len(proxy.asked)) == (b"Hello\n", 0, 1)
    assert connecting(result) == ["::1", "127.0.0.1"]


@needs_file("/proc/self/fd")
def test_nothing_is_left_open_but_the_connection(run: Run, api: Api) -> None:
    told = threading.Event()
    api.will([told, *reply(completion())])
    with silent(api.port):
        process = run.start("Hi")
        api.wait_for_requests()
        directory = f"/proc/{process.pid}/fd"
        links = [os.readlink(f"{directory}/{name}") for name in os.listdir(directory)]
        told.set()
        assert process.wait(20) == 0
    assert len([link for link in links if link.startswith("socket:")]) == 1
