"""--schema: the schema is part of the request, and a reply that is not JSON is a failure."""

from __future__ import annotations

import json

import pytest
from conftest import File, Result, Run, cases, said
from server import STREAM_HEAD, Api, completion, reply, stream

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
YAML_SCHEMA = "type: object\nproperties:\n  name: {type: string}\nrequired: [name]\n"


@cases("content", {"JSON": json.dumps(SCHEMA), "YAML": YAML_SCHEMA})
def test_a_schema_becomes_the_response_format(api: Api, run: Run, file: File, content: str) -> None:
    api.will(reply(completion('{"name": "Ada"}')))
    assert run("--schema", file(content), "Who?") == Result(b'{"name": "Ada"}\n', "", 0)
    assert api.body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "reply", "schema": SCHEMA, "strict": True},
    }


SCHEMA_NOT_IN_ASCII = {"type": "object", "properties": {"ä": {"type": "string"}}}


@pytest.mark.parametrize("form", ["{}", " \n{}\n"])
def test_a_schema_may_be_the_argument_itself(api: Api, run: Run, form: str) -> None:
    api.will(reply(completion('{"ä": "b"}')))
    schema = form.replace("{}", json.dumps(SCHEMA_NOT_IN_ASCII, ensure_ascii=False))
    assert run("--schema", schema, "Hi") == Result('{"ä": "b"}\n'.encode(), "", 0)
    assert api.body["response_format"]["json_schema"]["schema"] == SCHEMA_NOT_IN_ASCII


@pytest.mark.parametrize("schema", ['{"type": "object"', '{"type" "object"}', "{", '{"a": NaN}'])
def test_a_schema_in_the_argument_that_is_malformed(run: Run, schema: str) -> None:
    result = run("--dry-run", "--schema", schema, "Hi")
    assert (result.out, result.status, result.err.count("\n")) == (b"", 2, 1)
    assert result.err.startswith("xchat: --schema: ")


@pytest.mark.parametrize("args", [[], ["--stream"], ["-x"], ["--json"], ["-o", "out"]])
def test_with_a_schema_the_reply_must_be_json(
    api: Api, run: Run, file: File, args: list[str]
) -> None:
    api.will([STREAM_HEAD + stream("Ada")] if "--stream" in args else reply(completion("Ada")))
    result = run("--schema", file("{}"), *args, "Who?")
    assert (result.err, result.status) == (said(api, "the reply is not JSON"), 1)
    out = json.dumps(completion("Ada")) if args == ["--json"] else "" if "-o" in args else "Ada"
    assert result.out.decode() == (out and out + "\n")
    assert not (run.home / "out").exists()


@cases(
    ("text", "words"),
    {
        "NaN": ('{"name": NaN}', "not JSON"),
        "two values": ('{"a": 1} {"b": 2}', "not JSON"),
        "four numbers": ("1 2 3 4", "not JSON"),
        "nesting without an end": ("[" * 100_000, "not JSON"),
        "quotes of Python": ("'a'", "not JSON"),
        "blank": (" ", "not JSON"),
        "empty": (
            "",
            "empty: the model only reasoned; -p reasoning_effort=low or a larger --max-tokens"
            " may help",
        ),
    },
)
def test_a_reply_that_is_not_the_json_that_was_asked_for(
    api: Api, run: Run, text: str, words: str
) -> None:
    api.will(reply(completion(text)))
    out = f"{text}\n".encode() if text else b""
    assert run("--schema", "{}", "Hi") == Result(out, said(api, f"the reply is {words}"), 1)


def test_with_extract_what_is_extracted_must_be_json(api: Api, run: Run, file: File) -> None:
    api.will(*[reply(completion('Here:\n```json\n{"a": 1}\n```\n'))] * 2)
    assert run("--schema", file("{}"), "-x", "Hi") == Result(b'{"a": 1}\n', "", 0)
    assert run("--schema", file("{}"), "Hi").status == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "none: No such file or directory"),
        ("list", "list: expected a JSON Schema, found a list"),
        ("date", "date: YAML reads 2024-01-01 as a date; quote it"),
    ],
)
def test_a_wrong_schema_is_one_line_and_nothing_is_sent(
    api: Api, run: Run, file: File, name: str, message: str
) -> None:
    file("[]", "list")
    file("const: 2024-01-01", "date")
    assert run("--schema", name, "Hi") == Result(b"", f"xchat: {message}\n", 2)
    assert api.requests == []


def test_a_line_break_inside_a_string_of_a_schema_or_a_field(run: Run, file: File) -> None:
    name = file('{"type": "one\ntwo"}')
    message = "c: line 1: a line break in a string; write \\n"
    assert run("--dry-run", "--schema", name, "Hi") == Result(b"", f"xchat: {message}\n", 2)
    result = run("--dry-run", "-p", f"tools=@{name}", "Hi")
    assert result == Result(b"", f"xchat: -p tools: {message}\n", 2)
