"""No message shows the key, a header's value or a proxy's password, in any form and in no part."""

from __future__ import annotations

import base64
import json
import re
from urllib.parse import quote

import pytest
from conftest import KEY, SECRET, Run, cases
from network import URL, Proxy
from server import Api, reply

import xchat


@pytest.fixture(autouse=True)
def no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xchat, "hidden_words", {})


ODD = 'xai-Ab/c+d=é&"x'
ECHOES = {
    "as it is": KEY,
    "in capitals": KEY.upper(),
    "in small letters": KEY.lower(),
    "over two lines": f"{KEY[:9]}\n{KEY[9:]}",
    "with a bell": f"{KEY[:9]}\a{KEY[9:]}",
}


@cases("echo", ECHOES)
def test_the_key_is_hidden_however_it_is_echoed(echo: str) -> None:
    xchat.conceal(KEY, "[the key]")
    assert xchat.hide(f"bad key {echo}!") == "bad key [the key]!"


@cases(
    "echo",
    {
        "as it is": ODD,
        "percent-encoded": quote(ODD, safe=""),
        "percent-encoded in small letters": quote(ODD, safe="").lower(),
        "in JSON": json.dumps(ODD)[1:-1],
        "in JSON of PHP": json.dumps(ODD)[1:-1].replace("/", "\\/"),
    },
)
def test_a_key_of_odd_letters_is_hidden_in_every_spelling(echo: str) -> None:
    xchat.conceal(ODD, "[the key]")
    assert xchat.hide(f"bad key {echo}!") == "bad key [the key]!"


@cases(
    ("url", "echo"),
    {
        "the password": ("http://joe:longpassword@h:1", "longpassword"),
        "the password in capitals": ("http://joe:longpassword@h:1", "LONGPASSWORD"),
        "as in the URL": ("http://joe:p%40ssword%2F@h:1", "p%40ssword%2F"),
        "decoded": ("http://joe:p%40ssword%2F@h:1", "p@ssword/"),
        "a short one with its user": ("http://joe:hunter2@h:1", "joe:hunter2"),
        "a very short one with its user": ("http://joe:x@h:1", "joe:x"),
        "a short one alone": ("http://joe:hunter2@h:1", "hunter2"),
        "a lone user name": ("http://token-0123456789@h:1", "token-0123456789"),
        "a short lone user name": ("http://tok1@h:1", "tok1"),
        "base64": ("http://joe:hunter2@h:1", base64.b64encode(b"joe:hunter2").decode()),
        "base64 of Latin-1": (
            "http://joe:h%C3%BCnter2@h:1",
            base64.b64encode("joe:hünter2".encode("latin-1")).decode(),
        ),
        "base64 of UTF-8": (
            "http://joe:h%C3%BCnter2@h:1",
            base64.b64encode("joe:hünter2".encode()).decode(),
        ),
        "base64 of a lone user name": (
            "http://token-0123456789@h:1",
            base64.b64encode(b"token-0123456789:").decode(),
        ),
        "of SOCKS": ("socks5h://joe:longpassword@h:1", "longpassword"),
    },
)
def test_what_a_proxy_is_given_is_hidden(url: str, echo: str) -> None:
    if url.startswith("socks"):
        pytest.importorskip("socks", reason="PySocks is not installed")
    xchat.parse_proxy(url)
    assert xchat.hide(f"<{echo}> is wrong") == "<[the password]> is wrong"


@pytest.mark.parametrize("words", ["a hunter21", "joe is out", "exhunter2", "www.x.test"])
def test_a_short_password_does_not_hide_what_it_is_a_part_of(words: str) -> None:
    xchat.parse_proxy("http://joe:hunter2@h:1")
    xchat.parse_proxy("http://joe:x@h:1")
    assert xchat.hide(words) == words


def test_a_latin_1_password_is_sent_as_latin_1() -> None:
    proxy = xchat.parse_proxy("http://j%C3%B6:h%C3%BCnter2@h:1")
    token = base64.b64encode("jö:hünter2".encode("latin-1")).decode()
    assert proxy.headers == {"Proxy-Authorization": f"Basic {token}"}


# the places at which a message is cut
CUTS = [*range(740, 830, 9), *range(880, 1010, 9), *range(9_900, 10_010, 9)]


def test_no_part_of_the_key_is_shown_past_a_cut(capfd: pytest.CaptureFixture[str]) -> None:
    xchat.conceal(KEY, "[the key]")
    for place in CUTS:
        xchat.write_error(f"{'x' * place}{KEY}{'y' * 2000}")
        xchat.write_error(f"{'x' * 2000}{KEY}{'y' * (place % 200)}")
    shown = capfd.readouterr().err
    assert len(shown) > 2 * len(CUTS) * 800
    assert not re.search(f"(?i){KEY[:4]}|{KEY[-4:]}", shown)


def test_no_part_of_the_key_is_shown_past_the_end_of_what_is_read(api: Api, run: Run) -> None:
    run.env["XAI_API_KEY"] = api.key = KEY
    limit = 1 << 20
    for place in (5, 10, 15):
        body = b"x " * (limit // 2 - 50) + b"y" * (100 - place) + KEY.encode() + b" z" * 99
        api.will(reply(body, "400 Bad"))
        result = run("Hi")
        assert (result.status, len(result.err) < 1100) == (4, True)
        assert not re.search(f"(?i){KEY[:4]}|{KEY[-4:]}", result.err)


def test_the_environment_is_known_before_the_options_are_read(run: Run) -> None:
    env = {"XAI_API_KEY": KEY, "XCHAT_HEADERS": f"CF-Id: {SECRET}"}
    for secret in (KEY, SECRET):
        result = run("-t", secret.upper(), env=env)
        assert (result.out, result.status) == (b"", 2)
        assert "[" in result.err
        assert secret.lower() not in result.err.lower()


def test_a_proxy_that_echoes_what_it_was_given_does_not_show_it(run: Run) -> None:
    echo = "joe:hunter2 am9lOmh1bnRlcjI="
    with Proxy(f"HTTP/1.1 407 {echo}\r\nX-Echo: {echo}\r\n\r\n".encode()) as proxy:
        env = {"XCHAT_BASE_URL": URL, "XAI_API_KEY": KEY}
        env["HTTPS_PROXY"] = f"http://joe:hunter2@{proxy.host}"
        result = run("-v", "Hi", env=env)
    assert (result.out, result.status) == (b"", 3)
    assert "407 [the password] [the password]\n" in result.err
    assert not re.search("hunter2|am9l", result.err)
