from __future__ import annotations

import fcntl
import json
import os
import pty
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest
import trustme
import yaml
from server import Api
from urllib3 import HTTPResponse

# what the tests run must not inherit that a background job ignores the first, and nohup the second
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

TOP = Path(__file__).parent.parent
COMMAND = [sys.executable, str(TOP / "tests" / "command.py")]


class Absent(ModuleType):
    """Stands for the module where an installed command is tested: what needs it is skipped."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        pytest.skip("it is the command that is tested, not the module", allow_module_level=True)


if name := os.environ.get("XCHAT_COMMAND"):
    if not (installed := shutil.which(name)):
        raise pytest.UsageError(f"XCHAT_COMMAND: no such command: {name}")
    COMMAND = [os.path.abspath(installed)]
    sys.modules["xchat"] = Absent("xchat")
import xchat  # noqa: E402

File = Callable[..., str]  # the fixture file()

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if not shutil.which(program)]
    return pytest.mark.skipif(bool(missing), reason=f"not on this machine: {', '.join(missing)}")


def needs_file(path: str) -> pytest.MarkDecorator:
    """What Linux has and macOS lacks, such as /proc."""
    return pytest.mark.skipif(not Path(path).exists(), reason=f"there is no {path}")


def cases(names: str | tuple[str, ...], table: dict[str, Any]) -> pytest.MarkDecorator:
    """Parametrize a test by a table, which gives each case its name in words."""
    return pytest.mark.parametrize(names, table.values(), ids=table)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a case that is a command line, or an environment, by its words."""
    if isinstance(val, dict):
        val = [f"{name}={value}" for name, value in val.items()]
    if isinstance(val, (list, tuple)) and all(isinstance(word, (str, bytes)) for word in val):
        words = (word if word and isinstance(word, str) else ascii(word) for word in val)
        return " ".join(words)[:40] or "none"
    return None


needs_limit = pytest.mark.skipif(
    sys.platform == "darwin", reason="macOS does not limit the memory of a process"
)


def limit(seconds: int = 15) -> None:
    """Limit a process, which calls this before it begins, to 1 GiB and to seconds of CPU time."""
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


@dataclass
class Result:
    out: bytes
    err: str
    status: int


HELLO = Result(b"Hello\n", "", 0)  # what becomes of completion()
KEY = "xai-abcDEF0123456789"
SECRET = "cf-0123456789abcdef"  # a header's value


def said(api: Api, words: str, *, request_id: str = " (request id req-7)") -> str:
    """The line on standard error about what the server sent."""
    return f"xchat: {api.host}: {words}{request_id}\n"


def judged(*blocks: bytes, is_raw: bool = False, schema: bool = False) -> tuple[str, str, int]:
    """What becomes of a reply that comes in these blocks, in the process: text, words, status."""
    reply = xchat.Reply("host", keep_body=is_raw)
    text = "".join(xchat.read_reply(blocks, reply))
    assert text == reply.text
    failure = xchat.judge(reply, text, wants_json=schema)
    return (text, failure.message, failure.exit_code) if failure else (text, "", 0)


def refused(
    status: str, body: Any, *, key: str = "", is_stream: bool = False, **headers: str
) -> Any:
    """The failure that a response with another status than 200 means, in the process."""
    number, _, reason = status.partition(" ")
    response = HTTPResponse(status=int(number), reason=reason, headers=headers)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    server: Any = SimpleNamespace(key=key, proxy=None)
    return xchat.refusal(response, data, server, is_stream=is_stream)


def body_of(result: Result) -> Any:
    """The request of a dry run that went well."""
    assert (result.err, result.status) == ("", 0)
    return json.loads(result.out)


class Run:
    """Runs xchat as a process of its own in an environment built from scratch."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
        self.command = COMMAND

    def start(self, *args: str | bytes, env: dict[str, str] | None = None, **popen: Any) -> Any:
        popen = {"stdin": subprocess.DEVNULL, "stdout": -1, "stderr": -1, **popen}
        return subprocess.Popen(
            [*self.command, *args], env={**self.env, **(env or {})}, cwd=self.home, **popen
        )

    def __call__(
        self,
        *args: str | bytes,
        stdin: bytes | int | Any = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
        timeout: float = 30,
        **popen: Any,
    ) -> Result:
        """Run to the end. stdin is what a pipe holds, or a file for standard input."""
        data = stdin if isinstance(stdin, bytes) else None
        popen["stdin"] = subprocess.PIPE if isinstance(stdin, bytes) else stdin
        process = self.start(*args, env=env, **popen)
        try:
            out, err = process.communicate(data, timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return Result(out, (err or b"").decode(), process.returncode)

    def before_input(self, *args: str, env: dict[str, str] | None = None) -> Result:
        """Run to the end with a standard input that stays silent, for which it must not wait."""
        process = self.start(*args, env=env, stdin=subprocess.PIPE)
        process.wait(20)
        out, err = process.communicate()
        return Result(out, err.decode(), process.returncode)

    def by_shell(self, script: str) -> None:
        """Have a script start the command, which is its "$@"."""
        self.command = ["sh", "-c", script, "sh", *self.command]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


class Shell(Run):
    """Runs scripts, for which xchat is a command."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        (home / "bin").mkdir()
        self.put("xchat", " ".join(f"'{word}'" for word in self.command) + ' "$@"')
        self.env["PATH"] = f"{home / 'bin'}:{self.env['PATH']}"
        self.command = ["sh", "-c"]

    def put(self, name: str, script: str) -> None:
        """Make a command of a script."""
        command = self.home / "bin" / name
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def shell_api(shell: Shell) -> Iterator[Api]:
    """The server that xchat asks in scripts."""
    yield from serve(shell, Api())


@pytest.fixture
def api(run: Run) -> Iterator[Api]:
    """The server that run() asks."""
    yield from serve(run, Api())


def serve(run: Run, server: Api) -> Iterator[Api]:
    """Serve a run. At the end the server must be content, and have sent all that it was to."""
    run.env["XCHAT_BASE_URL"] = server.url
    yield server
    server.close()
    assert server.problems == []
    assert server.scripts == []


@pytest.fixture
def file(tmp_path: Path) -> File:
    """Write a file, a conversation where it has no name, and return its name."""

    def write(content: str | bytes, name: str = "c") -> str:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return name

    return write


class Screen:
    """A terminal that a program runs on; what it wrote there, to either or both outputs."""

    def __init__(self, columns: int = 80) -> None:
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read_until(self, wanted: bytes) -> bytes:
        seen = b""
        while wanted not in seen:
            seen += os.read(self.ours, 4096)
        return seen

    def close(self) -> bytes:
        """Return what is left to read."""
        os.close(self.theirs)
        seen = b""
        try:
            while block := os.read(self.ours, 4096):
                seen += block
        except OSError:  # that is how the end looks
            os.close(self.ours)
        return seen


@pytest.fixture
def screen(run: Run) -> Screen:
    run.env["TERM"] = "xterm"
    return Screen()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Who issues the certificates of servers."""
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    """The file that says the authority is to be trusted."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


@pytest.fixture(params=["libyaml", "python"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML with libyaml, and as it is where that is missing."""
    if request.param == "python":
        monkeypatch.delattr(yaml, "CSafeLoader")
