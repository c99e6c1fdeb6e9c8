"""The conversation file: its formats and shapes, and every way in which one can be wrong."""

from __future__ import annotations

import json
import os
import random
import resource
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import HELLO, File, Result, Run, body_of, cases, limit, needs_limit
from server import Api, completion, reply

import xchat

NO_ALIAS = "anchors and aliases (& and *) are not accepted; repeat the text"
EXPECTED = "expected a list of messages, or a mapping with 'system' and 'history'"
A_TEXT = '; to send plain text, use standard input, as in: xchat "Summarize" <notes.txt'
NO_TAG = "is not accepted; remove it"

SYSTEM = {"role": "system", "content": "S"}
USER = {"role": "user", "content": "U"}
ASSISTANT = {"role": "assistant", "content": "A"}

# as the API's guide prints it: no comma after the first message, one too many in the last
GUIDE = """\
{
  "role": "system",
  "content": [{ "type": "text", "text": "You are a helpful and funny assistant."}]
}
{
  "role": "user",
  "content": [{ "type": "text", "text": "Why don't eggs tell jokes?" }]
},
{
  "role": "assistant",
  "content": [{ "type": "text", "text": "They'd crack up!" }]
},
{
  "role": "user",
  "content": [{"type": "text", "text": "Can you explain the joke?"}],
}
"""

MULTIPLE_SYSTEM_MESSAGES = """\
[
  {"role": "system", "content": "You are a helpful and honest assistant."},
  {"role": "system", "content": "Answer in French."},
  {"role": "user", "content": "What is 2 + 2?"},
  {"role": "user", "content": "And 3 + 3?"}
]
"""

USER_MESSAGES_FIRST = """\
{"role": "user", "content": "What is 2 + 2?"},
{"role": "user", "content": "And 3 + 3?"},
{"role": "system", "content": "Answer in French."}
"""


def refusal_of(path: Path, text: str | bytes) -> str:
    """What is said of a file, behind its name."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(xchat.BadInput) as caught:
        xchat.read_conversations([str(path)])
    place, said = caught.value.message.split(": ", 1)
    assert place == str(path)
    return said


def messages_of(result: Result) -> Any:
    assert (result.err, result.status) == ("", 0)
    return json.loads(result.out)["messages"]


@pytest.mark.parametrize(
    "text", [GUIDE, MULTIPLE_SYSTEM_MESSAGES, USER_MESSAGES_FIRST], ids=["rows", "system", "user"]
)
def test_the_examples_of_the_guide_are_sent_in_their_order(
    api: Api, run: Run, file: File, text: str
) -> None:
    api.will(reply(completion()))
    assert run("-f", file(text)) == Result(b"Hello\n", "", 0)
    roles = [message["role"] for message in api.body["messages"]]
    assert roles == [line.split('"')[3] for line in text.splitlines() if '"role"' in line]
    texts = [
        message["content"] if isinstance(message["content"], str) else message["content"][0]["text"]
        for message in api.body["messages"]
    ]
    assert all(piece in text for piece in texts)
    assert [text.index(piece) for piece in texts] == sorted(text.index(piece) for piece in texts)


def test_messages_are_sent_as_given(api: Api, run: Run, file: File) -> None:
    parts = [
        {"type": "text", "text": ""},
        {"type": "image_url", "image_url": {"url": "https://x.test/i.png", "detail": "low"}},
        {"type": "text", "text": "a\u2028\x85\x7f\t🌍"},
        {"type": "file", "file": {"file_id": "f"}},
    ]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        ASSISTANT,
        {"role": "user", "content": parts, "name": "bob"},
        USER,
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "function", "content": "", "name": "f"},
        {"role": "developer", "content": [], "x": {"y": [1, 2.5, None, True]}},
        SYSTEM,
        SYSTEM,
    ]
    api.will(reply(completion()), reply(completion()))
    assert run("-f", file(json.dumps(messages, ensure_ascii=False))).status == 0
    assert run("-f", file(json.dumps(messages, indent="\t"))).status == 0
    for request in api.requests:
        assert request.json["messages"] == messages


@pytest.mark.parametrize(
    "more",
    [
        {"content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"content": None, "refusal": "No."},
        {"content": None},
        {"reasoning_content": "Hm."},
    ],
    ids=["a function call", "a refusal", "nothing", "reasoning"],
)
def test_the_content_of_an_assistant_may_be_null_or_missing(more: Any) -> None:
    message = {"role": "assistant", **more}
    assert xchat.split_conversation([message]) == ({}, [message])


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]',
        '[{"role": "system", "content": "S"}, {"role": "user", "content": "U"},]',
        '{"role": "system", "content": "S"}\n{"role": "user", "content": "U"}\n',
        '{"role": "system", "content": "S"}\r\n\r\n{"role": "user", "content": "U"}',
        '{"role": "system", "content": "S"},{"role": "user", "content": "U"},',
        '{"system": "S"}\n{"user": "U"}',
        '{"system": "S", "messages": [{"user": "U"}]}',
        '{"messages": [{"user": "U"}], "system": "S"}',
        '\ufeff[\n\t{"system":\t"S"},\n\t{"user":\t"U"}\n]',
        '[{"system": "S"}, // no JSON\n',
        "- role: system\n  content: S\n- role: user\n  content: U\n",
        "- system: S\n- user: U\n",
        "---\n- system: S\n- user: 'U'\n...\n",
        "\ufeff# comment\r\nsystem: S\r\nhistory:\r\n- user: U\r\n",
        "system: S\nmessages:\n  - {role: user, content: U}\n",
        "messages: [user: U]\nsystem: S\n",
        "- {system: S}\n- {'user': ! U}\n",
        "[{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'U'}]",
        "[{system: S}, {user: U}, ]  # flow",
    ],
)
@pytest.mark.usefixtures("loader")
def test_every_format_and_shape(text: str) -> None:
    if "//" in text:
        with pytest.raises(xchat.BadInput, match="not JSON: "):
            xchat.parse_text(text)
    else:
        text = xchat.decode(text.encode())
        assert xchat.split_conversation(xchat.parse_text(text)) == ({}, [SYSTEM, USER])


def test_one_message_alone() -> None:
    assert xchat.split_conversation(xchat.parse_text(json.dumps(USER))) == ({}, [USER])
    assert xchat.split_conversation(xchat.parse_text("- user: U")) == ({}, [USER])


@pytest.mark.parametrize("text", ["- user: &u U\n- assistant: A\n- user: *u\n", "- user: U&u *u\n"])
@pytest.mark.usefixtures("loader")
def test_anchors_and_aliases_of_yaml_are_refused_but_not_what_looks_like_one(text: str) -> None:
    if "&u U" in text:
        with pytest.raises(xchat.BadInput) as caught:
            xchat.parse_text(text)
        assert caught.value.message == f"line 1: {NO_ALIAS}"
    else:
        assert xchat.parse_text(text) == [{"user": "U&u *u"}]


def test_block_text_of_yaml_keeps_its_lines() -> None:
    text = "- user: |\n    def f():\n        pass\n\n    # 'no' \"quotes\" {}\n"
    assert xchat.parse_text(text) == [{"user": "def f():\n    pass\n\n# 'no' \"quotes\" {}\n"}]


def test_request_fields_and_their_types() -> None:
    text = "model: grok-4.7\ntemperature: 0.2\nn: 1\nlogprobs: no\nseed: null\nstop: [END, 'no']\n"
    fields, messages = xchat.split_conversation(xchat.parse_text(text))
    assert messages == []
    assert fields == {
        "model": "grok-4.7",
        "temperature": 0.2,
        "n": 1,
        "logprobs": False,
        "seed": None,
        "stop": ["END", "no"],
    }


def test_order_is_system_options_then_files_then_the_prompt(run: Run, file: File) -> None:
    one = file("system: F1\nhistory:\n- user: U1\n- system: F1b\n", "one")
    two = file('{"system": "F2"}\n{"assistant": "A2"}\n', "two")
    result = run("--dry-run", "P", "-f", one, "-s", "S1", "-f", two, "-s", "S2")
    assert [list(message.values()) for message in messages_of(result)] == [
        ["system", "S1"],
        ["system", "S2"],
        ["system", "F1"],
        ["user", "U1"],
        ["system", "F1b"],
        ["system", "F2"],
        ["assistant", "A2"],
        ["user", "P"],
    ]


def test_standard_input_as_a_file(run: Run) -> None:
    result = run("--dry-run", "-f", "-", "P", stdin=b"- assistant: A")
    assert messages_of(result) == [ASSISTANT, {"role": "user", "content": "P"}]
    result = run("--dry-run", "-f", "-", stdin=b"- user: U")
    assert messages_of(result) == [USER]


# libyaml has a limit of its own, from 0.2.6 on
YAML_TOO_DEEP = ("line 1: nested more than 100 levels deep", "not YAML: ")
JSON_TOO_DEEP = (
    "line 1: nested more than 100 levels deep",
    "line 2: nested more than 100 levels deep",
    "not JSON: nested more than 100 levels deep",
)
BAD = [
    # what stands in the file; what is said about it, where the words of another library follow ": "
    ("", "empty; expected JSON or YAML"),
    (" \n\t\n", "empty; expected JSON or YAML"),
    ("# a comment\n", "empty; expected JSON or YAML"),
    (b"\x00\x01\x02", "binary data, not text: NUL at byte 0"),
    (
        b"- user: caf\xe9",
        f"not UTF-8 at byte 11; {'convert it, as in: iconv -f ISO-8859-1 -t UTF-8'}",
    ),
    (
        "Hello",
        f'{EXPECTED}; found "Hello"{A_TEXT}',
    ),
    (
        "null",
        f"{EXPECTED}; found nothing{A_TEXT}",
    ),
    (
        "42",
        f"{EXPECTED}; found 42{A_TEXT}",
    ),
    ('{"user": "U"} 42', "message 2: expected {role: ..., content: ...}, found 42"),
    ("- user: no", "message 1: content: read as false, not as text; quote it"),
    ("- user: 42", "message 1: content: read as 42, not as text; quote it"),
    ("- user: 1:30", "message 1: content: read as 90, not as text; quote it"),
    ("- user: 2024-01-01", "message 1: YAML reads 2024-01-01 as a date; quote it"),
    (
        "- user: 2024-01-01 10:00:00",
        "message 1: YAML reads 2024-01-01 10:00:00 as a date; quote it",
    ),
    ("- user: 2024-13-01", 'line 1: "2024-13-01" is not a valid timestamp'),
    ("- user:", "message 1: content: expected text, found nothing"),
    ("- user: {a: b}", "message 1: content: expected text, found a mapping"),
    ('[{"role": "user", "content": 42}]', "message 1: content: read as 42, not as text; quote it"),
    ('[{"role": "user", "content": null}]', "message 1: content: expected text, found nothing"),
    ("- {role: assistant, contnet: hi}", "message 1: 'content' is missing; is 'contnet' a typo?"),
    ("system: yes", "system: read as true, not as text; quote it"),
    ("system: [a]", 'system: part 1: expected {type: text, text: ...}, found "a"'),
    ("- user: [{text: hi}]", "message 1: content: part 1: 'type' is missing"),
    (
        "- user: [{tpye: text, text: hi}]",
        "message 1: content: part 1: 'type' is missing; is 'tpye' a typo?",
    ),
    ("- user: [{type: text}]", "message 1: content: part 1: 'text' is missing"),
    (
        "- user: [{type: text, text: hi}, {type: text, text: no}]",
        "message 1: content: part 2: text: read as false, not as text; quote it",
    ),
    (
        "- user: [{type: image_url, image_url: 'https://x.test'}]",
        'message 1: content: part 1: image_url: expected {url: ...}, found "https://x.test"',
    ),
    ("- hello", 'message 1: expected {role: ..., content: ...}, found "hello"'),
    ("- {}", "message 1: 'role' is missing"),
    ("- content: hi", "message 1: 'role' is missing"),
    ("- rol: user\n  content: hi", "message 1: 'role' is missing; is 'rol' a typo?"),
    ("- role: user", "message 1: 'content' is missing"),
    (
        "- user: hi\n- {role: user, contnet: hi}",
        "message 2: 'content' is missing; is 'contnet' a typo?",
    ),
    (
        "- usr: hi",
        "message 1: unknown role \"usr\"; did you mean 'user'?",
    ),
    (
        "- {role: bot, content: hi}",
        'message 1: unknown role "bot";'
        " expected one of system, user, assistant, tool, function, developer",
    ),
    (
        "- {role: [user], content: hi}",
        "message 1: unknown role a list;"
        " expected one of system, user, assistant, tool, function, developer",
    ),
    ("role: user\ncontent: 1", "message 1: content: read as 1, not as text; quote it"),
    (
        "user: hi",
        "'user' alone is a request field; a message is a list item: - user: ...",
    ),
    (
        "- user: " + "1:" * 300 + "1.0",
        'line 1: "' + "1:" * 29 + "1... is not a valid float",
    ),
    ("history: hi", 'history: expected a list of messages, found "hi"'),
    ("history:", "history: expected a list of messages, found nothing"),
    ("history: {user: hi}", "history: expected a list of messages, found a mapping"),
    ("history: []\nmessages: []", "'history' and 'messages' mean the same; use one of them"),
    ("histroy: []", "unknown key 'histroy'; did you mean 'history'?"),
    ("sytem: hi", "unknown key 'sytem'; did you mean 'system'?"),
    ("assistant: hi", "'assistant' is a role, not a request field; messages go under 'history'"),
    ("a: 1\nb: 2\na: 3", "line 3: duplicate key 'a'"),
    ("- {role: user, role: user}", "line 1: duplicate key 'role'"),
    ('[{"user": "a"}, {"user": "b", "user": "c"}]', "line 1: duplicate key 'user'"),
    ('{"model": "a", "model": "b"}', "line 1: duplicate key 'model'"),
    ("- role: user\n  content: hi\n  x: {y: 1,\n    y: 2}", "line 4: duplicate key 'y'"),
    ("- user: hi\n- 1: hi", "line 2: the key 1 is not text; quote it"),
    ("no: hi", "line 1: the key false is not text; quote it"),
    ("\n? [a]\n: hi", "line 2: the key a list is not text; quote it"),
    ("a: &a {b: c}\nd: {<<: *a}", f"line 1: {NO_ALIAS}"),
    ("a: b\nd: {<<: {b: c}}", "line 2: merge keys (<<) are not accepted; write the keys out"),
    ("temperature: .nan", "temperature: NaN and infinity are not JSON"),
    ("temperature: -.inf", "temperature: NaN and infinity are not JSON"),
    ('{"temperature": NaN}', "temperature: NaN and infinity are not JSON"),
    ('{"temperature": -Infinity}', "temperature: NaN and infinity are not JSON"),
    ('{"temperature": 1e999}', "temperature: NaN and infinity are not JSON"),
    ('[{"user": "\\ud83d"}]', "message 1: contains an invalid Unicode character"),
    ("- user: a\n---\n- user: b", "line 2: a second YAML document"),
    (
        "- user: hi\n- user: !!binary aGk=",
        "line 2: the YAML tag !!binary is not accepted; remove it",
    ),
    (
        "- user: !!python/object/apply:os.system [id]",
        "line 1: the YAML tag !!python/object/apply:os.system is not accepted; remove it",
    ),
    ("!!set {a}", "line 1: the YAML tag !!set is not accepted; remove it"),
    ("- !x hi", "line 1: the YAML tag !x is not accepted; remove it"),
    ("%TAG ! tag:x,2000:\n--- hi", "line 1: %TAG is not accepted; remove it"),
    ("- user: *a", f"line 1: {NO_ALIAS}"),
    ("- &a [*a]", f"line 1: {NO_ALIAS}"),
    ("- user: hi\n- user: !!int no", f"line 2: the YAML tag !!int {NO_TAG}"),
    ("- user: !!bool 7", f"line 1: the YAML tag !!bool {NO_TAG}"),
    ("- user: !!str hi", f"line 1: the YAML tag !!str {NO_TAG}"),
    ("- &a hi\n- &a hi", f"line 1: {NO_ALIAS}"),
    ("model: m\nhistory: &h []", f"line 2: {NO_ALIAS}"),
    ("- user: &u\n    a", f"line 1: {NO_ALIAS}"),
    ("- &k user: a", f"line 1: {NO_ALIAS}"),
    ("- user: Note: this", "not YAML: "),
    ("- user: 'hi", "not YAML: "),
    ("- user: hi\n\t- x: y", "not YAML: "),
    ("- user: \x1b[0m", "not YAML: "),
    ('[{"role": "user" "content": "hi"}]', "not JSON: "),
    ('{"user": "hi"', "not JSON: "),
    pytest.param("[" * 100_000, JSON_TOO_DEEP, id="brackets without an end"),
    pytest.param('{"a":' * 100_000, JSON_TOO_DEEP, id="braces without an end"),
    pytest.param("[" * 300 + "]" * 300, JSON_TOO_DEEP, id="300 lists"),
    ("[" + "{}," * 200 + "[" * 101, JSON_TOO_DEEP),
    ('{"user": "a"}' + "[" * 100_000, JSON_TOO_DEEP),
    ('{"user": "a"}\n{"model": ' + "[" * 300 + "]" * 300 + "}", JSON_TOO_DEEP),
    pytest.param("- " * 100_000, YAML_TOO_DEEP, id="items in items"),
    pytest.param("a: " + "[" * 100_000, YAML_TOO_DEEP, id="brackets in a mapping of YAML"),
    pytest.param("? " * 100_000, YAML_TOO_DEEP, id="keys of keys"),
]


@pytest.mark.parametrize(
    ("text", "message"), BAD, ids=lambda value: repr(value)[:40] if value != "" else "nothing"
)
@pytest.mark.usefixtures("loader")
def test_a_bad_file_is_one_line_that_says_where(
    tmp_path: Path, text: str | bytes, message: str | tuple[str, ...]
) -> None:
    said = refusal_of(tmp_path / "c", text)
    assert "\n" not in said
    assert any(
        said.startswith(words) if words.endswith(": ") else said in (words, words + A_TEXT)
        for words in ([message] if isinstance(message, str) else message)
    )


def test_a_bad_file_ends_in_status_2_and_nothing_is_sent(api: Api, run: Run, file: File) -> None:
    result = run("-f", file("- user: a\n- usr: hi", "my file"), "hi")
    message = "xchat: my file: message 2: unknown role \"usr\"; did you mean 'user'?\n"
    assert result == Result(b"", message, 2)
    assert api.requests == []


LOG = """2026-08-22 12:00:01 INFO server: started on port 8080
2026-08-22 12:00:02 ERROR db: connection refused: retrying
2026-08-22 12:00:05 INFO server: stopped
"""
PYTHON = '''"""Say hello."""
import sys


def main() -> int:
    print("hello", file=sys.stderr)
    return 0
'''
PACKAGE = """{
  "name": "left-pad",
  "version": "1.3.0",
  "description": "Pad on the left",
  "main": "index.js",
  "scripts": {"test": "node test"},
  "license": "MIT"
}
"""
FRONT_MATTER = "---\ntitle: Notes\ndate: today\n---\n\n# Notes\n\nSome text: more of it.\n"
MARKDOWN = "# Notes\n\nSome *text*, and `code`.\n\n* one\n* two\n"
MEETING = "Present: Ann, Bob\nAgenda: the budget\n"
PLAIN = "Dear Ann,\nthank you for the letter.\n"
SCRIPT = "#!/bin/sh\nset -e\nif [ -f x ]; then\n\techo yes\nfi\n"
CSV = "name,age\nAnn,7\nBob,8\n"
HTML = "<!DOCTYPE html>\n<html><body>Hi: there</body></html>\n"
TEXTS = {
    "app.log": LOG,
    "main.py": PYTHON,
    "package.json": PACKAGE,
    "post.md": FRONT_MATTER,
    "README.md": MARKDOWN,
    "meeting.txt": MEETING,
    "letter.txt": PLAIN,
    "run.sh": SCRIPT,
    "table.csv": CSV,
    "page.html": HTML,
    "asterisks.md": "* eggs\n* milk\n",
    "emphasis.md": "*very* important\n",
    "one.txt": "hello",
    "number.txt": "42\n",
    "half.json": '{"name": "left-pad", "version"',
    "half.jsonl": '{"role": "user", "content": "a"}\n{"role": "us',
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_given_as_a_conversation(tmp_path: Path, name: str) -> None:
    said = refusal_of(tmp_path / name, TEXTS[name])
    assert said.endswith(A_TEXT)
    assert "\n" not in said


WORDS = {
    "package.json": "not a conversation: it has no known key",
    "meeting.txt": "not a conversation: it has no known key",
    "post.md": "line 4: a second YAML document",
    "letter.txt": "expected a list of messages, or a mapping with 'system' and 'history'; found"
    ' "Dear Ann, thank you for the letter."',
    "one.txt": "expected a list of messages, or a mapping with 'system' and 'history';"
    ' found "hello"',
}


@pytest.mark.parametrize("name", WORDS)
def test_a_text_that_parses_is_told_what_it_is(tmp_path: Path, name: str) -> None:
    assert refusal_of(tmp_path / name, TEXTS[name]) == f"{WORDS[name]}{A_TEXT}"


def test_a_text_that_is_given_as_a_conversation_is_not_sent(api: Api, run: Run, file: File) -> None:
    message = f"xchat: package.json: {WORDS['package.json']}{A_TEXT}\n"
    assert run("-f", file(PACKAGE, "package.json"), "Summarize") == Result(b"", message, 2)
    assert api.requests == []


OTHERS = {
    "json log": '{"level": "info", "message": "started"}\n',
    "list": "- eggs\n- milk\n",
    "twice": "Note: eggs\nNote: milk\n",
    "exclamation": "!important eggs\n",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_text_that_looks_like_yaml(tmp_path: Path, name: str) -> None:
    said = refusal_of(tmp_path / "c", OTHERS[name])
    assert said.endswith(A_TEXT)
    assert "\n" not in said


def test_the_way_out_works(api: Api, run: Run, tmp_path: Path) -> None:
    api.will(reply(completion()))
    (tmp_path / "notes.txt").write_text(LOG)
    with (tmp_path / "notes.txt").open("rb") as notes:
        assert run("Summarize", stdin=notes) == HELLO
    assert api.body["messages"] == [{"role": "user", "content": f"Summarize\n\n{LOG}"}]


RAW = {
    "in a mapping": ('{"system": "one\ntwo"}', 1),
    "CRLF in a list": ('[\n {"user": "one\r\ntwo"}\n]', 2),
    "an empty line in a list that ends in a comma": (
        '[{"user": "a"},\n {"user": "one\n\ntwo"},\n]',
        2,
    ),
    "JSON Lines": ('{"user": "a"}\n{"user": "one\ntwo"}\n', 2),
    "the last of several lines": ('{"model": "m",\n\n "system": "one\n"}', 3),
    "in a key": ('{"user\n": "c"}', 1),
    "in a list of what is no JSON": (
        '{"model": grok-4, "messages": [\n {"user": "one\ntwo"}]}',
        2,
    ),  # no JSON before that
    "after a key without quotes": ('[{"user": "ok"}, {user: "a\nb"}]', 1),
}


@cases(("text", "line"), RAW)
def test_a_line_break_inside_a_string_of_json(tmp_path: Path, text: str, line: int) -> None:
    message = f"line {line}: a line break in a string; write \\n"
    assert refusal_of(tmp_path / "c", text) == message


def test_a_line_break_inside_a_string_of_yaml_is_yaml(run: Run, file: File) -> None:
    body = body_of(run("--dry-run", "-f", file('system: "one\n  two"\n'), "Hi"))
    assert body["messages"][0]["content"] == "one two"


def test_an_unknown_field_is_sent_with_a_warning(api: Api, run: Run, file: File) -> None:
    api.extra_fields = {"temprature", "zzz"}
    api.will(reply(completion()), reply(completion()))
    name = file("seed: 1\ntemprature: 0.5\nzzz: {a: [1]}\n")
    result = run("-f", name, "hi")
    assert (result.out, result.status) == (b"Hello\n", 0)
    assert result.err.splitlines() == [
        "xchat: c: unknown request fields, sent as given: temprature, zzz"
    ]
    assert run("-q", "-f", name, "hi") == Result(b"Hello\n", "", 0)
    for request in api.requests:
        assert (request.json["temprature"], request.json["zzz"]) == (0.5, {"a": [1]})


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_20000_unknown_fields_get_one_warning(run: Run, file: File, form: str) -> None:
    fields = {"model": "m", **{f"f{number}": number for number in range(20_000)}}
    if form == "json":
        name = file(json.dumps(fields))
    else:
        name = file("".join(f"{key}: {value}\n" for key, value in fields.items()))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run("--dry-run", "-f", name, "Hi", timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    warning = "unknown request fields, sent as given: f0, f1, f2 and 19997 more"
    assert (result.err, result.status) == (f"xchat: c: {warning}\n", 0)
    assert len(json.loads(result.out)) == 20_002
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "No such file or directory"),
        (".", "Is a directory"),
        ("none/", "No such file or directory"),
        ("Summarize this", "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_its_option(
    run: Run, name: str, message: str
) -> None:
    result = run("--dry-run", "-f", name, "hi")
    assert result == Result(b"", f"xchat: -f {name}: {message}\n", 2)


def test_a_fifo_is_read_and_one_that_closes_is_empty(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for content, status in [("- user: U", 0), ("", 2)]:
        writer = threading.Thread(target=(tmp_path / "fifo").write_text, args=[content])
        writer.start()
        assert run("--dry-run", "-f", "fifo").status == status
        writer.join()


def hostile(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n")
    return "".join(lines)


@needs_limit
@cases(
    ("content", "message"),
    {
        "a billion laughs": (hostile(12), f"line 1: {NO_ALIAS}"),
        "deep lists in JSON": ("[" * 100_000, JSON_TOO_DEEP),
        "deep lists in YAML": ("- " * 100_000, YAML_TOO_DEEP),
        "a text of 100 MB": ("x" * 100_000_000, "-f: more than 64 MiB"),
        "deep lists of 30 MB": ("[" * 30_000_000, JSON_TOO_DEEP),
        "a number in base 60 that is none": ("seed: " + ":1" * 10_000_000, ""),
        "a number in base 60": ("seed: 1" + ":1" * 30_000_000, ""),
        "a number in base 60 with a tag": (
            "seed: !!int 1" + ":1" * 10_000_000,
            f"line 1: the YAML tag !!int {NO_TAG}",
        ),
        "2 million directives": (
            "%TAG !a! tag:x\n" * 2_000_000,
            "line 1: %TAG is not accepted; remove it",
        ),
        "more than a million values": (
            "[" + '"",' * 1_100_000 + ",]",
            "more than 1,000,000 values",
        ),
        "a string of escapes without an end": ('["' + '\\"' * 500_000, "not JSON: "),
        "a key of 60 MB": ("a" * 60_000_000 + ": b", "not YAML: "),
        "binary data": (b"\xff" * 60_000_000, "not UTF-8 at byte 0"),
    },
)
def test_a_hostile_file_ends_in_bounded_time_and_memory(
    run: Run, file: File, content: str | bytes, message: str | tuple[str, ...]
) -> None:
    args = ["--dry-run", "-q", "hi", "-f", file(content)]
    result = run(*args, preexec_fn=limit, timeout=300)
    if not message:  # harmless: a long text, sent as given
        assert (result.err, result.status) == ("", 0)
    else:
        assert (result.out, result.status) == (b"", 2)
        said = result.err.removeprefix("xchat: ").replace("-f c:", "c: -f:", 1)
        assert said.startswith("c: ")
        assert said.removeprefix("c: ").startswith(message)
        assert result.err.count("\n") == 1
        assert len(result.err) < 1100


def test_a_file_names_no_server_and_no_key(api: Api, run: Run, file: File) -> None:
    api.extra_fields = {"base_url", "api_key"}
    api.will(reply(completion()))
    name = file("model: m\nbase_url: https://evil.test\napi_key: xai-1\n")
    assert run("-q", "-f", name, "hi") == Result(b"Hello\n", "", 0)


GOOD = [
    *(GUIDE, MULTIPLE_SYSTEM_MESSAGES, USER_MESSAGES_FIRST),
    """\
# comment
model: grok-4
temperature: 0.2
system: S
history:
- user: U
- assistant: |
    A
    - B
- {role: user, content: [{type: text, text: 'x: y'}]}
""",
]
JUNK = [
    *("", "\n", " ", "\t", "{", "]", ",", ":", "- ", "&a ", "*a", "!!int ", "'", '"', "\\", "no"),
    *(
        "9",
        "\0",
        "\ud800",
        "\u2028",
        "%TAG ",
        "---\n",
        "? ",
        "<<: ",
        "|",
        "#",
        "1:30",
        "NaN",
        "1e999",
    ),
    *(
        "!!float ",
        "!!bool ",
        "!!null ",
        "2024-01-01",
        "=",
        "<<",
        "~",
        "0x",
        "0b",
        "_",
        ".",
        "+.inf",
    ),
]


def mutate(text: str) -> bytearray:
    for _ in range(random.randrange(1, 5)):
        place = random.randrange(len(text) + 1)
        end = min(place + random.choice([0, 0, 1, 5, 30]), len(text))
        text = text[:place] + random.choice(JUNK) + text[end:]
    return bytearray(text.encode("utf-8", "surrogatepass"))


@pytest.mark.usefixtures("loader")
def test_10000_mutations_are_messages_or_one_clean_line() -> None:
    random.seed(3)
    failures: list[xchat.BadInput] = []
    for n in range(10_000):
        data = mutate(GOOD[n % len(GOOD)])
        start = time.process_time()
        try:
            parsed = xchat.split_conversation(xchat.parse_text(xchat.decode(data)))
            json.dumps(parsed, allow_nan=False, ensure_ascii=False).encode()
        except xchat.BadInput as failure:
            failures.append(failure)
        assert time.process_time() - start < 1, data
    assert 1000 < len(failures) < 9900
    assert all(failure.message for failure in failures)


OTHER_SHAPES = {
    "a saved reply": (
        '{"id": "c", "model": "m", "choices": [{"message": {"role": "assistant"}}]}',
        "messages go under 'history', not under 'choices'",
    ),
    "a body of the Responses API": (
        '{"model": "m", "input": [{"role": "user", "content": "U"}]}',
        "messages go under 'history', not under 'input'",
    ),
    "its instructions": (
        '{"model": "m", "instructions": "S"}',
        "messages go under 'history', not under 'instructions'",
    ),
    "a body of the completions API": (
        '{"model": "m", "prompt": "U", "max_tokens": 5}',
        "messages go under 'history', not under 'prompt'",
    ),
    "a body of Gemini's API": (
        '{"contents": [{"role": "user", "parts": [{"text": "U"}]}]}',
        "messages go under 'history', not under 'contents'",
    ),
    "a template": (
        "model: m\nsystem: S\nprompt: 'Summarize this: $input'\n",
        "messages go under 'history', not under 'prompt'",
    ),
    "a data set in lines": (
        '{"messages": [{"user": "U"}]}\n{"messages": [{"user": "U"}]}\n',
        "message 1: a conversation of its own; a file holds one conversation",
    ),
    "a data set in a list": (
        '[{"messages": [{"user": "U"}], "tools": []}]',
        "message 1: a conversation of its own; a file holds one conversation",
    ),
    "a list of files of ours": (
        "- system: S\n  history: [user: U]\n",
        "message 1: a conversation of its own; a file holds one conversation",
    ),
    "a message beside one": (
        '{"user": "U"}\n{"history": [{"user": "U"}]}\n',
        "message 2: a conversation of its own; a file holds one conversation",
    ),
}


@pytest.mark.parametrize("name", OTHER_SHAPES)
def test_a_conversation_in_another_shape_is_not_lost(name: str) -> None:
    text, message = OTHER_SHAPES[name]
    with pytest.raises(xchat.BadInput) as caught:
        xchat.parse_conversation(text)
    assert caught.value.message == message


@pytest.mark.parametrize("key", xchat.ELSEWHERE)
def test_another_shape_beside_messages_is_a_field(key: str) -> None:
    for name in ("history", "messages"):
        conversation = xchat.parse_conversation(f"{name}: [user: U]\n{key}: [x]\n")
        assert (conversation.fields, conversation.messages) == ({key: ["x"]}, [USER])


def test_a_data_set_ends_in_status_2_and_nothing_is_sent(api: Api, run: Run, file: File) -> None:
    name = file('{"messages": [{"user": "U"}]}\n' * 2, "tuning.jsonl")
    words = "message 1: a conversation of its own; a file holds one conversation"
    assert run("-f", name, "Hi") == Result(b"", f"xchat: tuning.jsonl: {words}\n", 2)
    assert api.requests == []


# what is not a key, but like one: it is a field of the API that we do not know
@pytest.mark.parametrize("name", ["images", "message_id", "editor", "systems_note", "topP", "chat"])
def test_what_is_like_a_key_is_a_field(name: str) -> None:
    fields, messages = xchat.split_conversation({name: 1, "messages": [USER]})
    assert (fields, messages) == ({name: 1}, [USER])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("histroy", "history"),
        ("hystory", "history"),
        ("History", "history"),
        ("historys", "history"),
        ("message", "messages"),
        ("mesages", "messages"),
        ("messges", "messages"),
        ("sytem", "system"),
        ("systme", "system"),
        ("System", "system"),
        ("systems", "system"),
    ],
)
def test_a_key_that_one_edit_spoils_is_an_error(name: str, key: str) -> None:
    with pytest.raises(xchat.BadInput) as caught:
        xchat.split_conversation({"model": "m", name: [USER]})
    assert caught.value.message == f"unknown key '{name}'; did you mean '{key}'?"


CUTS = {
    "a number": ("- user: Close issue #12 and say why\n", 1, "#12 and say why"),
    "a tag": ("- user: hi\n- user: Tweet this with #python\n", 2, "#python"),
    "a colour": ("system: Use the color  #ff0000, please\n", 1, "#ff0000, please"),
    "an emoji before it": ("- user: 🌍 é #1\n", 1, "#1"),
    "CRLF": ("- user: 🌍\r\n- user: C, not C #\r\n- user: see #3\r\n", 3, "#3"),
    "several lines": ("- user: Fix\n    and close #12 now\n", 1, "#12 now"),
    "a tab": ("- user: Close\t#12\n", 1, "#12"),
    "two of them": ("- user: Close ##12\n", 1, "##12"),
    "a list of parts": ("- user: [{type: text, text: a #b\n  }]\n", 1, "#b"),
    "nothing else": ("- assistant: #12 is done\n", 1, "#12 is done"),
    "a field": ("model: grok-4 #fast\n", 1, "#fast"),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.usefixtures("loader")
def test_a_text_that_yaml_cuts_at_a_number_sign(name: str) -> None:
    text, line, rest = CUTS[name]
    with pytest.raises(xchat.BadInput) as caught:
        xchat.parse_conversation(text)
    words = f'line {line}: YAML takes "{rest}" for a comment; quote the text'
    assert caught.value.message == words


COMMENTS = {
    "a blank after it": "- user: U # as said\n",
    "several": "- user: U ## as said ##\n",
    "nothing after it": "- user: U #\n",
    "a line of its own": "#!/usr/bin/env -S xchat -f\n#x\n- user: U\n#x\n #x\n",
    "quotation marks": "- user: 'U' #x\n",
    "a list": "#x\n- #x\n  user: U\n",
}


@pytest.mark.parametrize("name", COMMENTS)
@pytest.mark.usefixtures("loader")
def test_a_comment_is_a_comment(name: str) -> None:
    assert xchat.parse_conversation(COMMENTS[name]).messages == [USER]


@pytest.mark.usefixtures("loader")
def test_a_number_sign_in_what_is_no_text_cuts_nothing() -> None:
    text = "temperature: 0.2 #low\nlogprobs: no #x\nhistory: #x\n"
    text += "- user: U#1 a#b\n- user: |\n    a #b\n"
    assert xchat.parse_conversation(text).messages == [
        {"role": "user", "content": "U#1 a#b"},
        {"role": "user", "content": "a #b\n"},
    ]


def test_a_text_as_the_conversation_on_standard_input(run: Run) -> None:
    words = f"{EXPECTED}; found \"hi\"; to send plain text, drop '-f -'"
    result = run("--dry-run", "-f", "-", stdin=b"hi\n")
    assert result == Result(b"", f"xchat: standard input: {words}\n", 2)
