"""--schema: the schema is part of the request, and a reply that is not JSON is a failure."""

from __future__ import annotations

import json

import pytest
from conftest import File, Result, Run, body_of, cases, said
from server import STREAM_HEAD, Api, completion, reply, stream

import xchat

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
    out = json.dumps(completion("Ada")) if args == ["--json"] else "Ada"
    assert result.out.decode() == out + "\n"
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


NO_FILE = "no such file; a schema itself begins with {"
NO_SCHEMA = "--schema: expected a JSON Schema, with 'type', 'properties' or the like; found"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", f"--schema none: {NO_FILE}"),
        ("no/such.json", f"--schema no/such.json: {NO_FILE}"),
        ("name, born date", f"--schema name, born date: {NO_FILE}"),
        ("name,, born", f"--schema name,, born: {NO_FILE}"),
        ("my file.json", f"--schema my file.json: {NO_FILE}"),
        ("name, name", "--schema: duplicate key 'name'"),
        (".", ".: Is a directory"),
        ("list", f"{NO_SCHEMA} a list"),
        ("object", f"{NO_SCHEMA} a mapping"),
        ('{"name": "Ada", "born": 1815}', f"{NO_SCHEMA} a mapping"),
        ('{"response_format": {"type": "json_schema", "json_schema": 1}}', f"{NO_SCHEMA} 1"),
        ("date", "date: YAML reads 2024-01-01 as a date; quote it"),
    ],
)
def test_a_wrong_schema_is_one_line_and_nothing_is_sent(
    api: Api, run: Run, file: File, name: str, message: str
) -> None:
    file("[]", "list")
    file("name: Ada\nborn: 1815\n", "object")
    file("const: 2024-01-01", "date")
    assert run("--schema", name, "Hi") == Result(b"", f"xchat: {message}\n", 2)
    assert api.requests == []


def test_a_line_break_inside_a_string_of_a_schema_or_a_field(run: Run, file: File) -> None:
    name = file('{"type": "one\ntwo"}')
    message = "c: line 1: a line break in a string; write \\n"
    assert run("--dry-run", "--schema", name, "Hi") == Result(b"", f"xchat: {message}\n", 2)
    result = run("--dry-run", "-p", f"tools=@{name}", "Hi")
    assert result == Result(b"", f"xchat: -p tools: {message}\n", 2)


def schema_in(field: xchat.JSON) -> object:
    assert field["type"] == "json_schema"
    assert (field["json_schema"]["name"], field["json_schema"]["strict"]) == ("reply", True)
    return field["json_schema"]["schema"]


WRAPPED = {
    "not at all": SCHEMA,
    "with a name": {"name": "person", "schema": SCHEMA},
    "with all that goes with it": {
        "name": "person",
        "description": "A person",
        "strict": False,
        "schema": SCHEMA,
    },
    "as a response format": {
        "type": "json_schema",
        "json_schema": {"name": "person", "strict": True, "schema": SCHEMA},
    },
    "as in the Responses API": {"type": "json_schema", "name": "person", "schema": SCHEMA},
    "as a field of a request": {
        "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    },
    "in a whole request": {
        "model": "m",
        "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
    },
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_schema_is_taken_out_of_its_wrapping(name: str) -> None:
    assert schema_in(xchat.read_schema(json.dumps(WRAPPED[name]))) == SCHEMA


def test_what_is_sent_as_a_schema_is_one_again(run: Run, file: File) -> None:
    first = run("--dry-run", "--schema", json.dumps(SCHEMA), "Hi")
    assert run("--dry-run", "--schema", file(first.out), "Hi") == first


SCHEMAS = [
    {},
    {"type": "array", "items": {"type": "string"}},
    {"enum": ["yes", "no"]},
    {"const": 1},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}},
    {"anyOf": [{"type": "string"}, {"type": "null"}]},
    {"type": "object", "properties": {"schema": {"type": "object"}, "json_schema": {}}},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_a_schema_is_sent_as_given(schema: object) -> None:
    assert schema_in(xchat.read_schema(json.dumps(schema))) == schema


STRING, INTEGER, NUMBER, BOOLEAN = (
    {"type": name} for name in ("string", "integer", "number", "boolean")
)
ROWS = {
    "name, born int": {"name": STRING, "born": INTEGER},
    "name,born": {"name": STRING, "born": STRING},
    "answer float": {"answer": NUMBER},
    " is_true bool , why ": {"is_true": BOOLEAN, "why": STRING},
    "a string, b integer, c number, d boolean": {
        "a": STRING,
        "b": INTEGER,
        "c": NUMBER,
        "d": BOOLEAN,
    },
    "größe int, first-name str": {"größe": INTEGER, "first-name": STRING},
    "int, str int": {"int": STRING, "str": INTEGER},
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_names_is_a_schema(row: str) -> None:
    assert schema_in(xchat.read_schema(row)) == {
        "type": "object",
        "properties": ROWS[row],
        "required": [*ROWS[row]],
        "additionalProperties": False,
    }


def test_a_file_wins_over_a_row_of_names(run: Run, file: File) -> None:
    file('{"type": "number"}', "name, born int")
    body = body_of(run("--dry-run", "--schema", "name, born int", "Hi"))
    assert schema_in(body["response_format"]) == {"type": "number"}
    body = body_of(run("--dry-run", "--schema", "name, died int", "Hi"))
    assert body["response_format"] == xchat.read_schema("name, died int")


@pytest.mark.parametrize("schema", ['{"type": "json_object"}', '{"type": "text"}'])
def test_a_response_format_without_a_schema_is_none(run: Run, schema: str) -> None:
    result = run("--dry-run", "--schema", schema, "Hi")
    assert (result.out, result.status) == (b"", 2)
    assert result.err.startswith("xchat: --schema: expected a JSON Schema")
