"""What the wheel, the sdist and `make install` put where, and what the shells complete."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from conftest import TOP, Result, Run

import xchat

INSTALLED = [
    "bin/xchat",
    f"lib/xchat/__pycache__/xchat.{sys.implementation.cache_tag}.pyc",
    "lib/xchat/xchat.py",
    "share/bash-completion/completions/xchat",
    "share/fish/vendor_completions.d/xchat.fish",
    "share/man/man1/xchat.1",
    "share/zsh/site-functions/_xchat",
]


def call(*args: str | Path, cwd: Path = TOP, **env: str) -> str:
    """Run a command that must succeed and return what it wrote."""
    process = subprocess.run(
        args, cwd=cwd, env={**os.environ, **env}, text=True, stdout=-1, stderr=-2, check=False
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def files_below(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout of what would be committed."""
    names = call("git", "ls-files", "-co", "--exclude-standard").split()
    top = tmp_path_factory.mktemp("tree")
    for name in names:
        if (TOP / name).exists():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, top / name)
    call("git", "init", "-q", cwd=top)
    call("git", "add", "-A", cwd=top)
    call("git", "-c", "user.name=t", "-c", "user.email=t", "commit", "-qm", "all", cwd=top)
    return top


@pytest.fixture(scope="module")
def dist(tree: Path) -> Path:
    """The folder that holds the wheel and the sdist."""
    build = "import setuptools.build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
    call(sys.executable, "-c", build, cwd=tree)
    return tree / "dist"


def test_the_wheel_holds_the_module_the_command_and_the_page(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "xchat = xchat:main" in archive.read(entry).decode()
    name = f"xchat-{xchat.__version__}"
    assert wheel.name == f"{name}-py3-none-any.whl"
    assert "xchat.py" in names
    assert f"{name}.data/data/share/man/man1/xchat.1" in names
    assert not [name for name in names if "test" in name]


def test_the_sdist_holds_all_that_git_tracks(dist: Path, tree: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "man/xchat.1", "tests/server.py", "tests/article.txt", ".ci/run"} <= names
    assert set(call("git", "ls-files", cwd=tree).split()) <= names


def test_pip_puts_the_command_and_the_page_where_they_are_found(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "venv" / "bin" / "python")]
    call(*pip, "install", "-q", "--no-deps", "--no-index", wheel)
    assert (tmp_path / "venv" / "share" / "man" / "man1" / "xchat.1").exists()
    here = os.pathsep.join(sys.path)  # for the packages it needs
    command = tmp_path / "venv" / "bin" / "xchat"
    assert call(command, "--version", PYTHONPATH=here) == f"xchat {xchat.__version__}\n"


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Path]:
    """What is below DESTDIR and PREFIX after make install, beside another's files."""
    top = tmp_path / "dest dir" / "opt"
    others = [top / "bin" / "other", top / "share" / "man" / "man1" / "other.1"]
    for path in others:
        path.parent.mkdir(parents=True)
        path.touch()
    where = [f"DESTDIR={tmp_path / 'dest dir'}", "PREFIX=/opt", f"PYTHON={sys.executable}"]
    call("make", "install", *where)
    for path in others:
        path.unlink()
    yield top
    for path in others:
        path.touch()
    call("make", "uninstall", *where)
    assert files_below(top) == ["bin/other", "share/man/man1/other.1"]


def test_make_install_puts_every_file_where_it_is_found(installed: Path) -> None:
    assert files_below(installed) == INSTALLED
    modes = {name: (installed / name).stat().st_mode & 0o777 for name in INSTALLED}
    assert modes.pop("bin/xchat") == 0o755
    assert set(modes.values()) == {0o644}


def test_the_installed_command_is_the_module(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "xchat"
    assert command.read_text().startswith(f"#!{sys.executable}\n")
    module = installed / "lib" / "xchat" / "xchat.py"
    assert module.read_text() == (TOP / "xchat.py").read_text()
    out = call(command, "--version", cwd=tmp_path, PATH="/nowhere")
    assert out == f"xchat {xchat.__version__}\n"
    module.write_text("1/0\n")  # what runs is the compiled module
    assert call(command, "--version") == out


SHELLS = {
    "bash": (
        "share/bash-completion/completions/xchat",
        'source "$1"; COMP_WORDS=(xchat --mod); COMP_CWORD=1; _xchat_completion xchat;'
        ' echo "${COMPREPLY[@]}"',
    ),
    "zsh": (
        "share/zsh/site-functions/_xchat",
        "compdef() { :; }; compadd() { :; }; _describe() { print -r -- ${(P)3}; };"
        ' words=(xchat --mod); CURRENT=2; source "$1"; _xchat_completion',
    ),
    "fish": (
        "share/fish/vendor_completions.d/xchat.fish",
        'source $argv[1]; complete -C "xchat --mod"',
    ),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_completions_complete(installed: Path, shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not on this machine; .ci/run installs it")
    file, script = SHELLS[shell]
    path = f"{installed / 'bin'}:{os.environ['PATH']}"
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["-N"]}[shell]
    name = [] if shell == "fish" else ["x"]
    words = [shell, *options, "-c", script, *name, str(installed / file)]
    out = call(*words, PATH=path, HOME=str(tmp_path))
    assert "--model" in out
    assert "Traceback" not in out


@pytest.mark.parametrize("option", ["-f", "-o", "-i", "--schema"])
def test_the_shell_completes_files(run: Run, option: str) -> None:
    env = {"_XCHAT_COMPLETE": "bash_complete", "COMP_WORDS": f"xchat {option} ", "COMP_CWORD": "2"}
    assert run(env=env) == Result(b"file,\n", "", 0)


def test_the_shell_completes_options_and_no_roles(run: Run) -> None:
    def completed(words: str) -> set[str]:
        number = str(len(words.split(" ")) - 1)
        env = {"_XCHAT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
        return set(re.findall(r"^plain,(.*)$", run(env=env).out.decode(), re.MULTILINE))

    options = [param for param in xchat.xchat.params if isinstance(param, click.Option)]
    names = {name for option in options for name in [*option.opts, *option.secondary_opts]}
    assert completed("xchat --") == {name for name in names if name.startswith("--")}
    for words in ("xchat ", "xchat -s ", "xchat -m ", "xchat -p ", "xchat as", "xchat -s sys"):
        assert completed(words) == set()


def test_the_completion_of_a_shell_is_a_process_of_its_own(run: Run) -> None:
    out = subprocess.run(
        run.command, env={**run.env, "_XCHAT_COMPLETE": "bash_source"}, stdout=-1, check=True
    ).stdout
    assert b"complete" in out


def test_the_oldest_releases_that_are_tested_are_those_that_setup_cfg_admits() -> None:
    setup = configparser.ConfigParser()
    setup.read(TOP / "setup.cfg")
    wanted = re.findall(r"^(\w+)>=([\d.]+)$", setup["options"]["install_requires"], re.MULTILINE)
    pins = re.findall(r"^(\w+)==([\d.]+)", (TOP / "tests" / "oldest.txt").read_text(), re.MULTILINE)
    assert {(name, version.removesuffix(".0")) for name, version in pins} >= set(wanted)
    assert {name for name, _version in pins} == {name for name, _version in wanted}
