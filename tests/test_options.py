"""Options: help and version, and what is typed wrong, which is told before anything is sent."""

from __future__ import annotations

import re

import pytest
from conftest import HELLO, Result, Run
from server import Api, completion, reply


@pytest.mark.parametrize("option", ["-m", "-o", "-f", "-i", "--schema"])
def test_an_empty_value_is_told_to_be_empty(api: Api, run: Run, option: str) -> None:
    message = f"xchat: {option}: is empty\n"
    assert run.before_input(option, "", "Hi") == Result(b"", message, 2)
    assert api.requests == []


def test_one_empty_value_among_several_is_told(run: Run) -> None:
    for option in ("-f", "-i"):
        result = run("--dry-run", option, "", option, "x", "Hi")
        assert result == Result(b"", f"xchat: {option}: is empty\n", 2)


AFTER = "; a prompt that begins with - goes after --"


@pytest.mark.parametrize("prompt", ["-x is what?", "-5 degrees is how much in Fahrenheit?"])
def test_a_prompt_that_looks_like_an_option(api: Api, run: Run, prompt: str) -> None:
    api.will(reply(completion()))
    result = run(prompt)
    assert (result.out, result.status, result.err.count("\n")) == (b"", 2, 1)
    assert result.err.startswith("xchat: no such option: -")
    assert result.err.endswith(f"{AFTER}\n")
    assert run("--", prompt) == HELLO
    assert api.body["messages"] == [{"role": "user", "content": prompt}]


def test_an_option_that_is_misspelt_gets_no_such_advice(run: Run) -> None:
    result = run("--strem", "Hi")
    assert (result.out, result.status) == (b"", 2)
    assert "goes after --" not in result.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--modell", "x"], "no such option: --modell; did you mean '--model'?\n"),
        (["--fil", "x"], "no such option: --fil; did you mean '--file'?\n"),
        (["-t", "nan"], "-t: expected a number from 0 to 2, not 'nan'\n"),
        (["--timeout", "inf"], "--timeout: expected a number of seconds above 0, not 'inf'\n"),
        (["--temp", "1"], "no such option: --temp; did you mean '--temperature'?\n"),
        (["--msg"], "no such option: --msg; see xchat --help\n"),
        (["--zzz"], "no such option: --zzz; see xchat --help\n"),
        (["-5", "+", "3"], "no such option: -5; a prompt that begins with - goes after --\n"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_sent(
    api: Api, run: Run, args: list[str], message: str
) -> None:
    result = run("Hi", *args)
    assert (result.out, result.status) == (b"", 2)
    assert result.err.startswith("xchat: ")
    assert result.err.endswith(message)
    assert result.err.count("\n") == 1
    assert api.requests == []


ZERO_TO_TWO = "expected a number from 0 to 2"
SECONDS = "expected a number of seconds above 0"
COUNT = "expected a whole number above 0"
COUNT_OR_0 = "expected a whole number, 0 or more"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-t", "warm"], f"-t: {ZERO_TO_TWO}, not 'warm'"),
        (["-t", "2.5"], f"-t: {ZERO_TO_TWO}, not '2.5'"),
        (["--temperature", "-0.1"], f"-t: {ZERO_TO_TWO}, not '-0.1'"),
        (["-t", ""], f"-t: {ZERO_TO_TWO}, not ''"),
        (["--max-tokens", "0"], f"--max-tokens: {COUNT}, not '0'"),
        (["--max-tokens", "1.5"], f"--max-tokens: {COUNT}, not '1.5'"),
        (["--max-tokens", "9" * 400], f"--max-tokens: {COUNT}, not '{'9' * 400}'"),
        (["--timeout", "0"], f"--timeout: {SECONDS}, not '0'"),
        (["--timeout", "1e999"], f"--timeout: {SECONDS}, not '1e999'"),
        (["--retries", "-1"], f"--retries: {COUNT_OR_0}, not '-1'"),
        (["--retries", "inf"], f"--retries: {COUNT_OR_0}, not 'inf'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_value_is_one_line_that_names_the_option_and_nothing_is_sent(
    api: Api, run: Run, args: list[str], message: str
) -> None:
    assert run("Hi", *args) == Result(b"", f"xchat: {message}\n", 2)
    assert api.requests == []


def test_a_missing_value_is_one_line_that_names_the_option(api: Api, run: Run) -> None:
    result = run("Hi", "-s")
    assert (result.out, result.status) == (b"", 2)
    assert result.err.startswith("xchat: ")
    assert "-s" in result.err  # among click's words
    assert result.err.endswith("; see xchat --help\n")
    assert result.err.count("\n") == 1
    assert api.requests == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("XCHAT_TIMEOUT", "soon", SECONDS),
        ("XCHAT_TIMEOUT", "-1", SECONDS),
        ("XCHAT_RETRIES", "two", COUNT_OR_0),
    ],
)
def test_a_wrong_value_in_the_environment_names_the_variable(
    run: Run, name: str, value: str, message: str
) -> None:
    result = run("--dry-run", "Hi", env={name: value})
    assert result == Result(b"", f"xchat: {name}: {message}, not '{value}'\n", 2)
    assert run("--dry-run", "Hi", env={name: ""}).status == 0


def test_a_model_in_the_environment_that_is_not_text(run: Run) -> None:
    result = run("--dry-run", "Hi", env={"XCHAT_MODEL": "\udcff"})
    assert (result.out, result.status) == (b"", 2)
    assert result.err.startswith("xchat: XCHAT_MODEL: ")


def test_help_fits_a_screen_and_says_what_the_double_dash_is_for(run: Run) -> None:
    for option in ("-h", "--help"):
        result = run(option)
        assert (result.err, result.status) == ("", 0)
        lines = result.out.decode().splitlines()
        assert max(map(len, lines)) <= 80
        assert len(lines) <= 46
        assert 'xchat -n -- "$line"' in result.out.decode()


def test_the_version_is_told(run: Run) -> None:
    long = run("--version")
    assert re.fullmatch(rb"xchat \d+\.\d+\.\d+\n", long.out)
    assert run("-V") == long == Result(long.out, "", 0)


@pytest.mark.parametrize(
    "args", [["-s", "-m", "grok"], ["-m", "-s"], ["-o", "--json"], ["-S", "-n"]]
)
def test_an_option_in_place_of_a_value(run: Run, args: list[str]) -> None:
    message = f"{args[0]}: needs a value, but {args[1]} follows"
    assert run("--dry-run", *args, "Hi") == Result(b"", f"xchat: {message}\n", 2)
