"""What real servers and gateways do, in words that help."""

from __future__ import annotations

import email.utils
import json
import re
import socket
import threading
import time
from typing import Any

import pytest
from conftest import File, Result, Run
from network import tls_for
from server import HANG, STREAM_HEAD, Api, chunk, completion, event, reply
from trustme import CA

HELLO = Result(b"Hello\n", "", 0)


def said(api: Api, words: str, *, request_id: str = " (request id req-7)") -> str:
    return f"xchat: {api.host}: {words}{request_id}\n"


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: {}\r\nx-request-id: req-7\r\nTransfer-Encoding: chunked\r\n"
)


def chunked_head(kind: str) -> bytes:
    return CHUNKED.replace(b"{}", kind.encode()) + b"\r\n"


def in_a_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


HALF = event(chunk("Hel"))
PLACES = [
    (b"", "before the first chunk"),
    (b"1", "in its size"),
    (b"1f", "after its size"),
    (b"1f\r", "in the line break after its size"),
    (b"1f\r\n", "before its data"),
    (b"1f\r\ndata: ", "in its data"),
    (b"7\r\ndata: x", "after its data"),
    (b"7\r\ndata: x\r", "in the line break after its data"),
    (b"7\r\ndata: x\r\n", "before the last chunk"),
    (b"zz\r\nx\r\n0\r\n\r\n", "where a size is none"),
]
PROGRAMMERS = r"invalid literal|int\(\)|base 16|IncompleteRead|InvalidChunk|b'|bytes|Errno|Error\("


@pytest.mark.parametrize("rest", [place for place, _ in PLACES], ids=[name for _, name in PLACES])
def test_a_chunked_stream_that_is_cut(api: Api, run: Run, rest: bytes) -> None:
    api.will([chunked_head("text/event-stream") + in_a_chunk(HALF) + rest])
    result = run("--stream", "Hi")
    assert (result.out, result.status, result.err.count("\n")) == (b"Hel\n", 1, 1)
    assert result.err.startswith(f"xchat: {api.host}: the reply is cut short: ")
    assert not re.search(PROGRAMMERS, result.err)


@pytest.mark.parametrize("rest", [place for place, _ in PLACES], ids=[name for _, name in PLACES])
def test_a_chunked_completion_that_is_cut(api: Api, run: Run, rest: bytes) -> None:
    half = json.dumps(completion()).encode()[:60]
    api.will([chunked_head("application/json") + in_a_chunk(half) + rest])
    result = run("--no-stream", "Hi")
    assert (result.out, result.status, result.err.count("\n")) == (b"", 1, 1)
    assert result.err.startswith(f"xchat: {api.host}: the reply is cut short: ")
    assert not re.search(PROGRAMMERS, result.err)


def test_a_chunked_completion_without_its_last_chunk(api: Api, run: Run) -> None:
    body = json.dumps(completion()).encode()
    api.will([chunked_head("application/json") + in_a_chunk(body)])
    result = run("--no-stream", "Hi")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert result.err.startswith(f"xchat: {api.host}: the reply is cut short: ")
    assert not re.search(PROGRAMMERS, result.err)


def test_a_stream_that_is_cut_once_it_has_finished_is_whole(api: Api, run: Run) -> None:
    whole = event(chunk("Hello")) + event(chunk(finish_reason="stop"))
    api.will([chunked_head("text/event-stream") + in_a_chunk(whole) + b"1f"])
    assert run("--stream", "Hi") == HELLO


@pytest.mark.parametrize("status", [502, 504, *range(520, 528), 530])
def test_what_a_gateway_says_is_posted_once(api: Api, run: Run, status: int) -> None:
    api.will(reply(b"upstream", f"{status} Gateway", Retry_After="0.01"))
    result = run("--retries", "3", "Hi")
    assert result == Result(b"", said(api, f"{status} Gateway: upstream"), 5)
    assert len(api.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_what_a_busy_server_says_is_posted_again(api: Api, run: Run, status: int) -> None:
    api.will(reply(b"busy", f"{status} No", Retry_After="0.01"), reply(completion()))
    env = {"XAI_API_KEY": "xai-0123456789"}
    api.key = env["XAI_API_KEY"]
    result = run("--retries", "3", "Hi", env=env)
    assert (result.out, result.status) == (b"Hello\n", 0)
    begin = re.escape(said(api, f"{status} No: busy").rstrip())
    assert re.fullmatch(rf"{begin}; trying again in \d\.\d s\n", result.err)
    assert api.requests[0] == api.requests[1]


NGINX = """<html>\r
<head><title>400 The plain HTTP request was sent to HTTPS port</title></head>\r
<body><center><h1>400 Bad Request</h1></center></body>\r
</html>\r
"""
XHTML = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "http://www.w3.org/TR/xhtml1.dtd">
<html xmlns="http://www.w3.org/1999/xhtml">
<head>
<title>
  Bad &amp; busy
</title></head></html>"""
CLOUDFLARE = """<!DOCTYPE html>
<!--[if lt IE 7]> <html class="no-js ie6 oldie" lang="en-US"> <![endif]-->
<html><head><title data-x="1">x.test | 502: Bad gateway</title></head>"""
S3 = """<?xml version="1.0"?>
<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"""
PAGES = [
    (NGINX, "400 The plain HTTP request was sent to HTTPS port"),
    (XHTML, "Bad & busy"),
    (CLOUDFLARE, "x.test | 502: Bad gateway"),
    (S3, "Access Denied"),
    ("<!-- a comment first --><html><TITLE>Down</TITLE>", "Down"),
    ("\n \t<html><title>Down</title>", "Down"),
    ("<title>Grüße \x1b[2J\u2028x</title>", "Grüße [2J x"),
    ("<html><title></title><body>hidden</body></html>", "a page of HTML"),
    ("<html><title> \n</title></html>", "a page of HTML"),
    ("<html><body>no title</body></html>", "a page of HTML"),
    ("<html><head><title>never ended", "a page of HTML"),
]


@pytest.mark.parametrize(("page", "words"), PAGES, ids=range(len(PAGES)))
def test_the_title_of_a_page_is_what_is_said(api: Api, run: Run, page: str, words: str) -> None:
    api.will(reply(page.encode(), "400 Bad Request", content_type="text/html"))
    assert run("Hi") == Result(b"", said(api, f"400 Bad Request: {words}"), 4)


def test_the_title_of_a_page_with_a_byte_order_mark(api: Api, run: Run) -> None:
    api.will(reply("\ufeff<html><title>Down</title>".encode(), "400 Bad Request"))
    assert run("Hi") == Result(b"", said(api, "400 Bad Request: Down"), 4)


def test_a_page_in_place_of_a_reply(api: Api, run: Run) -> None:
    page = b"<?xml version='1.0'?><!-- x --><html><title>Welcome to Hotel Wi-Fi</title></html>"
    api.will(reply(page, content_type="text/html"))
    words = "not a completion: Welcome to Hotel Wi-Fi; is it a login page of the network?"
    assert run("Hi") == Result(b"", said(api, words), 1)


BODIES: list[tuple[Any, str]] = [
    # problem+json, RFC 9457
    ({"type": "about:blank", "title": "Bad", "status": 400}, "Bad"),
    ({"title": "Invalid", "detail": "See the errors"}, "See the errors"),
    (
        {
            "title": "Your request is not valid.",
            "errors": [
                {"detail": "must be a positive integer", "pointer": "#/age"},
                {"detail": "must be 'green' or 'red'", "pointer": "#/profile/color"},
            ],
        },
        "Your request is not valid.: #/age: must be a positive integer;"
        " #/profile/color: must be 'green' or 'red'",
    ),
    ({"title": "Invalid", "errors": ["too hot", "too long"]}, "Invalid: too hot; too long"),
    ({"errors": [{"message": "too hot"}]}, "too hot"),
    ({"title": "Invalid", "errors": {}}, "Invalid"),
    # FastAPI
    ({"detail": "Not authenticated"}, "Not authenticated"),
    (
        {
            "detail": [
                {"type": "missing", "loc": ["body", "messages", 0, "role"], "msg": "Field required"}
            ]
        },
        "body.messages.0.role: Field required",
    ),
    (
        {"detail": [{"loc": ["body", "a"], "msg": "one"}, {"loc": ["body", "b"], "msg": "two"}]},
        "body.a: one; body.b: two",
    ),
]


@pytest.mark.parametrize(("body", "words"), BODIES, ids=range(len(BODIES)))
def test_every_error_of_a_body_is_told(api: Api, run: Run, body: Any, words: str) -> None:
    api.will(reply(body, "422 No", content_type="application/problem+json"))
    assert run("Hi") == Result(b"", said(api, f"422 No: {words}"), 4)


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_longer_than_we_wait_is_told(api: Api, run: Run, status: int) -> None:
    api.will(reply(b"busy", f"{status} No", Retry_After="300"))
    result = run("--retries", "3", "Hi")
    assert result == Result(b"", said(api, f"{status} No: busy; asks to wait 300 s"), 5)


def test_a_retry_after_that_is_a_date_is_told_in_seconds(api: Api, run: Run) -> None:
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    api.will(reply(b"busy", "503 No", Retry_After=date))
    result = run("--retries", "3", "Hi")
    match = re.fullmatch(
        re.escape(said(api, "503 No: busy; asks to wait {} s")).replace(r"\{\}", r"(\d+)"),
        result.err,
    )
    assert match
    assert 3400 < int(match[1]) <= 3600
    assert (result.out, result.status) == (b"", 5)


@pytest.mark.parametrize("location", ["https://login.test/?a=b", "/v2/chat"])
def test_where_a_redirect_points_is_told(api: Api, run: Run, location: str) -> None:
    api.will(reply(b"", "307 Moved", Location=location))
    words = f"307 Moved: redirects are not followed (to {location})"
    assert run("Hi") == Result(b"", said(api, words), 4)


STATUSES = [(401, 4, True), (403, 4, True), (500, 5, True), (400, 4, False), (503, 5, False)]


@pytest.mark.parametrize(("status", "exit_status", "is_told"), STATUSES)
def test_that_no_key_was_sent_is_told(
    api: Api, run: Run, status: int, exit_status: int, is_told: bool
) -> None:
    api.will(reply({"error": "who?"}, f"{status} No"), reply({"error": "who?"}, f"{status} No"))
    hint = "; no key was sent" if is_told else ""
    assert run("Hi") == Result(b"", said(api, f"{status} No: who?{hint}"), exit_status)
    api.key = "xai-0123456789"
    result = run("Hi", env={"XAI_API_KEY": api.key})
    assert result == Result(b"", said(api, f"{status} No: who?"), exit_status)


NAMES_ANOTHER = "; -m or XCHAT_MODEL names another"
MODELS = [
    # xAI, OpenAI and vLLM, Ollama, LiteLLM, llama.cpp
    ("404 Not Found", "The model grok-4 does not exist or your team has no access to it."),
    ("404 Not Found", "The model `grok-4` does not exist."),
    ("404 Not Found", 'model "grok-4" not found, try pulling it first'),
    ("404 Not Found", "Model not found: grok-4"),
    ("400 Bad Request", "Invalid model name passed in model=grok-4"),
    ("400 Bad Request", "unknown model grok-4"),
]


@pytest.mark.parametrize(("status", "words"), MODELS)
def test_an_unknown_model_is_told_how_to_name_another(
    api: Api, run: Run, status: str, words: str
) -> None:
    api.will(reply({"error": {"message": words}}, status))
    assert run("Hi") == Result(b"", said(api, f"{status}: {words}{NAMES_ANOTHER}"), 4)


@pytest.mark.parametrize(
    "words", ["Model grok-4 does not support parameter stop", "no such route", "not found"]
)
def test_another_error_is_not_told_to_be_about_the_model(api: Api, run: Run, words: str) -> None:
    api.will(reply({"error": words}, "400 Bad Request"))
    assert run("Hi") == Result(b"", said(api, f"400 Bad Request: {words}"), 4)


def test_the_deadline_after_half_a_reply(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD, event(chunk("Hel")), HANG])
    result = run("--stream", "--timeout", "2", "Hi")
    words = "not the whole answer within 2 s; --timeout sets a longer limit"
    assert result == Result(b"Hel\n", said(api, words), 3)


def test_the_deadline_before_a_reply(api: Api, run: Run) -> None:
    api.will([HANG])
    result = run("--stream", "--timeout", "1", "Hi")
    words = "no answer within 1 s; --timeout sets a longer limit"
    assert result == Result(b"", said(api, words, request_id=""), 3)


@pytest.mark.parametrize("data", ["{broken}", "hello", "[1, 2]", '"text"', "12 34"])
def test_a_malformed_event_in_mid_stream(api: Api, run: Run, data: str) -> None:
    is_written = threading.Event()
    rest = event(data.encode()) + event(chunk("lo", finish_reason="stop"))
    api.will([STREAM_HEAD + event(chunk("Hel")), is_written, rest])
    process = run.start("--stream", "Hi")
    assert process.stdout.read(3) == b"Hel"
    is_written.set()
    out, err = process.communicate(timeout=20)
    words = f"the reply is cut short: the rest is not a completion: {data}"
    assert (out, err.decode(), process.returncode) == (b"\n", said(api, words), 1)


def test_a_malformed_event_together_with_half_a_reply(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD + event(chunk("Hel")) + event(b"{broken}")])
    words = "the reply is cut short: the rest is not a completion: {broken}"
    assert run("--stream", "Hi") == Result(b"Hel\n", said(api, words), 1)


def test_a_malformed_event_at_the_beginning(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD + event(b"{broken}")])
    words = "not a completion: {broken}"
    assert run("--stream", "Hi") == Result(b"", said(api, words), 1)


@pytest.mark.parametrize("text", ["1 2 3 4", "", " ", "{", "NaN", "'a'"])
def test_a_reply_that_is_not_the_json_that_was_asked_for(
    api: Api, run: Run, file: File, text: str
) -> None:
    api.will(reply(completion(text)))
    result = run("--schema", file("{}", "schema"), "Hi")
    out = f"{text}\n".encode() if text else b""
    assert (result.out, result.status, result.err.count("\n")) == (out, 1, 1)
    begin = "the reply is empty" if not text else "the reply is not JSON"
    assert result.err.startswith(f"xchat: {api.host}: {begin}")
    assert not re.search(r"Extra data|char \d|Expecting", result.err)


def test_a_reply_that_is_not_json_names_the_host(api: Api, run: Run) -> None:
    api.will(reply(completion("1 2")))
    result = run("--schema", '{"type": "number"}', "Hi")
    assert result == Result(b"1 2\n", said(api, "the reply is not JSON"), 1)


def test_https_to_a_server_of_plain_http(run: Run) -> None:
    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        result = run("Hi", env={"XCHAT_BASE_URL": f"https://{host}/v1"})
        thread.join(20)
    assert result == Result(b"", f"xchat: {host}: does not speak https\n", 3)


def test_plain_http_to_a_server_of_https(run: Run, authority: CA) -> None:
    api = Api(tls=tls_for(authority, "127.0.0.1"))
    result = run("Hi", env={"XCHAT_BASE_URL": f"http://{api.host}/v1"})
    api.close()
    assert (result.out, result.status, result.err.count("\n")) == (b"", 3, 1)
    assert result.err.startswith(f"xchat: {api.host}: ")
    assert not re.search(r"WRONG_VERSION|\\x|Errno|\(", result.err)


def handshake_that_hangs(run: Run, *args: str) -> tuple[str, Result]:
    def accept() -> None:
        connection, _ = server.accept()
        HANG(connection)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        result = run(*args, "Hi", env={"XCHAT_BASE_URL": f"https://{host}/v1"})
        thread.join(20)
    return host, result


def test_a_handshake_that_hangs(run: Run) -> None:
    host, result = handshake_that_hangs(run)
    assert result == Result(b"", f"xchat: {host}: no secure connection within 10 s\n", 3)


def test_a_handshake_that_hangs_until_the_deadline(run: Run) -> None:
    host, result = handshake_that_hangs(run, "--timeout", "1")
    assert result == Result(b"", f"xchat: {host}: no secure connection within 1 s\n", 3)


ERROR = b'{"error": {"code": "model_gone", "message": "gone"}}'


@pytest.mark.parametrize(
    ("status", "exit_status"), [("400 Bad", 4), ("503 Busy", 5), ("302 Found", 4)]
)
def test_json_writes_the_body_of_an_error_too(
    api: Api, run: Run, status: str, exit_status: int
) -> None:
    api.will(reply(ERROR, status), reply(ERROR, status))
    plain = run("Hi")
    assert (plain.out, plain.status) == (b"", exit_status)
    assert run("--json", "Hi") == Result(ERROR + b"\n", plain.err, exit_status)


def test_json_writes_an_error_in_a_reply(api: Api, run: Run) -> None:
    api.will(reply(ERROR + b"\n"))
    result = run("--json", "Hi")
    assert result == Result(ERROR + b"\n", said(api, "error in the reply: gone"), 5)


def test_json_writes_the_error_of_the_last_attempt_only(api: Api, run: Run) -> None:
    api.will(reply(b'"busy"', "503 Busy", Retry_After="0.01"), reply(ERROR, "400 Bad"))
    result = run("-q", "--json", "--retries", "1", "Hi")
    assert result == Result(ERROR + b"\n", said(api, "400 Bad: gone"), 4)


def test_json_writes_no_error_into_a_file(api: Api, run: Run, file: File) -> None:
    name = file("yesterday's", "report")
    api.will(reply(ERROR, "400 Bad"))
    assert run("--json", "-o", name, "Hi") == Result(b"", said(api, "400 Bad: gone"), 4)
    assert (run.home / name).read_text() == "yesterday's"


def test_json_writes_nothing_where_there_is_no_body(api: Api, run: Run) -> None:
    api.will(reply(b"", "400 Bad"))
    result = run("--json", "Hi")
    assert result == Result(b"", said(api, "400 Bad: no reason given"), 4)


@pytest.mark.parametrize("ticks", [4121500, 1, 0, 2**53 + 1])
def test_usage_tells_the_cost_as_an_exact_integer_too(api: Api, run: Run, ticks: int) -> None:
    answer = completion()
    answer["usage"]["cost_in_usd_ticks"] = ticks
    api.will(reply(answer))
    result = run("-u", "Hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    usage = json.loads(result.err)
    assert usage["cost_usd"] == pytest.approx(ticks / 10**10)
    assert f'"cost_usd_ticks": {ticks},' in result.err


def test_usage_tells_no_cost_where_the_server_tells_none(api: Api, run: Run) -> None:
    answer = completion()
    del answer["usage"]["cost_in_usd_ticks"]
    api.will(reply(answer))
    assert not {"cost_usd", "cost_usd_ticks"} & json.loads(run("-u", "Hi").err).keys()
