"""The manual page says of options, variables, statuses and defaults what the code does."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import TOP, Shell, needs
from server import Api, completion, reply

import xchat

OPTIONS = {option.name: option for option in xchat.xchat.params if isinstance(option, click.Option)}
PAGE = (TOP / "man" / "xchat.1").read_text()
SOURCE = (TOP / "xchat.py").read_text()


def section(name: str) -> str:
    return re.split(r"^\.S[hs] ", PAGE.partition(f" {name}\n")[2], flags=re.MULTILINE)[0]


def names_of(option: click.Option) -> list[str]:
    return [*option.opts, *option.secondary_opts]


def options_under(heading: str) -> list[list[str]]:
    """Return the names of the options that the help lists under a heading."""
    found, is_under = [], False
    for name, option in OPTIONS.items():
        is_under = xchat.HEADINGS[name] == heading if name in xchat.HEADINGS else is_under
        found += [names_of(option)] if is_under else []
    return found


@pytest.mark.parametrize("heading", xchat.HEADINGS.values())
def test_the_options_are_those_of_the_help_in_its_order(heading: str) -> None:
    described = re.findall(r"^\.It (Fl .*)$", section(f"{heading} options"), flags=re.MULTILINE)
    names = [[f"-{name}" for name in re.findall(r"Fl (\S+)", line)] for line in described]
    assert names == options_under(heading)


def test_the_options_stand_under_the_headings_of_the_help_in_its_order() -> None:
    headings = re.findall(r"^\.Ss (\w+) options$", PAGE, flags=re.MULTILINE)
    assert headings == [*xchat.HEADINGS.values()]
    listed = [names for heading in headings for names in options_under(heading)]
    assert listed == [*map(names_of, OPTIONS.values())]


def test_the_sections_are_those_of_a_manual_in_their_usual_order() -> None:
    assert re.findall(r"^\.Sh (.*)$", PAGE, flags=re.MULTILINE) == [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "SHELL COMPLETION",
        "ENVIRONMENT",
        "FILES",
        "EXIT STATUS",
        "EXAMPLES",
        "SEE ALSO",
        "CAVEATS",
        "BUGS",
    ]


def test_every_option_stands_in_the_synopsis() -> None:
    synopsis = section("SYNOPSIS")
    letters = set("".join(re.findall(r"Fl ([a-zA-Z]+)\b", synopsis)))
    long = set(re.findall(r"Fl -([a-z-]+)", synopsis))
    for option in OPTIONS.values():
        assert {name.lstrip("-") for name in option.opts} & (letters | long), option.opts


def test_the_variables_are_those_that_the_code_reads() -> None:
    described = set(re.findall(r"[A-Z_]+\b", " ".join(re.findall(r"^\.It Ev (.*)$", PAGE, re.M))))
    read = set(re.findall(r'"((?:XAI|XCHAT|REQUESTS|CURL|SSL)_[A-Z_]+|TERM)"', SOURCE))
    assert described == read | {"HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"}


def test_the_statuses_are_those_of_the_failures() -> None:
    described = re.findall(r"^\.It (\d)$", section("EXIT STATUS"), re.MULTILINE)
    failures: list[Any] = xchat.Failure.__subclasses__()
    assert described == ["0", *(str(failure.exit_code) for failure in failures)]


@pytest.mark.parametrize(
    "default",
    [
        f"\n.Os xchat {xchat.__version__}\n",
        f"\n.Cm {xchat.MODEL} ,",
        f"\n.Cm {xchat.TIMEOUT} ,",
        f"At most {xchat.CONNECT_TIMEOUT} seconds",
        f"\n.Lk {xchat.BASE_URL} .",
        f"{xchat.INPUT_LIMIT >> 20} MiB",
        f"nesting of more than {xchat.NESTING_LIMIT} levels",
        f"more than {xchat.EVENT_LIMIT // 4:,} messages",
        f"a hint after {xchat.HINT_DELAY} seconds",
        f"idle for {xchat.IDLE_LIMIT} seconds",
        f"up to {xchat.BACKOFF_LIMIT} s",
        f"more than {xchat.RETRY_AFTER_LIMIT} s",
        "answered {}, {}, {} or {}.".format(429, *xchat.REPEATABLE),
    ],
)
def test_the_defaults_and_limits_are_those_of_the_code(default: str) -> None:
    assert default in PAGE


def test_the_roles_are_those_of_the_code() -> None:
    roles = PAGE.partition("\nRoles are\n")[2].partition("in any order")[0]
    assert tuple(re.findall(r"\.Cm (\w+)", roles)) == xchat.ROLES


def blocks(name: str) -> list[str]:
    """Return the blocks of a section that are shown as they are."""
    found = re.findall(r"^\.Bd .*\n((?:.*\n)*?)\.Ed$", section(name), re.MULTILINE)
    return [block.replace("\\e", "\\") for block in found]


def examples_with_output() -> list[tuple[str, str]]:
    """Return the commands of EXAMPLES, each with the output that is shown after it."""
    found = []
    for block in blocks("EXAMPLES"):
        if block.startswith(("xchat", "set -o")):
            found.append((block, ""))
        for command, more, out in re.findall(
            r"(?m)^\$ (.*\n)((?: .*\n)*)((?!\$ )(?:[^$].*\n)*)", block
        ):
            found.append((command + more, out))
    return found


def examples() -> list[str]:
    return [command for command, _out in examples_with_output()]


def test_no_example_is_longer_than_the_line() -> None:
    indent = 5 + 6  # of the section and of the block
    lines = "".join([*blocks("EXAMPLES"), *blocks("SHELL COMPLETION")]).splitlines()
    assert [line for line in lines if indent + len(line) > 78] == []


@needs("mandoc")
def test_the_page_is_as_mandoc_wants_it() -> None:
    lint = ["mandoc", "-Tlint", "-Wstyle", str(TOP / "man" / "xchat.1")]
    result = subprocess.run(lint, stdout=-1, stderr=subprocess.STDOUT, text=True, check=False)
    assert (result.stdout, result.returncode) == ("", 0)


# what the server says and what comes of it, where that is not "Hello" and "Hello\n"
ODD_EXAMPLES = {
    "mail": ("Hello", "Hello\nmail -s Reply me\n"),
    "-x": ("```c\nmain(){}\n```", ""),
    "--schema": ('{"name": "Ada Lovelace"}', ""),
    "-o article.txt": ("Hello", ""),
    "-o - |": ("Hello", "Hello\n"),
    "./review.yaml -m": ("Hello", "Hello\n"),
    "tools": ("Hello", json.dumps(completion("Hello")) + "\n"),
    "| jq": ("Hello", ""),
    "curl": ("Hello", json.dumps(completion("Hello"))),
    ">request.json": ("Hello", ""),
}
SENDS_NOTHING = (">request.json", "--dry-run -m", "--modle", "cat chat.yaml")
SENDS_TWICE = ("while", "xargs", "parallel", "-o - |")
OTHERS = "bash|curl|jq|parallel|xargs"  # programs that are not everywhere


@pytest.fixture
def prepared(shell: Shell, tmp_path: Path) -> Shell:
    """A shell with the commands and the files that the examples name."""
    shell.put("git", "echo a change")
    shell.put("mail", 'cat; echo "mail $*"')
    shell.put(
        "ssh", 'shift 2; SHELL=/bin/sh exec sh -c "$*"'
    )  # HOST -- COMMAND, as GNU parallel calls it
    for name, text in {
        "article.txt": "An article.\n",
        "list": "one\ntwo\n",
        "tutor.yaml": next(block for block in blocks("EXAMPLES") if block.startswith("model:")),
        "request.json": '{"model":"m","messages":[{"role":"user","content":"U"}]}',
        "chat.yaml": "",
        "person.yaml": "type: object\nproperties: {name: {type: string}}\n",
        "tools.yaml": "- {type: function, function: {name: f}}\n",
        "rules.txt": "Be brief.\n",
        "review.yaml": next(block for block in blocks("EXAMPLES") if block.startswith("#!")),
        ".xai-key": "xai-1\n",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "review.yaml").chmod(0o755)
    (tmp_path / ".xai-key").chmod(0o600)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    return shell


@pytest.mark.parametrize(
    ("example", "shown"),
    [
        pytest.param(
            *pair,
            id=pair[0].partition("\n")[0],
            marks=needs(*re.findall(rf"\b(?:{OTHERS})\b", pair[0])),
        )
        for pair in examples_with_output()
    ],
)
def test_an_example_runs(
    shell_api: Api, prepared: Shell, tmp_path: Path, example: str, shown: str
) -> None:
    api, shell = shell_api, prepared
    sends_twice = any(word in example for word in SENDS_TWICE)
    requests = 0 if any(word in example for word in SENDS_NOTHING) else 2 if sends_twice else 1
    odd = next((ODD_EXAMPLES[word] for word in ODD_EXAMPLES if word in example), None)
    text, out = odd or (shown.removesuffix("\n") or "Hello", "Hello\n" * requests)
    if "cat chat.yaml" in example:
        (tmp_path / "chat.yaml").write_text(shown)
    if "curl" in example:
        api.is_for_xchat = False
        api.key = shell.env["XAI_API_KEY"] = "xai-1"
    if "XAI_API_KEY_FILE" in example:
        api.key = "xai-1"
    api.will(*[reply(completion(text))] * requests)
    shell.command[0] = "bash" if "pipefail" in example else "sh"
    script = example.replace("localhost:11434", api.host)
    result = shell(f"{{ {script}}} 2>&1" if "--modle" in script else script)
    assert (result.err, result.status) == ("", 0)
    assert result.out.decode() == (shown or out)
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
    if "review.yaml" in example:
        assert api.body["messages"][0]["content"].startswith("Review the change.")
        assert api.body["messages"][1]["content"].endswith("a change\n")
    if "-S" in example:
        assert api.body["messages"][0] == {"role": "system", "content": "Be brief.\n"}
    if "-o -" in example:
        assert api.requests[1].json["messages"][1]["content"] == "Hello\n"
    if "-o article.txt" in example:
        assert files["article.txt"] == "Hello\n"
    if "wire.txt" in example:
        assert "\n> POST " in files["wire.txt"]
    if "-x" in example:
        assert files["hello.c"] == "main(){}\n"
    if "-af" in example:
        assert files["chat.yaml"].endswith(f"- assistant: {text}\n")
    if "curl" in example:
        posted = api.requests[0].body
        assert shell(example.partition("|")[0]).out == posted


def test_the_conversation_that_is_shown_is_what_its_commands_make(
    shell_api: Api, shell: Shell
) -> None:
    (block,) = [block for block in blocks("EXAMPLES") if "-af" in block]
    commands = re.findall(r"(?m)^\$ (.*)$", block)
    shell_api.will(*[reply(completion(text)) for text in ("Je suis Grok.", "Je n'en ai pas.")])
    result = shell("\n".join(commands))
    assert (result.err, result.status) == ("", 0)
    assert result.out.decode() == re.sub(r"(?m)^\$ .*\n", "", block)


@pytest.mark.parametrize("block", blocks("SHELL COMPLETION"), ids=["bash", "zsh", "fish"])
def test_the_completions_are_made(shell: Shell, block: str) -> None:
    result = shell(block)
    assert (result.out, result.err, result.status) == (b"", "", 0)
    (path,) = re.findall(r">~/(\S+)", block)
    assert "COMP_WORDS" in (shell.home / path).read_text()


def test_the_help_has_every_option_under_its_heading() -> None:
    with click.Context(xchat.xchat) as ctx:
        text = xchat.xchat.get_help(ctx)
    headings = "|".join(xchat.HEADINGS.values())
    _usage, *parts = re.split(f"^({headings}):", text, flags=re.MULTILINE)
    assert parts[::2] == [*xchat.HEADINGS.values()]
    for heading, listed in zip(parts[::2], parts[1::2], strict=True):
        options = options_under(heading)
        found = re.findall(r"^  (-.*?)(?:  |$)", listed, flags=re.MULTILINE)
        assert [re.findall(r"(?<!\S)-[\w-]+", line) for line in found] == options


def test_the_module_can_be_run() -> None:
    assert (TOP / "xchat.py").stat().st_mode & stat.S_IXUSR
