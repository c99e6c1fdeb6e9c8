"""-i: images, from files or by URL, as parts of the prompt."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from conftest import PNG, File, Result, Run, body_of
from server import Api, completion, reply

IMAGES = {"png": PNG, "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF", "webp": b"RIFF\x0a\0\0\0WEBPVP8 "}


def image_part(url: str) -> Any:
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(name: str, data: bytes) -> str:
    return f"data:image/{name};base64,{base64.b64encode(data).decode()}"


def test_images_follow_the_text_of_the_prompt_as_parts(api: Api, run: Run, file: File) -> None:
    urls = ["https://example.org/a.gif", "HTTP://example.org/b", "data:image/png;base64,AA=="]
    files = [
        arg for name, data in IMAGES.items() for arg in ("-i", file(data, f"no-suffix-{name}"))
    ]
    api.will(reply(completion()))
    args = [*files, *(arg for url in urls for arg in ("--image", url))]
    assert run("-s", "S", *args, "What", "is this?") == Result(b"Hello\n", "", 0)
    parts = [image_part(data_url(name, data)) for name, data in IMAGES.items()]
    assert api.body["messages"] == [
        {"role": "system", "content": "S"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                *parts,
                *map(image_part, urls),
            ],
        },
    ]


def test_an_image_may_be_standard_input(run: Run) -> None:
    body = body_of(run("--dry-run", "-i", "-", "What?", stdin=PNG))
    text = {"type": "text", "text": "What?"}
    assert body["messages"][0]["content"] == [text, image_part(data_url("png", PNG))]


def test_an_image_alone_is_a_prompt(run: Run, file: File) -> None:
    body = body_of(run("--dry-run", "-n", "-i", file(PNG), "-s", "Read it"))
    assert body["messages"][1] == {"role": "user", "content": [image_part(data_url("png", PNG))]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.png", "-i none.png: No such file or directory"),
        ("text", "-i text: not an image in JPEG, PNG or WebP"),
        ("ftp://x/y.png", "-i ftp://x/y.png: No such file or directory"),
    ],
)
def test_a_wrong_image_is_one_line_and_nothing_is_sent(
    api: Api, run: Run, file: File, name: str, message: str
) -> None:
    file("{}", "text")
    assert run("-i", name, "Hi") == Result(b"", f"xchat: {message}\n", 2)
    assert api.requests == []
