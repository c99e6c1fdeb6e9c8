"""-v: what happens on the wire, in curl's manner, without secrets."""

from __future__ import annotations

import re

import trustme
from conftest import KEY, SECRET, Result, Run
from network import ESTABLISHED, HOST, URL, Proxy, api_behind_a_proxy, tls_for, tunnel
from server import STREAM_HEAD, Api, completion, refusing, reply, stream

TIME = r"\* \d+\.\d{3} s: "


def lines_of(result: Result) -> list[str]:
    """The lines of standard error, without their times, which must grow."""
    times = [float(time) for time in re.findall(r"(?m)^\* (\d+\.\d{3}) s: ", result.err)]
    assert times == sorted(times)
    assert times[0] > 0
    return re.sub(rf"(?m)^{TIME}", "* ", result.err).splitlines()


def sent(api: Api) -> list[str]:
    """The headers that the server got, as -v shows them, in alphabetical order."""
    (request,) = api.requests
    headers = {**request.headers}
    headers.update({name: "[hidden]" for name in ("authorization", "cf-id") if name in headers})
    return sorted(f"> {name}: {value}" for name, value in headers.items())


def shown(lines: list[str]) -> list[str]:
    """The request's headers among the lines, their names in lower case, in alphabetical order."""
    headers = [line.partition(": ") for line in lines if line.startswith("> ") and ": " in line]
    return sorted(f"{name.lower()}: {value}" for name, _, value in headers)


def test_the_wire_is_shown_and_the_reply_stands_alone(api: Api, run: Run) -> None:
    api.key = KEY
    api.will(reply(completion()))
    result = run("-v", "Hi", env={"XAI_API_KEY": KEY, "XCHAT_HEADERS": f"CF-Id: {SECRET}"})
    assert (result.out, result.status) == (b"Hello\n", 0)
    lines = lines_of(result)
    address = f"127.0.0.1 port {api.port}"
    end = lines.index("< HTTP/1.1 200 OK")
    facts = [line for line in lines[:end] if line.startswith("*")]
    assert facts[0] == "* proxy: none"
    assert facts[1:] == [
        "* looking up 127.0.0.1",
        f"* connecting to {address}",
        "* connected",
        "* the response begins",
    ]
    assert lines.count("> POST /v1/chat/completions HTTP/1.1") == 1
    assert shown(lines) == sent(api)
    assert end == len(facts) + 1 + len(sent(api))
    length = re.search(r"(?m)^< content-length: (\d+)$", result.err)
    assert length
    assert lines[end:] == [
        "< HTTP/1.1 200 OK",
        "< content-type: application/json",
        length[0],
        "< x-request-id: req-7",
        "* the reply is whole",
    ]
    assert KEY not in result.err
    assert SECRET not in result.err


def test_the_request_is_shown_once_the_connection_stands(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    lines = lines_of(run("-v", "Hi"))
    assert lines.index("* connected") < lines.index("> POST /v1/chat/completions HTTP/1.1")


def test_without_it_nothing_is_shown(api: Api, run: Run) -> None:
    api.will(reply(completion()), reply(completion()))
    assert run("Hi") == Result(b"Hello\n", "", 0)
    assert run("-q", "Hi") == Result(b"Hello\n", "", 0)


def test_the_long_option_shows_a_stream_too(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD + stream("Hel", "lo")])
    result = run("--verbose", "--stream", "Hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert lines_of(result)[-4:] == [
        "< HTTP/1.1 200 OK",
        "< Content-Type: text/event-stream",
        "< x-request-id: req-7",
        "* the reply is whole",
    ]


EXPIRY = r"\w{3} +\d+ \d\d:\d\d:\d\d \d{4} GMT"
CERTIFICATE = rf"\* TLSv1\.[23], certificate of trustme v.*, expires {EXPIRY}"


def test_the_certificate_and_the_trust_store_are_shown(
    run: Run, authority: trustme.CA, bundle: str
) -> None:
    api = Api(tls=tls_for(authority, "127.0.0.1"))
    api.will(reply(completion()))
    result = run("-v", "Hi", env={"XCHAT_BASE_URL": api.url, "SSL_CERT_FILE": bundle})
    api.close()
    assert (result.out, result.status, api.problems) == (b"Hello\n", 0, [])
    lines = lines_of(result)
    assert lines[:4] == [
        "* proxy: none",
        f"* trusted certificates: {bundle}",
        "* looking up 127.0.0.1",
        f"* connecting to 127.0.0.1 port {api.port}",
    ]
    assert re.fullmatch(CERTIFICATE, lines[4])
    assert lines[5] == "* connected"
    assert lines[6] == "> POST /v1/chat/completions HTTP/1.1"


def test_https_through_a_proxy_is_shown_without_its_password(
    run: Run, authority: trustme.CA, bundle: str
) -> None:
    api = api_behind_a_proxy(authority)
    api.key = KEY
    api.will(reply(completion()))
    with Proxy(ESTABLISHED, tunnel(api.port)) as proxy:
        env = {
            "XCHAT_BASE_URL": URL,
            "XAI_API_KEY": KEY,
            "SSL_CERT_FILE": bundle,
            "HTTPS_PROXY": f"http://user:proxy-password@{proxy.host}",
        }
        result = run("-v", "Hi", env=env)
    api.close()
    assert (result.out, result.status, api.problems) == (b"Hello\n", 0, [])
    lines = lines_of(result)
    address = proxy.host.replace(":", " port ")
    assert lines[:4] == [
        f"* proxy: {proxy.host}",
        f"* trusted certificates: {bundle}",
        "* looking up 127.0.0.1",
        f"* connecting to {address}",
    ]
    begin = lines.index("> POST /v1/chat/completions HTTP/1.1")
    assert any(re.fullmatch(CERTIFICATE, line) for line in lines[3:begin])
    assert "* connected" in lines[3:begin]
    assert shown(lines[begin:]) == sent(api)
    assert not re.search(f"proxy-password|user:|{KEY}|dXNlcjpwcm94eS1wYXNzd29yZA", result.err)


def test_the_certificate_of_a_proxy_is_shown_too(
    run: Run, authority: trustme.CA, bundle: str
) -> None:
    api = api_behind_a_proxy(authority)
    api.will(reply(completion()))
    with Proxy(ESTABLISHED, tunnel(api.port), tls=tls_for(authority, "127.0.0.1")) as proxy:
        env = {"XCHAT_BASE_URL": URL, "SSL_CERT_FILE": bundle}
        result = run("-v", "Hi", env={**env, "HTTPS_PROXY": f"https://{proxy.host}"})
    api.close()
    assert (result.out, result.status, api.problems) == (b"Hello\n", 0, [])
    lines = lines_of(result)
    assert [line for line in lines if re.fullmatch(CERTIFICATE, line)] == lines[4:6]


def test_plain_http_through_a_proxy_is_shown_without_its_password(run: Run) -> None:
    with Proxy(*reply(completion())) as proxy:
        env = {
            "XCHAT_BASE_URL": f"http://{HOST}/v1",
            "HTTP_PROXY": f"http://user:proxy-password@{proxy.host}",
        }
        result = run("-v", "Hi", env=env)
    assert (result.out, result.status) == (b"Hello\n", 0)
    lines = lines_of(result)
    assert f"> POST http://{HOST}/v1/chat/completions HTTP/1.1" in lines
    assert "> Proxy-Authorization: [hidden]" in lines
    assert not re.search("proxy-password|user:|dXNlcjpwcm94eS1wYXNzd29yZA", result.err)


def test_secrets_are_hidden_when_the_server_echoes_them(api: Api, run: Run) -> None:
    api.key = KEY
    api.will(
        reply(
            {"error": f"{KEY} {SECRET}"},
            f"400 {KEY}",
            X_Echo=f"Bearer {KEY}, {SECRET}",
            Set_Cookie=f"id={SECRET}",
        )
    )
    result = run("-v", "Hi", env={"XAI_API_KEY": KEY, "XCHAT_HEADERS": f"CF-Id: {SECRET}"})
    assert (result.out, result.status) == (b"", 4)
    lines = lines_of(result)
    assert "< HTTP/1.1 400 [the key]" in lines
    assert "< X-Echo: Bearer [the key], [hidden]" in lines
    assert "< Set-Cookie: id=[hidden]" in lines
    message = f"xchat: {api.host}: 400 [the key]: [the key] [hidden] (request id req-7)"
    assert lines[-1] == message
    assert KEY not in result.err
    assert SECRET not in result.err


def test_control_characters_of_the_server_are_not_shown(api: Api, run: Run) -> None:
    api.will(reply(completion(), X_Title="\x1b]0;title\x07\x9b2J"))
    result = run("-v", "Hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert any(line.startswith("< X-Title: ") and "title" in line for line in lines_of(result))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", result.err)


def test_the_addresses_that_are_tried_are_shown(run: Run) -> None:
    with refusing() as server:
        port = server.getsockname()[1]
        result = run("-v", "Hi", env={"XCHAT_BASE_URL": f"http://localhost:{port}/v1"})
    assert (result.out, result.status) == (b"", 3)
    lines = lines_of(result)
    assert "* looking up localhost" in lines
    assert f"* connecting to 127.0.0.1 port {port}" in lines
    assert not any(line.startswith(("* connected", "<")) for line in lines)
    assert lines[-1] == f"xchat: localhost:{port}: Connection refused"


def test_the_store_is_shown_when_the_certificate_cannot_be_trusted(run: Run, bundle: str) -> None:
    api = Api(tls=tls_for(trustme.CA(), "127.0.0.1"))
    result = run("-v", "Hi", env={"XCHAT_BASE_URL": api.url, "SSL_CERT_FILE": bundle})
    api.close()
    lines = lines_of(result)
    assert lines[:2] == ["* proxy: none", f"* trusted certificates: {bundle}"]
    assert f"* connecting to 127.0.0.1 port {api.port}" in lines
    assert not any(line.startswith((">", "<")) for line in lines)
    assert lines[-1].startswith(f"xchat: {api.host}: cannot trust its certificate: ")


def test_each_attempt_is_shown(api: Api, run: Run) -> None:
    api.will(reply({"error": "no"}, "503 Busy", Retry_After="0.01"), reply(completion()))
    result = run("-v", "--retries", "1", "Hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    lines = lines_of(result)
    assert lines.count("> POST /v1/chat/completions HTTP/1.1") == 2
    assert lines.count("< HTTP/1.1 503 Busy") == 1
    assert lines.count("< HTTP/1.1 200 OK") == 1
    again = [line for line in lines if "trying again" in line]
    assert len(again) == 1
    assert again[0].startswith(f"xchat: {api.host}: 503 Busy: no (request id req-7); trying ")
