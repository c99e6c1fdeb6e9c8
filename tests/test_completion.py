"""What the shells complete."""

from __future__ import annotations

import re
import subprocess

import pytest
from conftest import Result, Run


@pytest.mark.parametrize("option", ["-f", "-o", "-i", "--schema"])
def test_the_shell_completes_files(run: Run, option: str) -> None:
    env = {"_XCHAT_COMPLETE": "bash_complete", "COMP_WORDS": f"xchat {option} ", "COMP_CWORD": "2"}
    assert run(env=env) == Result(b"file,\n", "", 0)


def test_the_shell_completes_options_and_no_roles(run: Run) -> None:
    def completed(words: str) -> set[str]:
        number = str(len(words.split(" ")) - 1)
        env = {"_XCHAT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
        return set(re.findall(r"^plain,(.*)$", run(env=env).out.decode(), re.MULTILINE))

    listed = re.findall(r"^  (-.*?)(?:  |$)", run("--help").out.decode(), re.MULTILINE)
    assert completed("xchat --") == set(re.findall(r"--[\w-]+", "\n".join(listed)))
    for words in ("xchat ", "xchat -s ", "xchat -m ", "xchat -p ", "xchat as", "xchat -s sys"):
        assert completed(words) == set()


def test_the_completion_of_a_shell_is_a_process_of_its_own(run: Run) -> None:
    out = subprocess.run(
        run.command, env={**run.env, "_XCHAT_COMPLETE": "bash_source"}, stdout=-1, check=True
    ).stdout
    assert b"complete" in out
