"""-u: one line of JSON with what the API tells of the tokens, and no more."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from conftest import Run, cases
from server import HANG, STREAM_HEAD, USAGE, Api, chunk, completion, event, reply

FACTS = {
    "model": "grok-4.7",
    "prompt_tokens": 197,
    "completion_tokens": 2,
    "reasoning_tokens": 146,
    "total_tokens": 345,
    "cost_usd": 0.00041215,
    "cost_usd_ticks": 4121500,
    "request_id": "req-7",
}


def facts_of(err: str) -> Any:
    assert err.count("\n") == 1
    facts = json.loads(err)
    assert 0 <= facts.pop("seconds") < 20
    return facts


def test_usage_is_one_line_of_json_on_standard_error(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    result = run("-qu", "Hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert list(json.loads(result.err)) == [
        "model",
        "prompt_tokens",
        "completion_tokens",
        "reasoning_tokens",
        "total_tokens",
        "cost_usd",
        "cost_usd_ticks",
        "seconds",
        "request_id",
    ]
    assert facts_of(result.err) == FACTS


def test_usage_of_a_stream_is_the_last_that_it_tells(api: Api, run: Run) -> None:
    early = {**chunk("Hello"), "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    last = {**USAGE, "usage": completion()["usage"], "model": ""}
    last["usage"]["prompt_tokens_details"] = {"cached_tokens": 192}
    end = event(chunk(finish_reason="stop")) + event(last) + event(b"[DONE]")
    api.will([STREAM_HEAD + event(early) + end])
    result = run("--stream", "-u", "Hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert facts_of(result.err) == {**FACTS, "cached_tokens": 192}


@cases(
    "usage",
    {
        "null": None,
        "a list": [],
        "an empty mapping": {},
        "a text": "none",
        "nulls": {"cost_in_usd_ticks": None, "prompt_tokens_details": None},
        "values of other types": {"cost_in_usd_ticks": "1", "prompt_tokens_details": [1]},
    },
)
def test_usage_tells_only_what_the_api_tells(api: Api, run: Run, usage: Any) -> None:
    api.will(reply({**completion(), "usage": usage}))
    result = run("-u", "Hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert facts_of(result.err) == {"model": "grok-4.7", "request_id": "req-7"}


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


def test_usage_is_told_of_a_reply_that_is_not_whole_but_not_of_none(api: Api, run: Run) -> None:
    api.will(
        reply(completion("Hel", finish_reason="length")),
        reply({"error": "no"}, "400 Bad Request"),
    )
    result = run("-u", "Hi")
    usage, message = result.err.splitlines(keepends=True)
    assert (facts_of(usage), result.status) == (FACTS, 1)
    assert message.startswith("xchat: ")
    assert run("-u", "Hi").err.count("\n") == 1


def test_usage_of_numbers_that_are_none(api: Api, run: Run) -> None:
    usage = b'{"prompt_tokens": 1e999, "total_tokens": "7", "cost_in_usd_ticks": 9%0400d}' % 0
    body = json.dumps({**completion(), "usage": None}).encode()
    api.will(reply(body.replace(b'"usage": null', b'"usage": ' + usage)))
    result = run("-u", "Hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert facts_of(result.err) == {"model": "grok-4.7", "request_id": "req-7"}


def test_a_signal_ends_it_without_a_word_on_usage(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD + event(chunk("Hel")), HANG])
    process = run.start("-u", "--stream", "Hi")
    assert process.stdout.read(3) == b"Hel"
    process.terminate()
    assert process.communicate(timeout=20)[1] == b""
    assert process.returncode == -signal.SIGTERM


def test_usage_does_not_show_the_key(api: Api, run: Run) -> None:
    api.key = "xai-secret-key"
    api.will(reply({**completion(), "model": "m xai-secret-key"}))
    result = run("-u", "Hi", env={"XAI_API_KEY": api.key})
    assert "secret" not in result.err
    assert facts_of(result.err)["model"] == "m [the key]"
