"""What stands between xchat and a server: proxies on loopback, and certificates."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trustme
from server import Api, Listener, Step, perform

P = TypeVar("P", bound="Proxy")

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Proxy(Listener):
    """A server that notes what each client asks for, and then performs the steps.

    asked holds the heads of requests to an HTTP proxy, or host:port of those to a SOCKS proxy.
    """

    def __init__(self, *steps: Step, tls: ssl.SSLContext | None = None) -> None:
        self.steps = list(steps)
        self.tls = tls
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        super().__init__()

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def serve(self, connection: socket.socket) -> None:
        connection.settimeout(60)
        with contextlib.suppress(OSError):
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection:
                self.read(connection)
                perform(self.steps, connection)

    def read(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as file:
            lines = list(iter(file.readline, b"\r\n"))
            head = b"".join(lines).decode("latin-1")
            _, _, rest = head.lower().partition("content-length: ")
            self.bodies.append(file.read(int(rest.partition("\r\n")[0])) if rest else b"")
            self.asked.append(head)


class Socks(Proxy):
    """A SOCKS5 proxy (RFC 1928); password is the user's and the password of RFC 1929."""

    password: tuple[str, str] | None = None

    def read(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as file:
            _version, count = file.read(2)
            methods = file.read(count)
            method = 2 if self.password else 0
            assert method in methods
            connection.sendall(bytes([5, method]))
            if self.password:
                user = file.read(file.read(2)[1]).decode()
                password = file.read(file.read(1)[0]).decode()
                ok = (user, password) == self.password
                connection.sendall(bytes([1, 0 if ok else 1]))
                if not ok:
                    return
            if len(request := file.read(4)) < 4:
                return
            kind = request[3]
            if kind == 3:
                host = file.read(file.read(1)[0]).decode()
            else:
                host = socket.inet_ntop(*{1: (socket.AF_INET, file.read(4))}[kind])
            self.asked.append(f"{host}:{int.from_bytes(file.read(2), 'big')}")


SOCKS_OK = bytes([5, 0, 0, 1, 127, 0, 0, 1, 0, 9])


def tunnel(port: int) -> Callable[[socket.socket], None]:
    """Return the step that joins a connection with one to the port, until either ends."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def join(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as other:
            back = threading.Thread(target=copy, args=(other, connection), daemon=True)
            back.start()
            copy(connection, other)
            back.join(20)

    return join


def tls_for(
    authority: trustme.CA, *names: str, not_after: datetime.datetime | None = None
) -> ssl.SSLContext:
    """Return what a server with a certificate for the names needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, not_after=not_after).configure_cert(context)
    return context


HOST = "xchat.test"  # no loopback, so that proxies are used; only they know it
URL = f"https://{HOST}/v1"


def api_behind_a_proxy(authority: trustme.CA, name: str = HOST) -> Api:
    """Return a server with a certificate for the name, which answers as HOST."""
    api = Api(tls=tls_for(authority, name))
    api.host = HOST
    api.url = URL
    return api


def bundle_of(authority: trustme.CA, path: Path) -> str:
    """Write the authority's certificate into a file, and return its name."""
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def hashed(bundle: str, directory: Path) -> str:
    """Put a certificate into a directory as OpenSSL looks for it."""
    directory.mkdir()
    name = subprocess.run(
        ["openssl", "x509", "-noout", "-subject_hash", "-in", bundle], stdout=-1, check=True
    ).stdout.decode()
    (directory / f"{name.strip()}.0").write_bytes(Path(bundle).read_bytes())
    return str(directory)
