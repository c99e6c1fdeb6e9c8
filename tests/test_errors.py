"""What went wrong, in the words of the API and of gateways, and what helps."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Result, Run, said
from server import Api, reply

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
