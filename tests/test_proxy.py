"""Through a proxy, and what is said when that fails: always that it was the proxy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from conftest import HELLO, KEY, Result, Run, cases, serve
from network import ESTABLISHED, HOST, SOCKS_OK, URL, Proxy, Socks, api_behind_a_proxy, tls_for
from network import tunnel as tunnel_to
from server import HANG, RESET, STREAM_HEAD, Api, chunk, completion, event, refusing, reply, stream

import xchat


@pytest.fixture
def api(authority: trustme.CA, bundle: str, run: Run) -> Iterator[Api]:
    """The server that is asked as xchat.test, which only a proxy can find."""
    server = api_behind_a_proxy(authority)
    server.key = KEY
    run.env.update(XAI_API_KEY=KEY, SSL_CERT_FILE=bundle)
    yield from serve(run, server)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_is_asked_to_connect_and_sees_no_key(api: Api, run: Run, name: str) -> None:
    api.will(reply(completion()))
    with Proxy(ESTABLISHED, tunnel_to(api.port)) as proxy:
        assert run("Hi", env={name: f"http://{proxy.host}"}) == HELLO
    (asked,) = proxy.asked
    assert asked.startswith(f"CONNECT {HOST}:443 HTTP/1.")
    assert KEY not in asked


def test_a_proxy_may_be_named_without_a_scheme(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    with Proxy(ESTABLISHED, tunnel_to(api.port)) as proxy:
        assert run("Hi", env={"HTTPS_PROXY": proxy.host}) == HELLO


def test_a_stream_comes_through_a_proxy(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD + stream("Hel", "lo")])
    with Proxy(ESTABLISHED, tunnel_to(api.port)) as proxy:
        assert run("--stream", "Hi", env={"HTTPS_PROXY": f"http://{proxy.host}"}) == HELLO


def test_the_proxy_gets_its_user_and_password(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    with Proxy(ESTABLISHED, tunnel_to(api.port)) as proxy:
        assert run("Hi", env={"HTTPS_PROXY": f"http://user:p%40ss@{proxy.host}"}) == HELLO
    assert "\r\nproxy-authorization: basic dXNlcjpwQHNz\r\n".lower() in proxy.asked[0].lower()


def test_no_proxy_goes_around_it(api: Api, run: Run) -> None:
    with Proxy(ESTABLISHED, tunnel_to(api.port)) as proxy:
        env = {"HTTPS_PROXY": f"http://{proxy.host}", "NO_PROXY": ".test"}
        result = run("Hi", env=env)
    assert (result.out, result.status, proxy.asked) == (b"", 3, [])
    assert result.err.startswith(f"xchat: {HOST}: cannot find the host: ")


def test_a_proxy_of_ones_own_certificate(
    api: Api, run: Run, authority: trustme.CA, tmp_path: Path
) -> None:
    api.will(reply(completion()))
    tls = tls_for(authority, "127.0.0.1")
    with Proxy(ESTABLISHED, tunnel_to(api.port), tls=tls) as proxy:
        assert run("Hi", env={"HTTPS_PROXY": f"https://{proxy.host}"}) == HELLO


def test_a_proxy_that_never_answers(api: Api, run: Run) -> None:
    with Proxy(HANG) as proxy:
        env = {"HTTPS_PROXY": f"http://user:secret@{proxy.host}"}
        result = run("--timeout", "2", "--retries", "3", "Hi", env=env)
    message = f"the proxy {proxy.host} failed: no secure connection within 2 s"
    assert result == Result(b"", f"xchat: {HOST}: {message}\n", 3)


def test_a_proxy_that_never_answers_does_not_use_up_the_time(api: Api, run: Run) -> None:
    with Proxy(HANG) as proxy:
        result = run("Hi", env={"HTTPS_PROXY": f"http://{proxy.host}"})
    message = "no secure connection within 10 s"
    assert result == Result(b"", f"xchat: {HOST}: the proxy {proxy.host} failed: {message}\n", 3)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (b"", "closed the connection without an answer"),
        (RESET, "Connection reset by peer"),
    ],
    ids=["closes", "resets"],
)
def test_a_proxy_that_hangs_up(api: Api, run: Run, step: bytes, message: str) -> None:
    with Proxy(step) as proxy:
        result = run("Hi", env={"HTTPS_PROXY": f"http://user:secret@{proxy.host}"})
    assert result == Result(b"", f"xchat: {HOST}: the proxy {proxy.host} failed: {message}\n", 3)


def test_a_proxy_that_hangs_up_in_its_answer(api: Api, run: Run) -> None:
    with Proxy(b"HTTP/1.1 200 Conn") as proxy:
        result = run("Hi", env={"HTTPS_PROXY": f"http://{proxy.host}"})
    message = "closed the connection without an answer"
    assert result == Result(b"", f"xchat: {HOST}: the proxy {proxy.host} failed: {message}\n", 3)


def test_a_proxy_that_hangs_up_once_connected(api: Api, run: Run) -> None:
    with Proxy(ESTABLISHED) as proxy:
        result = run("Hi", env={"HTTPS_PROXY": f"http://{proxy.host}"})
    message = f"xchat: {HOST}: the proxy {proxy.host} failed: "
    assert (result.out, result.status, result.err.count("\n")) == (b"", 3, 1)
    assert result.err.startswith(message)


def test_a_proxy_that_speaks_no_http(api: Api, run: Run) -> None:
    with Proxy(b"SSH-2.0-OpenSSH_9.2\r\n") as proxy:
        result = run("Hi", env={"HTTPS_PROXY": f"http://{proxy.host}"})
    message = f"xchat: {HOST}: the proxy {proxy.host} failed: does not speak HTTP: "
    assert (result.out, result.status, result.err.count("\n")) == (b"", 3, 1)
    assert result.err.startswith(message)


@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "401 No", "403 No"])
def test_a_proxy_that_refuses_is_not_asked_again(api: Api, run: Run, status: str) -> None:
    with Proxy(f"HTTP/1.1 {status}\r\n\r\n".encode()) as proxy:
        env = {"HTTPS_PROXY": f"http://user:secret@{proxy.host}"}
        result = run("--retries", "3", "Hi", env=env)
    assert result.err.startswith(f"xchat: {HOST}: the proxy {proxy.host} failed: ")
    assert result.err.endswith(f": {status}\n")
    assert "secret" not in result.err
    assert (result.out, result.status, result.err.count("\n")) == (b"", 3, 1)
    assert len(proxy.asked) == 1


def test_a_proxy_that_cannot_connect_is_asked_again(api: Api, run: Run) -> None:
    with Proxy(b"HTTP/1.1 503 Busy\r\n\r\n") as proxy:
        env = {"HTTPS_PROXY": f"http://user:secret@{proxy.host}"}
        result = run("--retries", "1", "Hi", env=env)
    message = rf"xchat: {HOST}: the proxy {proxy.host} failed: .*503 Busy"
    assert re.fullmatch(rf"{message}; trying again in \d\.\d s\n{message}\n", result.err)
    assert (result.out, result.status, len(proxy.asked)) == (b"", 3, 2)


def test_a_proxy_that_is_not_there_is_named(api: Api, run: Run) -> None:
    with refusing() as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        result = run("Hi", env={"HTTPS_PROXY": f"http://user:secret@{host}"})
    message = f"xchat: {HOST}: the proxy {host} failed: Connection refused\n"
    assert result == Result(b"", message, 3)


def test_a_proxy_whose_name_is_unknown(api: Api, run: Run) -> None:
    result = run("Hi", env={"HTTPS_PROXY": "http://user:secret@proxy.invalid:3128"})
    message = f"xchat: {HOST}: the proxy proxy.invalid:3128 failed: cannot find the host: "
    assert result.err.startswith(message)
    assert (result.out, result.status, result.err.count("\n")) == (b"", 3, 1)


@pytest.mark.parametrize("is_known", [False, True], ids=["of an unknown authority", "other host"])
def test_a_bad_certificate_seen_through_a_proxy(
    run: Run, authority: trustme.CA, bundle: str, is_known: bool
) -> None:
    if is_known:
        server = api_behind_a_proxy(authority, "other.test")
    else:
        server = api_behind_a_proxy(trustme.CA())
    with Proxy(ESTABLISHED, tunnel_to(server.port)) as proxy:
        env = {
            "XCHAT_BASE_URL": URL,
            "XAI_API_KEY": KEY,
            "HTTPS_PROXY": f"http://user:secret@{proxy.host}",
            "SSL_CERT_FILE": bundle,
        }
        result = run("--retries", "3", "Hi", env=env)
    server.close()
    begin = f"xchat: {HOST}: through the proxy {proxy.host}: cannot trust its certificate: "
    assert result.err.startswith(begin)
    assert result.err.endswith(f" (trusted: {bundle})\n")
    assert (result.out, result.status, result.err.count("\n")) == (b"", 3, 1)
    assert (len(proxy.asked), server.requests) == (1, [])


def test_a_bad_certificate_of_the_proxy_itself(api: Api, run: Run, bundle: str) -> None:
    with Proxy(ESTABLISHED, tls=tls_for(trustme.CA(), "127.0.0.1")) as proxy:
        result = run("--retries", "3", "Hi", env={"HTTPS_PROXY": f"https://{proxy.host}"})
    begin = f"xchat: {HOST}: the proxy {proxy.host} failed: cannot trust its certificate: "
    assert result.err.startswith(begin)
    assert result.err.endswith(f" (trusted: {bundle})\n")
    assert (result.out, result.status, result.err.count("\n")) == (b"", 3, 1)


@pytest.mark.parametrize("warnings", ["default", "error"])
def test_a_bad_certificate_of_a_proxy_to_plain_http(
    run: Run, authority: trustme.CA, bundle: str, warnings: str
) -> None:
    with Proxy(*reply(completion()), tls=tls_for(trustme.CA(), "127.0.0.1")) as proxy:
        env = {"XCHAT_BASE_URL": PLAIN, "HTTP_PROXY": f"https://joe:hunter2@{proxy.host}"}
        env |= {"SSL_CERT_FILE": bundle, "PYTHONWARNINGS": warnings}
        result = run("--retries", "3", "Hi", env=env)
    begin = f"xchat: {HOST}: the proxy {proxy.host} failed: cannot trust its certificate: "
    assert result.err.startswith(begin)
    assert result.err.endswith(f" (trusted: {bundle})\n")
    assert (result.out, result.status, result.err.count("\n")) == (b"", 3, 1)
    assert proxy.asked == []  # it has not seen the password


@pytest.mark.parametrize("warnings", ["default", "error"])
def test_a_proxy_by_tls_to_plain_http(
    run: Run, authority: trustme.CA, bundle: str, warnings: str
) -> None:
    with Proxy(*reply(completion()), tls=tls_for(authority, "127.0.0.1")) as proxy:
        env = {"XCHAT_BASE_URL": PLAIN, "HTTP_PROXY": f"https://joe:hunter2@{proxy.host}"}
        env |= {"SSL_CERT_FILE": bundle, "PYTHONWARNINGS": warnings}
        assert run("Hi", env=env) == HELLO
    assert "\r\nProxy-Authorization: Basic am9lOmh1bnRlcjI=\r\n" in proxy.asked[0]


FORM = (
    "expected SCHEME://[USER:PASSWORD@]HOST[:PORT]; SCHEME is one of http, https, socks5h, socks5,"
    " socks4a, socks4"
)
ESCAPES = "in a password, write / as %2F, ? as %3F, # as %23 and @ as %40"
NOT_LATIN = "the user name or password has a letter outside Latin-1"


@cases(
    ("url", "message"),
    {
        "a scheme of others": ("ftp://joe:secret@127.0.0.1:9", FORM),
        "a scheme of the future": ("quic://joe:secret@127.0.0.1:9", FORM),
        "no version of SOCKS": ("socks://joe:secret@127.0.0.1:9", FORM),
        "a scheme misspelt": ("sock5://joe:secret@127.0.0.1:9", FORM),
        "no host": ("http://joe:secret@", FORM),
        "an open bracket": ("http://joe:secret@[bad", FORM),
        "no address in the brackets": ("http://joe:secret@[bad]:1", FORM),
        "a port that is a word": ("http://joe:secret@h:port", FORM),
        "a host with a space": ("http://joe:secret@a b", FORM),
        "a letter outside ASCII": ("http://joe:sécret@h:1", FORM),
        "a slash": ("http://joe:123/secret@proxy:3128", ESCAPES),
        "a slash and no port": ("http://joe:se/cret@proxy", ESCAPES),
        "a number sign": ("http://joe:se#cret@proxy:3128", ESCAPES),
        "a question mark": ("http://joe:se?cret@proxy:3128", ESCAPES),
        "an at sign": ("http://joe:se@cret@proxy:3128", ESCAPES),
        "an at sign in the user name": ("http://joe@home:secret@proxy:3128", ESCAPES),
        "a slash, for SOCKS": ("socks5://joe:se/cret@proxy:1080", ESCAPES),
        "a Euro sign": ("http://joe:secret%E2%82%AC@proxy:3128", NOT_LATIN),
        "a Greek user": ("http://%CE%B1:secret@proxy:3128", NOT_LATIN),
    },
)
def test_a_malformed_proxy_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    monkeypatch.setattr(xchat, "hidden_words", {})
    with pytest.raises(xchat.BadInput) as caught:
        xchat.parse_proxy(url)
    assert caught.value.message == message


@cases(
    ("name", "url", "message"),
    {
        "with a scheme": ("HTTPS_PROXY", "http://joe:se#cret@h:1", ESCAPES),
        "without a scheme": ("HTTPS_PROXY", "joe:se#cret@h:1", ESCAPES),
        "for all": ("ALL_PROXY", "sock5://joe:secret@h:1", FORM),
    },
)
def test_a_malformed_proxy_is_told_before_anything_is_read(
    api: Api, run: Run, name: str, url: str, message: str
) -> None:
    message = f"xchat: HTTPS_PROXY or ALL_PROXY: {message}\n"
    assert run.before_input("--retries", "3", env={name: url}) == Result(b"", message, 2)


@pytest.mark.parametrize("scheme", ["socks4", "socks4a", "socks5", "socks5h"])
def test_a_socks_proxy_without_pysocks(api: Api, run: Run, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "sitecustomize.py").write_text('import sys; sys.modules["socks"] = None\n')
    env = {"ALL_PROXY": f"{scheme}://user:secret@127.0.0.1:9", "PYTHONPATH": str(tmp_path)}
    message = "SOCKS needs PySocks: pip install PySocks, or Debian's python3-socks"
    message = f"xchat: HTTPS_PROXY or ALL_PROXY: {message}\n"
    assert run.before_input("--retries", "3", env=env) == Result(b"", message, 2)


@pytest.fixture
def pysocks() -> None:
    pytest.importorskip("socks", reason="PySocks is not installed")


def test_a_socks_proxy_that_looks_up_the_host(api: Api, run: Run, pysocks: None) -> None:
    api.will(reply(completion()))
    with Socks(SOCKS_OK, tunnel_to(api.port)) as proxy:
        assert run("Hi", env={"ALL_PROXY": f"socks5h://{proxy.host}"}) == HELLO
    assert proxy.asked == [f"{HOST}:443"]


def test_a_socks_proxy_that_is_told_the_address(
    api: Api, run: Run, pysocks: None, tmp_path: Path
) -> None:
    """socks5: the host is looked up here; the spy is our /etc/hosts."""
    (tmp_path / "sitecustomize.py").write_text(HOSTS)
    api.will(reply(completion()))
    with Socks(SOCKS_OK, tunnel_to(api.port)) as proxy:
        env = {"HTTPS_PROXY": f"socks5://{proxy.host}", "PYTHONPATH": str(tmp_path)}
        assert run("Hi", env=env) == HELLO
    assert proxy.asked == ["192.0.2.7:443"]


HOSTS = f"""
import socket
look_up = socket.getaddrinfo
def getaddrinfo(host, *args, **kwargs):
    return look_up("192.0.2.7" if host == "{HOST}" else host, *args, **kwargs)
socket.getaddrinfo = getaddrinfo
socket.gethostbyname = lambda host: getaddrinfo(host, None)[0][4][0]
"""


def test_a_socks_proxy_with_a_password(api: Api, run: Run, pysocks: None) -> None:
    api.will(reply(completion()))
    with Socks(SOCKS_OK, tunnel_to(api.port)) as proxy:
        proxy.password = ("user", "p@ss")
        assert run("Hi", env={"ALL_PROXY": f"socks5h://user:p%40ss@{proxy.host}"}) == HELLO


def test_a_socks_proxy_that_refuses_the_password(api: Api, run: Run, pysocks: None) -> None:
    with Socks() as proxy:
        proxy.password = ("user", "other")
        result = run("Hi", env={"ALL_PROXY": f"socks5h://user:secret@{proxy.host}"})
    begin = f"xchat: {HOST}: the proxy {proxy.host} failed: "
    assert result.err.startswith(begin)
    assert "secret" not in result.err
    assert (result.out, result.status, result.err.count("\n")) == (b"", 3, 1)


def test_a_socks_proxy_that_refuses_the_password_is_not_asked_again(
    api: Api, run: Run, pysocks: None
) -> None:
    with Socks() as proxy:
        proxy.password = ("user", "other")
        env = {"ALL_PROXY": f"socks5h://user:secret@{proxy.host}"}
        result = run("--retries", "1", "Hi", env=env)
    assert (result.out, result.status, result.err.count("\n")) == (b"", 3, 1)


@cases(
    ("code", "words", "attempts"),
    {
        "a failure": (1, "General SOCKS server failure", 2),
        "not allowed": (2, "Connection not allowed by ruleset", 1),
        "no network": (3, "Network unreachable", 2),
        "no host": (4, "Host unreachable", 2),
        "refused": (5, "Connection refused", 2),
        "too far": (6, "TTL expired", 2),
        "not understood": (7, "Command not supported, or protocol error", 1),
        "no such kind of address": (8, "Address type not supported", 1),
    },
)
def test_a_socks_proxy_that_cannot_connect_is_asked_again_unless_it_would_refuse_again(
    api: Api, run: Run, pysocks: None, code: int, words: str, attempts: int
) -> None:
    with Socks(bytes([5, code]) + SOCKS_OK[2:]) as proxy:
        env = {"ALL_PROXY": f"socks5h://joe:secret@{proxy.host}"}
        result = run("-q", "--retries", "1", "Hi", env=env)
    message = f"xchat: {HOST}: the proxy {proxy.host} failed: {words}\n"
    assert result == Result(b"", message, 3)
    assert len(proxy.asked) == attempts


def test_a_name_that_is_unknown_here_is_not_the_proxys_fault(
    api: Api, run: Run, pysocks: None
) -> None:
    with Socks() as proxy:
        result = run("Hi", env={"ALL_PROXY": f"socks5://{proxy.host}"})
    begin, end = (
        f"xchat: {HOST}: cannot find the host: ",
        "; with socks5h:// the proxy looks it up\n",
    )
    assert result.err.startswith(begin)
    assert result.err.endswith(end)
    assert (result.out, result.status, result.err.count("\n"), proxy.asked) == (b"", 3, 1, [])


def test_a_bad_certificate_seen_through_a_socks_proxy(run: Run, bundle: str, pysocks: None) -> None:
    server = api_behind_a_proxy(trustme.CA())
    with Socks(SOCKS_OK, tunnel_to(server.port)) as proxy:
        env = {"ALL_PROXY": f"socks5h://{proxy.host}", "XCHAT_BASE_URL": URL, "XAI_API_KEY": KEY}
        result = run("--retries", "3", "Hi", env={**env, "SSL_CERT_FILE": bundle})
    server.close()
    begin = f"xchat: {HOST}: through the proxy {proxy.host}: cannot trust its certificate: "
    assert result.err.startswith(begin)
    assert (result.out, result.status, len(proxy.asked)) == (b"", 3, 1)


def test_a_socks_proxy_that_never_answers(api: Api, run: Run, pysocks: None) -> None:
    with Socks(HANG) as proxy:
        result = run("--timeout", "2", "Hi", env={"ALL_PROXY": f"socks5h://{proxy.host}"})
    message = f"the proxy {proxy.host} failed: no secure connection within 2 s"
    assert result == Result(b"", f"xchat: {HOST}: {message}\n", 3)


def test_a_socks_proxy_that_is_not_there(api: Api, run: Run, pysocks: None) -> None:
    with refusing() as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        result = run("Hi", env={"ALL_PROXY": f"socks5h://user:secret@{host}"})
    message = f"xchat: {HOST}: the proxy {host} failed: Connection refused\n"
    assert result == Result(b"", message, 3)


PLAIN = f"http://{HOST}/v1"


def test_plain_http_goes_through_http_proxy(run: Run) -> None:
    with Proxy(*reply(completion())) as proxy:
        env = {"XCHAT_BASE_URL": PLAIN, "http_proxy": f"http://user:secret@{proxy.host}"}
        assert run("Hi", env=env) == HELLO
    (asked,) = proxy.asked
    assert asked.startswith(f"POST {PLAIN}/chat/completions HTTP/1.1\r\n")
    assert f"\r\nHost: {HOST}\r\n" in asked
    assert "\r\nProxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n" in asked
    assert b'"content":"Hi"' in proxy.bodies[0]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (b"", "closed the connection without an answer"),
        (RESET, "Connection reset by peer"),
    ],
    ids=["closes", "resets"],
)
def test_plain_http_through_a_proxy_that_hangs_up(run: Run, step: bytes, message: str) -> None:
    with Proxy(step) as proxy:
        env = {"XCHAT_BASE_URL": PLAIN, "HTTP_PROXY": f"http://user:secret@{proxy.host}"}
        result = run("--retries", "3", "Hi", env=env)
    assert result == Result(b"", f"xchat: {HOST}: the proxy {proxy.host} failed: {message}\n", 3)
    assert len(proxy.asked) == 1  # it may have passed the request on


def test_plain_http_through_a_proxy_that_refuses_the_password(run: Run) -> None:
    with Proxy(*reply(b"who are you?", "407 Proxy Authentication Required")) as proxy:
        env = {"XCHAT_BASE_URL": PLAIN, "HTTP_PROXY": f"http://user:secret@{proxy.host}"}
        result = run("--retries", "3", "Hi", env=env)
    assert result.err.startswith(f"xchat: {HOST}: ")
    assert f"the proxy {proxy.host}" in result.err
    assert "secret" not in result.err
    assert result.err.count("\n") == 1
    assert result.status in (3, 4)
    assert len(proxy.asked) == 1


def test_a_failure_of_the_server_is_not_called_the_proxys(api: Api, run: Run) -> None:
    api.will([], reply({"error": "no"}, "400 Bad Request"), [STREAM_HEAD, event(chunk("Hel"))])
    with Proxy(ESTABLISHED, tunnel_to(api.port)) as proxy:
        env = {"HTTPS_PROXY": f"http://{proxy.host}"}
        results = [run("Hi", env=env), run("Hi", env=env), run("--stream", "Hi", env=env)]
    assert [result.err for result in results] == [
        f"xchat: {HOST}: closed the connection without an answer\n",
        f"xchat: {HOST}: 400 Bad Request: no (request id req-7)\n",
        f"xchat: {HOST}: the reply is cut short: the stream ended without a finish reason"
        " (request id req-7)\n",
    ]
    assert [result.status for result in results] == [3, 4, 1]


@pytest.mark.parametrize(
    "echo",
    [
        "user:p%40ssw0rd",
        "user p@ssw0rd",
        "Basic dXNlcjpwQHNzdzByZA==",
    ],
    ids=["as in the URL", "decoded", "as in the header"],
)
def test_the_password_is_not_shown_even_when_the_proxy_echoes_it(
    api: Api, run: Run, echo: str
) -> None:
    with Proxy(f"HTTP/1.1 407 wrong {echo}\r\n\r\n".encode()) as proxy:
        result = run("-v", "Hi", env={"HTTPS_PROXY": f"http://user:p%40ssw0rd@{proxy.host}"})
    assert result.status == 3
    assert "407 wrong" in result.err
    assert not re.search(r"p%40ssw0rd|p@ssw0rd|dXNlcjpwQHNzdzByZA", result.err)


def test_loopback_does_without_a_proxy(run: Run) -> None:
    api = Api()
    api.will(reply(completion()))
    with Proxy(b"") as proxy:
        names = ["http_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
        env = dict.fromkeys(names, f"http://{proxy.host}")
        assert run("Hi", env={**env, "XCHAT_BASE_URL": api.url}) == HELLO
    api.close()
    assert (proxy.asked, api.problems) == ([], [])
