"""The benchmark runs; what it measures is not a matter of tests."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import TOP


@pytest.mark.parametrize(
    ("case", "rivals"),
    [
        ("a reply, https", ["minimal", "obvious", "curl|jq"]),
        ("chunked events to a terminal", ["obvious", "curl"]),
    ],
)
def test_a_case_is_measured_and_its_target_is_told(case: str, rivals: list[str]) -> None:
    command = [sys.executable, f"{TOP}/tests/bench.py", "--once", sys.prefix, case]
    process = subprocess.run(command, stdout=-1, check=True, text=True, timeout=120)
    table, target = process.stdout.split("\n\n")
    assert [line[28:].split()[0] for line in table.splitlines()[1:]] == ["xchat", *rivals]
    assert target.startswith(case)
