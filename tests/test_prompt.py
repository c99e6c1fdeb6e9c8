"""The prompt: arguments, standard input, or both."""

from __future__ import annotations

import json
import locale
import os
import pty
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HELLO, File, Result, Run, body_of, needs, needs_file
from server import Api, completion, reply

import xchat

MIB = 1 << 20


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal: the end of the one who types, the end of the program."""
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


EMPTY = "xchat: standard input was empty; only the arguments are sent; use -n to ignore it\n"


def prompt_of(result: Result, *, warning: str = "") -> str:
    """The last message of a dry run that went well."""
    assert (result.err, result.status) == (warning, 0)
    body = json.loads(result.out)
    assert body["messages"][-1]["role"] == "user"
    return str(body["messages"][-1]["content"])


@pytest.mark.parametrize(
    ("args", "stdin", "prompt"),
    [
        ([], b"standard input, to its end\n", "standard input, to its end\n"),
        ([], b"  nothing\r\nelse \n\n is changed\t", "  nothing\r\nelse \n\n is changed\t"),
        (["two", "words"], b"", "two words"),
        (["two", "words"], b" \n\t\n", "two words"),
        (["words"], b"and input\n", "words\n\nand input\n"),
        (["-"], b"input", "input"),
        (["before", "this", "-", "after", "it"], b"in", "before this\n\nin\n\nafter it"),
        (["-", "after"], b"in", "in\n\nafter"),
        (["before", "-"], b"in", "before\n\nin"),
        (["before", "-", "after"], b"", "before\n\nafter"),
        (["--", "-n", "--version"], b"", "-n --version"),
        (["--", "-"], b"in", "in"),
        (["-n", "words"], b"in", "words"),
        (["-n", "--", "-"], b"in", "-"),
        (["one", "-n", "two"], b"in", "one two"),
        ([], "\ufeffmark\ufeff".encode(), "mark\ufeff"),
        ([], "Grüße, 世界 🌍\u2028\x85\x1b[0m".encode(), "Grüße, 世界 🌍\u2028\x85\x1b[0m"),
        (["Grüße 🌍"], b"", "Grüße 🌍"),
    ],
)
def test_prompt_from_arguments_and_a_pipe(
    run: Run, args: list[str], stdin: bytes, prompt: str
) -> None:
    is_alone = bool(args) and not stdin.strip()  # the words
    result = run("--dry-run", *args, stdin=stdin)
    assert prompt_of(result, warning=EMPTY if is_alone else "") == prompt


@pytest.mark.parametrize("stdin", [b"", b"\n", b" \t\r\n"])
def test_words_with_an_empty_pipe_get_one_warning(api: Api, run: Run, stdin: bytes) -> None:
    api.will(reply(completion()), reply(completion()))
    assert run("Review", "this", stdin=stdin) == Result(b"Hello\n", EMPTY, 0)
    assert run("-q", "Review", "this", stdin=stdin) == HELLO
    contents = [request.json["messages"][0]["content"] for request in api.requests]
    assert contents == ["Review this"] * 2


def test_words_with_an_empty_file_get_one_warning(api: Api, run: Run, tmp_path: Path) -> None:
    api.will(reply(completion()))
    (tmp_path / "diff").touch()
    with (tmp_path / "diff").open("rb") as empty:
        assert run("Review this", stdin=empty) == Result(b"Hello\n", EMPTY, 0)


def test_what_is_no_pipe_gets_no_warning(api: Api, run: Run) -> None:
    api.will(*[reply(completion()) for _ in range(3)])
    assert run("Hi") == HELLO  # standard input is /dev/null
    assert run("-n", "Hi", stdin=b"") == HELLO
    run.by_shell('exec "$@" <&-')
    assert run("Hi") == HELLO


def test_a_regular_file_is_read_like_a_pipe(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"in")
    with (tmp_path / "in").open("rb") as file:
        assert prompt_of(run("--dry-run", "words", stdin=file)) == "words\n\nin"
    with (tmp_path / "in").open("rb") as file:
        assert prompt_of(run("--dry-run", stdin=file)) == "in"


def test_words_leave_a_terminal_alone(run: Run, terminal: tuple[int, int]) -> None:
    assert prompt_of(run("--dry-run", "words", stdin=terminal[1])) == "words"


def test_words_leave_a_device_alone(run: Run) -> None:
    with open("/dev/zero", "rb") as device:
        assert prompt_of(run("--dry-run", "words", stdin=device)) == "words"


def test_words_leave_a_socket_alone(run: Run) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert prompt_of(run("--dry-run", "words", stdin=theirs)) == "words"


def test_a_socket_is_read_where_there_are_no_words(run: Run) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"from the socket")
        ours.shutdown(socket.SHUT_WR)
        assert prompt_of(run("--dry-run", stdin=theirs)) == "from the socket"


def test_no_stdin_leaves_the_rest_of_a_loops_input(run: Run, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("one\n-n\ntwo words\n")
    script = 'while read -r line; do "$@" --dry-run -n -- "$line"; done <list'
    out = subprocess.run(
        ["sh", "-c", script, "sh", *run.command], env=run.env, cwd=tmp_path, stdout=-1, check=True
    ).stdout
    assert [line[-20:] for line in out.splitlines()] == [
        b'ser","content":"one"}]}'[-20:],
        b'ser","content":"-n"}]}'[-20:],
        b'"content":"two words"}]}'[-20:],
    ]


def test_closed_standard_input_is_empty(run: Run) -> None:
    run.by_shell('exec "$@" <&-')
    assert prompt_of(run("--dry-run", "words")) == "words"
    assert prompt_of(run("--dry-run", "words", "-")) == "words"
    assert run("--dry-run") == Result(b"", f"xchat: no prompt: {EMPTY_INPUT}\n", 2)


EMPTY_INPUT = "standard input was empty"
BLANK = "the arguments are blank"
UNREAD = "-n leaves standard input unread"
NO_PROMPT = {
    # the arguments; what is said where standard input is a blank pipe, and where it is /dev/null
    "nothing": ([], EMPTY_INPUT, EMPTY_INPUT),
    "an unset variable": ([""], EMPTY_INPUT, BLANK),
    "white space": ([" ", "\t"], EMPTY_INPUT, BLANK),
    "a dash": (["-"], EMPTY_INPUT, EMPTY_INPUT),
    "-n": (["-n"], UNREAD, UNREAD),
    "-n and an unset variable": (["-n", ""], UNREAD, UNREAD),
    "a system message": (["-s", "system"], EMPTY_INPUT, EMPTY_INPUT),
    "fields alone": (["-f", "fields"], EMPTY_INPUT, EMPTY_INPUT),
    "a reply alone": (["-f", "assistant"], EMPTY_INPUT, EMPTY_INPUT),
}


@pytest.mark.parametrize("name", NO_PROMPT)
def test_a_blank_prompt_is_not_sent(api: Api, run: Run, file: File, name: str) -> None:
    file("model: m\n", "fields")
    file("- assistant: Hello\n", "assistant")
    args, of_a_pipe, of_a_device = NO_PROMPT[name]
    assert run(*args, stdin=b" \n") == Result(b"", f"xchat: no prompt: {of_a_pipe}\n", 2)
    assert run(*args) == Result(b"", f"xchat: no prompt: {of_a_device}\n", 2)
    assert api.requests == []


def test_no_prompt_beside_a_conversation_on_standard_input(run: Run) -> None:
    result = run("-f", "-", stdin=b"- system: S", env={"XCHAT_BASE_URL": "http://127.0.0.1:1"})
    assert result == Result(b"", "xchat: no prompt: standard input was read as a file\n", 2)


def test_a_blank_prompt_sends_a_conversation_that_holds_a_user_message(
    api: Api, run: Run, file: File
) -> None:
    api.will(reply(completion()), reply(completion()))
    history = "- user: Hi\n- assistant: Hello\n"
    assert run("-f", file(history)) == Result(b"Hello\n", "", 0)
    assert run("-f", file(history), stdin=b"\n") == Result(b"Hello\n", "", 0)
    for request in api.requests:
        assert [message["content"] for message in request.json["messages"]] == ["Hi", "Hello"]
    assert run("-f", file("- assistant: Hello")).status == 2


def test_a_terminal_is_read_with_a_hint(run: Run, terminal: tuple[int, int]) -> None:
    keyboard, stdin = terminal
    process = run.start("--dry-run", stdin=stdin)
    hint = process.stderr.readline()
    os.write(keyboard, b"typed\n\x04")
    out, rest = process.communicate(timeout=20)
    assert (hint, rest) == (b"xchat: reading from the terminal; end with Ctrl-D\n", b"")
    assert b'"content":"typed\\n"' in out


def test_quiet_leaves_the_hint_out(run: Run, terminal: tuple[int, int]) -> None:
    os.write(terminal[0], b"typed\n\x04")
    assert prompt_of(run("-q", "--dry-run", stdin=terminal[1])) == "typed\n"


def test_a_terminal_is_not_read_when_a_user_message_is_last(
    run: Run, terminal: tuple[int, int], file: File
) -> None:
    name = file("- system: S\n- user: The question")
    assert prompt_of(run("--dry-run", "-f", name, stdin=terminal[1])) == "The question"


def test_a_pipe_that_does_not_block_is_read_to_its_end(run: Run) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    process = run.start("--dry-run", stdin=read, stderr=subprocess.DEVNULL)
    os.close(read)
    for half in (b"one ", b"two"):
        os.write(write, half)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    os.close(write)
    assert b'"content":"one two"' in process.communicate(timeout=20)[0]


def test_a_pipe_that_nobody_writes_to_ends_with_the_timeout(api: Api, run: Run) -> None:
    message = "xchat: standard input: nothing came within 1 s; use -n to ignore it\n"
    assert run.before_input("--timeout", "1", "Hi") == Result(b"", message, 2)
    assert api.requests == []


def test_one_byte_in_time_is_waited_for_to_the_end(run: Run) -> None:
    process = run.start("--dry-run", "--timeout", "2", "Hi", stdin=subprocess.PIPE)
    process.stdin.write(b"x")
    process.stdin.flush()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2.5)
    out, err = process.communicate(b"y", timeout=20)
    assert (err, process.returncode) == (b"", 0)
    assert b'"content":"Hi\\n\\nxy"' in out


WAITING = "xchat: still waiting for standard input"


def test_a_pipe_that_is_silent_for_10_seconds_gets_one_hint(run: Run) -> None:
    """All that has to wait that long does so at the same time."""
    cases: dict[str, list[str]] = {
        "words": ["Hi"],
        "none": [],
        "file": ["-f", "-", "Hi"],
        "quiet": ["-q", "Hi"],
        "silent for ever": ["--timeout", "11", "Hi"],
    }
    start = time.monotonic()
    processes = {
        name: run.start("--dry-run", *args, stdin=subprocess.PIPE) for name, args in cases.items()
    }
    screen, there = pty.openpty()
    processes["terminal"] = run.start("--dry-run", "Hi", stdin=subprocess.PIPE, stderr=there)
    os.close(there)
    hint = processes["words"].stderr.readline().decode()
    assert time.monotonic() - start >= 10
    assert processes["none"].stderr.readline().decode() == f"{WAITING}\n"
    assert processes["file"].stderr.readline().decode() == f"{WAITING}\n"
    assert read_line(screen) == f"{WAITING}; use -n to ignore it\r\n"
    assert processes["silent for ever"].wait(20) == 2
    silent = processes.pop("silent for ever")
    assert silent.stderr.read().decode() == (
        f"{WAITING}; use -n to ignore it\n"
        "xchat: standard input: nothing came within 11 s; use -n to ignore it\n"
    )
    silent.stdin.close()
    assert hint == f"{WAITING}; use -n to ignore it\n"
    for name, process in processes.items():
        out, err = process.communicate(b"- user: late", timeout=20)
        assert (err or b"", process.returncode) == (b"", 0), name
        prompt = json.loads(out)["messages"][0]["content"]
        expected = {"none": "- user: late", "file": "late"}
        assert prompt == expected.get(name, "Hi\n\n- user: late"), name
    os.close(screen)


def read_line(screen: int) -> str:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(screen, 1)
    return line.decode()


ICONV = "convert it, as in: iconv -f"


NOT_UTF_8 = {
    "Latin-1": (b"caf\xe9", f"not UTF-8 at byte 3; {ICONV} ISO-8859-1 -t UTF-8"),
    "German in Latin-1": (
        "Größe und «Spaß»".encode("latin-1"),
        f"not UTF-8 at byte 2; {ICONV} ISO-8859-1 -t UTF-8",
    ),
    "UTF-16": ("é".encode("utf-16"), f"not UTF-8 at byte 0; {ICONV} UTF-16 -t UTF-8"),
    "English in UTF-16 without a mark": (
        "Hi".encode("utf-16-le"),
        f"NUL at byte 1; {ICONV} UTF-16LE -t UTF-8",
    ),
    "English in UTF-16 with the high byte first": (
        "Hi you".encode("utf-16-be"),
        f"NUL at byte 0; {ICONV} UTF-16BE -t UTF-8",
    ),
    "French in UTF-16 without a mark": (
        "L'été".encode("utf-16-le"),
        f"not UTF-8 at byte 4; {ICONV} UTF-16LE -t UTF-8",
    ),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0", "binary data, not text: not UTF-8 at byte 0"),
    "zeros": (bytes(1000), "binary data, not text: NUL at byte 0"),
    "a word of zeros": (bytes(3) + b"\1" + bytes(4), "binary data, not text: NUL at byte 0"),
    "a separator": (b"text\0text", "binary data, not text: NUL at byte 4"),
    "one bad byte before UTF-8": (
        b"\xff " + "Grüße aus Köln".encode(),
        f"not UTF-8 at byte 0; {ICONV} UTF-8 -c -t UTF-8",
    ),
    "one bad byte after UTF-8": (
        "“Hi”, she said".encode() + b"\xe9",
        f"not UTF-8 at byte 18; {ICONV} UTF-8 -c -t UTF-8",
    ),
    "UTF-8 that is cut": (
        "naïve 🌍".encode()[:-1],
        f"not UTF-8 at byte 7; {ICONV} UTF-8 -c -t UTF-8",
    ),
    "a cut character alone": (
        b"cut off \xe2\x82",
        f"not UTF-8 at byte 8; {ICONV} ISO-8859-1 -t UTF-8",
    ),
}


@pytest.mark.parametrize("name", NOT_UTF_8)
def test_what_is_not_utf_8_is_told_how_to_convert(name: str) -> None:
    data, message = NOT_UTF_8[name]
    with pytest.raises(xchat.BadInput) as caught:
        xchat.decode(data)
    assert caught.value.message == message


@needs("iconv")
@pytest.mark.parametrize("name", ["Latin-1", "UTF-16", "French in UTF-16 without a mark"])
def test_the_conversion_that_is_advised_converts(name: str) -> None:
    data, message = NOT_UTF_8[name]
    out = subprocess.run(message.partition("in: ")[2].split(), input=data, stdout=-1).stdout
    assert out.decode() in ("café", "é", "L'été")


@pytest.mark.parametrize("name", ["Latin-1", "a picture"])
def test_input_that_is_not_utf_8(run: Run, name: str) -> None:
    stdin, message = NOT_UTF_8[name]
    for args in (["--dry-run"], ["--dry-run", "-f", "-", "words"]):
        result = run(*args, stdin=stdin, env={"LANG": "en_US.ISO-8859-1", "LC_ALL": "C"})
        assert result == Result(b"", f"xchat: standard input: {message}\n", 2)


def test_input_of_64_mib_is_sent_and_one_byte_more_is_not(run: Run, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * (64 * MIB))
    with big.open("rb") as file:
        assert len(prompt_of(run("--dry-run", stdin=file))) == 64 * MIB
    with big.open("ab") as file:
        file.write(b"x")
    with big.open("rb") as file:
        result = run("--dry-run", stdin=file)
    assert result == Result(b"", "xchat: standard input: more than 64 MiB\n", 2)


def test_endless_input_ends_as_soon_as_the_limit_is_read(run: Run) -> None:
    with subprocess.Popen(["yes"], stdout=-1) as endless:
        result = run("--dry-run", stdin=endless.stdout)
        endless.kill()
    assert result.err == "xchat: standard input: more than 64 MiB\n"


def test_standard_input_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        result = run("--dry-run", stdin=file)
    assert result == Result(b"", "xchat: standard input: Bad file descriptor\n", 2)


TWICE = "'-' is given more than once, but standard input can be read only once"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-", "and", "-"], TWICE),
        (["-f-", "-"], TWICE),
        (["-f-", "-f-"], TWICE),
        (["-f-", "-i-", "Hi"], TWICE),
        (["-p", "a=@-", "-", "Hi"], TWICE),
        (["-f-", "-n"], "'-' and -n cannot be combined"),
        (["--schema", "-", "-n", "Hi"], "'-' and -n cannot be combined"),
    ],
)
def test_standard_input_is_read_only_once(
    api: Api, run: Run, args: list[str], message: str
) -> None:
    assert run(*args, stdin=b"- user: Hi") == Result(b"", f"xchat: {message}\n", 2)
    assert api.requests == []


LOCALES = ["C", "C.UTF-8", "POSIX", "en_US.ISO-8859-1"]


def set_locale(run: Run, name: str) -> None:
    """Have the run decode its arguments as the locale says, not by a mode of Python's."""
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, name)
    except locale.Error:
        pytest.skip(f"there is no locale {name}")
    locale.setlocale(locale.LC_CTYPE, before)
    run.env |= {"LC_ALL": name, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("name", LOCALES)
def test_arguments_are_utf_8_whatever_the_locale(run: Run, name: str) -> None:
    set_locale(run, name)
    text = "Grüße 世界 🌍\u2028"
    args = ["-s", f"S {text}", "-m", f"m-{text}", "-p", f"user={text}", "-p", f'stop=["{text}"]']
    body = body_of(run("--dry-run", *args, text, "-", f"x{text}", stdin=text.encode()))
    assert body == {
        "model": f"m-{text}",
        "messages": [
            {"role": "system", "content": f"S {text}"},
            {"role": "user", "content": f"{text}\n\n{text}\n\nx{text}"},
        ],
        "user": text,
        "stop": [text],
    }


@pytest.mark.parametrize(
    ("args", "place"),
    [
        (["--dry-run", b"caf\xe9"], "PROMPT: not UTF-8 at byte 3"),
        ([b"one", "two", b"\xff"], "PROMPT: not UTF-8 at byte 0"),
        ([b"\xed\xa0\xbd"], "PROMPT: not UTF-8 at byte 0"),
        (["-s", b"caf\xe9", "x"], "-s: not UTF-8 at byte 3"),
        (["-m", b"caf\xe9", "x"], "-m: not UTF-8 at byte 3"),
        (["-p", b"user=caf\xe9", "x"], "-p: not UTF-8 at byte 8"),
    ],
)
def test_an_argument_that_is_not_utf_8_is_one_line_and_never_sent(
    api: Api, run: Run, args: list[str | bytes], place: str
) -> None:
    assert run(*args) == Result(b"", f"xchat: {place}\n", 2)
    assert api.requests == []


@pytest.mark.parametrize("name", LOCALES)
def test_an_argument_that_is_not_utf_8_is_never_sent_whatever_the_locale(
    api: Api, run: Run, name: str
) -> None:
    set_locale(run, name)
    message = "xchat: PROMPT: not UTF-8 at byte 3\n"
    assert run(b"caf\xe9") == Result(b"", message, 2)
    assert api.requests == []


@pytest.mark.parametrize("name", LOCALES)
def test_the_names_of_files_are_bytes(run: Run, name: str) -> None:
    set_locale(run, name)
    for path in ("é".encode(), b"caf\xe9"):
        with open(os.fsencode(run.home) + b"/" + path, "wb") as file:
            file.write(b"- assistant: A")
        body = body_of(run("--dry-run", "-f", path, "Hi"))
        assert body["messages"][0] == {"role": "assistant", "content": "A"}


@needs_file("/proc/self/maps")
def test_the_slow_imports_are_done_before_standard_input_ends(api: Api, run: Run) -> None:
    api.will(reply(completion()))
    process = run.start(stdin=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while "/_ssl." not in Path(f"/proc/{process.pid}/maps").read_text():  # requests brings it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.communicate(b"Hi", timeout=20) == (b"Hello\n", b"")


def test_a_character_that_comes_byte_by_byte_is_one(run: Run) -> None:
    text = 'é"\\\n\r\t\x01\u2028🌍\ufeff'
    process = run.start("--dry-run", stdin=subprocess.PIPE)
    for byte in f"\ufeff{text}".encode():
        process.stdin.write(bytes([byte]))
        process.stdin.flush()
        time.sleep(0.005)
    body = json.loads(process.communicate(timeout=20)[0])
    assert body["messages"] == [{"role": "user", "content": text}]
