"""What went wrong, in the words of the API and of gateways, and what helps."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import KEY, Result, Run, cases, said
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
PAGES = {
    "nginx": (NGINX, "400 The plain HTTP request was sent to HTTPS port"),
    "XHTML with a title of several lines": (XHTML, "Bad & busy"),
    "Cloudflare": (CLOUDFLARE, "x.test | 502: Bad gateway"),
    "XML of S3": (S3, "Access Denied"),
    "a comment first": ("<!-- a comment first --><html><TITLE>Down</TITLE>", "Down"),
    "white space first": ("\n \t<html><title>Down</title>", "Down"),
    "control characters in the title": ("<title>Grüße \x1b[2J\u2028x</title>", "Grüße [2J x"),
    "an empty title": ("<html><title></title><body>hidden</body></html>", "a page of HTML"),
    "a blank title": ("<html><title> \n</title></html>", "a page of HTML"),
    "no title": ("<html><body>no title</body></html>", "a page of HTML"),
    "a title without an end": ("<html><head><title>never ended", "a page of HTML"),
}


@cases(("page", "words"), PAGES)
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


BODIES: dict[str, tuple[Any, str]] = {
    # problem+json, RFC 9457
    "problem+json with a title": ({"type": "about:blank", "title": "Bad", "status": 400}, "Bad"),
    "problem+json with a detail": (
        {"title": "Invalid", "detail": "See the errors"},
        "See the errors",
    ),
    "problem+json with a list of errors": (
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
    "problem+json with a list of texts": (
        {"title": "Invalid", "errors": ["too hot", "too long"]},
        "Invalid: too hot; too long",
    ),
    "a list of messages": ({"errors": [{"message": "too hot"}]}, "too hot"),
    "an empty mapping of errors": ({"title": "Invalid", "errors": {}}, "Invalid"),
    # FastAPI
    "FastAPI with a text": ({"detail": "Not authenticated"}, "Not authenticated"),
    "FastAPI with a place in the body": (
        {
            "detail": [
                {"type": "missing", "loc": ["body", "messages", 0, "role"], "msg": "Field required"}
            ]
        },
        "body.messages.0.role: Field required",
    ),
    "FastAPI with two places": (
        {"detail": [{"loc": ["body", "a"], "msg": "one"}, {"loc": ["body", "b"], "msg": "two"}]},
        "body.a: one; body.b: two",
    ),
}


@cases(("body", "words"), BODIES)
def test_every_error_of_a_body_is_told(api: Api, run: Run, body: Any, words: str) -> None:
    api.will(reply(body, "422 No", content_type="application/problem+json"))
    assert run("Hi") == Result(b"", said(api, f"422 No: {words}"), 4)


STATUSES = {
    "a wrong key": (401, 4, True),
    "no permission": (403, 4, True),
    "the server fails": (500, 5, True),
    "a bad request": (400, 4, False),
    "an overload": (503, 5, False),
}


@cases(("status", "exit_status", "is_told"), STATUSES)
def test_that_no_key_was_sent_is_told(
    api: Api, run: Run, status: int, exit_status: int, is_told: bool
) -> None:
    api.will(reply({"error": "who?"}, f"{status} No"), reply({"error": "who?"}, f"{status} No"))
    hint = "; no key was sent" if is_told else ""
    assert run("Hi") == Result(b"", said(api, f"{status} No: who?{hint}"), exit_status)
    api.key = KEY
    result = run("Hi", env={"XAI_API_KEY": api.key})
    assert result == Result(b"", said(api, f"{status} No: who?"), exit_status)


NAMES_ANOTHER = "; -m or XCHAT_MODEL names another"
MODELS = {
    "xAI": ("404 Not Found", "The model grok-4 does not exist or your team has no access to it."),
    "OpenAI and vLLM": ("404 Not Found", "The model `grok-4` does not exist."),
    "Ollama": ("404 Not Found", 'model "grok-4" not found, try pulling it first'),
    "LiteLLM, not found": ("404 Not Found", "Model not found: grok-4"),
    "LiteLLM, invalid": ("400 Bad Request", "Invalid model name passed in model=grok-4"),
    "llama.cpp": ("400 Bad Request", "unknown model grok-4"),
}


@cases(("status", "words"), MODELS)
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
