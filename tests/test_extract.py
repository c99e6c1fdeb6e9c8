"""-x: the inside of the first fenced code block."""

from __future__ import annotations

import pytest
from conftest import Result, Run, said
from server import STREAM_HEAD, Api, completion, reply, stream

import xchat


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no code", "no code\n"),
        ("inline ``` code ``` here", "inline ``` code ``` here\n"),
        ("Do:\n```sh\nls\n```\nor\n```\nno\n```\n", "ls\n"),
        ("```\none\n\n  two\n```", "one\n\n  two\n"),
        ("~~~ python title=`x`\n1\n```\n~~~\n", "1\n```\n"),
        ("````md\n```\ninner\n```\n````\n", "```\ninner\n```\n"),
        ("```\none\n`````  \ntwo", "one\n"),
        ("```\none\n``` not an end\ntwo\n```", "one\n``` not an end\ntwo\n"),
        ("1. Do\n\n   ```sh\n   ls\n     -l\n   ```\n", "ls\n  -l\n"),
        ("```sh\r\nls\r\n```\r\n", "ls\r\n"),
        ("```sh\nnever closed", "never closed\n"),
        ("```one` two\n```\nthree\n```", "three\n"),
        ("Run:\n\n- ```sh\n  ls\n  ```\n\nThen:\n```\nno\n```\n", "ls\n"),
        ("1. ```sh\n   make\n     all\n   ```\n2. ```sh\n   no\n   ```\n", "make\n  all\n"),
        ('```\n"""\n    ```\n    x\n    ```\n"""\n```', '"""\n    ```\n    x\n    ```\n"""\n'),
        ("``\nno\n``", "``\nno\n``\n"),
        ("é\n```\n🌍\u2028\n```", "🌍\u2028\n"),
    ],
)
def test_the_inside_of_the_first_fenced_block_is_extracted(text: str, code: str) -> None:
    inside = xchat.extract_code(text)
    assert inside + "\n" * (not inside.endswith("\n")) == code


def test_what_is_extracted_is_all_that_is_written(api: Api, run: Run) -> None:
    text = "Do:\n```sh\nls é\n```\nor\n```\nno\n```\n"
    api.will(reply(completion(text)), [STREAM_HEAD + stream(*text)])
    assert run("-x", "Hi") == Result("ls é\n".encode(), "", 0)
    assert run("-x", "--stream", "Hi") == Result("ls é\n".encode(), "", 0)


def test_an_empty_block_is_no_reply(api: Api, run: Run) -> None:
    api.will(reply(completion("Do:\n```\n\n```\n")))
    assert run("-x", "Hi") == Result(b"\n", said(api, "the code block is empty"), 1)


def test_extracting_from_a_reply_that_is_cut_off(api: Api, run: Run) -> None:
    api.will(reply(completion("Do:\n```sh\nls", finish_reason="length")))
    result = run("-x", "Hi")
    assert (result.out, result.status) == (b"ls\n", 1)


def test_20_mb_without_a_block_are_extracted_in_time(api: Api, run: Run) -> None:
    text = "   `` ~~ \n" * 2_000_000
    api.will(reply(completion(text)))
    assert run("-x", "Hi", timeout=20).out == text.encode()
