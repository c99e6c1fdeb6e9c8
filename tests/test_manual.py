"""The manual page says of options, variables, statuses and defaults what the code does."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import TOP, Shell
from server import Api, completion, reply

import xchat

PAGE = (TOP / "man" / "xchat.1").read_text()
SOURCE = (TOP / "xchat.py").read_text()


def section(name: str) -> str:
    return re.split(r"^\.S[hs] ", PAGE.partition(f" {name}\n")[2], flags=re.MULTILINE)[0]


def test_the_options_are_those_of_the_command() -> None:
    options = {
        name
        for param in xchat.xchat.params
        if isinstance(param, click.Option)
        for name in [*param.opts, *param.secondary_opts]
    }
    described = re.findall(r"^\.It (Fl .*)$", section("Options"), flags=re.MULTILINE)
    names = {f"-{name}" for line in described for name in re.findall(r"Fl (\S+)", line)}
    assert names == options


def test_every_option_stands_in_the_synopsis() -> None:
    synopsis = section("SYNOPSIS")
    letters = set("".join(re.findall(r"Fl ([a-z]+)\b", synopsis)))
    long = set(re.findall(r"Fl -([a-z-]+)", synopsis))
    for param in xchat.xchat.params:
        if isinstance(param, click.Option):
            assert {name.lstrip("-") for name in param.opts} & (letters | long), param.opts


def test_the_variables_are_those_that_the_code_reads() -> None:
    described = set(re.findall(r"[A-Z_]{5,}", " ".join(re.findall(r"^\.It Ev (.*)$", PAGE, re.M))))
    read = set(re.findall(r'"((?:XAI|XCHAT|REQUESTS|CURL|SSL)_[A-Z_]+)"', SOURCE))
    assert described == read | {"HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}


def test_the_statuses_are_those_of_the_failures() -> None:
    described = re.findall(r"^\.It (\d)$", section("EXIT STATUS"), re.MULTILINE)
    failures: list[Any] = xchat.Failure.__subclasses__()
    assert described == ["0", *(str(failure.exit_code) for failure in failures)]


@pytest.mark.parametrize(
    "default",
    [
        f"\n.Cm {xchat.MODEL} .",
        f"\n.Cm {xchat.TIMEOUT} :",
        f"At most {xchat.CONNECT_TIMEOUT} seconds",
        f"\n.Lk {xchat.BASE_URL} .",
        f"{xchat.INPUT_LIMIT >> 20} MiB",
        f"nesting of more than {xchat.NESTING_LIMIT}\nlevels",
    ],
)
def test_the_defaults_and_limits_are_those_of_the_code(default: str) -> None:
    assert default in PAGE


def test_the_roles_are_those_of_the_code() -> None:
    roles = PAGE.partition("\nRoles are\n")[2].partition("in any order")[0]
    assert tuple(re.findall(r"\.Cm (\w+)", roles)) == xchat.ROLES


def unformat(text: str) -> str:
    return text.replace("\\(dq", '"').replace("\\-", "-").replace("\\&", "").replace("\\e", "\\")


def blocks() -> list[str]:
    return re.findall(r"^\.Bd .*\n((?:.*\n)*?)\.Ed$", section("EXAMPLES"), re.MULTILINE)


def examples() -> list[str]:
    lines = re.findall(r"^\.Dl \$ (.*)$", section("EXAMPLES"), re.MULTILINE)
    return [unformat(line) for line in [*lines, *blocks()[1:]]]


@pytest.fixture
def prepared(shell: Shell, tmp_path: Path) -> Shell:
    """A shell with the commands and the files that the examples name."""
    shell.put("git", "echo a change")
    shell.put("parallel", 'for list; do :; done; xargs -d "\\n" -n 1 xchat -n -- <"$list"')
    shell.put("mail", 'cat; echo "mail $*"')
    for name, text in {
        "article.txt": "An article.\n",
        "list": "one\ntwo\n",
        "tutor.yaml": unformat(blocks()[0]),
        "request.json": '{"model":"m","messages":[{"role":"user","content":"U"}]}',
        "chat.yaml": "",
        "person.yaml": "type: object\nproperties: {name: {type: string}}\n",
        "tools.yaml": "- {type: function, function: {name: f}}\n",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    return shell


# what the server says and what comes of it, where that is not "Hello" and "Hello\n"
ODD_EXAMPLES = {
    "mail": ("Hello", "Hello\nmail -s Reply me\n"),
    "-x": ("```\nlines\n```", ""),
    "--schema": ('{"name": "Ada"}', "Ada\n"),
    "curl": ("Hello", json.dumps(completion("Hello"))),
    ">request.json": ("Hello", ""),
}


@pytest.mark.parametrize("example", examples())
def test_an_example_runs(shell_api: Api, prepared: Shell, tmp_path: Path, example: str) -> None:
    is_many = any(word in example for word in ("while", "xargs", "parallel"))
    api, shell = shell_api, prepared
    requests = 0 if ">request.json" in example else 2 if is_many else 1
    odd = next((ODD_EXAMPLES[word] for word in ODD_EXAMPLES if word in example), None)
    text, out = odd or ("Hello", "Hello\n" * requests)
    if "curl" in example:
        api.is_for_xchat = False
        api.key = shell.env["XAI_API_KEY"] = "xai-1"
    api.will(*[reply(completion(text))] * requests)
    result = shell(example)
    assert (result.err, result.status) == ("", 0)
    assert result.out.decode() == out
    assert len(api.requests) == requests
    files = {
        path.name: path.read_text()
        for path in tmp_path.iterdir()
        if path.suffix != ".jpg" and path.is_file()
    }
    if "tee" in example:
        assert files["review.txt"] == "Hello\n"
        assert api.body["messages"][0]["content"] == "Review this change\n\na change\n"
    if ">request.json" in example:
        assert '"temperature":0.0' in files["request.json"]
    if "-x" in example:
        assert files["lines.sh"] == "lines\n"
    if "-af" in example:
        assert files["chat.yaml"].endswith("- assistant: Hello\n")
    if "--schema" in example:
        assert json.loads(files["usage.json"])["model"] == "grok-4.7"
    if "curl" in example:
        posted = api.requests[0].body
        assert shell(example.partition("|")[0]).out == posted + b"\n"


def test_the_help_has_every_option_under_a_heading() -> None:
    with click.Context(xchat.xchat) as ctx:
        text = xchat.xchat.get_help(ctx)
    _usage, *parts = re.split("^(Prompt|Request|Reply|Connection)\\b", text, flags=re.MULTILINE)
    assert parts[::2] == ["Prompt", "Request", "Reply", "Connection"]
    below = dict(zip(parts[::2], parts[1::2], strict=True))
    for option in xchat.xchat.params:
        if isinstance(option, click.Option):
            assert isinstance(option, xchat.Option)
            words = re.findall(r"[\w-]+", below[option.heading])
            assert {*option.opts, *option.secondary_opts} <= set(words)


def test_the_module_can_be_run() -> None:
    assert (TOP / "xchat.py").stat().st_mode & stat.S_IXUSR
