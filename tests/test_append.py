"""-a: the turn is added to the conversation file, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import HELLO, File, Result, Run, cases, needs, needs_file
from server import HANG, STREAM_HEAD, Api, completion, reply, stream
from test_conversation import GOOD, mutate

import xchat

Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "Hello"}
JSON_Q, JSON_A = '{"role": "user", "content": "Q"}', '{"role": "assistant", "content": "Hello"}'


def indented(value: Any) -> str:
    """How a file in JSON is written anew."""
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def messages_in(path: Path) -> list[dict[str, str]]:
    """The messages of a file, whose suffix tells its format."""
    text = path.read_text()
    if path.suffix.lower() == ".jsonl":
        value = [json.loads(line) for line in text.splitlines()]
    else:
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    return [
        message if "role" in message else {"role": role, "content": content}
        for message in value
        for role, content in [*message.items()][:1]
    ]


def messages_of(text: str) -> list[xchat.JSON]:
    return xchat.split_conversation(xchat.parse_text(text))[1]


def files_in(path: Path) -> list[str]:
    return sorted(os.listdir(path))


@cases(
    ("name", "text"),
    {
        "YAML": ("c.yaml", "- system: S\n- user: Q\n- assistant: Hello\n"),
        "no suffix": ("c", "- system: S\n- user: Q\n- assistant: Hello\n"),
        "JSON": ("c.json", indented([{"role": "system", "content": "S"}, Q, A])),
        "JSON Lines": ("c.JSONL", f'{{"role": "system", "content": "S"}}\n{JSON_Q}\n{JSON_A}\n'),
    },
)
@pytest.mark.parametrize("is_empty", [False, True])
def test_a_new_file_is_private_has_the_system_messages_and_the_format_of_its_name(
    api: Api, run: Run, tmp_path: Path, name: str, text: str, is_empty: bool
) -> None:
    if is_empty:
        (tmp_path / name).touch(0o600)
    api.will(reply(completion()), reply(completion("Again")))
    assert run("-af", name, "-s", "S", "Q", env={"LC_ALL": "C"}) == Result(b"Hello\n", "", 0)
    assert (tmp_path / name).read_text() == text
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert run("-af", name, "-s", "not kept", "And?") == Result(b"Again\n", "", 0)
    contents = [message["content"] for message in api.requests[1].json["messages"]]
    assert contents == ["not kept", "S", "Q", "Hello", "And?"]
    assert [m["content"] for m in messages_in(tmp_path / name)] == [*contents[1:], "Again"]
    assert files_in(tmp_path) == [name]


LOST = "xchat: c: rewritten to append the turn; its comments are lost\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            "# one\n- user: a  # two\n# three\n",
            "# one\n- user: a  # two\n# three\n- user: Q\n- assistant: Hello\n",
            id="comments of a list",
        ),
        pytest.param(
            "model: m  # 1\nhistory:\n\n  # two\n  - user: a\n  # three\n\n",
            "model: m  # 1\nhistory:\n\n  # two\n  - user: a\n  # three\n\n"
            "  - user: Q\n  - assistant: Hello\n",
            id="comments of a mapping",
        ),
        pytest.param(
            "history:\n  - user: a\n\nmodel: m\n",
            "history:\n- user: a\n- user: Q\n- assistant: Hello\nmodel: m\n",
            id="a field after the list",
        ),
        pytest.param(
            "history:\n- user: |+\n    a\n\nmodel: m\n",
            "history:\n- user: |+\n    a\n\n- user: Q\n- assistant: Hello\nmodel: m\n",
            id="a blank line that is a part of the text",
        ),
        pytest.param(
            "- user: a", "- user: a\n- user: Q\n- assistant: Hello\n", id="no final newline"
        ),
        pytest.param(
            "- user: |\n    a",
            "- user: a\n- user: Q\n- assistant: Hello\n",
            id="no final newline in a block, which one would change",
        ),
        pytest.param(
            "# é\r\n- user: 🌍\r\n",
            "# é\r\n- user: 🌍\r\n- user: Q\r\n- assistant: Hello\r\n",
            id="CRLF in YAML",
        ),
        pytest.param(
            "messages:\r\n- user: é\r\nmodel: m\r\n",
            "messages:\r\n- user: é\r\n- user: Q\r\n- assistant: Hello\r\nmodel: m\r\n",
            id="CRLF in YAML, with a field after the list",
        ),
        pytest.param(
            "system: S  # one\n",
            "system: S  # one\nhistory:\n- user: Q\n- assistant: Hello\n",
            id="a mapping without a list",
        ),
        pytest.param(
            "- user: a\n...\n", "- user: a\n- user: Q\n- assistant: Hello\n", id="end mark"
        ),
        pytest.param(
            "history: [{user: a},\n  {user: b}]\n",
            "history:\n- user: a\n- user: b\n- user: Q\n- assistant: Hello\n",
            id="a list in brackets",
        ),
        pytest.param(
            "history: []\n",
            "history:\n- user: Q\n- assistant: Hello\n",
            id="an empty list in brackets",
        ),
        pytest.param(
            "{model: m}\n",
            "model: m\nhistory:\n- user: Q\n- assistant: Hello\n",
            id="a mapping in braces",
        ),
        pytest.param(
            "role: user\ncontent: a\n",
            "- role: user\n  content: a\n- user: Q\n- assistant: Hello\n",
            id="a single message",
        ),
        pytest.param(
            "[{user: 'C# ]'}, {role: tool, content: '# no comment', id: '#'}]\n",
            "- user: C# ]\n- role: tool\n  content: '# no comment'\n  id: '#'\n"
            "- user: Q\n- assistant: Hello\n",
            id="'#' that stands in text",
        ),
        pytest.param(
            '[\n  {"role": "user", "content": "]"}\n]',
            indented([{"role": "user", "content": "]"}, Q, A]),
            id="JSON on several lines",
        ),
        pytest.param("[]\n", indented([Q, A]), id="an empty list in JSON"),
        pytest.param(
            '[\r\n\t{"user": "a"},\r\n]\r\n',
            indented([{"user": "a"}, Q, A]).replace("\n", "\r\n"),
            id="CRLF, tabs and a trailing comma in JSON",
        ),
        pytest.param(
            '{"messages":[{"user":"a # b"}],"model":"m"}',
            indented({"messages": [{"user": "a # b"}, Q, A], "model": "m"}),
            id="JSON on one line",
        ),
        pytest.param(
            '{"messages": [{"user": "a"}], "stop": ["s"]}',
            indented({"messages": [{"user": "a"}, Q, A], "stop": ["s"]}),
            id="another list is the last in JSON",
        ),
        pytest.param(
            '{"model": "m"}',
            indented({"model": "m", "history": [Q, A]}),
            id="a mapping without a list in JSON",
        ),
        pytest.param(
            '{"model": "m]", "stop": ["]"]}\n',
            indented({"model": "m]", "stop": ["]"], "history": [Q, A]}),
            id="a mapping without messages in JSON, but with brackets",
        ),
        pytest.param(
            '{"role": "user", "content": [{"type": "text", "text": "b]"}]}\n',
            '{"role": "user", "content": [{"type": "text", "text": "b]"}]}\n'
            f"{JSON_Q}\n{JSON_A}\n",
            id="one line of JSON Lines with a list in it",
        ),
        pytest.param(
            '{"system": "S]"}\n',
            f'{{"system": "S]"}}\n{JSON_Q}\n{JSON_A}\n',
            id="a system message alone",
        ),
        pytest.param(
            '{"system": [{"type": "text", "text": "S]"}], "model": "m"}',
            indented({"system": [{"type": "text", "text": "S]"}], "model": "m", "history": [Q, A]}),
            id="a system message of parts and a field",
        ),
        pytest.param(
            '{"user": "a"}\n{"user": [{"type": "text", "text": "b"}]}',
            f'{{"user": "a"}}\n{{"user": [{{"type": "text", "text": "b"}}]}}\n{JSON_Q}\n{JSON_A}\n',
            id="JSON Lines without a final newline",
        ),
        pytest.param(
            '{"user": "a"},\r\n{"user": "b"},\r\n',
            f'{{"user": "a"}},\r\n{{"user": "b"}},\r\n{JSON_Q}\r\n{JSON_A}\r\n',
            id="JSON Lines with commas and CRLF",
        ),
        pytest.param(
            '{"role": "user", "content": "a"}',
            f'{{"role": "user", "content": "a"}}\n{JSON_Q}\n{JSON_A}\n',
            id="one line of JSON Lines",
        ),
    ],
)
def test_the_turn_is_lines_at_the_end_or_the_file_is_written_anew(before: str, after: str) -> None:
    once = xchat.add_messages(before, [Q, A], path="c")
    assert once == after
    assert messages_of(once) == [*messages_of(before), Q, A]
    twice = xchat.add_messages(once, [Q, A], path="c")
    assert messages_of(twice) == [*messages_of(before), Q, A, Q, A]


@cases(
    ("before", "after"),
    {
        "YAML": (
            "# é\r\nhistory:  # 2\r\n- user: 🌍\r\n",
            "# é\r\nhistory:  # 2\r\n- user: 🌍\r\n- user: Q\r\n- assistant: Hello\r\n",
        ),
        "JSON": ('[{"user": "🌍"}]', indented([{"user": "🌍"}, Q, A])),
        "JSON Lines": (
            '{"role": "user", "content": "🌍"}',
            f'{{"role": "user", "content": "🌍"}}\n{JSON_Q}\n{JSON_A}\n',
        ),
    },
)
def test_the_turn_is_added_to_the_file_which_keeps_its_mode(
    api: Api, run: Run, file: File, tmp_path: Path, before: str, after: str
) -> None:
    name = file(before)
    (tmp_path / name).chmod(0o640)
    api.will(reply(completion()))
    assert run("-af", name, "Q") == HELLO
    assert (tmp_path / name).read_bytes().decode() == after
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
    assert files_in(tmp_path) == [name]


WITH_COMMENTS = [
    pytest.param(
        "history:\n  - user: a\n  # one\n\nmodel: m  # 2\n",
        "history:\n- user: a\n- user: Q\n- assistant: Hello\nmodel: m\n",
        id="a field after the list",
    ),
    pytest.param(
        "history:\n- user: a\n\n# one\nmodel: m\n",
        "history:\n- user: a\n- user: Q\n- assistant: Hello\nmodel: m\n",
        id="a comment on the field after the list",
    ),
    pytest.param(
        "history: [{user: a},  # one\n  {user: b}]\n",
        "history:\n- user: a\n- user: b\n- user: Q\n- assistant: Hello\n",
        id="a list in brackets",
    ),
    pytest.param(
        "{model: m}  # one\n",
        "model: m\nhistory:\n- user: Q\n- assistant: Hello\n",
        id="a mapping in braces",
    ),
    pytest.param(
        "- user: 'C#'\n... # end\n",
        "- user: C#\n- user: Q\n- assistant: Hello\n",
        id="a comment on the end mark, and a '#' in a text",
    ),
    pytest.param(
        "# one\r\n[{user: 'C#'}]\r\n",
        "- user: C#\r\n- user: Q\r\n- assistant: Hello\r\n",
        id="CRLF",
    ),
]


@pytest.mark.parametrize(("before", "after"), WITH_COMMENTS)
def test_comments_that_are_lost_are_one_warning(
    api: Api, run: Run, file: File, tmp_path: Path, before: str, after: str
) -> None:
    api.will(reply(completion()))
    name = file(before)
    assert run("-af", name, "Q") == Result(b"Hello\n", LOST, 0)
    assert (tmp_path / name).read_bytes().decode() == after


def test_comments_are_lost_only_once_and_without_a_word_if_quiet(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    api.will(*[reply(completion())] * 3)
    before = "{model: m}  # one\n"
    name = file(before)
    assert run("-af", name, "Q") == Result(b"Hello\n", LOST, 0)
    after = (tmp_path / name).read_text()
    assert run("-af", name, "Q") == HELLO
    assert run("-qaf", file(before), "Q") == HELLO
    assert (tmp_path / name).read_text() == after


@pytest.mark.parametrize("prompt", ["# Title", "What is C#?", "#" * 9])
def test_comments_that_are_lost_are_a_warning_whatever_the_turn_holds(
    api: Api, run: Run, file: File, prompt: str
) -> None:
    api.will(reply(completion("# One\n## Two\n")))
    result = run("-af", file("{model: m}  # one\n"), prompt)
    assert (result.err, result.status) == (LOST, 0)


def test_a_text_that_ends_in_a_bracket_takes_a_second_turn(
    api: Api, run: Run, tmp_path: Path
) -> None:
    for name in ("c.jsonl", "c.json", "c.yaml"):
        api.will(reply(completion("[Hello]")), reply(completion()))
        assert run("-af", name, "Hi :]") == Result(b"[Hello]\n", "", 0)
        assert run("-af", name, "Q") == Result(b"Hello\n", "", 0)
        first = [{"role": "user", "content": "Hi :]"}, {"role": "assistant", "content": "[Hello]"}]
        assert messages_in(tmp_path / name) == [*first, Q, A]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- user: &a hi\n- user: &a hi\n", "line 1: anchors and aliases (& and *)"),
        ("- user: &a hi\n- user: *a\n", "line 1: anchors and aliases (& and *)"),
        ("- user: !!str hi\n", "line 1: the YAML tag !!str is not accepted"),
        ("system: S\nx: {<<: {b: c}}\n", "line 2: merge keys (<<) are not accepted"),
        ("- user: hi\n---\n- user: hi\n", "line 2: a second YAML document"),
        ("- user: hi\n  user: hi\n", "line 2: duplicate key 'user'"),
        ("%TAG ! tag:x,2000:\n---\n- user: hi\n", "line 1: %TAG is not accepted"),
    ],
)
def test_what_f_does_not_accept_is_refused_before_anything_is_sent(
    api: Api, run: Run, file: File, tmp_path: Path, text: str, message: str
) -> None:
    result = run("-af", file(text), "Q")
    assert (result.out, result.status) == (b"", 2)
    assert result.err.startswith(f"xchat: c: {message}")
    assert result.err.count("\n") == 1
    assert api.requests == []
    assert (tmp_path / "c").read_text() == text


def in_a_directory_that_goes(run: Run, when: str) -> None:
    """Have the working directory removed, at the start or when the reply comes."""
    (run.home / "gone").mkdir()
    first = "cd gone; rmdir ../gone;" if when == "at the start" else "cd gone;"
    run.by_shell(f'{first} exec "$@"')


@pytest.mark.parametrize("args", [["-af", "c.yaml"], ["-af", "c.yaml", "-o", "/dev/null"]])
def test_a_working_directory_that_is_removed_is_told_before_anything_is_sent(
    api: Api, run: Run, args: list[str]
) -> None:
    in_a_directory_that_goes(run, "at the start")
    result = run(*args, "Q")
    assert result == Result(b"", "xchat: c.yaml: No such file or directory\n", 2)
    assert api.requests == []


def test_a_working_directory_that_is_removed_during_the_run_is_one_line(
    api: Api, run: Run, tmp_path: Path
) -> None:
    in_a_directory_that_goes(run, "when the reply comes")
    api.will([lambda _connection: (tmp_path / "gone").rmdir(), *reply(completion())])
    message = "xchat: c.yaml: cannot append the turn: No such file or directory\n"
    assert run("-af", "c.yaml", "Q") == Result(b"Hello\n", message, 1)


@pytest.mark.parametrize("is_new", [False, True])
def test_a_file_that_becomes_a_pipe_during_the_run_does_not_hang(
    api: Api, run: Run, file: File, tmp_path: Path, is_new: bool
) -> None:
    path = tmp_path / ("new" if is_new else file("- user: a\n"))

    def become_a_pipe(_connection: Any) -> None:
        path.unlink(missing_ok=True)
        os.mkfifo(path)

    api.will([become_a_pipe, *reply(completion())])
    result = run("-af", path.name, "Q", timeout=20)
    message = f"xchat: {path.name}: cannot append the turn: is no longer a regular file\n"
    assert result == Result(b"Hello\n", message, 1)
    assert files_in(tmp_path) == [path.name]
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds the lock
    os.close(fd)


def can_be_read(text: str) -> bool:
    try:
        xchat.split_conversation(xchat.parse_text(text))
    except xchat.BadInput:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        "role: user\ncontent: a\nx: DEEP\n",
        "{role: user, content: a, x: DEEP}\n",
        "[{role: user, content: a, x: DEEP}]\n",
        "{model: m, x: DEEP}\n",
        '{"role": "user", "content": "a", "x": DEEP}',
        '{"model": "m", "x": DEEP}',
    ],
)
def test_the_deepest_that_f_can_read_takes_another_turn(text: str) -> None:
    nested = (text.replace("DEEP", "[" * levels + "]" * levels) for levels in range(102, 90, -1))
    deepest = next(filter(can_be_read, nested))
    fields, messages = xchat.split_conversation(xchat.parse_text(deepest))
    new = xchat.add_messages(deepest, [Q, A], path="c")
    assert xchat.split_conversation(xchat.parse_text(new)) == (fields, [*messages, Q, A])


BEGINS = [
    "- user: a\n",
    "model: m\nhistory:\n    - user: a\nseed: 1\n",
    "- user: |+\n    a\n\n",
    "[{user: a}]\n",
    '[{"user": "a"}]\n',
    '{"role": "user", "content": "a"}\n',
]
ODD = ["no", "1:30", " a", "a ", "\n", "\n\n", "\t", "\r\n", "\r", "é", "🌍", "\u2028", "\x85"]
ODD += ["\0", "\x7f", "\ufeff", "\ufffe", "- ", "# ", ": ", "'", '"', "\\", "%TAG ", "---", "..."]
ODD += ["|", "&a", "*a", "!!str ", "```", "]", "}", "  ", "x" * 200, "<<", "~", "{", "[", "@", ","]


def test_3000_odd_texts_are_read_again_as_they_were() -> None:
    random.seed(3)
    for number in range(3000):
        texts = ["".join(random.choices(ODD, k=random.randint(1, 6))) for _ in range(2)]
        turn = [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]
        new = xchat.add_messages(BEGINS[number % len(BEGINS)], turn, path="c")
        value = xchat.parse_text(xchat.decode(new.encode()))
        assert xchat.split_conversation(value)[1][1:] == turn, new


@pytest.mark.usefixtures("loader")
def test_whatever_f_can_read_takes_another_turn() -> None:
    random.seed(4)
    turn = [
        {"role": "user", "content": "Q # ]\n"},
        {"role": "assistant", "content": "Hello: }\n\n"},
    ]
    good = 0
    begins = [*GOOD, *BEGINS, "{model: m, system: S}\n", '{"model": "m", "stop": ["]"]}\n']
    for number in range(10_000):
        try:
            text = xchat.decode(mutate(begins[number % len(begins)]))
            fields, messages = xchat.split_conversation(xchat.parse_text(text))
        except xchat.BadInput:
            continue
        good += 1
        new = xchat.add_messages(text, turn, path="c")
        read = xchat.split_conversation(xchat.parse_text(xchat.decode(new.encode())))
        assert read == (fields, messages + turn), text
    assert good > 500


def test_a_text_of_several_lines_is_readable_in_yaml(api: Api, run: Run, tmp_path: Path) -> None:
    api.will(reply(completion("One 🌍:\n\n    two\n")))
    assert run("-af", "c.yaml", stdin=b"a\nb").status == 0
    assert (tmp_path / "c.yaml").read_text() == (
        "- user: |-\n    a\n    b\n- assistant: |\n    One 🌍:\n\n        two\n"
    )


WRITTEN = {
    "plain": ("Hello", "Hello"),
    "plain with signs in it": ("C# & {a}, b? 'c' [d]!", "C# & {a}, b? 'c' [d]!"),
    "JSON": ('{"a": "it\'s"}', """'{"a": "it''s"}'"""),
    "a mark at the end": ("Say:", "'Say:'"),
    "a comment": ("C #1", "'C #1'"),
    "a mapping": ("a: b", "'a: b'"),
    "a boolean": ("no", "'no'"),
    "a number": ("1_000", "'1_000'"),
    "a date": ("2024-01-01", "'2024-01-01'"),
    "a time": ("1:30", "'1:30'"),
    "a sign that YAML knows": ("- a", "'- a'"),
    "an emoji": ("🌍 é", "🌍 é"),
    "a blank at the end": ("a ", "'a '"),
    "a tab": ("a\tb", "'a\tb'"),
    "nothing": ("", "''"),
    "a line": ("\n", '"\\n"'),
    "U+0085 alone": ("\x85", '"\\u0085"'),
    "a line separator": ("a\u2028b", '"a\\u2028b"'),
    "CRLF": ("a\r\nb", '"a\\r\\nb"'),
    "an escape": ("\x1b[0m\n", '"\\u001b[0m\\n"'),
    "two lines": ("a\nb", "|-\n    a\n    b"),
    "a last line with its end": ("a\nb\n", "|\n    a\n    b"),
    "blank lines at the end": ("a\n\n\n", "|+\n    a\n\n"),
    "indented": ("  a\nb", "|2-\n      a\n    b"),
    "a blank line first": ("\na", "|2-\n\n    a"),
    "a tab first": ("\ta\nb", "|2-\n    \ta\n    b"),
    "a comment in a block": ("# a\n#b\n", "|\n    # a\n    #b"),
    "an end mark in a block": ("a\n...\n---\n", "|\n    a\n    ...\n    ---"),
    "a blank at the end of a block": ("a \n  ", "|-\n    a \n      "),
}


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(("text", "written"), WRITTEN.values(), ids=WRITTEN)
def test_text_is_plain_or_a_block_or_quoted_in_yaml_and_keeps_the_comments(
    text: str, written: str
) -> None:
    before = "# one\n- user: a  # two\n"
    turn = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    new = xchat.add_messages(before, turn, path="c")
    assert new == f"{before}- user: {written}\n- assistant: {written}\n"
    assert xchat.split_conversation(xchat.parse_text(new))[1][1:] == turn
    again = xchat.add_messages(new, [Q], path="c")
    assert again == f"{new}- user: Q\n"


def test_a_reply_that_ends_in_blank_lines_keeps_the_comments(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    name = file("# one\nhistory:\n  - user: a  # two\n")
    api.will(reply(completion("One\n\n\n")), reply(completion()))
    assert run("-af", name, "Q") == Result(b"One\n\n\n", "", 0)
    assert run("-af", name, "Q") == Result(b"Hello\n", "", 0)
    assert (tmp_path / name).read_text() == (
        "# one\nhistory:\n  - user: a  # two\n  - user: Q\n  - assistant: |+\n      One\n\n\n"
        "  - user: Q\n  - assistant: Hello\n"
    )


def random_value(depth: int) -> Any:
    kind = random.random()
    if kind < 0.2 and depth:
        return [random_value(depth - 1) for _ in range(random.randrange(4))]
    if kind < 0.4 and depth:
        return {random_text(): random_value(depth - 1) for _ in range(random.randrange(4))}
    if kind < 0.5:
        return random.choice([None, True, False, 0, -1, 10**30, 1.5, 1e22, -1e-7, 5e-324, 0.0])
    return random_text()


def random_text() -> str:
    return "".join(random.choices([part for part in ODD if part != "<<"], k=random.randrange(7)))


@pytest.mark.usefixtures("loader")
def test_3000_odd_values_are_read_again_as_they_were() -> None:
    random.seed(5)
    for _ in range(3000):
        value = random.choice([[random_value(4)], {random_text(): random_value(4)}])
        text = xchat.to_yaml(value) + "\n"
        assert repr(xchat.parse_yaml(text)) == repr(value), text


LONG = {"lines": "All work and no play, é: # yes.\n" * 125_000, "a line": "a word and " * 360_000}


@pytest.mark.parametrize("reply_text", LONG.values(), ids=LONG)
def test_4_mb_are_added_in_a_second(reply_text: str) -> None:
    turn = [{"role": "assistant", "content": reply_text}]
    start = time.process_time()
    new = xchat.add_messages("# one\n- user: a\n", turn, path="c")
    assert time.process_time() - start < 1.5  # it is 0.5; by PyYAML's emitter it was 5
    assert new.startswith("# one\n- user: a\n- assistant: ")


def test_without_a_prompt_only_the_reply_is_added(api: Api, run: Run, file: File) -> None:
    name = file("- user: a\n")
    api.will(reply(completion()))
    assert run("-af", name).status == 0
    assert messages_in(run.home / name) == [{"role": "user", "content": "a"}, A]


def test_a_stream_is_added_as_a_whole_and_other_forms_of_output_change_nothing(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    text = "Code:\n```\n1\n```\n"
    for args in (["--stream"], ["-x"], ["--json"], ["-o", "out"], ["-p", "stream=true", "--json"]):
        name = file("- user: a\n")
        is_stream = "--stream" in args or "-p" in args
        api.will([STREAM_HEAD + stream(text)] if is_stream else reply(completion(text)))
        assert run("-af", name, "Q", *args).status == 0
        assert messages_in(tmp_path / name)[1:] == [Q, {"role": "assistant", "content": text}]


@cases(
    ("suffix", "before"),
    {"YAML that there is": ("yaml", "- system: S\n"), "new JSON Lines": ("jsonl", None)},
)
def test_16_writers_at_once_lose_no_turn(
    api: Api, run: Run, tmp_path: Path, suffix: str, before: str | None
) -> None:
    path = tmp_path / f"c.{suffix}"
    if before:
        path.write_text(before)
    gate = threading.Event()
    api.will(*[[gate, *reply(completion(f"A{number}"))] for number in range(16)])
    writers = [run.start("-af", path.name, "-sS", f"Q{number}") for number in range(16)]
    api.wait_for_requests(16)
    gate.set()  # all of them write at once
    replies = {}
    for number, writer in enumerate(writers):
        out, err = writer.communicate(timeout=30)
        assert (err, writer.returncode) == (b"", 0)
        replies[f"Q{number}"] = out.decode().strip()
        messages_in(path)
    first, *turns = messages_in(path)
    assert first == {"role": "system", "content": "S"}
    pairs = [(q["content"], a["content"]) for q, a in zip(turns[::2], turns[1::2], strict=True)]
    assert dict(pairs) == replies
    assert len(pairs) == 16
    assert files_in(tmp_path) == [path.name]


def test_writers_under_two_names_of_a_file_lose_no_turn(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    path = tmp_path / file("- user: a  # one\n")
    (tmp_path / "there" / "c").hardlink_to(path)
    gate = threading.Event()
    api.will(*[[gate, *reply(completion())] for _ in range(8)])
    writers = [run.start("-af", name, "Q") for name in ["c", "there/c"] * 4]
    while len(api.requests) < 8:
        assert all(writer.poll() is None for writer in writers)
    gate.set()
    for writer in writers:
        assert writer.communicate(timeout=30) == (b"Hello\n", b"")
    assert path.read_text() == "- user: a  # one\n" + "- user: Q\n- assistant: Hello\n" * 8


@pytest.fixture
def lock() -> Iterator[Callable[[Path], int]]:
    """Hold the lock of a file or a directory, as another process does."""
    with contextlib.ExitStack() as stack:

        def hold(path: Path) -> int:
            fd = os.open(path, os.O_RDONLY)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd

        yield hold


@pytest.mark.parametrize("name", ["c", "new"])
def test_a_lock_that_stays_is_told_before_anything_is_sent(
    api: Api, run: Run, file: File, tmp_path: Path, lock: Callable[[Path], int], name: str
) -> None:
    file("- user: a\n")
    place = tmp_path / "c" if name == "c" else tmp_path
    lock(place)
    result = run("-af", name, "--timeout", "0.5", "Q")
    message = f"xchat: {name}: locked by another process; fuser {place} shows which\n"
    assert result == Result(b"", message, 1)
    assert api.requests == []


def test_a_lock_that_stays_leaves_the_reply_on_standard_output(
    api: Api, run: Run, file: File, tmp_path: Path, lock: Callable[[Path], int]
) -> None:
    path = tmp_path / file("- user: a\n")
    locks: list[int] = []
    for args in ([], ["-o", "out"]):
        api.will([lambda _connection: locks.append(lock(path)), *reply(completion())])
        result = run("-af", "c", "--timeout", "2", *args, "Q")
        message = f"c: cannot append the turn: locked by another process; fuser {path} shows which"
        assert result == Result(b"Hello\n", f"xchat: {message}\n", 1)
        fcntl.flock(locks.pop(), fcntl.LOCK_UN)
    assert path.read_text() == "- user: a\n"
    assert files_in(tmp_path) == ["c"]


def test_the_seconds_for_the_lock_are_a_part_of_the_time_limit(
    api: Api, run: Run, file: File, tmp_path: Path, lock: Callable[[Path], int]
) -> None:
    fd = lock(tmp_path / file("- user: a\n"))
    process = run.start("-af", "c", "--timeout", "5", "Q")
    api.will([HANG])
    time.sleep(2.9)
    assert (process.poll(), api.requests) == (None, [])
    fcntl.flock(fd, fcntl.LOCK_UN)
    start = time.monotonic()
    out, err = process.communicate(timeout=20)
    assert (out, process.returncode) == (b"", 3)
    assert b"within 5 s; --timeout sets a longer limit" in err
    assert time.monotonic() - start < 4


def test_nobody_waits_for_another_ones_reply_or_for_a_lock_of_the_directory(
    api: Api, run: Run, file: File, tmp_path: Path, lock: Callable[[Path], int]
) -> None:
    path = tmp_path / file("- user: a\n")
    lock(tmp_path)

    def lock_and_let_go(_connection: Any) -> None:
        fcntl.flock(lock(path), fcntl.LOCK_UN)

    api.will([lock_and_let_go, *reply(completion())])
    assert run("-af", "c", "Q") == Result(b"Hello\n", "", 0)


def test_a_signal_ends_the_wait_for_the_lock(
    run: Run, file: File, tmp_path: Path, lock: Callable[[Path], int]
) -> None:
    lock(tmp_path / file("- user: a\n"))
    process = run.start("-vaf", "c", "Q", env={"XCHAT_BASE_URL": "http://127.0.0.1:9/v1"})
    assert process.stderr.readline().startswith(b"* ")  # the signals are caught by now
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == -signal.SIGINT


def test_what_was_edited_while_the_request_ran_is_kept(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    name = file("- user: a\n")
    gate = threading.Event()
    api.will([gate, *reply(completion())])
    process = run.start("-af", name, "Q")
    api.wait_for_requests()
    (tmp_path / name).write_text("# edited\n- user: b\n")
    gate.set()
    assert process.communicate(timeout=20) == (b"Hello\n", b"")
    assert (tmp_path / name).read_text() == "# edited\n- user: b\n- user: Q\n- assistant: Hello\n"


def test_what_was_broken_while_the_request_ran_is_left_alone(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    name = file("- user: a\n")
    gate = threading.Event()
    api.will([gate, *reply(completion())])
    process = run.start("-af", name, "Q")
    api.wait_for_requests()
    (tmp_path / name).write_text("- usr: b\n")
    gate.set()
    out, err = process.communicate(timeout=20)
    assert (out, process.returncode) == (b"Hello\n", 1)
    assert err.startswith(b"xchat: c: cannot append the turn: message 1: unknown role")
    assert (tmp_path / name).read_text() == "- usr: b\n"


@cases(
    ("answer", "status"),
    {
        "at the token limit": (reply(completion("Hel", finish_reason="length")), 1),
        "no text": (reply(completion(None)), 1),
        "a stream without an end": ([STREAM_HEAD + stream("Hel")[:-200]], 1),
        "an error": (reply({"error": "no"}, "400 Bad Request"), 4),
    },
)
def test_a_reply_that_is_not_whole_is_not_added(
    api: Api, run: Run, file: File, tmp_path: Path, answer: list[Any], status: int
) -> None:
    name = file("- user: a")
    api.will(answer, answer)
    assert run("-af", name, "Q").status == status
    assert (tmp_path / name).read_text() == "- user: a"
    assert run("-af", "new", "Q").status == status
    assert files_in(tmp_path) == [name]


def test_a_full_disk_leaves_the_file_whole(api: Api, run: Run, file: File, tmp_path: Path) -> None:
    text = "- user: a  # " + "x" * 600 + "\n"
    name = file(text)
    api.will(reply(completion("x" * 600)))
    run.by_shell('ulimit -f 1; exec "$@"')
    result = run("-af", name, "Q")
    assert result == Result(
        b"x" * 600 + b"\n", "xchat: c: cannot append the turn: File too large\n", 1
    )
    assert (tmp_path / name).read_text() == text
    assert files_in(tmp_path) == [name]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_kill_between_writing_and_renaming_leaves_the_file_whole(
    api: Api, run: Run, file: File, tmp_path: Path, number: signal.Signals
) -> None:
    name = file("- user: a\n")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        f"import os, time\nos.replace = lambda *_: (os.kill(os.getpid(), {number}), time.sleep(9))"
    )
    api.will(reply(completion()), reply(completion()))
    env = {"PYTHONPATH": str(tmp_path / "site")}
    assert run("-af", name, "Q", env=env) == Result(b"Hello\n", "", -number)
    assert (tmp_path / name).read_text() == "- user: a\n"
    if number != signal.SIGKILL:  # which leaves the other file behind
        assert files_in(tmp_path) == [name, "site"]
    assert run("-af", name, "Q").status == 0
    assert len(messages_in(tmp_path / name)) == 3


def test_a_symbolic_link_stays_one(api: Api, run: Run, file: File, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file("- user: a\n", "there/c.yaml")
    for link, target in {"one": "there/c.yaml", "two": "one", "new": "there/new.jsonl"}.items():
        (tmp_path / link).symlink_to(target)
    api.will(*[reply(completion()) for _ in range(3)])
    for link in ("one", "two", "new"):
        assert run("-af", link, "Q") == Result(b"Hello\n", "", 0)
        assert (tmp_path / link).is_symlink()
    assert len(messages_in(tmp_path / "there" / "c.yaml")) == 5
    assert (tmp_path / "there" / "new.jsonl").read_text() == f"{JSON_Q}\n{JSON_A}\n"
    assert files_in(tmp_path / "there") == ["c.yaml", "new.jsonl"]


def without_privileges(command: list[str]) -> list[str]:
    """Root may write everywhere; take that from it."""
    if os.geteuid():
        return command
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]


@needs(*["setpriv"] * (os.geteuid() == 0))
def test_what_cannot_be_written_is_told_before_a_reply_is_paid_for(
    api: Api, run: Run, tmp_path: Path
) -> None:
    run.command = without_privileges(run.command)
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.yaml").write_text("- user: a\n")
    (tmp_path / "open" / "c.yaml").chmod(0o400)
    (tmp_path / "closed").chmod(0o500)
    for path, message in {
        "closed/new": "Permission denied",
        "open/c.yaml": "no permission to write it",
        "open": "is a directory",
        "no/such": "No such file or directory",
    }.items():
        for args in (["-af", path], ["-o", path]):
            result = run(*args, "Q")
            assert result == Result(b"", f"xchat: {path}: {message}\n", 2)
    (tmp_path / "closed").chmod(0o700)
    assert api.requests == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-a"], "-a needs exactly one -f"),
        (["-af", "one", "-f", "two"], "-a needs exactly one -f"),
        (["-af", "-"], "-a cannot append to standard input: drop it, or name a file with -f"),
        (
            ["-af", "/dev/null"],
            "-a cannot append to /dev/null: drop it, or name a file with -f",
        ),
        (["-af", "one", "-o", "./one"], "-a and -o would both write to ./one; drop one"),
    ],
)
def test_a_senseless_use_of_append(api: Api, run: Run, args: list[str], message: str) -> None:
    assert run(*args, "Q") == Result(b"", f"xchat: {message}\n", 2)
    assert api.requests == []


def test_a_dry_run_adds_nothing(run: Run, tmp_path: Path) -> None:
    result = run("--dry-run", "-af", "new.yaml", "-s", "S", "Q")
    assert (result.err, result.status) == ("", 0)
    assert json.loads(result.out)["messages"] == [{"role": "system", "content": "S"}, Q]
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("option", ["-af", "-o"])
def test_a_signal_as_the_file_is_renamed_is_no_failure(
    api: Api, run: Run, file: File, tmp_path: Path, option: str
) -> None:
    name = file("- user: a\n")
    api.will(reply(completion()))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, signal\nrename = os.replace\n"
        "os.replace = lambda a, b: (rename(a, b), os.kill(os.getpid(), signal.SIGTERM))"
    )
    result = run(option, name, "Q", env={"PYTHONPATH": str(tmp_path / "site")})
    assert (result.err, result.status) == ("", -signal.SIGTERM)
    assert "Hello" in (tmp_path / name).read_text()
    assert files_in(tmp_path) == [name, "site"]


@needs_file("/dev/full")
def test_the_turn_is_not_added_where_the_output_cannot_be_written(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    name = file("- user: a\n")
    api.will(
        reply(completion()), [lambda _connection: (tmp_path / "out").mkdir(), *reply(completion())]
    )
    message = f"xchat: {name}: cannot append the turn: "
    full = run("-af", name, "-o", "/dev/full", "Q")
    assert full == Result(b"Hello\n", f"{message}/dev/full: No space left on device\n", 1)
    made = run("-af", name, "-o", "out", "Q")
    assert made == Result(b"Hello\n", f"{message}out: Is a directory\n", 1)
    assert (tmp_path / name).read_text() == "- user: a\n"
