"""-x: the inside of the first fenced code block."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest
from conftest import TOP, Result, Run, limit, needs_limit, said
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


MARKDOWN = {
    "a block of sh": "# T\n\n```sh\nls\n```\n\nEnd\n",
    "two blocks": "# T\n```sh\nls\n```\n```c\nint i;\n```\n",
    "a block without a language": "# T\n\n```\nls\n```\n\nEnd\n",
    "both kinds": "```sh\nls\n```\n\nIt prints\n\n```\na\n```\n\nEnd\n",
    "a longer fence": "`````txt\n```\n```\n`````\nEnd\n",
    "a fence of the other kind": "~~~sh\nls\n~~~\n",
    "a block in a list": "1. Do\n\n   ```sh\n   ls\n   ```\n",
    "no block": "# T\n",
    "inline code": "```x``` is code\n",
    "CRLF": "# T\r\n\r\n```sh\r\nls\r\n```\r\n",
}
AFTER = {"nothing": "", "words": "\n\nHave fun!\n", "a block": "\n\nRun:\n\n```sh\nls\n```\n"}


@pytest.mark.parametrize("inside", MARKDOWN.values(), ids=MARKDOWN)
@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
@pytest.mark.parametrize("name", ["markdown", "md", "Markdown", "md title=x"])
def test_the_blocks_inside_a_block_of_markdown_belong_to_it(
    inside: str, after: str, name: str
) -> None:
    text = f"Here:\n\n```{name}\n{inside}```{after}"
    assert xchat.extract_code(text) == inside


ENDS = {
    "the next line is text": ("```md\na\n```\nwords\n", "a\n"),
    "text, then a block": ("```md\na\n```\nRun:\n```sh\nls\n```\n", "a\n"),
    "a block without a language": ("```md\na\n```\n\n```\nls\n```\n", "a\n"),
    "cut in an inner block": ("```md\na\n```sh\nls\n", "a\n```sh\nls\n"),
    "not markdown": ("```text\na\n```sh\nb\n```\nc\n```\n", "a\n```sh\nb\n"),
    "not md": ("```mdx\na\n```sh\nb\n```\nc\n```\n", "a\n```sh\nb\n"),
}


@pytest.mark.parametrize(("text", "code"), ENDS.values(), ids=ENDS)
def test_where_a_block_ends(text: str, code: str) -> None:
    assert xchat.extract_code(text) == code


def test_a_block_of_markdown_through_the_command(api: Api, run: Run) -> None:
    inside = "# T\n\n```sh\nls\n```\n\nEnd\n"
    api.will(reply(completion(f"Here:\n```markdown\n{inside}```\n")))
    assert run("-x", "Hi") == Result(inside.encode(), "", 0)


HUGE = {
    "a fence of backticks": "`" * 16_000_000,
    "a fence of tildes": "~" * 16_000_000 + "\n",
    "bullets": "- " * 8_000_000 + "\n",
    "fences in a row": "```md\n" + "```sh\n" * 2_000_000,
    "bare fences": "```md\n" + "```\nx\n" * 1_000_000,
    "blank lines": "```md\na\n```\n" + " \n" * 4_000_000 + "x",
    "blanks": "```md\na\n```" + " " * 8_000_000 + "x",
}


@needs_limit
@pytest.mark.parametrize("name", HUGE)
def test_16_mb_take_bounded_time_and_memory(name: str) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import xchat, test_extract;"
        "xchat.extract_code(test_extract.HUGE[sys.argv[2]])"
    )
    words = [sys.executable, "-c", code, str(TOP), name]
    env = {**os.environ, "PYTHONPATH": str(TOP / "tests")}
    subprocess.run(words, env=env, check=True, preexec_fn=functools.partial(limit, 10))


def test_an_empty_block_is_no_reply(api: Api, run: Run) -> None:
    api.will(reply(completion("Do:\n```\n\n```\n")))
    assert run("-x", "Hi") == Result(b"", said(api, "the code block is empty"), 1)


def test_extracting_from_a_reply_that_is_cut_off(api: Api, run: Run) -> None:
    api.will(reply(completion("Do:\n```sh\nls", finish_reason="length")))
    result = run("-x", "Hi")
    assert (result.out, result.status) == (b"ls\n", 1)


def test_20_mb_without_a_block_are_extracted_in_time(api: Api, run: Run) -> None:
    text = "   `` ~~ \n" * 2_000_000
    api.will(reply(completion(text)))
    assert run("-x", "Hi", timeout=20).out == text.encode()
