"""XCHAT_HEADERS: sent along for gateways, and hidden like the key."""

from __future__ import annotations

import json
import re

import pytest
import trustme
from conftest import HELLO, KEY, SECRET, File, Result, Run
from network import ESTABLISHED, URL, Proxy, api_behind_a_proxy, tunnel
from server import STREAM_HEAD, Api, chunk, completion, event, reply


def test_headers_are_sent_along(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    lines = f"CF-Access-Client-Id: {SECRET}.access\nX-Tag:  a: b, c \n\n  x-empty-line-above :1\r\n"
    assert run("Hi", env={"XCHAT_HEADERS": lines}) == HELLO
    headers = api.requests[0].headers
    assert headers["cf-access-client-id"] == f"{SECRET}.access"
    assert headers["x-tag"] == "a: b, c"
    assert headers["x-empty-line-above"] == "1"


@pytest.mark.parametrize("text", ["", "\n", " \r\n\t\n"])
def test_blank_lines_are_no_headers(api: Api, run: Run, text: str) -> None:
    api.will(reply(completion()), reply(completion()))
    assert run("Hi") == HELLO
    assert run("Hi", env={"XCHAT_HEADERS": text}) == HELLO
    assert api.requests[0] == api.requests[1]


def test_headers_go_with_the_key_and_with_a_stream(api: Api, run: Run) -> None:
    api.key = KEY
    api.will([STREAM_HEAD + event(chunk("Hello", finish_reason="stop"))])
    env = {"XAI_API_KEY": api.key, "XCHAT_HEADERS": "X-Tag: team"}
    assert run("--stream", "Hi", env=env) == HELLO
    assert api.requests[0].headers["x-tag"] == "team"


def test_a_header_of_ours_may_be_another(api: Api, run: Run) -> None:
    api.is_for_xchat = False
    api.will(reply(completion()))
    assert run("Hi", env={"XCHAT_HEADERS": "user-agent: mine/1\nACCEPT: */*"}) == HELLO
    assert api.requests[0].headers["user-agent"] == "mine/1"
    assert api.requests[0].headers["accept"] == "*/*"


OWN = ["Authorization", "host", "Transfer-Encoding", "Content-Type", "CONTENT-LENGTH", "content-x"]


@pytest.mark.parametrize("name", OWN)
def test_what_is_xchats_own_to_set_is_refused(api: Api, run: Run, name: str) -> None:
    result = run("Hi", env={"XCHAT_HEADERS": f"X-Tag: a\n{name}: {SECRET}"})
    message = f"xchat: XCHAT_HEADERS: line 2: {name} is set by xchat itself\n"
    assert result == Result(b"", message, 2)
    assert api.requests == []


EXPECTED = "expected 'Name: value'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SECRET, f"line 1: {EXPECTED}"),
        (f": {SECRET}", f"line 1: {EXPECTED}"),
        (f"X Tag: {SECRET}", f"line 1: {EXPECTED}"),
        (f"X-Täg: {SECRET}", f"line 1: {EXPECTED}"),
        (f'"X-Tag": {SECRET}', f"line 1: {EXPECTED}"),
        (f"X-Tag={SECRET}", f"line 1: {EXPECTED}"),
        (f"A: 1\n\n{{{SECRET}}}", f"line 3: {EXPECTED}"),
        ("X-Tag:", "line 1: X-Tag: the value is empty or not printable ASCII"),
        ("X-Tag:  ", "line 1: X-Tag: the value is empty or not printable ASCII"),
        (f"X-Tag: {SECRET}é", "line 1: X-Tag: the value is empty or not printable ASCII"),
        (f"X-Tag: {SECRET}\x1b!", "line 1: X-Tag: the value is empty or not printable ASCII"),
        (f"X-Tag: {SECRET}\udcff", "line 1: X-Tag: the value is empty or not printable ASCII"),
        (f"X-Tag: {SECRET}\u2028Authorization: x", "line 1: X-Tag: the value is empty or not prin"),
        (f"X-Tag: a\tb{SECRET}", "line 1: X-Tag: the value is empty or not printable ASCII"),
    ],
)
def test_a_malformed_line_is_refused_without_its_value(
    api: Api, run: Run, text: str, message: str
) -> None:
    if "\u2028" in text:
        message = "line 2: Authorization is set by xchat itself"
    result = run.before_input(env={"XCHAT_HEADERS": text})
    assert result == Result(b"", f"xchat: XCHAT_HEADERS: {message}\n", 2)
    assert api.requests == []


ECHO = f"denied for {SECRET}!"


def test_a_value_is_not_shown_even_when_the_server_echoes_it(api: Api, run: Run) -> None:
    api.will(
        reply({"error": ECHO}, "403 Forbidden"),
        reply(b"", f"500 {SECRET}", x_request_id=SECRET),
        reply({"error": ECHO}),
        reply(ECHO.encode()),
        reply(b"", "302 Found", Location=f"https://login.test/?id={SECRET}"),
        [f"{SECRET}\r\n\r\n".encode()],
    )
    results = [run("Hi", env={"XCHAT_HEADERS": f"CF-Id: {SECRET}"}) for _ in range(6)]
    assert all(result.status != 0 for result in results)
    assert all(SECRET not in result.err + result.out.decode() for result in results)
    said = f"xchat: {api.host}: 403 Forbidden: denied for [hidden]!"
    assert results[0].err == f"{said} (request id req-7)\n"


def test_a_reply_stays_byte_for_byte(api: Api, run: Run) -> None:
    api.will(reply(completion(SECRET)))
    result = run("Hi", env={"XCHAT_HEADERS": f"CF-Id: {SECRET}"})
    assert result == Result(f"{SECRET}\n".encode(), "", 0)


def test_a_value_that_begins_with_another_is_hidden_too(api: Api, run: Run) -> None:
    api.will(reply({"error": f"denied for {SECRET}-and-more!"}, "403 Forbidden"))
    result = run("Hi", env={"XCHAT_HEADERS": f"A: {SECRET}\nB: {SECRET}-and-more"})
    said = f"xchat: {api.host}: 403 Forbidden: denied for [hidden]!"
    assert result.err == f"{said} (request id req-7)\n"


def test_the_usage_stays_json(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    result = run("-u", "Hi", env={"XCHAT_HEADERS": "X-Team: 197"})
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert json.loads(result.err)["prompt_tokens"] == 197


def test_no_file_and_no_argument_sets_a_header(api: Api, run: Run, file: File) -> None:
    api.extra_fields = {"XCHAT_HEADERS", "headers"}
    api.will(reply(completion()))
    name = file("headers: {X-Evil: '1'}\nmodel: m\n")
    assert run("-q", "-f", name, "-p", "XCHAT_HEADERS=X-Evil: 1", "Hi") == HELLO
    assert "x-evil" not in api.requests[0].headers


def test_plain_http_shows_them_to_the_network_which_is_one_warning(run: Run) -> None:
    with Proxy(*reply(completion()) * 2) as proxy:
        env = {
            "XCHAT_BASE_URL": "http://gateway.test/v1",
            "HTTP_PROXY": f"http://{proxy.host}",
            "XCHAT_HEADERS": f"CF-Id: {SECRET}\nX-Tag: a",
        }
        warning = "xchat: XCHAT_HEADERS: plain http shows the headers to the network\n"
        assert run("Hi", env=env) == Result(b"Hello\n", warning, 0)
        assert run("-q", "Hi", env=env) == HELLO
    assert f"CF-Id: {SECRET}\r\n" in proxy.asked[0]


def test_a_proxy_does_not_see_them(run: Run, authority: trustme.CA, bundle: str) -> None:
    api = api_behind_a_proxy(authority)
    api.will(reply(completion()))
    with Proxy(ESTABLISHED, tunnel(api.port)) as proxy:
        env = {
            "XCHAT_BASE_URL": URL,
            "SSL_CERT_FILE": bundle,
            "HTTPS_PROXY": f"http://{proxy.host}",
            "XCHAT_HEADERS": f"CF-Id: {SECRET}",
        }
        assert run("Hi", env=env) == HELLO
    api.close()
    assert api.problems == []
    assert api.requests[0].headers["cf-id"] == SECRET
    assert not re.search(f"(?i)cf-id|{SECRET}", proxy.asked[0])


def test_a_name_that_is_given_twice_is_refused(api: Api, run: Run) -> None:
    message = "xchat: XCHAT_HEADERS: line 2: x-tag is given twice\n"
    assert run("Hi", env={"XCHAT_HEADERS": "X-Tag: a\nx-tag: b"}) == Result(b"", message, 2)
