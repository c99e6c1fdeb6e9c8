"""-o: the file is whole or as it was; and every form of output works with every other.

How a file is replaced is tested in test_replace.py.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PNG, File, Result, Run, Screen, Shell, needs, needs_file
from server import STREAM_HEAD, Api, chunk, completion, event, reply, stream


def test_the_output_takes_the_place_of_the_file_and_keeps_its_mode(
    api: Api, run: Run, tmp_path: Path
) -> None:
    api.will(reply(completion("One")), reply(completion("Two")), reply(completion("Three")))
    run.by_shell('umask 027; exec "$@"')
    out = tmp_path / "out"
    assert run("-o", "out", "Hi") == Result(b"", "", 0)
    assert (out.read_text(), stat.S_IMODE(out.stat().st_mode)) == ("One\n", 0o640)
    out.chmod(0o604)
    before = out.stat().st_ino
    assert run("-o", "./out", "Hi") == Result(b"", "", 0)
    assert (out.read_text(), stat.S_IMODE(out.stat().st_mode)) == ("Two\n", 0o604)
    assert out.stat().st_ino != before
    (tmp_path / "link").symlink_to("out")
    assert run("-o", "link", "Hi").status == 0
    assert (tmp_path / "link").is_symlink()
    assert out.read_text() == "Three\n"
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]


# what the server says, and what of it is printed
NOT_WHOLE = {
    "cut at the token limit": (reply(completion("Hel", finish_reason="length")), b"Hel\n"),
    "empty": (reply(completion(None)), b""),
    "half a body": (reply(b"{"), b""),
    "refused": (reply({"error": "no"}, "400 Bad Request"), b""),
    "a stream that ends early": ([STREAM_HEAD + event(chunk("Hel"))], b"Hel\n"),
    "no answer": ([], b""),
}


@pytest.mark.parametrize(("answer", "out"), NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_what_is_not_whole_goes_to_standard_output_and_the_file_is_left_as_it_was(
    api: Api, run: Run, file: File, tmp_path: Path, answer: list[Any], out: bytes
) -> None:
    name = file("yesterday's", "report")
    api.will(answer, answer)
    result = run("-o", name, "Hi")
    assert (result.out, result.err.count("\n")) == (out, 1)
    assert result.status != 0
    assert (tmp_path / name).read_text() == "yesterday's"
    assert run("-o", "new", "Hi").status == result.status
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(("answer", "_out"), NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_standard_output_that_is_named_gets_a_whole_reply_or_nothing(
    api: Api, run: Run, answer: list[Any], _out: bytes
) -> None:
    api.will(answer, answer, reply(completion()))
    result = run("-o", "-", "Hi")
    assert (result.out, result.err.count("\n")) == (b"", 1)
    assert result.status != 0
    assert run("-o", "/dev/stdout", "Hi") == result
    assert run("-o", "-", "Hi") == Result(b"Hello\n", "", 0)


def test_standard_output_that_is_named_gets_no_stream_on_a_terminal(api: Api, run: Run) -> None:
    api.will(reply(completion("\x1b")))
    screen = Screen()
    process = run.start("-o", "-", "Hi", stdout=screen.theirs)
    assert process.wait(20) == 0
    assert screen.close() == b"^[\r\n"
    assert "stream" not in api.body


def test_an_error_in_json_goes_to_standard_output_unless_that_is_named(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    name = file("yesterday's", "report")
    answer = reply({"error": "no"}, "400 Bad Request")
    api.will(answer, answer)
    result = run("--json", "-o", name, "Hi")
    assert (result.out, result.status) == (b'{"error": "no"}\n', 4)
    assert (tmp_path / name).read_text() == "yesterday's"
    assert run("--json", "-o", "-", "Hi") == Result(b"", result.err, 4)


def test_with_a_full_disk_the_reply_goes_to_standard_output(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    name = file("yesterday's", "report")
    text = "x" * 9999
    api.will(reply(completion(text)), reply(completion(text)))
    run.command = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", *run.command]
    message = "xchat: report: File too large\n"
    assert run("-o", name, "Hi") == Result(f"{text}\n".encode(), message, 1)
    assert (tmp_path / name).read_text() == "yesterday's"
    assert run("-o", "new", "Hi").out == f"{text}\n".encode()
    assert os.listdir(tmp_path) == [name]


def test_a_turn_that_cannot_be_added_leaves_the_output_as_it_was(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    file("yesterday's", "report")
    (tmp_path / "c").mkdir()
    file("- user: a\n", "c/c")
    gate = threading.Event()
    api.will([gate, *reply(completion())])
    process = run.start("-o", "report", "-af", "c/c", "Hi")
    api.wait_for_requests()
    file("broken", "c/c")
    gate.set()
    out, err = process.communicate(timeout=20)
    assert (out, err.count(b"\n"), process.returncode) == (b"Hello\n", 1, 1)
    assert (tmp_path / "report").read_text() == "yesterday's"
    assert sorted(os.listdir(tmp_path)) == ["c", "report"]


def test_a_turn_that_cannot_be_added_does_not_keep_the_reply_from_standard_output(
    api: Api, run: Run, file: File
) -> None:
    def break_it(_connection: Any) -> None:
        file("broken")

    for args in (["-o", "-"], ["--stream"], []):
        answer = [STREAM_HEAD + stream("Hello")] if args == ["--stream"] else reply(completion())
        api.will([break_it, *answer])
        result = run("-af", file("- user: a\n"), *args, "Hi")
        assert (result.out, result.err.count("\n"), result.status) == (b"Hello\n", 1, 1)


def test_a_device_or_a_pipe_is_written_to(api: Api, run: Run, tmp_path: Path) -> None:
    api.will(*[reply(completion()) for _ in range(4)])
    assert run("-o", "/dev/null", "Hi") == Result(b"", "", 0)
    assert run("-o", "/dev/stdout", "Hi") == Result(b"Hello\n", "", 0)
    assert run("-o", "-", "Hi") == Result(b"Hello\n", "", 0)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(tmp_path / "pipe")
    process = run.start("-o", "pipe", "Hi")
    assert (tmp_path / "pipe").read_text() == "Hello\n"
    assert process.wait(20) == 0


NAMES_OF_STDOUT = {
    "two slashes": "//dev/stdout",
    "a relative path": "../../../../../../../../../dev/stdout",
    "a thread's descriptor": "/proc/thread-self/fd/1",
    "a link": "link",
    "a link to a link": "link2",
    "the file itself": "log",
    "another name of the file": "log2",
}


@needs_file("/proc/thread-self")
@pytest.mark.parametrize("name", NAMES_OF_STDOUT.values(), ids=NAMES_OF_STDOUT)
def test_what_is_open_for_writing_already_is_written_to_under_any_name(
    shell: Shell, shell_api: Api, tmp_path: Path, name: str
) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "link2").symlink_to("link")
    (tmp_path / "log").touch()
    (tmp_path / "log2").hardlink_to(tmp_path / "log")
    inode = (tmp_path / "log").stat().st_ino
    shell_api.will(reply(completion()))
    result = shell(f"exec >log; echo one; xchat -o {name} Hi; echo two")
    assert result == Result(b"", "", 0)
    assert (tmp_path / "log").read_text() == "one\nHello\ntwo\n"
    assert (tmp_path / "log").stat().st_ino == inode


def test_a_file_that_is_open_for_reading_alone_is_edited_in_place(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    name = file("Helo", "notes.txt")
    api.will(reply(completion()))
    with open(tmp_path / name, "rb") as notes:
        assert run("-s", "Fix", "-o", name, stdin=notes) == Result(b"", "", 0)
    assert api.body["messages"][-1] == {"role": "user", "content": "Helo"}
    assert (tmp_path / name).read_text() == "Hello\n"


@needs("bash")
def test_a_process_of_the_shell_is_written_to(shell: Shell, shell_api: Api, tmp_path: Path) -> None:
    shell_api.will(reply(completion()))
    result = shell("bash -c 'xchat -o >(tr a-z A-Z >out; mv out done) Hi; wait $!'")
    assert result == Result(b"", "", 0)
    assert (tmp_path / "done").read_text() == "HELLO\n"


@needs_file("/dev/full")
def test_what_a_device_does_not_take_goes_to_standard_output(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    message = "xchat: /dev/full: No space left on device\n"
    assert run("-o", "/dev/full", "Hi") == Result(b"Hello\n", message, 1)


def test_the_output_needs_no_standard_output(api: Api, run: Run, tmp_path: Path) -> None:
    api.will(reply(completion()), reply(completion()))
    run.command = ["sh", "-c", 'exec "$@" >&-', "sh", *run.command]
    assert run("-o", "out", "Hi") == Result(b"", "", 0)
    assert (tmp_path / "out").read_text() == "Hello\n"
    assert run("-o", "/dev/null", "Hi") == Result(b"", "", 0)
    message = "xchat: standard output: closed\n"
    assert run("-o", "-", "Hi") == Result(b"", message, 1)


def test_an_interrupt_leaves_no_file_behind(api: Api, run: Run, tmp_path: Path) -> None:
    gate = threading.Event()
    api.will([gate, *reply(completion())])
    process = run.start("-o", "out", "Hi")
    api.wait_for_requests()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM
    gate.set()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "-o: is empty"),
        ("none/", "none/: is a directory"),
        ("loop", "loop: Too many levels of symbolic links"),
    ],
)
def test_what_cannot_be_a_file_is_refused(run: Run, path: str, message: str) -> None:
    (run.home / "loop").symlink_to("loop")
    env = {"XCHAT_BASE_URL": "http://127.0.0.1:9/v1"}
    assert run("-o", path, "Hi", env=env) == Result(b"", f"xchat: {message}\n", 2)


CODE = '# T\n```json\n{"a": 1}\n```\n'
REQUEST = [["-p", "seed=7"], ["--schema", "schema"], ["-i", "image"], ["-f", "c"], ["-m", "m"]]


@pytest.mark.parametrize("options", [*REQUEST, [], ["--stream"], ["--no-stream"]])
def test_a_dry_run_writes_what_is_posted_for_every_option(
    api: Api, run: Run, file: File, options: list[str]
) -> None:
    file("{}", "schema")
    file(PNG, "image")
    file("system: é\nhistory:\n- user: '1'\ntop_p: 0.95\n", "c")
    several = [] if options in REQUEST else [arg for option in REQUEST for arg in option]
    args = [*several, *options, "-s", "S", "-t", "0"]
    api.will([STREAM_HEAD + stream("1")] if "--stream" in args else reply(completion("1")))
    assert run(*args, "Q", "-", stdin=b"more").status == 0
    dry = run("--dry-run", *args, "Q", "-", stdin=b"more")
    assert dry == Result(api.requests[0].body + b"\n", "", 0)
    assert run("--dry-run", "-f", file(dry.out, "r.json")) == dry


def test_a_dry_run_is_the_same_whatever_becomes_of_the_reply(run: Run) -> None:
    dry = run("--dry-run", "--schema", "{}", "Q")
    assert run("--dry-run", "--schema", "{}", "-x", "-u", "-af", "new", "Q") == dry
    assert run("--dry-run", "--schema", "{}", "-o", "out", "Q") == Result(b"", "", 0)
    assert (run.home / "out").read_bytes() == dry.out
    assert os.listdir(run.home) == ["out"]


# to a pipe and to a terminal
WAYS = [([], False), (["--stream"], False), ([], True)]
FORMS = [[], ["-x"], ["--json"]]
OUTPUTS = [
    [],
    ["-o", "out"],
    ["-af", "new", "-u", "--schema", "schema"],
    ["-af", "new", "-u", "--schema", "schema", "-o", "out"],
]


@pytest.mark.parametrize(("way", "is_terminal"), WAYS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_every_form_of_output_goes_with_every_other(
    api: Api,
    run: Run,
    file: File,
    way: list[str],
    form: list[str],
    outputs: list[str],
    is_terminal: bool,
) -> None:
    way = ["-p", "stream=true"] if way and form == ["--json"] else way  # --stream is an error
    args = [*way, *form, *outputs]
    text = '{"a": 1}' if "--schema" in args and form != ["-x"] else CODE
    file("{}", "schema")
    is_live = is_terminal and not form and "-o" not in args
    body = stream(text) if way or is_live else json.dumps(completion(text)).encode()
    api.will([STREAM_HEAD + body] if way or is_live else reply(body))
    if is_terminal:
        screen = Screen()
        process = run.start(*args, "Q", stdout=screen.theirs)
        out = screen.close().replace(b"\r\n", b"\n")
        err = process.communicate(timeout=20)[1].decode()
        status = process.returncode
    else:
        result = run(*args, "Q")
        out, err, status = result.out, result.err, result.status
    assert status == 0
    expected = {"-x": b'{"a": 1}', "--json": body}.get("".join(form), text.encode())
    expected = expected.rstrip(b"\n") + b"\n" * (2 if way and form == ["--json"] else 1)
    if "-o" in args:
        assert out == b""
        out = (run.home / "out").read_bytes()
    assert out == expected
    if "-af" in args:
        assert text in yaml.safe_load((run.home / "new").read_text())[-1]["assistant"]
    assert bool(err) == ("-u" in args)
    if err:
        assert json.loads(err)["model"] == "grok-4.7"


def test_a_terminal_that_is_named_is_shown_the_controls_too(api: Api, run: Run) -> None:
    api.will(reply(completion("\x1b]0;t\x07")))
    screen = Screen()
    process = run.start("-o", os.ttyname(screen.theirs), "Hi")
    assert process.wait(20) == 0
    assert screen.close() == b"^[]0;t^G\r\n"


def test_a_terminal_is_shown_the_controls_of_a_body(api: Api, run: Run) -> None:
    api.will(reply(b'{"choices":[{"message":{"content":"\x1b]0;t\x07\xff\xc2\x9b"}}]}'))
    screen = Screen()
    process = run.start("--json", "Hi", stdout=screen.theirs)
    out = screen.close().decode()
    assert process.wait(20) == 1  # control characters are not JSON
    assert '"^[]0;t^G\ufffd<U+009B>"' in out
