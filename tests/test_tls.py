"""What is said where TLS fails for good, and the certificate of XCHAT_CLIENT_CERT."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from conftest import HELLO, Result, Run, cases, needs, said, serve
from network import ESTABLISHED, HOST, URL, Proxy, tls_for, tunnel
from server import HANG, Api, Listener, Step, completion, perform, reply


class Greeter(Listener):
    """A server that reads the first bytes of each client, whatever they are, and then performs."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.heard: list[bytes] = []
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # the client may have gone
            self.heard.append(connection.recv(65536))
            perform(self.steps, connection)
            connection.shutdown(socket.SHUT_WR)
            HANG(connection)  # to close with something unread would be a reset

    def __enter__(self) -> Greeter:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def alert(number: int) -> bytes:
    """A record with a fatal alert (RFC 8446, 6)."""
    return bytes([21, 3, 3, 0, 2, 2, number])


NO_TLS = "does not speak https; perhaps its URL begins with http://"
WANTED = "wants a client certificate; XCHAT_CLIENT_CERT names one"
WANTED_PERHAPS = (
    "refuses the secure connection: it wants a client certificate (XCHAT_CLIENT_CERT names one),"
    " or no cipher in common"
)
REFUSED = "refuses the client certificate"
OLD = "speaks TLS older than 1.2 only"
HTTP2 = "speaks only HTTP/2, which xchat does not"


@cases(
    ("answer", "message"),
    {
        "no cipher in common": (alert(40), WANTED_PERHAPS),
        "a bad certificate": (alert(42), REFUSED),
        "an unsupported certificate": (alert(43), REFUSED),
        "a revoked certificate": (alert(44), REFUSED),
        "an expired certificate": (alert(45), REFUSED),
        "an unknown certificate": (alert(46), REFUSED),
        "an unknown authority": (alert(48), REFUSED),
        "access denied": (alert(49), REFUSED),
        "a version too old": (alert(70), OLD),
        "insufficient security": (alert(71), "the secure connection failed: insufficient security"),
        "an internal error": (alert(80), "the secure connection failed: internal error"),
        "an unrecognized name": (alert(112), "does not serve this host name"),
        "a certificate wanted": (alert(116), WANTED),
        "only HTTP/2": (alert(120), HTTP2),
        "HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", NO_TLS),
        "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", NO_TLS),
        "mail": (b"220 mail.test ESMTP\r\n", NO_TLS),
        "settings of HTTP/2": (b"\0\0\x12\x04\0\0\0\0\0", NO_TLS),
        "zeros": (bytes(99), NO_TLS),
    },
)
def test_a_fault_of_tls_that_stays_is_told_in_plain_words_and_never_asked_again(
    run: Run, answer: bytes, message: str
) -> None:
    with Greeter(answer) as server:
        env = {"XCHAT_BASE_URL": f"https://{server.host}/v1"}
        result = run("-n", "--retries", "3", "Hi", env=env)
    assert result == Result(b"", f"xchat: {server.host}: {message}\n", 3)
    assert len(server.heard) == 1


@cases("answer", {"nothing": b"", "the end": bytes([21, 3, 3, 0, 2, 1, 0])})
def test_a_handshake_that_just_ends_may_succeed_the_next_time(run: Run, answer: bytes) -> None:
    with Greeter(answer) as server:
        env = {"XCHAT_BASE_URL": f"https://{server.host}/v1"}
        result = run("-n", "--retries", "1", "Hi", env=env)
    message = f"xchat: {server.host}: closed the connection without an answer"
    again = re.fullmatch(rf"{re.escape(message)}; trying again in \d\.\d s\n(.*)\n", result.err)
    assert again
    assert (again[1], result.status, len(server.heard)) == (message, 3, 2)


@cases(
    ("answer", "message"),
    {
        "TLS": (alert(70), "speaks https; its URL begins with https://"),
        "HTTP/2": (b"\0\0\x12\x04\0\0\0\0\0\0\x03", HTTP2),
        "text": (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP: SSH-2.0-OpenSSH_9.2"),
        "bytes": (b"\xff\xfe\0junk\n", "does not speak HTTP"),
        "a long text": (b"x" * 200 + b"\n", "does not speak HTTP"),
        "an escape sequence": (b"\x1b]0;title\x07\n", "does not speak HTTP"),
    },
)
def test_what_is_no_http_is_told_in_plain_words(run: Run, answer: bytes, message: str) -> None:
    with Greeter(answer) as server:
        env = {"XCHAT_BASE_URL": f"http://{server.host}/v1"}
        result = run("-n", "--retries", "3", "Hi", env=env)
    assert result == Result(b"", f"xchat: {server.host}: {message}\n", 3)
    assert len(server.heard) == 1  # it may have been a request that was paid for


def refused_by(run: Run, tls: ssl.SSLContext, bundle: str) -> str:
    """Return what is said when a server refuses a client for good."""
    api = Api(tls=tls)
    env = {"XCHAT_BASE_URL": api.url, "SSL_CERT_FILE": bundle}
    result = run("-n", "--retries", "3", "Hi", env=env)
    api.close()
    assert (result.out, result.status, result.err.count("\n"), api.requests) == (b"", 3, 1, [])
    return result.err.removeprefix(f"xchat: {api.host}: ").rstrip()


def test_no_common_cipher(run: Run, authority: trustme.CA, bundle: str) -> None:
    tls = tls_for(authority, "127.0.0.1")
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.set_ciphers("AES256-SHA")  # none of those that urllib3 offers
    assert refused_by(run, tls, bundle) == WANTED_PERHAPS


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_an_old_version(run: Run, authority: trustme.CA, bundle: str) -> None:
    tls = tls_for(authority, "127.0.0.1")
    tls.set_ciphers("ALL:@SECLEVEL=0")
    tls.minimum_version = ssl.TLSVersion.TLSv1
    tls.maximum_version = ssl.TLSVersion.TLSv1_1
    assert refused_by(run, tls, bundle) == OLD


def test_a_fault_behind_a_proxy_is_not_called_the_proxys(run: Run) -> None:
    with Greeter(alert(112)) as server, Proxy(ESTABLISHED, tunnel(server.port)) as proxy:
        env = {"XCHAT_BASE_URL": URL, "HTTPS_PROXY": f"http://{proxy.host}", "XAI_API_KEY": "k"}
        result = run("-n", "--retries", "3", "Hi", env=env)
    message = f"through the proxy {proxy.host}: does not serve this host name"
    assert result == Result(b"", f"xchat: {HOST}: {message}\n", 3)
    assert len(proxy.asked) == 1


VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}


@pytest.fixture
def certificate(authority: trustme.CA, tmp_path: Path) -> str:
    """The file of a certificate for a client, with its key."""
    path = tmp_path / "client.pem"
    authority.issue_cert("joe@client.test").private_key_and_cert_chain_pem.write_to_path(str(path))
    return str(path)


def tls_with_clients(authority: trustme.CA, version: ssl.TLSVersion) -> ssl.SSLContext:
    """Return what a server needs that wants a certificate of each client."""
    tls = tls_for(authority, "127.0.0.1")
    tls.minimum_version = tls.maximum_version = version
    tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(tls)
    return tls


@pytest.fixture(params=[*VERSIONS.values()], ids=[*VERSIONS])
def strict(
    request: pytest.FixtureRequest, run: Run, authority: trustme.CA, bundle: str
) -> Iterator[Api]:
    """A server that wants a certificate of each client."""
    run.env["SSL_CERT_FILE"] = bundle
    yield from serve(run, Api(tls=tls_with_clients(authority, request.param)))


def test_the_client_certificate_is_shown_to_a_server_that_wants_one(
    strict: Api, run: Run, certificate: str
) -> None:
    strict.will(reply(completion()), reply(completion()))
    run.env["XCHAT_CLIENT_CERT"] = certificate
    assert run("-n", "Hi") == HELLO
    result = run("-v", stdin=b"Hi")  # on a connection that is made before the prompt is read
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert f" s: client certificate: {certificate}\n" in result.err
    assert result.err.index(" s: connected") < result.err.index("> POST")


@pytest.mark.parametrize("args", [["-n", "Hi"], []], ids=["late", "early"])
def test_a_server_that_wants_a_client_certificate_is_not_asked_again(
    strict: Api, run: Run, args: list[str]
) -> None:
    result = run("--retries", "3", *args, stdin=b"Hi")
    assert result in [
        Result(b"", f"xchat: {strict.host}: {words}\n", 3) for words in (WANTED, WANTED_PERHAPS)
    ]
    assert "XCHAT_CLIENT_CERT" in result.err


def test_a_server_that_wants_one_may_say_so_by_http(api: Api, run: Run) -> None:
    title = "400 No required SSL certificate was sent"
    page = f"<html><head><title>{title}</title></head></html>".encode()
    api.will(reply(page, "400 Bad Request"))
    words = f"400 Bad Request: {title}; XCHAT_CLIENT_CERT names one"
    assert run("--retries", "3", "Hi") == Result(b"", said(api, words), 4)


def test_a_client_certificate_of_an_unknown_authority(
    strict: Api, run: Run, tmp_path: Path
) -> None:
    other = trustme.CA().issue_cert("joe@client.test")
    other.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "other.pem"))
    result = run("-n", "--retries", "3", "Hi", env={"XCHAT_CLIENT_CERT": "other.pem"})
    assert result == Result(b"", f"xchat: {strict.host}: {REFUSED}\n", 3)


def pem_of(kind: str, text: str) -> str:
    """Return the first block of a kind in a text of PEM."""
    block = re.search(rf"(?s)-----BEGIN {kind}-----.*?-----END {kind}-----\n", text)
    assert block
    return block[0]


@cases(
    "content",
    {
        "nothing": "",
        "text": "junk\n",
        "no key": "{certificate}",
        "no certificate": "{key}",
        "the key of another": "{certificate}{other}",
        "a damaged certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    },
)
def test_a_client_certificate_that_does_not_fit_is_told_before_anything_is_read(
    run: Run, certificate: str, authority: trustme.CA, tmp_path: Path, content: str
) -> None:
    text = Path(certificate).read_text()
    other = authority.issue_cert("joe@client.test").private_key_pem.bytes().decode()
    key = pem_of(KEY_KIND, text)
    content = content.format(certificate=pem_of("CERTIFICATE", text), key=key, other=other)
    (tmp_path / "a.pem").write_text(content)
    assert (
        unusable(run, "a.pem")
        == "a.pem: expected a certificate and its key in PEM, without a password"
    )


KEY_KIND = "[A-Z ]*PRIVATE KEY"


def unusable(run: Run, path: str) -> str:
    """Return what is said of a client certificate before standard input is read."""
    env = {"XCHAT_BASE_URL": "https://127.0.0.1:9/v1", "XCHAT_CLIENT_CERT": path}
    result = run.before_input("--retries", "3", env=env)
    assert (result.out, result.status, result.err.count("\n")) == (b"", 2, 1)
    return result.err.removeprefix("xchat: XCHAT_CLIENT_CERT: ").rstrip()


def test_a_client_certificate_that_is_missing(run: Run) -> None:
    assert unusable(run, "/nowhere/a.pem") == "/nowhere/a.pem: No such file or directory"


def test_a_client_certificate_that_is_a_directory(run: Run) -> None:
    assert unusable(run, ".").startswith(".: ")


@needs("openssl")
def test_a_key_with_a_password_is_not_asked_for_it(
    run: Run, certificate: str, tmp_path: Path
) -> None:
    locked = subprocess.run(
        ["openssl", "pkey", "-aes256", "-passout", "pass:secret", "-in", certificate],
        stdout=-1,
        check=True,
    ).stdout.decode()
    text = pem_of("CERTIFICATE", Path(certificate).read_text()) + locked
    (tmp_path / "a.pem").write_text(text)
    assert (
        unusable(run, "a.pem")
        == "a.pem: expected a certificate and its key in PEM, without a password"
    )


def test_a_client_certificate_is_of_no_use_over_plain_http(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    assert run("Hi", env={"XCHAT_CLIENT_CERT": "/nowhere/a.pem"}) == HELLO
