"""What went wrong, in the words of the API and of gateways, and what helps."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from conftest import KEY, Result, Run, cases, judged, refused, said
from server import STREAM_HEAD, Api, chunk, event, reply

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
    "a title that only repeats the status": (
        "<html><title>400 Bad Request</title><h1>Bad Request</h1>"
        "<p>The request could not be understood by <b>the server</b>. Sorry.</p>",
        "The request could not be understood by the server.",
    ),
    "Cloudflare Access": (
        "<html><title>Error 400</title><style>a b c d { e: f }</style><script>if (1 &lt; 2) x y z"
        "</script><p>Your network blocks chat models &amp; such!  Ask the help desk.</p>",
        "Your network blocks chat models & such!",
    ),
    "Squid": (
        "<!DOCTYPE html><html><head><title>ERROR: The requested URL could not be retrieved</title>"
        "</head><body><p>Access Denied.</p></body></html>",
        "ERROR: The requested URL could not be retrieved",
    ),
    "an Azure gateway": (
        "<html><head><title>400 Bad Request</title></head><body><center><h1>400 Bad Request</h1>"
        "</center><hr><center>Microsoft-Azure-Application-Gateway/v2</center></body></html>",
        "400 Bad Request",
    ),
    "a comment without an end": ("<html><!-- <title>Down</title>", "a page of HTML"),
    "an empty title": ("<html><title></title><body>hidden</body></html>", "a page of HTML"),
    "a blank title": ("<html><title> \n</title></html>", "a page of HTML"),
    "no title": ("<html><body>no title</body></html>", "a page of HTML"),
    "a title without an end": ("<html><head><title>never ended", "a page of HTML"),
}


@cases(("page", "words"), PAGES)
def test_what_a_page_says(page: str, words: str) -> None:
    assert refused("400 Bad Request", page.encode()).message == f"400 Bad Request: {words}"


def test_a_page_through_the_command(api: Api, run: Run) -> None:
    page = "\ufeff<title>Grüße \x1b[2J\u2028x</title>".encode()
    api.will(reply(page, "400 Bad Request", content_type="text/html"))
    assert run("Hi") == Result(b"", said(api, "400 Bad Request: Grüße [2J x"), 4)


def test_a_page_in_place_of_a_reply(api: Api, run: Run) -> None:
    page = b"<?xml version='1.0'?><!-- x --><html><title>Welcome to Hotel Wi-Fi</title></html>"
    api.will(reply(page, content_type="text/html"))
    words = "the server's answer is not a chat completion: Welcome to Hotel Wi-Fi"
    words += "; is it a login page of the network?"
    assert run("Hi") == Result(b"", said(api, words), 1)


BODIES: dict[str, tuple[Any, str]] = {
    # problem+json, RFC 9457
    "problem+json with a title": ({"type": "about:blank", "title": "Bad", "status": 400}, "Bad"),
    "problem+json with a detail": (
        {"title": "Invalid", "detail": "See the errors"},
        "Invalid: See the errors",
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
    # others
    "xAI": ({"code": "invalid-argument", "error": "no such field"}, "no such field"),
    "OpenAI": (
        {"error": {"message": "No such field", "type": "invalid_request_error", "param": "x"}},
        "No such field",
    ),
    "vLLM": (
        {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400},
        "too long",
    ),
    "Gemini, in a list": (
        [{"error": {"code": 400, "message": "API key not valid", "status": "INVALID_ARGUMENT"}}],
        "API key not valid",
    ),
    "Anthropic": (
        {"type": "error", "error": {"type": "invalid_request_error", "message": "max_tokens?"}},
        "max_tokens?",
    ),
    "Fastify": (
        {"statusCode": 422, "error": "No", "message": "body/temperature must be <= 2"},
        "body/temperature must be <= 2",
    ),
    "Fastify, with its checks": (
        {
            "error": "Bad Request",
            "message": "Validation failed",
            "validation": [{"instancePath": "/temperature", "message": "must be <= 2"}],
        },
        "Bad Request: Validation failed: /temperature: must be <= 2",
    ),
    "Spring": (
        {"timestamp": "2026", "status": 422, "error": "No", "message": "too hot", "path": "/v1"},
        "too hot",
    ),
    "Zuplo, invalid-params": (
        {"title": "Bad", "invalid-params": [{"name": "temperature", "reason": "must be <= 2"}]},
        "Bad: temperature: must be <= 2",
    ),
    ".NET, by the field": (
        {"title": "Not valid.", "status": 422, "errors": {"model": ["The model is required."]}},
        "Not valid.: The model is required.",
    ),
    "Laravel": (
        {"message": "The data was invalid.", "errors": {"n": ["too many"], "t": ["too hot"]}},
        "The data was invalid.: too many; too hot",
    ),
    "OpenRouter": (
        {
            "error": {
                "message": "Provider returned error",
                "code": 422,
                "metadata": {"raw": "top_k is not supported", "provider_name": "BaseTen"},
            }
        },
        "Provider returned error: top_k is not supported",
    ),
    "OpenRouter, JSON as text": (
        {
            "error": {
                "message": "Provider returned error",
                "metadata": {"raw": '{"error": {"message": "top_k?", "code": null}}'},
            }
        },
        "Provider returned error: top_k?",
    ),
    "MiniMax": (
        {"base_resp": {"status_code": 2013, "status_msg": "invalid params"}},
        "invalid params",
    ),
    "Cloudflare's gateway": (
        {"success": False, "errors": [{"code": 7003, "message": "no route"}], "messages": []},
        "no route",
    ),
    "Portkey": (
        {"status": "failure", "message": "Invalid config passed"},
        "Invalid config passed",
    ),
    "Azure": (
        {"error": {"code": "429", "message": "too long", "innererror": {"code": "x"}}},
        "too long",
    ),
    "AWS, with a capital": ({"Message": "User is not authorized"}, "User is not authorized"),
    "AWS Lambda": ({"errorMessage": "timed out", "errorType": "Sandbox"}, "timed out"),
    "OAuth": (
        {"error": "invalid_token", "error_description": "The token expired"},
        "invalid_token: The token expired",
    ),
    "Baidu": ({"error_code": 6, "error_msg": "No permission"}, "No permission"),
    "FastChat": ({"text": "**NETWORK ERROR**", "error_code": 50004}, "**NETWORK ERROR**"),
    "the same text twice": ({"error": {"message": "no"}, "message": "no"}, "no"),
    "a text within another": ({"error": "too hot", "message": "It is too hot"}, "It is too hot"),
    "more than a few": (
        {"title": "a1", "error": "b1", "message": "c1", "detail": "d1", "reason": "e1"},
        "c1: d1: e1",
    ),
    "a list that goes on": (
        {"errors": [f"error {n}" for n in range(99)]},
        "error 0; error 1; error 2; error 3; error 4",
    ),
    "no words": ({"error": {"code": 7}}, '{"error": {"code": 7}}'),
    "an internal mark": ({"error": "Slow [WKE=a:b] down"}, "Slow down"),
}


@cases(("body", "words"), BODIES)
def test_the_words_of_an_error(body: Any, words: str) -> None:
    assert refused("422 No", body).message == f"422 No: {words}"


@pytest.mark.parametrize("name", ["OpenRouter", "problem+json with a list of errors"])
def test_the_words_of_an_error_through_the_command(api: Api, run: Run, name: str) -> None:
    body, words = BODIES[name]
    api.will(reply(body, "422 No", content_type="application/problem+json"))
    assert run("Hi") == Result(b"", said(api, f"422 No: {words}"), 4)


def nested(levels: int) -> bytes:
    return b'{"error": ' + b"[" * levels + b"]" * levels + b"}"


IN_A_200 = {
    # an event, or the body, of status 200; what is said; the status
    "xAI": ({"code": "unavailable", "error": "Try later"}, "Try later", 5),
    "vLLM": ({"object": "error", "message": "engine died", "code": 500}, "engine died", 5),
    "vLLM, the caller's": (
        {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400},
        "too long",
        4,
    ),
    "OpenRouter, in the middle": (
        {
            "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
            "error": {"code": 502, "message": "Network connection lost."},
        },
        "Network connection lost.",
        5,
    ),
    "OpenRouter, in the choice": (
        {
            "choices": [
                {"message": {"content": ""}, "error": {"code": 502, "message": "Upstream idle"}}
            ]
        },
        "Upstream idle",
        5,
    ),
    "LiteLLM": ({"error": {"message": "Timeout", "type": None, "code": "500"}}, "Timeout", 5),
    "FastChat": ({"text": "**NETWORK ERROR**", "error_code": 50001}, "**NETWORK ERROR**", 5),
    "FastAPI": ({"detail": "Internal Server Error"}, "Internal Server Error", 5),
    "FastAPI, no route": (
        {"detail": "Not Found"},
        "Not Found",
        4,
    ),
    "LM Studio, no endpoint": (
        {"error": "Unexpected endpoint or method. (POST /chat/completions)"},
        "Unexpected endpoint or method. (POST /chat/completions);"
        " XCHAT_BASE_URL usually ends in /v1",
        4,
    ),
    "MiniMax": (
        {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}},
        "rate limit",
        5,
    ),
    "MiniMax, no credit": (
        {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
        "insufficient balance",
        4,
    ),
    "SiliconFlow": (
        {"code": 50505, "message": "Model service overloaded"},
        "Model service overloaded",
        5,
    ),
    "Cloudflare": (
        {"success": False, "errors": [{"code": 3040, "message": "Capacity exceeded"}]},
        "Capacity exceeded",
        5,
    ),
    "success that is false, alone": ({"success": False}, '{"success": false}', 5),
    "Anthropic": (
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        "Overloaded",
        5,
    ),
    "Gemini, in a list": ([{"error": {"code": 503, "message": "busy"}}], "busy", 5),
    "Ollama, no model": (
        {"error": {"message": "model 'grok-4' not found", "type": "not_found_error"}},
        "model 'grok-4' not found; -m or XCHAT_MODEL names another",
        4,
    ),
    "a wrong key": ({"error": {"message": "Who?", "code": "invalid_api_key"}}, "Who?", 4),
    "plain text": (b"Error: upstream died", "Error: upstream died", 5),
    "a mark before plain text": (b"[ERROR] upstream died", "[ERROR] upstream died", 5),
    "500 levels": (nested(500), None, 5),
}


@cases(("body", "words", "status"), IN_A_200)
def test_an_error_with_status_200(body: Any, words: str | None, status: int) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    whole = f"error in the reply: {words or data.decode()}", status
    assert judged(data) == ("", *whole)
    assert judged(event(data)) == ("", *whole)
    assert judged(event(chunk("Hel")) + event(data) + event(b"[DONE]")) == ("Hel", *whole)


@cases(
    "data",
    {
        "FastChat": b'{"text": "**NETWORK ERROR**", "error_code": 50001}',
        "as deep as json reads": nested(984),
    },
)
def test_an_error_with_status_200_through_the_command(api: Api, run: Run, data: bytes) -> None:
    api.will([STREAM_HEAD + event(chunk("Hel")) + event(data) + event(b"[DONE]")])
    result = run("--stream", "Hi")
    assert (result.out, result.status, result.err.count("\n")) == (b"Hel\n", 5, 1)
    assert result.err.startswith(f"xchat: {api.host}: error in the reply: ")


NO_CREDIT = {
    "OpenAI": ({"error": {"message": "Over.", "type": "insufficient_quota"}}, "429 No"),
    "OpenAI's limit": ({"error": {"message": "x", "code": "billing_hard_limit_reached"}}, "429 No"),
    "xAI": ({"code": "x", "error": "used all available credits"}, "429 No"),
    "DeepSeek": ({"error": {"message": "Insufficient Balance"}}, "402 Payment Required"),
    "MiniMax": (
        {"type": "error", "error": {"type": "api_error", "message": "insufficient balance (1008)"}},
        "500 No",
    ),
    "SiliconFlow": ({"code": 1, "message": "your account balance is insufficient"}, "429 No"),
    "Anthropic": ({"error": {"message": "Your credit balance is too low"}}, "400 Bad"),
    "Moonshot": ({"error": {"message": "x", "type": "exceeded_current_quota_error"}}, "429 No"),
    "Venice": ({"error": "x", "code": "INSUFFICIENT_BALANCE"}, "503 No"),
}


@cases(("body", "status"), NO_CREDIT)
def test_no_credit_is_status_4_and_not_asked_again(body: Any, status: str) -> None:
    failure = refused(status, body)
    assert (failure.exit_code, failure.repeat_after) == (4, None)
    assert judged(json.dumps(body).encode())[2] == 4


@pytest.mark.parametrize("words", ["Rate limit reached", "You are sending too fast: credited 3"])
def test_haste_is_no_lack_of_credit(words: str) -> None:
    failure = refused("429 No", {"error": {"message": words, "code": "rate_limit_exceeded"}})
    assert (failure.exit_code, failure.repeat_after) == (5, 0)


ADVICE = {
    # the status, the error; what helps; more of the request
    "a 401 without a key": ("401 No", "who?", "no key was sent", {}),
    "a 401 with one": ("401 No", "who?", "", {"key": KEY}),
    "a 403 without a key": ("403 No", "who?", "", {}),
    "a 500 without a key": ("500 No", "who?", "", {}),
    "a 400 without a key": ("400 No", "who?", "", {}),
    "no such page": ("404 No", "Not Found", "XCHAT_BASE_URL usually ends in /v1", {}),
    "llama.cpp": ("404 No", "File Not Found", "XCHAT_BASE_URL usually ends in /v1", {}),
    "a method": ("405 No", "Method Not Allowed", "XCHAT_BASE_URL usually ends in /v1", {}),
    "a stream": (
        "400 No",
        "Your organization must be verified to stream this model.",
        "--no-stream asks for the whole reply at once",
        {"is_stream": True},
    ),
    "a stream of no use": (
        "422 No",
        "stream is not supported",
        "--no-stream asks for the whole reply at once",
        {"is_stream": True},
    ),
    "a stream that was not asked for": ("400 No", "stream is not supported", "", {}),
    "the usage of a stream": (
        "422 No",
        "body.stream_options: Extra inputs are not permitted",
        "it is not sent without -u",
        {"is_stream": True},
    ),
    "an upstream": ("400 No", "upstream closed", "", {"is_stream": True}),
}


@cases(("status", "words", "advice", "more"), ADVICE)
def test_what_helps_is_told(status: str, words: str, advice: str, more: dict[str, Any]) -> None:
    helps = f"; {advice}" if advice else ""
    assert refused(status, {"error": words}, **more).message == f"{status}: {words}{helps}"


def test_what_helps_through_the_command(api: Api, run: Run) -> None:
    api.will(reply({"error": "who?"}, "401 No"))
    assert run("Hi") == Result(b"", said(api, "401 No: who?; no key was sent"), 4)


MODELS: dict[str, tuple[str, Any]] = {
    "xAI": ("404 Not Found", "The model grok-4 does not exist or your team has no access to it."),
    "OpenAI and vLLM": ("404 Not Found", "The model `grok-4` does not exist."),
    "Ollama": ("404 Not Found", 'model "grok-4" not found, try pulling it first'),
    "LiteLLM, not found": ("404 Not Found", "Model not found: grok-4"),
    "LiteLLM, invalid": ("400 Bad Request", "Invalid model name passed in model=grok-4"),
    "llama.cpp": ("400 Bad Request", "unknown model grok-4"),
    "OpenRouter": ("400 Bad Request", "grok-4 is not a valid model ID"),
    "DeepSeek": ("400 Bad Request", "Model Not Exist"),
    "Mistral": ("400 Bad Request", "Invalid model: grok-4"),
    "Cloudflare": ("400 Bad Request", "No such model @cf/grok-4 or task"),
    "Gemini": ("404 Not Found", "models/grok-4 is not found for API version v1main"),
    "Azure": ("404 Not Found", "The API deployment for this resource does not exist."),
    "Anthropic, by the type": (
        "404 Not Found",
        {"message": "model: grok-4", "type": "not_found_error"},
    ),
    "OpenAI, by the code": ("404 Not Found", {"message": "no access", "code": "model_not_found"}),
    "Hugging Face": ("400 Bad Request", {"message": "no provider", "code": "model_not_supported"}),
}


@cases(("status", "error"), MODELS)
def test_an_unknown_model_is_told_how_to_name_another(status: str, error: Any) -> None:
    words = error if isinstance(error, str) else error["message"]
    expected = f"{status}: {words}; -m or XCHAT_MODEL names another"
    assert refused(status, {"error": error}).message == expected


def test_an_unknown_model_through_the_command(api: Api, run: Run) -> None:
    api.will(reply({"error": {"message": MODELS["Ollama"][1]}}, "404 Not Found"))
    words = f"404 Not Found: {MODELS['Ollama'][1]}; -m or XCHAT_MODEL names another"
    assert run("Hi") == Result(b"", said(api, words), 4)


@pytest.mark.parametrize(
    "words", ["Model grok-4 does not support parameter stop", "no such route", "not found"]
)
def test_another_error_is_not_told_to_be_about_the_model(words: str) -> None:
    assert refused("400 Bad Request", {"error": words}).message == f"400 Bad Request: {words}"


ODD_BYTES = ["<", "<!--", "<title", "<p>&", "[", "{", '{"a":', "\\", '\\"', " ", "\n4", "data:\n"]
ODD_BYTES += [
    "model ",
    "endpoint ",
    "balance ",
    "[WKE=",
    "error ",
    "\ud83d",
    "\0",
    "<a" + "a" * 999,
]


@pytest.mark.parametrize("unit", ODD_BYTES, ids=ascii)
def test_a_mebibyte_of_odd_bytes_costs_little_time(unit: str) -> None:
    text = (unit * ((1 << 20) // len(unit) + 1))[: 1 << 20]
    start = time.process_time()
    for whole in (text, f"<{text}", json.dumps({"error": {"message": text}})):
        data = whole.encode(errors="replace")
        assert refused("400 Bad", data).exit_code == 4
        assert judged(data)[2] in (1, 4, 5)
        assert judged(event(data))[2] in (1, 4, 5)
    assert time.process_time() - start < 5
