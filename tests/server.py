"""A chat-completions server on loopback: strict in what it accepts, free in what it sends.

A test scripts one list of steps for each connection that it expects, for instance

    api.will(reply(completion("Hello")))
    api.will([b"HTTP/1.1 200 OK\\r\\n", 0.5, RESET])

and looks afterwards at api.requests.  What is wrong with a request ends up in api.problems.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Step = bytes | float | threading.Event | Callable[[socket.socket], None]

# types of the fields of ChatRequest in the API's OpenAPI document of 2026-08-22, null aside
NUMBER = (int, float)
FIELD_TYPES: dict[str, Any] = {
    "deferred": bool,
    "frequency_penalty": NUMBER,
    "logit_bias": dict,
    "logprobs": bool,
    "max_completion_tokens": int,
    "max_tokens": int,
    "messages": list,
    "model": str,
    "n": int,
    "parallel_tool_calls": bool,
    "presence_penalty": NUMBER,
    "prompt_cache_key": str,
    "reasoning_effort": str,
    "response_format": dict,
    "search_parameters": dict,
    "seed": int,
    "service_tier": str,
    "stop": list,
    "stream": bool,
    "stream_options": dict,
    "temperature": NUMBER,
    "tool_choice": (str, dict),
    "tools": list,
    "top_logprobs": int,
    "top_p": NUMBER,
    "user": str,
    "web_search_options": dict,
}
PART_TYPES = {"text": str, "image_url": dict, "file": dict, "text_file": str}


def reset(connection: socket.socket) -> None:
    """Close so that the peer gets a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def hang(connection: socket.socket) -> None:
    """Say nothing until the peer has closed."""
    connection.settimeout(60)
    with contextlib.suppress(ConnectionError):
        while connection.recv(4096):
            pass


RESET, HANG = reset, hang


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextlib.contextmanager
def refusing() -> Iterator[socket.socket]:
    """Hold a port of loopback, on which nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server


class Listener:
    """Serves each connection to a port of loopback in a thread, until it is closed."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.threads: list[threading.Thread] = []
        self.start(self.accept)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive(), "a connection is still open"

    def start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _address = self.listener.accept()
                self.start(self.serve, connection)

    def serve(self, connection: socket.socket) -> None:
        raise NotImplementedError


class Api(Listener):
    """The server. key is what it wants as a bearer token; empty: it wants none."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.key = ""
        self.extra_fields: set[str] = set()
        self.is_for_xchat = True  # not for another client
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self.scripts: list[list[Step]] = []
        super().__init__()
        self.url = f"{'https' if tls else 'http'}://{self.host}/v1"

    def will(self, *scripts: list[Step]) -> None:
        """Say what the next connections get, a script for each."""
        self.scripts += scripts

    def wait_for_requests(self, number: int = 1) -> None:
        deadline = time.monotonic() + 20
        while len(self.requests) < number:
            assert time.monotonic() < deadline, "a request that a test waits for never came"
            time.sleep(0.005)

    @property
    def body(self) -> Any:
        """The one request's body."""
        (request,) = self.requests
        return request.json

    def serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            try:
                connection = self.tls.wrap_socket(connection, server_side=True)
            except OSError:
                return
        with connection:
            try:
                request = read_request(connection)
            except ValueError as error:
                self.problems.append(str(error))
                return
            self.requests.append(request)
            self.problems += problems_of(request, self)
            if not self.scripts:
                self.problems.append("a connection that nobody expected")
                return
            with contextlib.suppress(ConnectionError):  # the client may go when it has enough
                perform(self.scripts.pop(0), connection)


def perform(steps: list[Step], connection: socket.socket) -> None:
    for step in steps:
        if isinstance(step, bytes):
            connection.sendall(step)
        elif isinstance(step, (int, float)):
            time.sleep(step)
        elif isinstance(step, threading.Event):
            assert step.wait(20), "an event that a test waits for never came"
        else:
            step(connection)


def read_request(connection: socket.socket) -> Request:
    """Read one request; ValueError says what is malformed."""
    connection.settimeout(20)
    file = connection.makefile("rb")
    line = file.readline().decode("ascii").removesuffix("\r\n")
    if not (match := re.fullmatch(r"([A-Z]+) (\S+) HTTP/1\.1", line)):
        raise ValueError(f"bad request line: {line!r}")
    headers: dict[str, str] = {}
    while (line := file.readline().decode("ascii")) != "\r\n":
        name, colon, value = line.removesuffix("\r\n").partition(": ")
        if not colon or name.lower() in headers:
            raise ValueError(f"bad or repeated header: {line!r}")
        headers[name.lower()] = value
    length = int(headers.get("content-length", 0))
    body = file.read(length)
    if len(body) != length:
        raise ValueError(f"{len(body)} bytes of a body of {length}")
    return Request(match[1], match[2], headers, body)


def problems_of(request: Request, api: Api) -> list[str]:
    """Return what is wrong with a request, by the API's own schema."""
    wanted = {
        "host": api.host,
        "content-type": "application/json",
        "content-length": str(len(request.body)),
        "authorization": f"Bearer {api.key}" if api.key else None,
    }
    problems = [
        f"header {name}: {request.headers.get(name)!r}, not {value!r}"
        for name, value in wanted.items()
        if request.headers.get(name) != value
    ]
    if (request.method, request.path) != ("POST", "/v1/chat/completions"):
        problems.append(f"request line: {request.method} {request.path}")
    if api.is_for_xchat:
        if not re.fullmatch(r"xchat/\d+\.\d+\.\d+", request.headers.get("user-agent", "")):
            problems.append(f"user agent: {request.headers.get('user-agent')!r}")
        for name in ("accept", "accept-encoding"):
            if name not in request.headers:
                problems.append(f"header {name} is missing")
    try:
        body = json.loads(request.body.decode())
    except ValueError as error:
        return [*problems, f"body: {error}"]
    return problems + problems_of_body(body, api.extra_fields)


def problems_of_body(body: Any, extra_fields: set[str]) -> list[str]:
    if not isinstance(body, dict):
        return ["body: not an object"]
    problems = [f"field {name} is missing" for name in ("model", "messages") if name not in body]
    for name, value in body.items():
        if name in extra_fields:
            continue
        if name not in FIELD_TYPES:
            problems.append(f"unknown field {name}")
        elif value is not None and not is_a(value, FIELD_TYPES[name]):
            problems.append(f"field {name}: {value!r}")
    for message in body.get("messages", []):
        problems += problems_of_message(message)
    return problems


def problems_of_message(message: Any) -> list[str]:
    if not isinstance(message, dict):
        return [f"message: {message!r}"]
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant", "tool", "function", "developer"):
        return [f"role: {role!r}"]
    if content is None and role == "assistant" and message.get("tool_calls"):
        return []
    if isinstance(content, list):
        return [f"part: {part!r}" for part in content if not is_part(part)]
    return [] if isinstance(content, str) else [f"content: {content!r}"]


def is_part(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind in PART_TYPES and isinstance(part.get(kind), PART_TYPES[kind])


def is_a(value: Any, kind: Any) -> bool:
    """isinstance(), but true is no number."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def completion(text: str | None = "Hello", **changes: Any) -> dict[str, Any]:
    """Return a completion as the API sends it; changes are to its only choice."""
    message = {
        "role": "assistant",
        "content": text,
        "reasoning_content": "Simple.\n",
        "refusal": None,
    }
    return {
        "id": "0b6c2f1e-5a7d-4c1b-9e35-6d2f8a41c0aa",
        "object": "chat.completion",
        "created": 1790000000,
        "model": "grok-4.7",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", **changes}],
        "usage": {
            "prompt_tokens": 197,
            "completion_tokens": 2,
            "total_tokens": 345,
            "completion_tokens_details": {"reasoning_tokens": 146},
            "cost_in_usd_ticks": 4121500,
        },
        "service_tier": "default",
    }


def reply(body: Any, status: str = "200 OK", **headers: str) -> list[Step]:
    """Return the script of one answer; a body that is not bytes is sent as JSON."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = {
        "content_type": "application/json",
        "content_length": str(len(body)),
        "x_request_id": "req-7",
        **headers,
    }
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return [f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body]


def chunk(text: str | None = None, **changes: Any) -> dict[str, Any]:
    """Return one event of a stream; changes are to its only choice."""
    choice: dict[str, Any] = {"index": 0, "delta": {} if text is None else {"content": text}}
    return {
        "id": "7327",
        "object": "chat.completion.chunk",
        "created": 1790000058,
        "model": "grok-4.7",
        "choices": [{**choice, **changes}],
    }


STOP = chunk(finish_reason="stop")
USAGE = {**chunk(), "choices": [], "usage": {"prompt_tokens": 12, "total_tokens": 304}}
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nx-request-id: req-7\r\n\r\n"


def event(data: Any, end: bytes = b"\n") -> bytes:
    """Return a server-sent event; data that is not bytes is sent as JSON."""
    line: bytes = data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode()
    return b"data: " + line + end * 2


def stream(*texts: str) -> bytes:
    """Return the body of a whole stream as the API sends it."""
    first = chunk(delta={"role": "assistant", "reasoning_content": "Hm"})
    events = [first, *map(chunk, texts), STOP, USAGE, b"[DONE]"]
    return b"".join(map(event, events))
