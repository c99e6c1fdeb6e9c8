"""The worked examples of the README work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import TOP, Shell, cases, needs
from picture import COMMANDS
from server import Api, completion, reply
from test_manual import PAGE, examples, section

import xchat

README = (TOP / "README.md").read_text()
WORKED = README.partition("\n## Worked examples\n")[2].partition("\n## ")[0]
REFUSED = {"code": "invalid-argument", "error": "No."}


def blocks_of(text: str) -> list[str]:
    """Return what is indented as code."""
    found = re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE)
    return [re.sub(r"^ {4}", "", block, flags=re.M).strip("\n") for block in found if block.strip()]


def example(heading: str, directory: Path) -> str:
    """Return the script under a heading; what begins with # NAME is written as that file."""
    text = WORKED.partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    scripts = []
    for block in blocks_of(text):
        if name := re.match(r"(?:#!.*\n)?# ([\w.]+)$", block, re.MULTILINE):
            (directory / name[1]).write_text(block + "\n")
            (directory / name[1]).chmod(0o755 if block.startswith("#!") else 0o644)
        else:
            scripts.append(block)
    return "\n".join(scripts)


def contents(message: Any) -> list[str]:
    return [item["content"] for item in message["messages"]]


def test_every_example_is_tested() -> None:
    tests = "".join(re.findall(r"example\((.*?)\)", Path(__file__).read_text()))
    headings = re.findall(r"^### (.*)$", WORKED, re.MULTILINE)
    assert [heading for heading in headings if f'"{heading}"' not in tests] == []


def test_nothing_is_installed_from_a_package_index_where_the_name_is_taken() -> None:
    named = re.findall(r"(.*)pipx? install (?:-\S+ )*['\"]?xchat\b", README)
    assert named == ["Do not `"]


def test_no_key_is_in_an_argument_but_of_curl_which_blanks_it() -> None:
    shown = re.findall(r"(\S+) [\"']?[^\"'\s]*\$XAI_API_KEY", README + PAGE)
    assert {*shown} == {"--oauth2-bearer"}


def test_the_statuses_are_those_of_the_manual() -> None:
    rows = re.findall(r"^\| (\d) \| ", README, re.MULTILINE)
    assert rows == re.findall(r"^\.It (\d)$", section("EXIT STATUS"), re.MULTILINE)


def test_other_commands_are_examples_of_the_manual() -> None:
    before = README.partition("\n## Worked examples\n")[0]
    lines = [line for block in blocks_of(before) for line in block.splitlines()]
    uses = [line for line in lines if re.search(r"\bxchat (-|\")", line)]
    known = re.sub(r" \\\n *", " ", "\n".join(examples()))
    assert uses
    assert [line for line in uses if line not in known] == []


def test_a_prompt_is_a_program(shell_api: Api, shell: Shell) -> None:
    shell.put("git", "echo a change")
    shell_api.will(reply(completion("None.")), reply(completion("Old ones.")))
    result = shell(example("A prompt is a program", shell.home))
    assert (result.out, result.err, result.status) == (b"None.\n", "", 0)
    assert (shell.home / "review.txt").read_text() == "Old ones.\n"
    rules = "Review the change. Name only what would break."
    assert [contents(request.json) for request in shell_api.requests] == [
        [rules, "a change\n"],
        [rules, "Think of old browsers.\n\na change\n"],
    ]
    assert shell_api.requests[-1].json["model"] == "grok-4.7"
    assert shell_api.requests[-1].json["temperature"] == 0.2


@needs("bash")
def test_two_steps_that_fail_as_one(shell_api: Api, shell: Shell) -> None:
    shell.command = ["bash", "-O", "expand_aliases", "-c"]
    script = example("Two steps that fail as one", shell.home)
    (shell.home / "article.txt").write_text("Un article.\n")

    shell_api.will(reply(completion("Court.")), reply(completion("Short.")))
    result = shell(script)
    assert (result.out, result.err, result.status) == (b"", "", 0)
    assert (shell.home / "summary.txt").read_text() == "Short.\n"
    assert [contents(request.json) for request in shell_api.requests] == [
        ["Summarize the text in three sentences.", "Un article.\n"],
        ["Translate the text into English.", "Court.\n"],
    ]

    shell_api.will(reply(completion("Cour", finish_reason="length")))
    result = shell(script)
    assert result.out == b""
    assert result.status
    assert (shell.home / "summary.txt").read_text() == "Short.\n"
    assert len(shell_api.requests) == 3


@pytest.fixture
def repository(shell: Shell) -> Path:
    """A repository with one commit and a change that is staged."""
    shell.env |= {"GIT_EDITOR": "true", "GIT_CONFIG_COUNT": "2"}
    for number, (key, value) in enumerate([("user.name", "Ada"), ("user.email", "ada@localhost")]):
        shell.env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    made = shell("git init -q && git commit -q --allow-empty -m First && echo 1 >a && git add a")
    assert (made.err, made.status) == ("", 0)
    return shell.home


@needs("git")
@cases(
    ("answer", "title"),
    {
        "a message": (reply(completion("Add a\n\nIt was missing.")), "Add a"),
        "an error": (None, "First"),
    },
)
def test_a_commit_message(
    shell_api: Api, shell: Shell, repository: Path, answer: Any, title: str
) -> None:
    shell_api.will(answer or reply(REFUSED, status="400 Bad Request"))
    result = shell(example("A commit message", repository))
    assert contents(shell_api.body)[1].endswith("@@ -0,0 +1 @@\n+1\n")
    assert result.status == (0 if answer else 4)
    assert shell("git log -1 --format=%s").out.decode() == f"{title}\n"


@needs("jq")
@cases(
    ("text", "out", "status"),
    {
        "JSON": ('{"name": "Ada Lovelace", "born": 1815}', b"Ada Lovelace\t1815\n", 0),
        "prose": ("Ada.", b"Ada.\n", 1),
    },
)
def test_json_from_prose(shell_api: Api, shell: Shell, text: str, out: bytes, status: int) -> None:
    shell_api.will(reply(completion(text)))
    result = shell(example("JSON from prose", shell.home))
    assert (result.out, result.status) == (out, status)
    schema = shell_api.body["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"name": {"type": "string"}, "born": {"type": "integer"}}


@needs("xargs")
def test_labels(shell_api: Api, shell: Shell) -> None:
    lines = ["It's slow.", "-n", 'A "word" and $HOME']
    (shell.home / "feedback.txt").write_text("".join(f"{line}\n" for line in lines))
    refused = reply(REFUSED, status="400 Bad Request")
    shell_api.will(refused, *[reply(completion("bug"))] * 2)
    result = shell(example("A label for each line", shell.home))
    assert 0 < result.status < 126  # of xargs: one of its commands failed; GNU's says 123
    assert result.err.endswith("400 Bad Request: No. (request id req-7)\n")
    asked = [contents(request.json) for request in shell_api.requests]
    assert sorted(prompts[-1] for prompts in asked) == sorted(lines)
    assert asked[0][:3] == [
        "Answer with one word, which is bug, praise or question.",
        "It crashes as soon as I open a file.",
        "bug",
    ]
    labels = (shell.home / "labels.tsv").read_text().splitlines()
    assert len(labels) == 2
    assert {*labels} < {f"bug\t{line}" for line in lines}


@needs("jq")
def test_many_calls_with_the_same_beginning(shell_api: Api, shell: Shell) -> None:
    (shell.home / "rules.txt").write_text("Be brief.\n")
    (shell.home / "reports").mkdir()
    for name in "abc":
        (shell.home / "reports" / f"{name}.txt").write_text(f"Report {name}.\n")
    answer = completion("Good.")
    answer["usage"]["prompt_tokens_details"] = {"cached_tokens": 128}
    refused = reply(REFUSED, status="400 Bad Request")
    shell_api.will(reply(completion("Good.")), refused, reply(answer))
    result = shell(example("Many calls with the same beginning", shell.home))
    assert (result.err, result.status) == ("", 0)
    assert json.loads(result.out) == {"cached": 128, "prompt": 394, "cost": 0.0008243}
    bodies = [request.json for request in shell_api.requests]
    assert [contents(body) for body in bodies] == [
        ["Be brief.\n", f"Report {name}.\n"] for name in "abc"
    ]
    assert {request.headers["x-grok-conv-id"] for request in shell_api.requests} == {"rules"}
    written = sorted(path.name for path in (shell.home / "reports").glob("*.md"))
    assert written == ["a.md", "c.md"]
    assert "400 Bad Request: No." in (shell.home / "usage.log").read_text()


def test_a_report_every_night(shell_api: Api, shell: Shell) -> None:
    table = example("A report every night", shell.home).replace("/home/ada", str(shell.home))
    *settings, job = table.splitlines()
    assert settings.pop(0) == "PATH=/usr/local/bin:/usr/bin:/bin"
    (command,) = re.findall(r"^\d+ \d+ \* \* \* (.*)$", job)
    assert "%" not in command  # which cron takes for the end of a line
    shell.put("journalctl", 'echo "$*"')
    shell_api.key = "xai-1"
    (shell.home / ".xai-key").write_text("xai-1\n")
    (shell.home / ".xai-key").chmod(0o600)
    env = dict(setting.split("=", 1) for setting in settings)
    report = shell.home / "report.txt"

    shell_api.will(reply(completion("The disk.")))
    result = shell(command, env=env)
    assert (result.out, result.err, result.status) == (b"", "", 0)
    assert report.read_text() == "The disk.\n"
    assert contents(shell_api.body) == ["What needs a human?", "-p warning -S yesterday\n"]

    shell_api.will(reply(REFUSED, status="400 Bad Request"))
    result = shell(command, env=env)
    assert (result.out, result.status) == (b"", 4)
    assert result.err.startswith("xchat: 127.0.0.1")
    assert report.read_text() == "The disk.\n"


def test_a_conversation(shell_api: Api, shell: Shell) -> None:
    shell_api.will(reply(completion("Paul")), reply(completion("Marie")))
    result = shell(example("A conversation", shell.home))
    assert (result.out, result.err, result.status) == (b"Paul\nMarie\n", "", 0)
    texts = ["Answer in French", "Who are you?", "Paul", "And your sister?"]
    assert contents(shell_api.requests[1].json) == texts


EDIT = ["Fix the grammar; return only the text", "It be late.\n"]


def test_edit_a_file_in_place(shell_api: Api, shell: Shell) -> None:
    script = example("Edit a file in place", shell.home).partition("\n:")[0]
    notes = shell.home / "notes.txt"
    notes.write_text("It be late.\n")
    shell_api.will(reply(completion("It is late.")), reply(completion("I", finish_reason="length")))
    result = shell(script)
    assert (result.out, result.err, result.status) == (b"", "", 0)
    assert notes.read_text() == "It is late.\n"
    assert contents(shell_api.requests[-1].json) == EDIT
    assert shell(script).status == 1
    assert notes.read_text() == "It is late.\n"


@needs("vim")
def test_edit_a_file_in_vim(shell_api: Api, shell: Shell) -> None:
    (command,) = re.findall(r"^:(.*)$", example("Edit a file in place", shell.home), re.MULTILINE)
    (shell.home / "notes.txt").write_text("It be late.\n")
    shell_api.will(reply(completion("It is late.")))
    shell.command = ["vim", "-es", "-u", "NONE", "notes.txt", "-c", command, "-c"]
    result = shell("q!")
    assert (result.err, result.status) == ("", 0)
    assert (shell.home / "notes.txt").read_text() == "It is late.\n"
    assert contents(shell_api.body) == EDIT


def test_several_files_with_their_names(shell_api: Api, shell: Shell) -> None:
    for name in ("old.txt", "new.txt"):
        (shell.home / name).write_text(f"From {name}.\n")
    shell_api.will(reply(completion("Nothing.")))
    result = shell(example("Several files, with their names", shell.home))
    assert (result.out, result.err, result.status) == (b"Nothing.\n", "", 0)
    files = "==> old.txt <==\nFrom old.txt.\n\n==> new.txt <==\nFrom new.txt.\n"
    assert contents(shell_api.body) == [f"What do these files disagree about?\n\n{files}"]


@needs("make")
def test_make_only_what_has_changed(shell_api: Api, shell: Shell) -> None:
    assert example("make: only what has changed", shell.home) == ""
    (shell.home / "rules.yaml").write_text("- system: Be brief.\n")
    for name in ("one", "two"):
        (shell.home / f"{name}.txt").write_text(f"{name}\n")
    command = re.findall(r"`(make .*?)`", README.partition("    # Makefile\n")[2])[0]

    shell_api.will(reply(completion("1")), reply(completion("I", finish_reason="length")))
    assert shell("make one.sum && make two.sum").status == 2
    assert not (shell.home / "two.sum").exists()

    shell_api.will(reply(completion("2")))
    result = shell(command)
    assert (result.err, result.status) == ("", 0)
    assert [(shell.home / f"{name}.sum").read_text() for name in ("one", "two")] == ["1\n", "2\n"]
    assert contents(shell_api.requests[-1].json) == ["Be brief.", "two\n"]


@needs("sha256sum")
def test_pay_once(shell_api: Api, shell: Shell) -> None:
    script = example("Pay once", shell.home)
    shell_api.will(reply(completion("B", finish_reason="length")), reply(completion("Air.")))
    assert shell(script).status == 1
    for _time in range(2):
        result = shell(script)
        assert (result.out, result.err, result.status) == (b"Air.\n", "", 0)
    assert [contents(request.json) for request in shell_api.requests] == [
        ["Why is the sky blue?"],
        ["Why is the sky blue?"],
    ]

    shell_api.will(reply(completion("Nothing.")))
    for _time in range(2):
        result = shell(f"{script} >/dev/null; echo a change | memo Review this")
        assert (result.out, result.err, result.status) == (b"Nothing.\n", "", 0)
    assert contents(shell_api.requests[-1].json) == ["Review this\n\na change\n"]


def test_a_service_with_few_rights(shell_api: Api, shell: Shell) -> None:
    assert example("A service with few rights", shell.home) == ""
    unit = shell.home / "report.service"
    (command,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    assert not re.search(r"[%$\\]", command)  # which systemd replaces
    shell.put("journalctl", 'echo "$*"')
    shell_api.key = "xai-1"
    (shell.home / "xai-key").write_text("xai-1\n")
    (shell.home / "xai-key").chmod(0o400)
    (name, value) = re.findall(r"^Environment=(\w+)=%d/(.*)$", unit.read_text(), re.MULTILINE)[0]
    shell_api.will(reply(completion("The disk.")))
    result = shell(command, env={name: str(shell.home / value)})
    assert (result.out, result.err, result.status) == (b"The disk.\n", "", 0)
    assert contents(shell_api.body) == ["What needs a human?", "-p warning -S yesterday\n"]


@needs("systemd-analyze")
def test_systemd_takes_the_service(shell: Shell) -> None:
    example("A service with few rights", shell.home)
    result = shell("systemd-analyze verify ./report.service")
    assert (result.out, result.err, result.status) == (b"", "", 0)


def test_a_model_of_your_own(shell_api: Api, shell: Shell) -> None:
    shell.put("ssh", 'echo "$@" >ssh.log')
    shell_api.will(reply(completion("Air.")))
    script = example("A model of your own", shell.home)
    result = shell(script.replace("http://localhost:11434", f"http://{shell_api.host}"))
    assert (result.out, result.err, result.status) == (b"Air.\n", "", 0)
    assert shell_api.body["model"] == "gemma3"
    assert (shell.home / "ssh.log").read_text() == "-f -N -L 11434:localhost:11434 box\n"


@needs("curl", "jq")
def test_list_the_models(shell_api: Api, shell: Shell) -> None:
    shell.env["XAI_API_KEY"] = "xai-1"
    shell_api.will(reply({"object": "list", "data": [{"id": "grok-4.7"}, {"id": "grok-4.3"}]}))
    script = example("List the models", shell.home)
    assert xchat.BASE_URL in script
    result = shell(script.replace(xchat.BASE_URL, shell_api.url))
    assert (result.out, result.err, result.status) == (b"grok-4.3\ngrok-4.7\n", "", 0)
    (request,) = shell_api.requests
    assert (request.method, request.path) == ("GET", "/v1/models")
    assert request.headers["authorization"] == "Bearer xai-1"
    shell_api.problems.clear()  # it is no chat completion


@needs("curl", "jq")
def test_search_the_web(shell_api: Api, shell: Shell) -> None:
    shell.env["XAI_API_KEY"] = "xai-1"
    text = {"type": "output_text", "text": "Ada.", "annotations": []}
    found = [{"type": "web_search_call"}, {"type": "message", "content": [text]}]
    shell_api.will(reply({"object": "response", "output": found, "status": "completed"}))
    script = example("Search the web", shell.home)
    assert xchat.BASE_URL in script
    result = shell(script.replace(xchat.BASE_URL, shell_api.url))
    assert (result.out, result.err, result.status) == (b"Ada.\n", "", 0)
    (request,) = shell_api.requests
    assert (request.method, request.path) == ("POST", "/v1/responses")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == "Bearer xai-1"
    assert request.json == {
        "model": "grok-4.7",
        "input": "Who won today?",
        "tools": [{"type": "web_search"}],
    }
    shell_api.problems.clear()  # it is no chat completion


UNAVAILABLE = "503 Service Unavailable"


@cases(
    ("answers", "models", "out", "status"),
    {
        "the first answers": ([reply(completion("Yes."))], ["grok-4.7"], b"Yes.\n", 0),
        "the first is overloaded": (
            [reply({"error": "Overloaded."}, UNAVAILABLE), reply(completion("Yes."))],
            ["grok-4.7", "grok-4.3"],
            b"Yes.\n",
            0,
        ),
        "the first refuses": ([reply(REFUSED, "400 Bad Request")], ["grok-4.7"], b"", 1),
    },
)
def test_a_fallback_model(
    shell_api: Api, shell: Shell, answers: Any, models: list[str], out: bytes, status: int
) -> None:
    (shell.home / "question.txt").write_text("Well?\n")
    shell_api.will(*answers)
    result = shell(example("A fallback model", shell.home))
    assert (result.out, result.status) == (out, status)
    assert [request.json["model"] for request in shell_api.requests] == models


def test_the_picture_shows_its_commands() -> None:
    (name,) = re.findall(r"^!\[.*\]\((.*)\)$", README, re.MULTILINE)
    picture = ElementTree.parse(TOP / name)
    lines: dict[str, str] = {}
    for item in picture.iter("{http://www.w3.org/2000/svg}text"):
        height = item.get("y", "")
        lines[height] = lines.get(height, "") + (item.text or "").replace("\xa0", " ")
    shown = re.findall(r"^\$ (.+)$", "\n".join(lines.values()), re.MULTILINE)
    assert shown == COMMANDS
    assert not re.search(r"url\(http|href=", (TOP / name).read_text())
