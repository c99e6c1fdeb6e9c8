"""Where the request and the key go, and that nothing moves them."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import trustme
from conftest import HELLO, KEY, File, Result, Run, cases, needs
from network import HOST, Proxy, tls_for
from server import HANG, Api, completion, perform, read_request, reply

import xchat

NOT_ASCII = "the key contains a character that is not printable ASCII"
NO_KEY = (
    "xchat: no API key: set XAI_API_KEY, or XAI_API_KEY_FILE to a file that holds it"
    " (keys: https://console.x.ai)\n"
)


@pytest.fixture
def key(api: Api, run: Run) -> str:
    """The server wants a key, and the environment has it."""
    api.key = run.env["XAI_API_KEY"] = KEY
    return KEY


def test_the_key_is_sent(api: Api, run: Run, key: str) -> None:
    api.will(reply(completion()))
    assert run("Hi") == Result(b"Hello\n", "", 0)
    assert api.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_white_space_around_the_key_is_dropped(api: Api, run: Run, key: str) -> None:
    api.will(reply(completion()))
    assert run("Hi", env={"XAI_API_KEY": f" \t{KEY}\r\n"}) == Result(b"Hello\n", "", 0)


def test_loopback_gets_no_key_where_there_is_none(api: Api, run: Run) -> None:
    api.will(reply(completion()), reply(completion()))
    assert run("Hi") == Result(b"Hello\n", "", 0)
    assert run("Hi", env={"XAI_API_KEY": " \n", "XAI_API_KEY_FILE": ""}).status == 0
    assert all("authorization" not in request.headers for request in api.requests)


@cases("blank", {"unset": {}, "empty": {"XAI_API_KEY": ""}, "blank": {"XAI_API_KEY": " \t\n"}})
def test_no_key_is_told_before_anything_is_read(run: Run, blank: dict[str, str]) -> None:
    assert run.before_input("-f", "nowhere", env=blank) == Result(b"", NO_KEY, 2)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"XCHAT_BASE_URL": ""},
        {"XCHAT_BASE_URL": "https://api.x.ai/v1"},
        {"XCHAT_BASE_URL": "https://API.x.ai:443/v1/"},
    ],
    ids=str,
)
def test_the_api_itself_wants_a_key(run: Run, env: dict[str, str]) -> None:
    assert run("Hi", env=env) == Result(b"", NO_KEY, 2)


def test_whether_another_server_wants_a_key_is_its_own_affair(api: Api, run: Run) -> None:
    api.will(reply(completion()), reply({"error": "no key"}, "401 Unauthorized"))
    assert run("Hi") == HELLO
    message = "401 Unauthorized: no key; no key was sent (request id req-7)"
    assert run("Hi") == Result(b"", f"xchat: {api.host}: {message}\n", 4)
    assert all("authorization" not in request.headers for request in api.requests)


@cases(
    ("value", "message"),
    {
        "single quotes": (f"'{KEY}'", "the key is in quotation marks; remove them"),
        "double quotes": (f'"{KEY}"', "the key is in quotation marks; remove them"),
        "Bearer": (f"Bearer {KEY}", "the key begins with 'Bearer '; remove that"),
        "bearer and a tab": (f"bearer\t{KEY}", "the key begins with 'Bearer '; remove that"),
        "two lines": (f"{KEY}\n{KEY}", NOT_ASCII),
        "a space": (f"{KEY} x", NOT_ASCII),
        "a control character": (f"{KEY}\x7f", NOT_ASCII),
        "a letter outside ASCII": (f"{KEY}é", NOT_ASCII),
        "a byte that is not UTF-8": (f"{KEY}\udcff", NOT_ASCII),
    },
)
def test_a_key_that_cannot_be_sent_is_not_shown(
    api: Api, run: Run, tmp_path: Path, value: str, message: str
) -> None:
    assert run("Hi", env={"XAI_API_KEY": value}) == Result(
        b"", f"xchat: XAI_API_KEY: {message}\n", 2
    )
    (tmp_path / "key").write_bytes(os.fsencode(value.replace("\n", " ")))
    (tmp_path / "key").chmod(0o600)
    result = run("Hi", env={"XAI_API_KEY_FILE": "key"})
    assert result == Result(b"", f"xchat: XAI_API_KEY_FILE: {message}\n", 2)
    assert api.requests == []


def test_the_key_may_stand_in_the_first_line_of_a_file(api: Api, run: Run, tmp_path: Path) -> None:
    api.key = KEY
    path = tmp_path / "key"
    path.write_text(f"  {KEY}\r\nsecond line\n")
    path.chmod(0o600)
    api.will(reply(completion()), reply(completion()), reply(completion()))
    assert run("Hi", env={"XAI_API_KEY_FILE": str(path)}) == Result(b"Hello\n", "", 0)
    env = {"XAI_API_KEY_FILE": str(path), "XAI_API_KEY": " "}
    assert run("Hi", env=env) == Result(b"Hello\n", "", 0)
    env = {"XAI_API_KEY_FILE": "nowhere", "XAI_API_KEY": KEY}
    assert run("Hi", env=env) == Result(b"Hello\n", "", 0)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o444])
def test_a_key_file_that_others_can_read_gets_a_warning(
    api: Api, run: Run, tmp_path: Path, mode: int
) -> None:
    api.key = KEY
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(mode)
    api.will(reply(completion()), reply(completion()))
    warning = "xchat: XAI_API_KEY_FILE: key: other users can read the key; chmod 600 protects it\n"
    assert run("Hi", env={"XAI_API_KEY_FILE": "key"}) == Result(b"Hello\n", warning, 0)
    assert run("-q", "Hi", env={"XAI_API_KEY_FILE": "key"}) == Result(b"Hello\n", "", 0)


@pytest.mark.parametrize(("name", "why"), [("no", "No such file or directory"), (".", "Is a dire")])
def test_a_key_file_that_cannot_be_read(api: Api, run: Run, name: str, why: str) -> None:
    result = run("Hi", env={"XAI_API_KEY_FILE": name})
    assert (result.out, result.status) == (b"", 2)
    assert result.err.startswith(f"xchat: XAI_API_KEY_FILE: {name}: {why}")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_group_may_read_a_key_file(api: Api, run: Run, tmp_path: Path, mode: int) -> None:
    api.key = KEY
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(mode)
    api.will(reply(completion()))
    assert run("Hi", env={"XAI_API_KEY_FILE": "key"}) == Result(b"Hello\n", "", 0)


@pytest.mark.parametrize("text", ["", "\n", " \t\r\n", "\nxai-second-line\n"], ids=repr)
def test_a_key_file_with_a_blank_first_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    (tmp_path / "key").write_text(text)
    monkeypatch.setenv("XAI_API_KEY", " ")
    monkeypatch.setenv("XAI_API_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(xchat.BadInput, match="key: the first line is blank; the key belongs there"):
        xchat.read_key()


LINES = [
    f"XAI_API_KEY={KEY}",
    f"export XAI_API_KEY={KEY}",
    f"XAI_API_KEY='{KEY[:-1]}",
    f"api_key={KEY}",
]
KEYS = [KEY, "YWJjZA==", "abc=", "a.b=c", "sk-a=b"]


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_a_shell_is_no_key(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setenv("XAI_API_KEY", line)
    with pytest.raises(xchat.BadInput) as caught:
        xchat.read_key()
    assert caught.value.message == "XAI_API_KEY: the key begins with 'NAME='; remove that"


@pytest.mark.parametrize("key", KEYS)
def test_a_key_may_hold_an_equals_sign(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr(xchat, "hidden_words", {})
    monkeypatch.setenv("XAI_API_KEY", key)
    assert xchat.read_key() == key


def test_the_key_is_never_shown_not_even_when_the_api_echoes_it(
    api: Api, run: Run, key: str
) -> None:
    echo = f"wrong key {KEY}, Authorization: Bearer {KEY}"
    api.will(
        reply({"error": echo}, "400 Bad Request"),
        reply(echo.encode(), f"500 {KEY}", x_request_id=KEY),
        reply(b"x" * 990 + KEY.encode(), "500 Oops"),
        reply({"error": {"message": echo, "code": KEY}}),
        reply(completion(None, finish_reason=KEY)),
        reply(echo.encode()),
        reply(b"x" * 190 + KEY.encode()),
        [f"HTTP/1.1 {KEY}\r\n\r\n".encode()],
        [f"{KEY}\r\n\r\n".encode()],
    )
    results = [run("Hi") for _ in range(9)]
    assert all(result.status != 0 for result in results)
    assert all(KEY[:8] not in result.err + result.out.decode() for result in results)
    assert "wrong key [the key], Authorization: Bearer [the key]" in results[0].err


@pytest.mark.parametrize("option", ["-t", "--timeout", "--max-tokens", "--retries"])
def test_the_key_is_not_shown_as_the_value_of_an_option(
    api: Api, run: Run, key: str, option: str
) -> None:
    result = run(option, KEY, "Hi")
    assert (result.out, result.status) == (b"", 2)
    assert result.err.startswith(f"xchat: {option}: expected a ")
    assert "[the key]" in result.err
    assert KEY not in result.err


@pytest.mark.parametrize(
    "echo",
    [f"{KEY[:9]}\0{KEY[9:]}", f"{KEY[:9]}\n\t{KEY[9:]}", f"{KEY[:9]}\x1b{KEY[9:]}"],
    ids=repr,
)
def test_the_key_is_hidden_with_control_characters_in_it(
    api: Api, run: Run, key: str, echo: str
) -> None:
    api.will(reply({"error": f"bad {echo}!"}, "400 Bad"))
    message = f"xchat: {api.host}: 400 Bad: bad [the key]! (request id req-7)\n"
    assert run("Hi") == Result(b"", message, 4)


@pytest.mark.parametrize("echo", ["pa%2Fss%2Bword", "pa/ss+word", "pa\\/ss+word"])
def test_the_key_is_hidden_in_every_spelling(api: Api, run: Run, echo: str) -> None:
    api.key = "pa/ss+word"
    api.will(reply(f"bad key {echo}".encode(), "400 Bad"))
    result = run("Hi", env={"XAI_API_KEY": api.key})
    assert result.err == f"xchat: {api.host}: 400 Bad: bad key [the key] (request id req-7)\n"


@pytest.mark.parametrize("key", ["e", "x.ai", "$^"])
def test_a_short_key_is_hidden_but_does_not_hide_what_it_is_a_part_of(
    api: Api, run: Run, key: str
) -> None:
    api.key = key
    api.will(reply({"error": f"key {key}, please"}, "400 Bad Request"))
    message = f"xchat: {api.host}: 400 Bad Request: key [the key], please (request id req-7)\n"
    assert run("Hi", env={"XAI_API_KEY": key}) == Result(b"", message, 4)


def test_netrc_does_not_replace_the_key(api: Api, run: Run, key: str, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    api.will(reply(completion()), reply(completion()))
    assert run("Hi").status == 0
    api.key = ""
    assert run("Hi", env={"XAI_API_KEY": "", "NETRC": str(tmp_path / ".netrc")}).status == 0


MALFORMED = {
    "no scheme": "api.x.ai/v1",
    "no scheme but slashes": "//api.x.ai/v1",
    "another scheme": "ftp://api.x.ai/v1",
    "a scheme alone": "https://",
    "no host": "https:///v1",
    "a port alone": "https://:443/v1",
    "an empty label": "https://a..b/v1",
    "a dash first": "https://-a/v1",
    "a percent sign": "https://a%2eb/v1",
    "a comma": "https://a,b/v1",
    "a long label": "https://" + "a" * 64 + ".test",
    "a bracket that stays open": "https://[::1/v1",
    "a name behind the brackets": "http://[::1]evil.invalid/v1",
    "a name before the brackets": "http://evil.invalid[::1]/v1",
    "brackets twice": "http://[::1][::1]/v1",
    "an IPv4 address in brackets": "https://[127.0.0.1]/v1",
    "a name in brackets": "https://[hello]/v1",
    "an IPv6 address without brackets": "https://::1/v1",
    "a port that is a word": "https://api.x.ai:port/v1",
    "a port too high": "https://api.x.ai:99999/v1",
    "a space": "https://api.x.ai /v1",
    "a control character": "https://api.x.ai/\x01",
    "a tab": "https://api.x.ai\t/v1",
    "a letter outside ASCII": "https://äpi.x.ai/v1",
    "a query": "https://api.x.ai/v1?key=1",
    "a fragment": "https://api.x.ai/v1#a",
    "nothing behind a question mark": "https://api.x.ai/v1?",
}


@cases("url", MALFORMED)
def test_one_sentence_for_all_that_may_be_wrong_with_the_base_url(url: str) -> None:
    with pytest.raises(xchat.BadInput) as caught:
        xchat.parse_base_url(url)
    assert caught.value.message == "expected https://HOST[:PORT]/PATH"


@cases(
    ("url", "message"),
    {
        "a password": (
            "https://user:secret@api.x.ai/v1",
            "contains a user name or password; put the key in XAI_API_KEY",
        ),
        "a user name": (
            "https://secret@api.x.ai/v1",
            "contains a user name or password; put the key in XAI_API_KEY",
        ),
        "a host before a backslash": (
            "https://127.0.0.1\\@evil.test",
            "contains a user name or password; put the key in XAI_API_KEY",
        ),
        "the whole address": (
            "https://api.x.ai/v1/chat/completions",
            "remove /chat/completions; xchat adds it",
        ),
    },
)
def test_what_the_base_url_should_not_contain(url: str, message: str) -> None:
    with pytest.raises(xchat.BadInput) as caught:
        xchat.parse_base_url(url)
    assert caught.value.message == message


@pytest.mark.parametrize(
    "url", ["http://[::1]evil.invalid/v1", "https://127.0.0.1\\evil.test", "api.x.ai/v1"]
)
def test_a_malformed_base_url_is_told_before_anything_is_read(run: Run, url: str) -> None:
    result = run.before_input("-f", "no", env={"XCHAT_BASE_URL": url, "XAI_API_KEY": KEY})
    message = "expected https://HOST[:PORT]/PATH"
    assert result == Result(b"", f"xchat: XCHAT_BASE_URL: {message}\n", 2)


PLAIN_URLS = ["http://ollama:11434/v1", "http://192.168.1.20:8080/v1", "http://[2001:db8::1]/v1"]


@pytest.mark.parametrize("url", [*PLAIN_URLS, "http://127.0.0.1.test/v1", "http://0.0.0.0/v1"])
def test_plain_http_to_another_host_with_a_key(run: Run, url: str) -> None:
    message = (
        "xchat: XCHAT_BASE_URL: plain http would show the key to the network: use https,"
        " or unset XAI_API_KEY\n"
    )
    env = {"XCHAT_BASE_URL": url, "XAI_API_KEY": KEY}
    assert run.before_input(env=env) == Result(b"", message, 2)


@pytest.mark.parametrize("url", [*PLAIN_URLS, f"http://{HOST}/v1"])
def test_plain_http_to_any_host_without_a_key(run: Run, url: str) -> None:
    """A proxy stands for the network, which the test does not have."""
    with Proxy(*reply(completion())) as proxy:
        env = {"XCHAT_BASE_URL": url, "HTTP_PROXY": f"http://{proxy.host}", "XAI_API_KEY": " "}
        assert run("Hi", env=env) == HELLO
    assert proxy.asked[0].startswith(f"POST {url}/chat/completions HTTP/1.1\r\n")
    assert "authorization" not in proxy.asked[0].lower()


def test_plain_http_to_loopback_with_a_key(api: Api, run: Run) -> None:
    api.key = KEY
    api.will(reply(completion()))
    assert run("Hi", env={"XAI_API_KEY": KEY}) == HELLO


@pytest.mark.parametrize("form", ["http://127.0.0.1:{}/v1/", "HTTP://LocalHost:{}/v1", " {} "])
def test_spellings_of_the_base_url(api: Api, run: Run, form: str) -> None:
    url = form.format(api.port) if "://" in form else form.format(api.url)
    if "LocalHost" in form:
        api.host = f"LocalHost:{api.port}"
        api.host = api.host.lower()
    api.will(reply(completion()))
    assert run("Hi", env={"XCHAT_BASE_URL": url}) == Result(b"Hello\n", "", 0)


def test_ipv6_loopback_is_loopback(run: Run) -> None:
    with (
        contextlib.suppress(OSError),
        socket.create_server(("::1", 0), family=socket.AF_INET6) as s,
    ):
        port = s.getsockname()[1]
    result = run("Hi", env={"XCHAT_BASE_URL": f"http://[::1]:{port}/v1"})
    assert result.status == 3
    assert result.err.startswith(f"xchat: [::1]:{port}: ")


def test_no_argument_and_no_file_moves_the_key(
    api: Api, run: Run, key: str, tmp_path: Path, file: File
) -> None:
    api.extra_fields = {"base_url", "url"}
    api.will(reply(completion()))
    name = file("model: m\nbase_url: https://evil.test/v1\nurl: https://evil.test\n")
    assert run("-q", "-f", name, "XCHAT_BASE_URL=https://evil.test") == Result(b"Hello\n", "", 0)


def test_https_to_a_server_that_speaks_http(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        result = run("Hi", env={"XCHAT_BASE_URL": f"https://127.0.0.1:{port}/v1"})
        thread.join(20)
    assert (result.out, result.status) == (b"", 3)
    words = "does not speak https; perhaps its URL begins with http://"
    assert result.err == f"xchat: 127.0.0.1:{port}: {words}\n"


def test_plain_http_to_a_server_of_https(run: Run, authority: trustme.CA) -> None:
    api = Api(tls=tls_for(authority, "127.0.0.1"))
    result = run("Hi", env={"XCHAT_BASE_URL": f"http://{api.host}/v1"})
    api.close()
    assert (result.out, result.status, result.err.count("\n")) == (b"", 3, 1)
    assert result.err.startswith(f"xchat: {api.host}: ")
    assert not re.search(r"WRONG_VERSION|\\x|Errno|\(", result.err)


def handshake_that_hangs(run: Run, *args: str) -> tuple[str, Result]:
    def accept() -> None:
        connection, _ = server.accept()
        HANG(connection)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        result = run(*args, "Hi", env={"XCHAT_BASE_URL": f"https://{host}/v1"})
        thread.join(20)
    return host, result


def test_a_handshake_that_hangs(run: Run) -> None:
    host, result = handshake_that_hangs(run)
    assert result == Result(b"", f"xchat: {host}: no secure connection within 10 s\n", 3)


def test_a_handshake_that_hangs_until_the_deadline(run: Run) -> None:
    host, result = handshake_that_hangs(run, "--timeout", "1")
    assert result == Result(b"", f"xchat: {host}: no secure connection within 1 s\n", 3)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems name the options differently")
def test_the_connection_is_kept_alive_and_sends_at_once(run: Run, tmp_path: Path) -> None:
    """Read back the options of the socket that a run really uses, from within that run."""
    (tmp_path / "sitecustomize.py").write_text(SPY)
    api = Api()
    api.will(reply(completion()))
    env = {"XCHAT_BASE_URL": api.url, "PYTHONPATH": str(tmp_path)}
    assert run("Hi", env=env) == Result(b"Hello\n", "", 0)
    api.close()
    assert (tmp_path / "options").read_text() == "1 60 30 1"


SPY = """
import socket
connect_ex = socket.socket.connect_ex
def spy(self, address):
    get = self.getsockopt
    tcp = socket.IPPROTO_TCP
    with open("options", "w") as file:
        print(get(socket.SOL_SOCKET, socket.SO_KEEPALIVE), get(tcp, socket.TCP_KEEPIDLE),
              get(tcp, socket.TCP_KEEPINTVL), get(tcp, socket.TCP_NODELAY), end="", file=file)
    return connect_ex(self, address)
socket.socket.connect_ex = spy
"""


def test_a_server_may_take_longer_to_read_than_to_connect(run: Run) -> None:
    def answer() -> None:
        connection, _address = listener.accept()
        with connection:
            time.sleep(5.5)
            request = read_request(connection)
            size = len(request.json["messages"][0]["content"])
            perform(reply(completion(f"{size} bytes")), connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        env = {"XCHAT_BASE_URL": f"http://127.0.0.1:{listener.getsockname()[1]}/v1"}
        result = run(stdin=b"x" * 16_000_000, env=env)  # more than the kernel takes at once
        thread.join(20)
    assert result == Result(b"16000000 bytes\n", "", 0)


@needs("prlimit")
def test_a_thread_that_cannot_be_started_is_one_line(api: Api, run: Run) -> None:
    if os.geteuid() == 0:
        pytest.skip("root has no such limit")
    run.by_shell('exec prlimit --nproc=1 "$@"')
    result = run("Hi")
    limit = "the machine's limit of processes (ulimit -u) is reached"
    assert result == Result(b"", f"xchat: cannot start a thread: {limit}\n", 2)
    assert api.requests == []
