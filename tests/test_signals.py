"""A signal ends it at once, whatever it is waiting for, and two at once do too."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import pytest
from conftest import Run
from server import HANG, STREAM_HEAD, Api, chunk, event

PAIRS = [(signal.SIGTERM, signal.SIGINT), (signal.SIGHUP, signal.SIGTERM)]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " ".join(n.name for n in pair))
def test_two_signals_in_a_row_while_a_stream_is_silent(
    api: Api, run: Run, pair: tuple[signal.Signals, signal.Signals]
) -> None:
    """The kernel may give both to a thread that does not wake the main one."""
    for _ in range(12):
        api.will([STREAM_HEAD + event(chunk("Hel")), HANG])
        process = run.start("--stream", "Hi")
        assert process.stdout.read(3) == b"Hel"
        for number in pair:
            process.send_signal(number)
        assert process.wait(20) in [-number for number in pair]
        assert process.stdout.read() in (b"", b"\n")  # the second does not wait for the line's end
        assert process.stderr.read() == b""


def test_an_interrupt_during_a_look_up_that_hangs(run: Run, tmp_path: Path) -> None:
    """Nothing interrupts getaddrinfo(), so it is not the main thread that waits for it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, time\n"
        "def getaddrinfo(*_args, **_kwargs):\n"
        "    open('asked', 'w').close()\n"
        "    time.sleep(60)\n"
        "socket.getaddrinfo = getaddrinfo\n"
    )
    env = {"XCHAT_BASE_URL": "http://name.test/v1", "PYTHONPATH": str(tmp_path)}
    process = run.start("Hi", env=env)
    wait_for(tmp_path / "asked")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == -signal.SIGINT
    assert (process.stdout.read(), process.stderr.read()) == (b"", b"")


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_interrupt_while_a_server_does_not_read(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        env = {"XCHAT_BASE_URL": f"http://127.0.0.1:{listener.getsockname()[1]}/v1"}
        (run.home / "prompt").write_bytes(b"x" * 16_000_000)
        with open(run.home / "prompt", "rb") as prompt:
            process = run.start(stdin=prompt, env=env)
        connection, _address = listener.accept()
        with connection:
            connection.recv(1)
            time.sleep(0.2)  # until the kernel takes no more
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == -signal.SIGINT
    assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
