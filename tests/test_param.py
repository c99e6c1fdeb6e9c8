"""-p: a request field of any name, from JSON, from text or from a file."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import File, Result, Run, body_of
from server import STREAM_HEAD, Api, completion, reply, stream

VALUES: dict[str, Any] = {
    # what is typed, and what is sent
    "7": 7,
    "0.5": 0.5,
    "-1e3": -1000,
    "true": True,
    "null": None,
    '["a", "b"]': ["a", "b"],
    ' {"a": {}} ': {"a": {}},
    '"7"': "7",
    '"@x"': "@x",
    "text": "text",
    "": "",
    "a=b": "a=b",
    "True": "True",
    "NaN": "NaN",
    "[1,]": "[1,]",
    "1 2": "1 2",
    "x@y": "x@y",
    "é🌍": "é🌍",
}


def test_a_value_is_json_when_it_parses_as_json_else_text(run: Run) -> None:
    args = [arg for n, value in enumerate(VALUES) for arg in ("-p", f"field{n}={value}")]
    body = body_of(run("-q", "--dry-run", *args, "Hi"))
    assert {value: body[f"field{n}"] for n, value in enumerate(VALUES)} == VALUES


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ('{"type": "json_object"}', {"type": "json_object"}),
        ("type: json_object  # a comment\n", {"type": "json_object"}),
        ("- one\n- two\n", ["one", "two"]),
        ("just text\n", "just text"),
    ],
)
def test_a_value_may_come_from_a_json_or_yaml_file(
    run: Run, file: File, content: str, value: Any
) -> None:
    name = file(content, "a=@b")
    assert body_of(run("--dry-run", "-p", f"user=@{name}", "Hi"))["user"] == value
    out = run("--dry-run", "-p", "user=@-", "Hi", stdin=content.encode())
    assert body_of(out)["user"] == value


def test_a_later_param_wins_and_any_param_wins_over_a_file(run: Run, file: File) -> None:
    name = file("seed: 1\nmax_tokens: 5\ntemperature: 1\n")
    args = ["-p", "seed=2", "--param", "seed=3", "-p", "max_completion_tokens=9", "-t", "0"]
    body = body_of(run("--dry-run", "-f", name, *args, "Hi"))
    del body["messages"]
    assert body == {
        "model": "grok-4",
        "temperature": 0,
        "seed": 3,
        "max_completion_tokens": 9,
    }


def test_a_param_asks_for_a_stream(api: Api, run: Run) -> None:
    api.will([STREAM_HEAD + stream("Hello")])
    assert run("-p", "stream=true", "Hi") == Result(b"Hello\n", "", 0)


@pytest.mark.parametrize("name", ["temprature", "topP", "max_new_thing", "input", "subsystem"])
def test_an_unknown_field_is_sent_with_a_warning(api: Api, run: Run, name: str) -> None:
    api.extra_fields = {name}
    api.will(reply(completion()), reply(completion()))
    warning = f"xchat: -p: unknown request field, sent as given: {name}\n"
    assert run("-p", f"{name}=1", "Hi") == Result(b"Hello\n", warning, 0)
    assert api.body[name] == 1
    assert run("-q", "-p", f"{name}=1", "Hi") == Result(b"Hello\n", "", 0)


DEEP = "[" * 60_000


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-p", "seed"], "-p seed: expected NAME=VALUE or NAME=@FILE"),
        (["-p", "=7"], "-p =7: expected NAME=VALUE or NAME=@FILE"),
        (["-p", "seed=@none"], "-p seed: none: No such file or directory"),
        (["-p", "seed=@empty"], "-p seed: empty: empty; expected JSON or YAML"),
        (["-p", 'tools={"a":1,"a":2}'], "-p tools: duplicate key 'a'"),
        (["-p", f"tools={DEEP}"], "-p tools: nested more than 100 levels deep"),
        (
            ["-p", f"tools= {'[' * 101}{']' * 101}"],
            "-p tools: nested more than 100 levels deep",
        ),
        (["-p", f'tools=[{{"a": "]]"}}, {DEEP}'], "-p tools: nested more than 100 levels deep"),
        (
            ["-p", 'user="\\ud800"'],
            "-p user: contains an invalid Unicode character",
        ),
        (
            ["-p", "messages=[]"],
            "-p messages: not a field; messages come from -s, -f and the prompt",
        ),
        (
            ["-p", "system=x"],
            "-p system: not a field; messages come from -s, -f and the prompt",
        ),
        (["-p", "mesages=[]"], "-p mesages: unknown key 'mesages'; did you mean 'messages'?"),
        (
            ["-p", "model=a", "-m", "b"],
            "-p model: also set by its own option; drop one",
        ),
        (
            ["-p", "max_tokens=1", "--max-tokens", "2"],
            "-p max_tokens: also set by its own option; drop one",
        ),
        (
            ["-p", "stream=true", "--no-stream"],
            "-p stream: also set by its own option; drop one",
        ),
        (
            ["-p", "response_format=1", "--schema", "schema"],
            "-p response_format: also set by its own option; drop one",
        ),
    ],
)
def test_a_wrong_param_is_one_line_and_nothing_is_sent(
    api: Api, run: Run, file: File, args: list[str], message: str
) -> None:
    file("{}", "schema")
    file("", "empty")
    assert run(*args, "Hi", stdin=b"{}") == Result(b"", f"xchat: {message}\n", 2)
    assert api.requests == []


def test_a_word_that_looks_like_a_file_is_none(run: Run) -> None:
    result = run("--dry-run", "-p", "user=a=@-", stdin=b"Hi")
    assert body_of(result)["messages"] == [{"role": "user", "content": "Hi"}]
    assert body_of(result)["user"] == "a=@-"


def test_a_date_is_no_row_of_numbers(run: Run, file: File) -> None:
    result = run("--dry-run", "-p", f"user=@{file('2024-01-01')}", "Hi")
    assert result == Result(
        b"", "xchat: -p user: c: YAML reads 2024-01-01 as a date; quote it\n", 2
    )
