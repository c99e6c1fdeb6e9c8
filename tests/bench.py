"""Measure whole processes: xchat beside what else does the same, in one table.

A server on loopback answers at once; one that is far away takes 0.2 s for the handshake of TLS. The
title of a stream says whether it is chunked, with one event in each chunk, as real servers send it,
or ends where the server closes the connection; other replies have a fixed length. The Python of the
virtual environment runs the rivals, too; curl, jq, openssl and, where they are, valgrind and llm
are those on PATH.

The rivals of a case take turns. Figures are medians, ratios the medians of the ratios within each
round, which a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import pty
import re
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tty
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# The rivals ----------------------------------------------------------------------------------

MINIMAL = """
import json, os, sys
import requests
messages = json.load(open(sys.argv[1])) if sys.argv[1:] else []
messages.append({"role": "user", "content": sys.stdin.read()})
response = requests.post(
    os.environ["XCHAT_BASE_URL"] + "/chat/completions",
    headers={"Authorization": "Bearer " + os.environ["XAI_API_KEY"]},
    json={"model": "grok-4", "messages": messages},
    timeout=3600,
)
response.raise_for_status()
print(response.json()["choices"][0]["message"]["content"])
"""

OBVIOUS = """
import json, os, sys
import click, requests, yaml

@click.command()
@click.option("-s", "--system")
@click.option("-f", "--file", type=click.File())
@click.option("--stream", is_flag=True)
def main(system, file, stream):
    messages = yaml.safe_load(file) if file else []
    if system:
        messages.append({"role": "system", "content": system})
    messages.append({"role": "user", "content": sys.stdin.read()})
    response = requests.post(
        os.environ["XCHAT_BASE_URL"] + "/chat/completions",
        headers={"Authorization": "Bearer " + os.environ["XAI_API_KEY"]},
        json={"model": "grok-4", "messages": messages, "stream": stream},
        timeout=3600,
        stream=stream,
    )
    response.raise_for_status()
    if not stream:
        click.echo(response.json()["choices"][0]["message"]["content"])
        return
    for line in response.iter_lines():
        if line.startswith(b"data: ") and line != b"data: [DONE]":
            click.echo(json.loads(line[6:])["choices"][0]["delta"].get("content", ""), nl=False)
    click.echo()

main()
"""

CURL = (
    'curl -s -H "Authorization: Bearer $XAI_API_KEY" -H "Content-Type: application/json" -d @-'
    ' "$XCHAT_BASE_URL/chat/completions"'
)
ASK = """jq -Rs '{model: "grok-4", messages: [{role: "user", content: .}]}'"""
TEXT = "jq -r '.choices[0].message.content'"

# The server ----------------------------------------------------------------------------------

EVENTS = 200  # of a stream whose delays are measured
GAP = 0.004  # seconds between these
HANDSHAKE = 0.2  # seconds of TLS, with a server that is far away
WIDTH = 40  # characters of text in each of them


def event(text: str) -> bytes:
    delta = {"role": "assistant", "content": text}
    chunk = {
        "id": "0b6c2f1e-5a7d-4c1b-9e35-6d2f8a41c0aa",
        "object": "chat.completion.chunk",
        "model": "grok-4",
        "choices": [{"index": 0, "delta": delta}],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def completion(text: str) -> bytes:
    message = {"role": "assistant", "content": text, "refusal": None}
    value = {
        "id": "7327",
        "object": "chat.completion",
        "created": 1790000000,
        "model": "grok-4",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    return json.dumps(value).encode()


MB = 1_000_000
SMALL = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
LAST = [
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]
ANSWERS: dict[str, Callable[[], list[bytes]]] = {  # each of one part, or of one for each event
    "plain": lambda: [completion("Hello")],
    "large": lambda: [completion("a line of the reply\n" * MB)],
    "events": lambda: [event("word ")] * 2000 + LAST,
    "small": lambda: [SMALL] * 20_000 + LAST,
    "bulk": lambda: [event("word ")] * (20 * MB // len(event("word "))) + LAST,
}


def serve(listener: socket.socket, context: ssl.SSLContext | None, handshake: float) -> None:
    """Answer forever; say on standard output when a whole request was there, and what was sent."""
    while True:
        connection, _address = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        time.sleep(handshake)
        if context:
            connection = context.wrap_socket(connection, server_side=True)
        with connection:
            name, framing = read_request(connection)
            times = [time.monotonic()]
            if name in ANSWERS:
                connection.sendall(make_answer(name, framing))
            else:
                times += drip(connection, framing)
        print(json.dumps(times), flush=True)


@functools.cache
def make_answer(name: str, framing: str) -> bytes:
    parts = [frame(part, framing) for part in [*ANSWERS[name](), b""]]
    return make_head(framing, len(parts[0])) + b"".join(parts)


def frame(part: bytes, framing: str) -> bytes:
    """Return what is sent for a part of the body; the empty one ends it."""
    return b"%x\r\n%b\r\n" % (len(part), part) if framing == "chunked" else part


def make_head(framing: str, length: int = 0) -> bytes:
    lines = {
        "fixed": f"Content-Type: application/json\r\nContent-Length: {length}\r\n",
        "chunked": "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n",
        "until-close": "Content-Type: text/event-stream\r\n",
    }
    return f"HTTP/1.1 200 OK\r\nConnection: close\r\n{lines[framing]}\r\n".encode()


def read_request(connection: socket.socket) -> list[str]:
    """Return the first two parts of the path, when all of the request was read."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65536)
    head, _, begin = head.partition(b"\r\n\r\n")
    if b"100-continue" in head:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    missing = int(re.findall(rb"(?i)content-length: (\d+)", head)[0]) - len(begin)
    while missing:
        missing -= len(connection.recv(min(missing, 1 << 20)))
    return head.decode().split("/")[1:3]


def drip(connection: socket.socket, framing: str) -> Iterator[float]:
    """Send one event after the other, and yield when each was sent."""
    connection.sendall(make_head(framing))
    for _ in range(EVENTS):
        time.sleep(GAP)
        now = time.monotonic()
        connection.sendall(frame(event("x" * WIDTH), framing))
        yield now
    time.sleep(GAP)
    connection.sendall(b"".join(frame(part, framing) for part in [*LAST, b""]))


SERVERS = {"http": (False, 0.0), "https": (True, 0.0), "far": (True, HANDSHAKE)}


# What the server needs first ------------------------------------------------------------------


def make_history() -> list[dict[str, str]]:
    text = "A line of a long conversation, with 'quotes' and: a colon.\n" * 4
    roles = ["user", "assistant"]
    return [{"role": roles[n % 2], "content": f"{text}{n}"} for n in range(5 * MB // 280)]


def make_yaml(messages: list[dict[str, str]]) -> str:
    indented = [message["content"].replace("\n", "\n    ") for message in messages]
    return "".join(
        f"- role: {message['role']}\n  content: |-\n    {text}\n"
        for message, text in zip(messages, indented, strict=True)
    )


def make_files(directory: Path) -> None:
    history = make_history()
    files = {
        "minimal.py": MINIMAL,
        "obvious.py": OBVIOUS,
        "prompt": "Hello\n",
        "large": 'a line of a long prompt, "quoted"\n' * (8 * MB // 34),
        "history.json": json.dumps(history),
        "history.yaml": make_yaml(history),
        "appended.yaml": make_yaml(history),
    }
    for name, text in files.items():
        (directory / name).write_text(text)


def make_trust_stores(directory: Path) -> ssl.SSLContext:
    """Make trust stores of a usual size, with the server's authority; return the server's context.

    One is a file, as certifi's; one is a hashed directory, as the system's.
    """
    import certifi
    import trustme

    authority = trustme.CA()
    path = directory / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    bundle = Path(certifi.where()).read_text() + path.read_text()
    (directory / "bundle.pem").write_text(bundle)
    hashed = directory / "certs"
    hashed.mkdir()
    system = ssl.get_default_verify_paths().capath or "/etc/ssl/certs"
    for certificate in Path(system).glob("*.[0-9]"):
        (hashed / certificate.name).symlink_to(certificate)
    command = ["openssl", "x509", "-noout", "-subject_hash", "-in", str(path)]
    name = subprocess.run(command, stdout=-1, check=True, text=True).stdout.strip()
    (hashed / f"{name}.0").symlink_to(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def prepare_and_serve(directory: Path) -> None:
    """Do what takes memory: the peak of a process counts as one of those that it starts."""
    make_files(directory)
    context = make_trust_stores(directory)
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in SERVERS]
    print([listener.getsockname()[1] for listener in listeners], flush=True)
    threads = [
        threading.Thread(target=serve, args=(listener, context if is_tls else None, handshake))
        for listener, (is_tls, handshake) in zip(listeners, SERVERS.values(), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# Measuring -----------------------------------------------------------------------------------


class Rival(NamedTuple):
    """A command, and its environment."""

    name: str
    command: list[str]
    env: dict[str, str] = {}  # noqa: RUF012  # never changed


class Figures(NamedTuple):
    """Of one run: milliseconds, megabytes, and millions of instructions; NaN: not measured."""

    wall: float
    cpu: float  # of the process and those that it starts
    memory: float
    sent: float = math.nan  # from the start until the server had all of the request
    p50: float = math.nan  # the percentiles of the delays of the events
    p99: float = math.nan
    instructions: float = math.nan


class Bench:
    """Runs commands against a server."""

    def __init__(self, directory: Path, server: subprocess.Popen[str]) -> None:
        self.directory = directory
        self.server = server

    def run(
        self,
        rival: Rival,
        base_url: str,
        *,
        stdin: Path | float,
        terminal: bool,
        event_size: int = 0,
    ) -> Figures:
        """Run a rival once. stdin is a file, or the seconds that a producer takes."""
        here, there = pty.openpty() if terminal else os.pipe()
        if terminal:
            tty.setraw(there)
        path = stdin if isinstance(stdin, Path) else None
        start = time.monotonic()
        env = {"PATH": os.environ["PATH"], "HOME": str(self.directory), "XAI_API_KEY": "x"}
        process = subprocess.Popen(
            rival.command,
            env={**env, "XCHAT_BASE_URL": base_url, "OPENAI_BASE_URL": base_url, **rival.env},
            stdin=path.open("rb") if path else subprocess.PIPE,
            stdout=there,
            cwd=self.directory,
        )
        os.close(there)
        if process.stdin and not isinstance(stdin, Path):
            time.sleep(stdin)
            process.stdin.write(b"Hello\n")
            process.stdin.close()
        arrivals = read_all(here)
        _pid, status, usage = os.wait4(process.pid, 0)
        end = time.monotonic()
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, (rival, process.returncode)
        assert arrivals or not base_url, rival
        cpu = (usage.ru_utime + usage.ru_stime) * 1000
        figures = Figures((end - start) * 1000, cpu, usage.ru_maxrss / 1000)
        if base_url:
            assert self.server.stdout
            sent, *times = json.loads(self.server.stdout.readline())
            figures = figures._replace(sent=(sent - start) * 1000)
            if times:
                delays = delays_of(times, arrivals, event_size)
                percentiles = statistics.quantiles(delays, n=100)
                figures = figures._replace(p50=percentiles[49], p99=percentiles[98])
        return figures


def read_all(fd: int) -> list[tuple[float, int]]:
    """Return when output came, and how many bytes of it there were by then."""
    size = 0
    arrivals: list[tuple[float, int]] = []
    try:
        while block := os.read(fd, 1 << 16):
            size += len(block)
            if len(arrivals) < 10 * EVENTS:  # in memory, which counts as that of the next process
                arrivals.append((time.monotonic(), size))
    except OSError:  # the end of a terminal
        pass
    os.close(fd)
    return arrivals


def delays_of(times: list[float], arrivals: list[tuple[float, int]], size: int) -> list[float]:
    """Return for each event the milliseconds from when it was sent until all of it was there."""
    delays = []
    position = 0
    for number, sent in enumerate(times, start=1):
        while arrivals[position][1] < number * size:
            position += 1
        delays.append((arrivals[position][0] - sent) * 1000)
    return delays


def count(rival: Rival, bench: Bench, base_url: str, stdin: Path | float) -> float:
    """Return the millions of instructions that a run takes."""
    log = bench.directory / "callgrind.log"
    prefix = ["valgrind", "--tool=callgrind", f"--log-file={log}", "--callgrind-out-file=/dev/null"]
    counted = rival._replace(
        command=[*prefix, *rival.command], env={**rival.env, "PYTHONHASHSEED": "0"}
    )
    bench.run(counted, base_url, stdin=stdin, terminal=False)
    return int(re.findall(r"Collected : (\d+)", log.read_text())[0]) / 1e6


# The cases -----------------------------------------------------------------------------------


class Case(NamedTuple):
    """What is measured: the server's answer, the rivals' command lines, standard input."""

    title: str
    answer: str  # what the server sends, and how; "": it is not asked
    rivals: list[Rival]
    runs: int = 21
    stdin: Path | float = 0.0
    server: str = "http"
    terminal: bool = False
    counted: bool = False  # in instructions, too


def shell(name: str, script: str) -> Rival:
    return Rival(name, ["sh", "-c", script])


def make_cases(python: str, directory: Path) -> list[Case]:
    bundle = {"REQUESTS_CA_BUNDLE": str(directory / "bundle.pem")}
    hashed = {"SSL_CERT_DIR": str(directory / "certs")}

    def xchat(*args: str) -> Rival:
        return Rival("xchat", [str(Path(python).with_name("xchat")), *args], hashed)

    def minimal(*args: str) -> Rival:
        return Rival("minimal", [python, "minimal.py", *args], bundle)

    def obvious(*args: str) -> Rival:
        return Rival("obvious", [python, "obvious.py", *args], bundle)

    interpreter = Rival("python", [python, "-c", "pass"])
    curl = shell("curl|jq", f"{ASK} | {CURL} | {TEXT}")._replace(env=hashed)
    stream = shell("curl", f"{CURL} -N")
    plain = [xchat(), minimal(), obvious(), curl]
    streams = [xchat("--stream"), obvious("--stream"), stream]
    bare = [interpreter, Rival("click", [python, "-c", "import click"])]
    if shutil.which("llm"):
        command = ["llm", "--no-log", "--no-stream", "-m", "gpt-4o-mini"]
        plain.append(Rival("llm", command, {"OPENAI_API_KEY": "x"}))
    prompt, large = directory / "prompt", directory / "large"
    cases = [
        Case("--help", "", [xchat("--help"), *bare, obvious("--help")], counted=True),
        Case("a reply, http", "plain/fixed", plain, 41, counted=True, stdin=prompt),
        Case("a reply, https", "plain/fixed", plain[:4], 41, prompt, "https", counted=True),
        Case("a prompt in 0.2 s", "plain/fixed", plain, stdin=0.2),
        Case("a prompt in 0.5 s, far away", "plain/fixed", plain[:4], 11, 0.5, "far"),
        Case("a prompt of 8 MB", "plain/fixed", plain[:4], 11, stdin=large),
        Case("a reply of 20 MB", "large/fixed", plain[:4], 11, stdin=prompt),
    ]
    for suffix in ("json", "yaml"):
        name = f"history.{suffix}"
        rivals = [xchat("-f", name), obvious("-f", name)]
        appending = xchat("-a", "-f", "appended.yaml")._replace(name="xchat -a")
        rivals.append(minimal(name) if suffix == "json" else appending)
        cases.append(Case(f"5 MB of {suffix.upper()}", "plain/fixed", rivals, 5, stdin=prompt))
    for title, name, runs in [
        ("2,000 events", "events", 21),
        ("20,000 small events", "small", 11),
        ("20 MB of events", "bulk", 7),
        ("events to a pipe", "drip", 3),
        ("events to a terminal", "drip", 3),
    ]:
        counted, terminal = name == "events", "terminal" in title
        cases += [
            Case(
                f"{title}, {framing.replace('-', ' ')}",
                f"{name}/{framing}",
                streams,
                runs,
                prompt,
                terminal=terminal,
                counted=counted,
            )
            for framing in ("chunked", "until-close")
        ]
    return cases


# The table -----------------------------------------------------------------------------------


Rows = dict[str, list[Figures]]  # the runs of each rival


def measure(case: Case, bench: Bench, base_url: str) -> Rows:
    """Run the rivals of a case, one after the other and again."""
    rows: Rows = {rival.name: [] for rival in case.rivals}
    for run in range(case.runs + 1):
        turn = run % len(case.rivals)  # so that none is always behind the same one
        for rival in case.rivals[turn:] + case.rivals[:turn]:
            size = len(event("x" * WIDTH)) if rival.name == "curl" else WIDTH
            rows[rival.name].append(
                bench.run(
                    rival, base_url, stdin=case.stdin, terminal=case.terminal, event_size=size
                )
            )
    rows = {name: runs[1:] for name, runs in rows.items()}
    if case.counted and shutil.which("valgrind"):
        for rival in case.rivals:
            if rival.name not in ("curl", "curl|jq", "llm"):
                number = count(rival, bench, base_url, case.stdin)
                rows[rival.name] = [run._replace(instructions=number) for run in rows[rival.name]]
    return rows


def median(runs: list[Figures], column: str) -> float:
    return float(statistics.median(getattr(run, column) for run in runs))


def ratio(runs: list[Figures], others: list[Figures], column: str) -> float:
    """Return the median, over the rounds, of the ratio of a figure to that of another rival."""
    pairs = zip(runs, others, strict=True)
    return float(statistics.median(getattr(a, column) / getattr(b, column) for a, b in pairs))


HEADINGS = "wall ms", "ratio", "CPU ms", "ratio", "MB", "sent ms", "p50 ms", "p99 ms", "M instr."
FORMS = "8.1f", "8.2f", "8.1f", "8.2f", "8.0f", "8.1f", "8.3f", "8.3f", "8.0f"


def write_line(title: str, name: str, cells: Iterable[str]) -> None:
    print(f"{title:35}{name:9}{' '.join(f'{cell:>8}' for cell in cells)}".rstrip(), flush=True)


def write_case(title: str, rows: Rows) -> None:
    """Write the rows of a case; the ratios are to the first one."""
    first = next(iter(rows.values()))
    for name, runs in rows.items():
        figures = []
        for column in Figures._fields:
            figures.append(median(runs, column))
            if column in ("wall", "cpu"):
                figures.append(ratio(runs, first, column))
        pairs = zip(figures, FORMS, strict=True)
        write_line(
            title, name, ("" if math.isnan(cell) else f"{cell:{form}}" for cell, form in pairs)
        )
        title = ""


RATIOS = [
    ("--help", "wall", "click", 1.25),
    ("a reply, http", "wall", "minimal", 0.88),
    ("a reply, http", "instructions", "minimal", 1.0),
    ("a reply, https", "wall", "minimal", 0.82),
    ("a prompt in 0.5 s, far away", "wall", "curl|jq", 0.75),
    ("a prompt of 8 MB", "wall", "minimal", 1.0),
    ("a prompt of 8 MB", "cpu", "minimal", 1.0),
    ("a prompt of 8 MB", "memory", "minimal", 1.2),
    ("a reply of 20 MB", "wall", "minimal", 1.0),
    ("a reply of 20 MB", "cpu", "minimal", 1.0),
    ("2,000 events, chunked", "cpu", "obvious", 0.76),
    ("20,000 small events, chunked", "cpu", "obvious", 0.9),
    ("20 MB of events, chunked", "cpu", "obvious", 0.85),
    ("2,000 events, until close", "cpu", "obvious", 0.8),
    ("20 MB of events, until close", "cpu", "obvious", 0.8),
]


def write_targets(table: dict[str, Rows]) -> None:
    """Write what some figures are to be, and what they are."""

    def write(text: str, figure: float, limit: float) -> None:
        if not math.isnan(figure):
            verdict = "  missed" if figure > limit else ""
            print(f"{text:52}{figure:8.2f}   at most {limit:g}{verdict}")

    def above(rows: Rows, other: str, column: str) -> float:
        return median(rows["xchat"], column) - median(rows[other], column)

    print()
    for title, column, other, limit in RATIOS:
        if rows := table.get(title):
            write(
                f"{title}: {column}, of {other}", ratio(rows["xchat"], rows[other], column), limit
            )
    if rows := table.get("a prompt in 0.2 s"):
        write("a prompt in 0.2 s: ms above curl|jq", above(rows, "curl|jq", "wall"), 25)
    for title, rows in table.items():
        if "curl" in rows:
            write(f"{title}: p50, ms above curl", above(rows, "curl", "p50"), 0.1)
    if rows := table.get("5 MB of YAML"):
        write("-a to 5 MB of YAML: seconds of CPU", median(rows["xchat -a"], "cpu") / 1000, 0.65)


# Main ----------------------------------------------------------------------------------------


def main() -> int:
    if sys.argv[1] == "--serve":
        prepare_and_serve(Path(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="one run each, and nothing counted")
    parser.add_argument("directory", type=Path, help="a virtual environment with xchat")
    parser.add_argument("cases", metavar="CASE", nargs="*", help="a part of the title of a case")
    args = parser.parse_args()
    python = str(args.directory.absolute() / "bin" / "python")
    table: dict[str, Rows] = {}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = [sys.executable, __file__, "--serve", str(directory)]
        server = stack.enter_context(subprocess.Popen(command, stdout=-1, text=True))
        stack.callback(server.kill)
        assert server.stdout
        ports = dict(zip(SERVERS, json.loads(server.stdout.readline()), strict=True))
        bench = Bench(directory, server)
        write_line("", "", HEADINGS)
        for case in make_cases(python, directory):
            if not args.cases or any(part in case.title for part in args.cases):
                scheme = "https" if SERVERS[case.server][0] else "http"
                place = f"{scheme}://127.0.0.1:{ports[case.server]}"
                base_url = f"{place}/{case.answer}" if case.answer else ""
                case = case._replace(runs=1, counted=False) if args.once else case
                table[case.title] = measure(case, bench, base_url)
                write_case(case.title, table[case.title])
    write_targets(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
