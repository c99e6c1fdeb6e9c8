"""What the wheel, the sdist and `make install` put where, and what the shells complete."""

from __future__ import annotations

import configparser
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TOP, needs

import xchat

if not (TOP / "Makefile").exists():
    pytest.skip("there is no source tree here", allow_module_level=True)

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
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the wheel and the sdist of a copy of this tree."""
    if not importlib.util.find_spec("setuptools"):
        pytest.skip("this Python has no setuptools")
    ignored = [line.strip("/") for line in (TOP / ".gitignore").read_text().splitlines()]
    tree = tmp_path_factory.mktemp("dist") / "tree"
    shutil.copytree(TOP, tree, ignore=shutil.ignore_patterns(".git", *ignored))
    build = "import setuptools.build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
    call(sys.executable, "-c", build, cwd=tree)
    return tree / "dist"


def test_the_wheel_holds_the_module_the_command_and_the_page(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "xchat = xchat:main" in archive.read(entry).decode()
    name = f"xchat_filter-{xchat.__version__}"
    assert wheel.name == f"{name}-py3-none-any.whl"
    assert "xchat.py" in names
    assert f"{name}.data/data/share/man/man1/xchat.1" in names
    assert not [name for name in names if "test" in name]


@needs("git")
def test_the_sdist_holds_all_that_git_tracks(dist: Path) -> None:
    if not (TOP / ".git").exists():
        pytest.skip("this tree is not a checkout of git")
    listed = call("git", "-c", f"safe.directory={TOP}", "ls-files", "-co", "--exclude-standard")
    tracked = {name for name in listed.splitlines() if (TOP / name).exists()}
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "man/xchat.1", "tests/server.py", "tests/article.txt", ".ci/run"} <= tracked
    assert tracked - names == set()


@pytest.mark.skipif(not importlib.util.find_spec("pip"), reason="this Python has no pip")
def test_pip_puts_the_command_and_the_page_where_they_are_found(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "venv" / "bin" / "python")]
    call(*pip, "install", "-q", "--no-deps", "--no-index", wheel)
    assert (tmp_path / "venv" / "share" / "man" / "man1" / "xchat.1").exists()
    here = os.pathsep.join(sys.path)  # for the packages it needs
    command = tmp_path / "venv" / "bin" / "xchat"
    assert call(command, "--version", PYTHONPATH=here) == f"xchat {xchat.__version__}\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is below DESTDIR and PREFIX after make install, beside another's files."""
    tmp_path = tmp_path_factory.mktemp("installed")
    top = tmp_path / "dest dir" / "opt"
    others = [top / "bin" / "other", top / "share" / "man" / "man1" / "other.1"]
    for path in others:
        call("sh", "-c", 'umask 022; mkdir -p "$1"', "sh", path.parent)
        path.touch()
    where = [f"DESTDIR={tmp_path / 'dest dir'}", "PREFIX=/opt", f"PYTHON={sys.executable}"]
    call("sh", "-c", 'umask 077; make install "$@"', "sh", *where)
    for path in others:
        path.unlink()
    yield top
    for path in others:
        path.touch()
    call("make", "uninstall", *where)
    assert files_below(top) == ["bin/other", "share/man/man1/other.1"]


@needs("make")
def test_make_install_puts_every_file_where_it_is_found(installed: Path) -> None:
    assert files_below(installed) == INSTALLED


@needs("make")
@pytest.mark.parametrize("prefix", ["/a b/it is", "/usr/local b", "relative a"])
def test_a_prefix_may_hold_spaces(tmp_path: Path, prefix: str) -> None:
    where = [f"PREFIX={prefix}", f"DESTDIR={tmp_path}/d e/", f"PYTHON={sys.executable}"]
    call("make", "install", *where)
    top = tmp_path / "d e" / prefix.strip("/")
    assert files_below(top) == INSTALLED
    assert files_below(tmp_path) == [
        str(path.relative_to(tmp_path)) for path in [top / name for name in INSTALLED]
    ]
    assert call(top / "bin" / "xchat", "--version") == f"xchat {xchat.__version__}\n"
    call("make", "uninstall", *where)
    assert files_below(tmp_path) == []


@needs("make")
@pytest.mark.parametrize("name", ["json", "yaml", "click", "os"])
def test_a_module_beside_the_command_replaces_none(installed: Path, name: str) -> None:
    module = installed / "bin" / f"{name}.py"
    module.write_text("1/0\n")
    command = installed / "bin" / "xchat"
    assert call(command, "--version") == f"xchat {xchat.__version__}\n"
    assert json.loads(call(command, "--dry-run", "-f", "tests/capitals.yaml"))["messages"]
    module.unlink()


def not_for_all(top: Path) -> list[Path]:
    """Return what is not for all to read, or is for others to write."""
    return [
        path
        for path in top.rglob("*")
        if path.stat().st_mode & 0o777
        != (0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    ]


@needs("make")
def test_all_may_read_what_make_install_installs(installed: Path) -> None:
    assert not_for_all(installed) == []


@needs("make")
def test_below_usr_local_the_completions_of_fish_are_in_etc(tmp_path: Path) -> None:
    where = [f"DESTDIR={tmp_path}", f"PYTHON={sys.executable}"]
    call("sh", "-c", 'umask 002; make install "$@"', "sh", *where)
    assert not_for_all(tmp_path) == []
    fish = tmp_path / "etc" / "fish" / "completions" / "xchat.fish"
    assert "xchat" in fish.read_text()
    call("make", "uninstall", *where)
    assert files_below(tmp_path) == []


@needs("make")
def test_make_install_names_the_packages_that_are_missing(tmp_path: Path) -> None:
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    words = ["make", "-s", "install", f"DESTDIR={tmp_path}/dest", f"PYTHON={python}"]
    process = subprocess.run(words, cwd=TOP, text=True, stderr=-1, check=False)
    packages = "python3-click python3-requests python3-urllib3 python3-yaml"
    assert process.stderr.splitlines()[0] == f"{python} lacks modules: apt install {packages}"
    assert process.returncode == 2
    assert not (tmp_path / "dest").exists()


@needs("make")
def test_the_installed_command_is_the_module(installed: Path, tmp_path: Path) -> None:
    installed = shutil.copytree(installed, tmp_path / "moved")
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


@needs("make")
@pytest.mark.parametrize("shell", [pytest.param(shell, marks=needs(shell)) for shell in SHELLS])
def test_the_completions_complete(installed: Path, shell: str, tmp_path: Path) -> None:
    file, script = SHELLS[shell]
    path = f"{installed / 'bin'}:{os.environ['PATH']}"
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["-N"]}[shell]
    name = [] if shell == "fish" else ["x"]
    words = [shell, *options, "-c", script, *name, str(installed / file)]
    out = call(*words, PATH=path, HOME=str(tmp_path))
    assert "--model" in out
    assert "Traceback" not in out


def names_of(requirements: str) -> set[str]:
    names = re.findall(r"^([\w.-]+)(?!.*extra ==)", requirements, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def test_every_package_that_the_tests_install_is_pinned() -> None:
    setup = configparser.ConfigParser()
    setup.read(TOP / "setup.cfg")
    wanted = setup["options"]["install_requires"] + setup["options.extras_require"]["test"]
    pinned = names_of((TOP / "tests" / "pins.txt").read_text())
    found, left = set[str](), names_of(wanted)
    while left:
        name = left.pop()
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # what others need
            requirements = importlib.metadata.requires(name) or []
            found.add(name)
            left |= names_of("\n".join(requirements)) - found
    assert found - pinned == set()


def test_the_oldest_releases_that_are_tested_are_those_that_setup_cfg_admits() -> None:
    setup = configparser.ConfigParser()
    setup.read(TOP / "setup.cfg")
    needed = setup["options"]["install_requires"] + setup["options.extras_require"]["socks"]
    wanted = re.findall(r"^(\w+)>=([\d.]+)$", needed, re.MULTILINE)
    pins = re.findall(r"^(\w+)==([\d.]+)", (TOP / "tests" / "oldest.txt").read_text(), re.MULTILINE)
    assert {(name, version.removesuffix(".0")) for name, version in pins} >= set(wanted)
    assert {name for name, _version in pins} == {name for name, _version in wanted}
