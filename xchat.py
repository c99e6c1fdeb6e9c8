#!/usr/bin/env python3
"""One prompt in, one request to a chat-completions API, one reply out.

The data passes the sections below in their order:

    reading     environment -> server URL and key; files -> request fields and messages;
                arguments and standard input -> prompt
    asking      all of these -> one JSON body -> one POST
    replying    response bytes -> text -> standard output, or a file
    command     the options, and the order of the steps
    main        the signals, and from failure to exit status

Bytes become text in decode() and parse_reply(), text becomes bytes in add_part(), encode_body() and
encode_output(); only what goes into error messages is decoded elsewhere.  Messages are the API's
own JSON mappings all the way, checked once by check_message().  Whatever is expected to go wrong
is a Failure, whose class carries the exit status; anything else that is raised is a bug.
"""

from __future__ import annotations

import gc

gc.disable()  # before the imports, which it would scan again and again: 7 of 101 ms
import atexit
import codecs
import contextlib
import functools
import io
import itertools
import json
import math
import os
import re
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

if TYPE_CHECKING:
    import ipaddress
    import queue
    import socket
    import threading

    import requests


__version__ = "0.1.0"

BASE_URL = "https://api.x.ai/v1"
MODEL = "grok-4"
TIMEOUT = 3600  # seconds: what the API's guide advises for reasoning models
CONNECT_TIMEOUT = 10  # seconds, of the above
HINT_DELAY = 2  # seconds of silence on standard input before a hint
MIB = 1 << 20
INPUT_LIMIT = 64 * MIB  # bytes of standard input, or of one file
REPLY_LIMIT = 64 * MIB  # bytes of a reply, decompressed
ERROR_LIMIT = MIB // 16  # bytes of an error's body that are looked at
BLOCK = 1 << 16  # bytes per read
NESTING_LIMIT = 100  # levels of a conversation file
KEEPALIVE = (60, 30)  # seconds of silence before the first probe, and between probes
BACKOFF_LIMIT = 30  # seconds between two attempts, if the server names no time
RETRY_AFTER_LIMIT = 120  # seconds; a server that names a longer time is not asked again

JSON = dict[str, Any]
Warn = Callable[[str], None]


# Failures ------------------------------------------------------------------------------------


class Failure(click.ClickException):
    """Expected, not a bug: one line on standard error, and the exit status of the class.

    repeat_after is None, or the seconds after which the request may be posted again, as it cannot
    have produced a reply; 0 where any time will do.
    """

    def __init__(self, message: str, *, repeat_after: float | None = None) -> None:
        super().__init__(message)
        self.repeat_after = repeat_after


class BadReply(Failure):
    """A reply came but is not whole or not usable, or it could not be written."""

    exit_code = 1


class BadInput(Failure):
    """Options, prompt, file or key are unusable; nothing was sent."""

    exit_code = 2


class NoAnswer(Failure):
    """No connection, or not the whole answer in time."""

    exit_code = 3


class Refused(Failure):
    """The API refused the request; repeating it will not help."""

    exit_code = 4


class Unavailable(Failure):
    """The API is overloaded or failing; try again later."""

    exit_code = 5


@contextlib.contextmanager
def at(place: str, kind: type[Failure] | None = None) -> Iterator[None]:
    """Put the place before what fails inside; make it a failure of the kind, if one is given."""
    try:
        yield
    except Failure as failure:
        raise (kind or type(failure))(f"{place}: {failure.message}") from None
    except OSError as error:
        raise (kind or BadInput)(f"{place}: {error.strerror}") from None


# control characters, line separators, and what makes a terminal write from right to left
UNPRINTABLE = r"[\x00-\x20\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]+"


def tell(message: str) -> None:
    """Write one line to standard error; a lost message must not lose the reply."""
    line = re.sub(UNPRINTABLE, " ", message).strip()
    if len(line) > 1000:  # the end has the request id
        line = f"{line[:800]} ... {line[-100:]}"
    write_error(f"xchat: {line}\n")


def write_error(text: str) -> None:
    # not print(): what a full disk leaves in sys.stderr's buffer turns the exit status into 120
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))


def say_nothing(message: str) -> None:
    """Stand in for tell() under --quiet."""


# Reading: the environment --------------------------------------------------------------------


class Server(NamedTuple):
    """Where the request goes, and how. Comes from the environment alone."""

    url: str
    host: str  # with the port, where one is given
    key: str  # empty on a loopback server that needs none
    proxies: dict[str, str]
    verify: str | bool  # the trust store: a file, a directory, or True for certifi's


def read_server(*, warn: Warn) -> Server:
    """Return the server and the key for it, or raise BadInput."""
    with at("XCHAT_BASE_URL"):
        base_url, host, loopback = parse_base_url(os.environ.get("XCHAT_BASE_URL", "").strip())
    key = read_key(warn=warn)
    if not key and not loopback:
        raise BadInput(
            "no API key: set XAI_API_KEY, or XAI_API_KEY_FILE to a file that holds it"
            " (keys: https://console.x.ai)"
        )
    import_requests()
    url = f"{base_url}/chat/completions"
    verify = trust_store() if url.startswith("https") else True
    return Server(url, host, key, {} if loopback else read_proxies(url), verify)


def import_requests() -> None:
    """Import requests before standard input is read: a slow producer pays for it."""
    import warnings

    # requests can do without what guesses character sets: 8 of 101 ms
    sys.modules.update(dict.fromkeys(["chardet", "charset_normalizer"]))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells that it does without
        import requests  # noqa: F401


HOST_NAME = r"(?!-)[\w-]{1,63}(\.[\w-]{1,63})*\.?"


def parse_base_url(url: str) -> tuple[str, str, bool]:
    """Return the base URL without a final slash, its host, and whether that is on loopback."""
    from urllib.parse import urlsplit

    url = (url or BASE_URL).rstrip("/")
    if re.search(r"[^!-~]", url):
        raise BadInput("holds a space, a control character or a letter outside ASCII")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port
    except ValueError as error:
        raise BadInput(f"not a URL: {error}") from None
    if "@" in parts.netloc:
        raise BadInput("holds a user or password; the key belongs in XAI_API_KEY")
    if parts.scheme not in ("http", "https"):
        raise BadInput(f"must begin with https://, or http:// for loopback, as in {BASE_URL}")
    address = address_of(host)
    if "[" in parts.netloc and (address is None or address.version != 6):
        raise BadInput("has no valid address in the brackets")
    if not (address or re.fullmatch(HOST_NAME, host)):
        raise BadInput("has no valid host name")
    if "?" in url or "#" in url:
        raise BadInput("must end with the path; leave off what follows '?' or '#'")
    if parts.path.endswith("/chat/completions"):
        raise BadInput("leave off /chat/completions; xchat adds it")
    loopback = address.is_loopback if address else host == "localhost"
    if parts.scheme == "http" and not loopback:
        raise BadInput("plain http is for loopback only; use https")
    return url, parts.netloc, loopback


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a host is given as, None for a name."""
    import ipaddress

    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


def read_key(*, warn: Warn) -> str:
    """Return the API key from XAI_API_KEY or XAI_API_KEY_FILE, checked; "" where there is none."""
    name = "XAI_API_KEY"
    key = os.environ.get(name, "").strip()
    if not key and (path := os.environ.get("XAI_API_KEY_FILE")):
        name = "XAI_API_KEY_FILE"
        with at(name), at(path):
            key = read_key_file(path, warn=warn)
    with at(name):
        check_key(key)
    return key


def read_key_file(path: str, *, warn: Warn) -> str:
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        line = file.readline(BLOCK)
    if stat.S_ISREG(mode) and mode & 0o044:
        warn(f"XAI_API_KEY_FILE: {path}: others can read the key; chmod 600 it")
    return line.decode("latin-1").strip()


def check_key(key: str) -> None:
    """Refuse what would not pass as a header's value; the message never shows the key."""
    if key[:1] in ("'", '"') or key[-1:] in ("'", '"'):
        raise BadInput("the key stands in quotation marks; leave them off")
    if re.match(r"bearer\s", key, re.IGNORECASE):
        raise BadInput("the key begins with 'Bearer '; leave that off")
    if re.search(r"[^!-~]", key):
        raise BadInput("the key holds a space, a control character or a letter outside ASCII")


def read_proxies(url: str) -> dict[str, str]:
    """Return the proxies, by scheme; what HTTPS_PROXY, ALL_PROXY and NO_PROXY say of the URL."""
    from requests.utils import get_environ_proxies, select_proxy

    proxies = get_environ_proxies(url)
    if proxy := select_proxy(url, proxies):
        check_proxy(proxy)
    return proxies


def check_proxy(url: str) -> None:
    """Refuse a malformed URL of a proxy; the message does not show it, nor a password in it."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, _port = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not (address_of(host) or re.fullmatch(HOST_NAME, host)):
        raise BadInput("the URL of the proxy is malformed; look at HTTPS_PROXY and ALL_PROXY")


def trust_store() -> str | bool:
    """Return the file or directory of trusted certificates; True stands for certifi's."""
    import ssl

    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        if path := os.environ.get(name):
            if name == "SSL_CERT_DIR":  # a list; requests takes one
                path = next(filter(os.path.isdir, path.split(os.pathsep)), path)
            if not os.path.exists(path):
                raise BadInput(f"{name}: {path}: No such file or directory")
            return path
    paths = ssl.get_default_verify_paths()
    with contextlib.suppress(OSError):
        # certificates are looked up in a directory by the hash in their file's name
        hashed = re.compile(r"[0-9a-f]{8}\.\d")
        if paths.capath and any(map(hashed.match, os.listdir(paths.capath))):
            return paths.capath
    return paths.cafile or True


# Reading: bytes and text ---------------------------------------------------------------------


def name_of(path: str) -> str:
    return "standard input" if path == "-" else path


def read_file(path: str, *, warn: Warn) -> Iterator[bytes]:
    """Yield what a file holds ("-": standard input)."""
    if path == "-":
        yield from read_stdin(hint="waiting for standard input, as '-' says", warn=warn)
    else:
        with open(path, "rb", buffering=0) as file:
            yield from read_bytes(file)


def read_stdin(*, hint: str, warn: Warn) -> Iterator[bytes]:
    """Yield standard input, to its end; closed standard input is empty.

    hint is what to say when it stays open and silent for HINT_DELAY seconds.
    """
    if sys.stdin is None:
        return
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        if stdin.isatty():
            warn("reading from the terminal; end with Ctrl-D")
        elif not select.select([stdin], [], [], HINT_DELAY)[0]:
            warn(hint)
        yield from read_bytes(stdin)


def read_bytes(file: io.FileIO) -> Iterator[bytes]:
    size = 0
    while (block := file.read(BLOCK)) != b"":
        if block is None:  # the descriptor is non-blocking; whoever shares it may have set that
            select.select([file], [], [])
            continue
        yield block
        size += len(block)
        if size > INPUT_LIMIT:
            raise BadInput(f"more than {INPUT_LIMIT // MIB} MiB")


def decode(blocks: Iterable[bytes]) -> Iterator[str]:
    """Yield UTF-8 as text without a leading byte-order mark; refuse anything else."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_first = True
    end = 0
    for block in itertools.chain(blocks, [b""]):
        end += len(block)
        nul = block.find(0)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            start = end - len(error.object) + error.start
            raise not_text(start, error.object, has_nul=nul >= 0) from None
        if nul >= 0:
            raise BadInput(f"binary data, not text: NUL at byte {end - len(block) + nul}")
        if is_first and text:
            text = text.removeprefix("\ufeff")
            is_first = False
        yield text


def not_text(start: int, data: bytes, *, has_nul: bool) -> BadInput:
    """Return the failure that bytes which are not UTF-8 mean, from the byte at start on."""
    is_utf16 = start == 0 and data.startswith((b"\xff\xfe", b"\xfe\xff"))
    if has_nul and not is_utf16:
        return BadInput(f"binary data, not text: not UTF-8 at byte {start}")
    charset = "UTF-16" if is_utf16 else "ISO-8859-1"
    return BadInput(f"not UTF-8 at byte {start}; convert it, as in: iconv -f {charset} -t UTF-8")


# Reading: the prompt -------------------------------------------------------------------------


def read_prompt(words: Sequence[str], *, no_stdin: bool, warn: Warn) -> bytearray:
    """Return the words, standard input, or both, set off by a blank line; empty if all is blank.

    It is what stands between the quotes of a JSON string, in UTF-8, escaped block by block as it
    comes: of 50 MB, this takes 150 ms and 81 MB in all, and escaping a whole text 240 and 170.
    """
    if no_stdin or (words and "-" not in words and not stdin_is_pipe_or_file()):
        parts: list[Iterable[str]] = [[" ".join(words)]]
    else:
        place = words.index("-") if "-" in words else len(words)
        hint = "waiting for standard input; -n does without it"
        stdin = decode(read_stdin(hint=hint, warn=warn))
        parts = [[" ".join(words[:place])], stdin, [" ".join(words[place + 1 :])]]
    prompt = bytearray()
    with at("standard input"):
        for part in parts:
            add_part(prompt, part)
    return prompt


def add_part(prompt: bytearray, texts: Iterable[str]) -> None:
    """Add to the prompt what is not blank, after a blank line."""
    escape = json.JSONEncoder(ensure_ascii=False).encode
    size = len(prompt)
    prompt += rb"\n\n" if prompt else b""
    is_blank = True
    for text in texts:
        prompt += escape(text).encode()[1:-1]
        is_blank = is_blank and not text.strip()
    if is_blank:
        del prompt[size:]


def text_of(prompt: bytearray) -> str:
    text: str = json.loads(f'"{prompt.decode()}"')
    return text


def stdin_is_pipe_or_file() -> bool:
    if sys.stdin is None:
        return False
    mode = os.fstat(0).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def prompt_messages(text: str, urls: Sequence[str]) -> list[JSON]:
    """Return the user message that the prompt is, with images; none for an empty one."""
    if not urls:
        return [{"role": "user", "content": text}] if text else []
    text_part = [{"type": "text", "text": text}] if text else []
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": text_part + parts}]


IMAGE_TYPES = {
    "jpeg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG\r\n\x1a\n",
    "webp": rb"(?s)RIFF....WEBP",
}


def image_url(image: str, *, warn: Warn) -> str:
    """Return the URL as it is, or a file as a data URL."""
    import base64

    if re.match(r"https?://|data:", image, re.IGNORECASE):
        with at("-i"):
            check_value(image)
        return image
    with at(name_of(image)):
        data = b"".join(read_file(image, warn=warn))
        for name, begin in IMAGE_TYPES.items():
            if re.match(begin, data):
                return f"data:image/{name};base64,{base64.b64encode(data).decode()}"
        raise BadInput("not an image in JPEG, PNG or WebP")


# Reading: the conversation -------------------------------------------------------------------

ROLES = ("system", "user", "assistant", "tool", "function", "developer")

# of ChatRequest in the API's OpenAPI document of 2026-08-22
FIELDS = set(
    "deferred frequency_penalty logit_bias logprobs max_completion_tokens max_tokens messages model"
    " n parallel_tool_calls presence_penalty prompt_cache_key reasoning_effort response_format"
    " search_parameters seed service_tier stop stream stream_options temperature tool_choice tools"
    " top_logprobs top_p user web_search_options".split()
)

CONVERSATION = ("system", "history", "messages")


def read_params(params: Iterable[str], *, warn: Warn) -> JSON:
    """Return the request fields that NAME=VALUE and NAME=@FILE stand for; a later one wins."""
    fields: JSON = {}
    for param in params:
        name, equals, value = param.partition("=")
        if not (name and equals):
            raise BadInput(f"-p {param}: expected NAME=VALUE or NAME=@FILE")
        with at(f"-p {name}"):
            if name in CONVERSATION:
                raise BadInput(
                    "not a field for an option; messages come from -s, -f and the prompt"
                )
            check_field_name(name)
            is_file = value.startswith("@")
            fields[name] = read_checked(value[1:], warn=warn) if is_file else parse_param(value)
            check_value(fields[name])
    warn_of_unknown(fields, place="-p", warn=warn)
    return fields


def parse_param(value: str) -> Any:
    """Return the value of JSON, or else the text as it is."""
    try:
        return load_json(value)
    except RecursionError:
        raise BadInput(TOO_DEEP) from None
    except ValueError:
        return value


def read_schema(path: str, *, warn: Warn) -> JSON:
    """Return the request field for a JSON Schema: https://docs.x.ai/docs/guides/structured-outputs."""
    schema = read_checked(path, warn=warn)
    if not isinstance(schema, dict):
        raise BadInput(f"{name_of(path)}: expected a JSON Schema, found {show(schema)}")
    return {
        "type": "json_schema",
        "json_schema": {"name": "reply", "schema": schema, "strict": True},
    }


def read_conversations(paths: Iterable[str], *, warn: Warn) -> tuple[JSON, list[JSON]]:
    """Return the request fields and the messages of all files; a later field wins."""
    fields: JSON = {}
    messages: list[JSON] = []
    for path in paths:
        more_fields, more_messages = read_conversation(path, warn=warn)
        fields.update(more_fields)
        messages.extend(more_messages)
    return fields, messages


def read_conversation(path: str, *, warn: Warn) -> tuple[JSON, list[JSON]]:
    """Return the request fields and the messages of one file ("-": standard input)."""
    value = read_value(path, warn=warn)
    with at(name_of(path)):
        fields, messages = split_conversation(value)
    warn_of_unknown(fields, place=name_of(path), warn=warn)
    return fields, messages


def warn_of_unknown(fields: Iterable[str], *, place: str, warn: Warn) -> None:
    for field in [field for field in fields if field not in FIELDS]:
        warn(
            f"{place}: unknown request field {field!r}, sent as given{did_you_mean(field, FIELDS)}"
        )


def split_conversation(value: Any) -> tuple[JSON, list[JSON]]:
    """Return the request fields and the messages of a parsed file, all checked."""
    if isinstance(value, list):
        return {}, check_messages(value)
    if not isinstance(value, dict):
        check_value(value)
        raise BadInput(
            f"expected a list of messages, or a mapping with 'system' and 'history';"
            f" found {show(value)}"
        )
    if "role" in value:
        return {}, check_messages([value])
    if "history" in value and "messages" in value:
        raise BadInput("'history' and 'messages' are the same; keep one")
    fields = dict(value)
    messages = []
    if "system" in fields:
        content = fields.pop("system")
        with at("system"):
            check_value(content)
            check_content(content)
        messages.append({"role": "system", "content": content})
    for name in fields.keys() & {"history", "messages"}:
        with at(name):
            messages += check_messages(fields.pop(name))
    if value.keys() == {"user"}:
        raise BadInput(
            "'user' alone is a request field; a message is an item of a list: - user: ..."
        )
    for name, field in fields.items():
        check_field_name(name)
        with at(name):
            check_value(field)
    return fields, messages


def check_field_name(name: str) -> None:
    """Refuse a field that would lose messages, sent under a name the API ignores."""
    check_value(name)
    if name in ROLES and name not in FIELDS:
        raise BadInput(f"{name!r} is a role, not a request field; messages go under 'history'")
    known = name if name in FIELDS else nearest(name, (*CONVERSATION, *FIELDS))
    if known in CONVERSATION and known != name:
        raise BadInput(f"unknown key {name!r}; did you mean {known!r}?")


def check_messages(messages: Any) -> list[JSON]:
    if not isinstance(messages, list):
        check_value(messages)
        raise BadInput(f"expected a list of messages, found {show(messages)}")
    checked = []
    for number, message in enumerate(messages, start=1):
        with at(f"message {number}"):
            check_value(message)
            checked.append(check_message(message))
    return checked


def check_message(message: Any) -> Any:
    """Return the message, the short form {ROLE: text} written out."""
    if not isinstance(message, dict):
        raise BadInput(f"expected {{role: ..., content: ...}}, found {show(message)}")
    if len(message) == 1 and not message.keys() & {"role", "content"}:
        ((role, content),) = message.items()
        message = {"role": role, "content": content}
    require("role", message)
    role = message["role"]
    if role not in ROLES:
        hint = did_you_mean(role, ROLES)
        raise BadInput(f"unknown role {show(role)}{hint}; the roles are {', '.join(ROLES)}")
    if role == "assistant" and message.get("tool_calls") and message.get("content") is None:
        return message
    require("content", message)
    with at("content"):
        check_content(message["content"])
    return message


def check_content(content: Any) -> None:
    if isinstance(content, list):
        for number, part in enumerate(content, start=1):
            with at(f"part {number}"):
                check_part(part)
    else:
        check_text(content)


def check_part(part: Any) -> None:
    """Check a content part, ContentPart in the API's OpenAPI document."""
    if not isinstance(part, dict):
        raise BadInput(f"expected {{type: text, text: ...}}, found {show(part)}")
    require("type", part)
    if part["type"] == "text":
        require("text", part)
        with at("text"):
            check_text(part["text"])
    if part["type"] == "image_url":
        require("image_url", part)
        if not isinstance(part["image_url"], dict):
            raise BadInput(f"image_url: expected {{url: ...}}, found {show(part['image_url'])}")


def check_text(value: Any) -> None:
    if value is None or isinstance(value, (dict, list)):
        raise BadInput(f"expected text, found {show(value)}")
    if not isinstance(value, str):
        raise BadInput(f"read as {show(value)}, not as text; quote it")


def require(key: str, mapping: JSON) -> None:
    """Refuse a mapping without the key; a misspelt one is pointed out."""
    if key not in mapping:
        wrong = next((other for other in mapping if nearest(other, [key])), None)
        hint = f"; did you mean {key!r} by {wrong!r}?" if wrong else ""
        raise BadInput(f"{key!r} is missing{hint}")


def nearest(word: Any, known: Iterable[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(str(word)[:50], [*known], n=1)), None)


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """Return "; did you mean 'that'?" where a known word is near, else an empty string."""
    match = nearest(word, known)
    return f"; did you mean {match!r}?" if match else ""


def show(value: Any) -> str:
    """Return what an error message calls a value that is not what was expected."""
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None:
        return "nothing"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


class DuplicateKey:
    """Stands in a parsed file for a mapping that has a key twice."""

    def __init__(self, key: str) -> None:
        self.key = key


def unique(pairs: list[tuple[str, Any]]) -> JSON | DuplicateKey:
    mapping = dict(pairs)
    if len(mapping) == len(pairs):
        return mapping
    seen: set[str] = set()
    for key, _value in pairs:
        if key in seen:
            break
        seen.add(key)
    return DuplicateKey(key)


def check_value(value: Any, depth: int = 0) -> None:
    """Refuse what JSON or UTF-8 can't carry, wherever in the value it stands."""
    if depth > NESTING_LIMIT:
        raise BadInput(TOO_DEEP)
    if isinstance(value, dict):
        for key, item in value.items():
            check_value(key)
            check_value(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_value(item, depth + 1)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadInput("holds half of a surrogate pair, which is no character") from None
    elif isinstance(value, DuplicateKey):
        raise BadInput(f"duplicate key {value.key!r}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadInput("NaN and infinity are not JSON")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise BadInput(f"YAML reads {value} as a date; quote it")


# Reading: JSON and YAML ----------------------------------------------------------------------

SEEMS_JSON = r'[\s\[{]*[\[{]\s*(["\]}]|\Z)'
TOO_DEEP = f"nested more than {NESTING_LIMIT} levels deep"


def read_value(path: str, *, warn: Warn) -> Any:
    """Return the value that a file holds in JSON or YAML ("-": standard input)."""
    with at(name_of(path)):
        return parse_text("".join(decode(read_file(path, warn=warn))))


def read_checked(path: str, *, warn: Warn) -> Any:
    """Return the value that a file holds, if a request can carry it."""
    value = read_value(path, warn=warn)
    with at(name_of(path)):
        check_value(value)
    return value


def parse_text(text: str) -> Any:
    """Return the value of a text in JSON or YAML; several JSON values are a list."""
    if not text.strip():
        raise BadInput("empty; expected JSON or YAML")
    try:
        return parse_json(text)
    except RecursionError:
        raise BadInput(TOO_DEEP) from None
    except ValueError as error:
        json_error = str(error)
    try:
        return parse_yaml(text)
    except BadInput:
        if re.match(SEEMS_JSON, text):
            raise BadInput(f"not JSON: {json_error}") from None
        raise


def load_json(text: str) -> Any:
    """Return the one value of a text that is JSON to the letter; raise ValueError."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


# the API's guide prints a conversation with and without a comma between two messages, and with
# one before a closing bracket
STRING_OR_TRAILING_COMMA = r'(?s)"[^"\\]*(?:\\.[^"\\]*)*"?|,(?=\s*[\]}])'


def parse_json(text: str) -> Any:
    """Return one JSON value, or a list of several that stand in a row; raise ValueError."""
    decoder = json.JSONDecoder(object_pairs_hook=unique)
    gap = re.compile(r"\s*,?\s*")
    text = text.strip()
    values = []
    end = 0
    while end < len(text):
        try:
            value, end = decoder.raw_decode(text, end)
        except json.JSONDecodeError:
            if text[end] not in "[{" or len(text) > MIB:  # the expression may take 100 times that
                raise
            text = re.sub(STRING_OR_TRAILING_COMMA, lambda m: " " if m[0] == "," else m[0], text)
            value, end = decoder.raw_decode(text, end)
        values.append(value)
        end = gap.match(text, end).end()  # type: ignore[union-attr]  # it matches anywhere
    if len(values) > 1 and all(isinstance(value, (str, int, float)) for value in values):
        raise ValueError("several numbers or strings")  # a date, say
    return values[0] if len(values) == 1 else values


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text, or raise BadInput."""
    import yaml

    # libyaml compares each %TAG with all before it: 64 MiB of them would take hours
    if tag := re.search(r"^%TAG", text, re.MULTILINE):
        line = text.count("\n", 0, tag.start()) + 1
        raise BadInput(f"line {line}: %TAG is not accepted; leave it off")
    try:
        return YamlReader(text).read_document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = "; quote text with a colon in it" if "mapping values" in str(error) else ""
        raise BadInput(f"not YAML: {place}{error.problem}{hint}") from None
    except yaml.reader.ReaderError as error:
        raise BadInput(f"not YAML: {error.reason} (character {error.position})") from None


YAML_TAG = "tag:yaml.org,2002:"
LONG_NUMBER = 1000  # characters; the time for a number like 1:1:1 grows as its square


class YamlReader:
    """Builds a value from the events of libyaml's parser, and stops at the first that is hostile.

    PyYAML's own composer crashes on deep nesting, lets aliases and merge keys grow without bound
    and keeps the last of duplicate keys.
    """

    def __init__(self, text: str) -> None:
        import yaml

        self.yaml = yaml
        self.loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
        self.anchors: dict[str, tuple[Any, int]] = {}  # each with its size
        self.size = 0  # of what was read: its text, and 64 for each node
        self.repeated = 0  # of that, what aliases stand for

    def read_document(self) -> Any:
        self.loader.get_event()  # the start of the stream
        if not self.loader.check_event(self.yaml.DocumentStartEvent):
            raise BadInput("empty; expected JSON or YAML")
        self.loader.get_event()
        value = self.read_node(0)
        self.loader.get_event()
        event = self.loader.get_event()
        if not isinstance(event, self.yaml.StreamEndEvent):
            raise self.error(event, "a second YAML document; a file holds one conversation")
        return value

    def read_node(self, depth: int) -> Any:
        event = self.loader.get_event()
        if isinstance(event, self.yaml.AliasEvent):
            return self.read_alias(event)
        if depth > NESTING_LIMIT:
            raise self.error(event, TOO_DEEP)
        before = self.size
        self.size += 64
        value: Any
        if isinstance(event, self.yaml.ScalarEvent):
            self.size += len(event.value)
            value = self.read_scalar(event)
        elif isinstance(event, self.yaml.SequenceStartEvent):
            self.check_tag(event, "seq")
            value = list(self.read_items(self.yaml.SequenceEndEvent, depth))
        else:
            self.check_tag(event, "map")
            value = unique(list(self.read_pairs(depth)))
        if event.anchor:
            self.anchors[event.anchor] = value, self.size - before
        return value

    def read_alias(self, event: Any) -> Any:
        if event.anchor not in self.anchors:
            raise self.error(event, f"the alias *{event.anchor} stands for nothing above it")
        value, size = self.anchors[event.anchor]
        self.size += size
        self.repeated += size
        if self.repeated > INPUT_LIMIT:
            raise self.error(event, f"aliases stand for more than {INPUT_LIMIT // MIB} MiB")
        return value

    def read_items(self, end: Any, depth: int) -> Iterator[Any]:
        while not self.loader.check_event(end):
            yield self.read_node(depth + 1)
        self.loader.get_event()

    def read_pairs(self, depth: int) -> Iterator[tuple[str, Any]]:
        event = self.loader.peek_event()
        items = self.read_items(self.yaml.MappingEndEvent, depth)
        for key in items:
            if not isinstance(key, str):
                raise self.error(event, f"the key {show(key)} is not text; quote it")
            if key == "<<":
                raise self.error(event, "merge keys (<<) are not accepted; write the keys out")
            yield key, next(items)
            event = self.loader.peek_event()

    def read_scalar(self, event: Any) -> Any:
        """Return text, or what YAML 1.1 reads plain text as: a number, a boolean, null, a date."""
        tag = event.tag
        if tag not in (None, "!"):
            self.check_tag(event, "str", "int", "float", "bool", "null")
        elif event.implicit[0] and len(event.value) <= LONG_NUMBER:
            tag = self.loader.resolve(self.yaml.ScalarNode, event.value, (True, False))
        if tag in (None, "!", *[YAML_TAG + name for name in ("str", "value", "merge")]):
            return event.value
        try:
            if len(event.value) > LONG_NUMBER:
                raise ValueError
            return self.loader.construct_object(self.yaml.ScalarNode(tag, event.value))
        except (ValueError, LookupError, OverflowError):
            name = tag.removeprefix(YAML_TAG)
            raise self.error(event, f"{show(event.value)} is no valid {name}") from None

    def check_tag(self, event: Any, *names: str) -> None:
        if event.tag not in (None, "!") and event.tag not in {YAML_TAG + name for name in names}:
            raise self.error(event, f"the YAML tag {event.tag} is not accepted; leave it off")

    def error(self, event: Any, message: str) -> BadInput:
        return BadInput(f"line {event.start_mark.line + 1}: {message}")


# Asking --------------------------------------------------------------------------------------


TOKEN_LIMITS = {"max_completion_tokens", "max_tokens"}  # the same under its old name


def build_body(messages: list[JSON], *, fields: JSON, options: JSON) -> JSON:
    """Return the body of the request: https://docs.x.ai/docs/api-reference#chat-completions.

    fields are those of the files, options those of the command line, which win.
    """
    if not any(message["role"] == "user" for message in messages):
        raise BadInput("no prompt: give it as arguments or on standard input")
    if TOKEN_LIMITS & options.keys():
        fields = {name: fields[name] for name in fields if name not in TOKEN_LIMITS}
    return {"model": default_model(), "messages": messages, **fields, **options}


def merge_options(options: JSON, params: JSON) -> JSON:
    """Return the request fields of the command line, each given by one option."""
    given = {name: value for name, value in options.items() if value is not None}
    taken = given.keys() | (TOKEN_LIMITS if TOKEN_LIMITS & given.keys() else set())
    for name in taken & params.keys():
        raise BadInput(f"-p {name}: the option for this field is given too; drop one")
    return given | params


def default_model() -> str:
    model = os.environ.get("XCHAT_MODEL", "").strip() or MODEL
    with at("XCHAT_MODEL"):
        check_value(model)
    return model


def choose_stream(body: JSON, wanted: bool | None, *, is_live: bool) -> None:
    """Ask for a stream or not: as the option says, else a field, else as the output is live."""
    if wanted or (wanted is None and is_live and "stream" not in body):
        body["stream"] = True
        body.setdefault("stream_options", {"include_usage": True})
    elif wanted is False:
        body.pop("stream", None)
        body.pop("stream_options", None)


PROMPT = "\ud800"  # stands for the prompt; no other text has it, as it is no character


def encode_body(body: JSON, prompt: bytearray) -> bytearray:
    """Return the body in UTF-8, with the prompt, which becomes a part of it."""
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    begin, _, end = text.partition(PROMPT)
    prompt[:0] = begin.encode()  # in place: another 50 MB of it would be copied
    prompt += end.encode()
    return prompt


class StatusLine:
    """Says on a terminal what a run waits for, until there is output; else it says nothing."""

    def __init__(self, model: str, *, quiet: bool) -> None:
        import threading

        is_dumb = os.environ.get("TERM", "dumb") == "dumb"
        self.is_wanted = not (quiet or is_dumb or sys.stderr is None) and os.isatty(2)
        self.is_waiting = self.is_drawn = False
        self.activity = f"waiting for {model}"
        self.start = self.drawn = time.monotonic()
        self.lock = threading.Lock()  # a thread draws it, the main one erases it

    def begin(self) -> None:
        self.is_waiting = self.is_wanted

    def tick(self) -> None:
        """Draw the line if it was not for a second."""
        now = time.monotonic()
        with self.lock:
            if self.is_waiting and now >= self.drawn + 1:
                self.drawn, self.is_drawn = now, True
                line = re.sub(UNPRINTABLE, " ", f"{self.activity}, {now - self.start:.0f} s")
                width = (os.get_terminal_size(2).columns or 80) - 1
                write_error("\r\x1b[K" + line.encode("ascii", "replace").decode()[:width])

    def end(self) -> None:
        """Make place for output."""
        if self.is_waiting:
            with self.lock:
                self.is_waiting = False
                if self.is_drawn:
                    self.is_drawn = False
                    write_error("\r\x1b[K")


def ask(
    server: Server,
    body: bytearray,
    reply: Reply,
    *,
    raw: bool,
    timeout: float,
    retries: int,
    status: StatusLine,
    warn: Warn,
) -> Iterator[str]:
    """Post the body and yield the text of the reply, piece by piece as it comes.

    A reply that is not whole ends in a Failure.  raw: yield the body of the response in place of
    the text.  timeout is in seconds, from the first look-up of the host to the last byte.  The
    body is posted again, at most retries times, where it cannot have produced a reply.
    """
    clock = Clock(timeout, status.tick)
    for attempt in range(retries + 1):
        reply.request_id = None
        status.begin()
        try:
            response = fetch(server, body, clock=clock)
            reply.request_id = response.headers.get("x-request-id")
            blocks = read_blocks(response, clock)
            yield from read_reply(response, blocks, reply, raw=raw, status=status)
            return
        except Failure as failure:
            suffix = f" (request id {reply.request_id})" if reply.request_id else ""
            message = f"{server.host}: {hide(failure.message + suffix, server.key)}"
            wait = seconds_to_wait(failure, attempt)
            if attempt == retries or wait is None or wait > clock.seconds_left():
                raise type(failure)(message) from None
        finally:
            status.end()
        warn(f"{message}; trying again in {wait:.1f} s")
        time.sleep(wait)


def seconds_to_wait(failure: Failure, attempt: int) -> float | None:
    """Return how long to wait before the body is posted again; None: it is not."""
    import random

    if failure.repeat_after is None or failure.repeat_after > RETRY_AFTER_LIMIT:
        return None
    backoff = min(2.0 ** min(attempt, 9), BACKOFF_LIMIT)
    return (failure.repeat_after or backoff) + random.uniform(0, backoff)


def hide(text: str, key: str) -> str:
    """Return the text without the key, which servers echo."""
    if len(key) > 7:
        return text.replace(key, "[the key]")
    # as short as this, a local server's key may well be a part of words
    return re.sub(rf"(?<!\w){re.escape(key)}(?!\w)", "[the key]", text) if key else text


class Clock:
    """Waits until the deadline; on_tick is called about once a second meanwhile."""

    def __init__(self, timeout: float, on_tick: Callable[[], None]) -> None:
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.on_tick = on_tick
        self.is_late = False

    def seconds_left(self) -> float:
        return max(self.deadline - time.monotonic(), 0)

    def late(self) -> NoAnswer:
        return NoAnswer(f"no answer within {self.timeout:g} s; --timeout gives it more")

    def wait_for(self, events: queue.SimpleQueue[Any], *, at_most: float = math.inf) -> Any:
        """Return the next event, or raise it if it is an exception; queue.Empty: it is late."""
        import queue

        end = min(time.monotonic() + at_most, self.deadline)
        while True:
            left = end - time.monotonic()
            try:
                event = events.get(timeout=max(min(left, 1), 0))
            except queue.Empty:
                if left <= 1:
                    raise
                self.on_tick()
                continue
            if isinstance(event, BaseException):
                raise event
            return event

    def watch(self, connection: socket.socket) -> None:
        """Shut the connection down at the deadline, which ends whatever waits for it."""
        import socket

        while left := self.seconds_left():
            time.sleep(min(left, 1))
            self.on_tick()
        self.is_late = True
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def fetch(server: Server, body: bytearray, *, clock: Clock) -> requests.Response:
    """Post the body once and return the response as soon as its headers are there."""
    import queue
    import ssl
    import threading

    from requests.exceptions import InvalidSchema, ProxyError

    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    gate = threading.Lock()  # taken by who connects in time, or else by who gives up waiting
    args = (server, Body(body, gate), clock, events.put)
    threading.Thread(target=exchange, args=args, daemon=True).start()
    limit = min(CONNECT_TIMEOUT, clock.timeout)
    try:
        try:
            response = clock.wait_for(events, at_most=limit)
        except queue.Empty:
            if gate.acquire(blocking=False):
                raise NoAnswer(f"no connection within {limit:g} s", repeat_after=0) from None
            response = clock.wait_for(events)
    except queue.Empty:
        raise clock.late() from None
    except (ProxyError, InvalidSchema) as error:
        raise NoAnswer(f"the proxy failed: {explain(error)}", repeat_after=0) from None
    except wire_errors() as error:
        is_lasting = isinstance(root_of(error), ssl.SSLCertVerificationError)
        repeat_after = None if gate.locked() or is_lasting else 0
        raise NoAnswer(explain(error), repeat_after=repeat_after) from None
    return response  # type: ignore[no-any-return]


def wire_errors() -> tuple[type[Exception], ...]:
    """Return what requests and urllib3 raise; some of it is a bare OSError or ValueError."""
    from urllib3.exceptions import HTTPError

    return (OSError, ValueError, HTTPError)


class Body:
    """The bytes to post; the first read takes the gate, as the connection stands, TLS included."""

    def __init__(self, data: bytearray, gate: threading.Lock) -> None:
        self.rest = memoryview(data)
        self.gate: threading.Lock | None = gate

    def __len__(self) -> int:
        return len(self.rest)

    def read(self, size: int) -> bytes:
        if self.gate and not self.gate.acquire(blocking=False):
            raise TimeoutError
        self.gate = None
        block, self.rest = self.rest[:size], self.rest[size:]
        return bytes(block)


def exchange(server: Server, body: Body, clock: Clock, on_event: Callable[[Any], None]) -> None:
    """Post the body, hand over the response or an exception, and watch the clock.

    In a thread, as the deadline holds whatever blocks: a look-up, a header that drips, a block
    that does not decompress to a single byte.
    """
    import socket

    import requests

    headers = request_headers(server.key)
    try:
        request = requests.Request("POST", server.url, headers=headers, data=body).prepare()
        # the adapter, not a session: no netrc, no redirects, no cookies
        response = make_adapter().send(
            request,
            stream=True,
            timeout=(CONNECT_TIMEOUT / 2, None),  # for each address of the host
            verify=server.verify,
            proxies=server.proxies,
        )
        connection = None
        with contextlib.suppress(OSError, ValueError):  # it has no body, and is closed
            connection = socket.socket(fileno=os.dup(response.raw.fileno()))
        on_event(response)
    except BaseException as error:  # noqa: BLE001  # the main thread raises it again
        on_event(error)
    else:
        if connection:
            clock.watch(connection)


def request_headers(key: str) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "User-Agent": f"xchat/{__version__}",
    }
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return headers


def make_adapter() -> requests.adapters.HTTPAdapter:
    """Return what sends a request: once, and on a connection that is kept alive."""
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection

    socket_options = [*HTTPConnection.default_socket_options, *keepalive_options()]

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs, socket_options=socket_options)

        def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
            return super().proxy_manager_for(proxy, **kwargs, socket_options=socket_options)

    return Adapter()


def keepalive_options() -> list[tuple[int, int, int]]:
    """Return the socket options that probe a silent connection, lest middleboxes forget it."""
    import socket

    idle, interval = KEEPALIVE
    seconds = {"TCP_KEEPIDLE": idle, "TCP_KEEPALIVE": idle, "TCP_KEEPINTVL": interval}
    options = {name: value for name, value in seconds.items() if hasattr(socket, name)}
    return [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        *[(socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in options.items()],
    ]


def read_blocks(response: requests.Response, clock: Clock) -> Iterator[bytes]:
    """Yield the blocks of a body as they arrive, and raise a Failure unless it ends well."""
    size = 0
    try:
        if "," in response.headers.get("content-encoding", ""):
            raise ValueError("compressed more than once")  # as a bomb is
        while block := response.raw.read1(BLOCK, decode_content=True):
            yield block
            size += len(block)
            if size > REPLY_LIMIT:
                raise BadReply(f"the reply has more than {REPLY_LIMIT // MIB} MiB")
    except wire_errors() as error:
        if not clock.is_late:
            raise BadReply(f"the reply is cut short: {explain(error)}") from None
    if clock.is_late:
        raise clock.late()


def root_of(error: BaseException) -> BaseException:
    while deeper := error.__cause__ or error.__context__:
        error = deeper
    return error


def explain(error: BaseException) -> str:
    """Return what is at the root of a failed exchange, in words for its user."""
    import http.client
    import socket
    import ssl

    error = root_of(error)
    if isinstance(error, socket.gaierror):
        return f"cannot find the host: {error.strerror}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"cannot trust its certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, http.client.RemoteDisconnected):
        return "closed the connection without an answer"
    if isinstance(error, http.client.BadStatusLine):
        return f"does not speak HTTP: {error}"
    if isinstance(error, http.client.IncompleteRead):
        return "closed the connection in the middle"
    if isinstance(error, TimeoutError) and not error.errno:
        return f"no connection within {CONNECT_TIMEOUT / 2:g} s"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


# Replying ------------------------------------------------------------------------------------


class Reply:
    """What is known of the reply so far."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.request_id: str | None = None
        self.texts: list[str] = []  # the pieces of the first choice's
        self.model: Any = None
        self.usage: JSON = {}

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def note(self, value: JSON) -> None:
        """Note what a completion or a chunk of one says beside the text; the last word counts."""
        self.model = value.get("model") or self.model
        self.usage = mapping_in(value, "usage") or self.usage


def mapping_in(value: JSON, name: str) -> JSON:
    item = value.get(name)
    return item if isinstance(item, dict) else {}


BOM = b"\xef\xbb\xbf"


def read_reply(
    response: requests.Response,
    blocks: Iterator[bytes],
    reply: Reply,
    *,
    raw: bool,
    status: StatusLine,
) -> Iterator[str]:
    """Yield the text of the reply, or its body; then raise a Failure if that is not all of it."""
    if not 200 <= response.status_code < 300:
        raise refusal(response, blocks)
    seen: list[bytes] = []
    if raw:
        blocks = keep(blocks, seen)
    is_stream = "event-stream" in response.headers.get("content-type", "")
    texts = read_texts(blocks, reply, status, is_stream=is_stream)
    for piece in bodies(texts, seen) if raw else texts:
        if piece:
            status.end()
            yield piece


def keep(blocks: Iterable[bytes], seen: list[bytes]) -> Iterator[bytes]:
    for block in blocks:
        seen.append(block)
        yield block


def bodies(texts: Iterable[str], seen: list[bytes]) -> Iterator[str]:
    """Yield what was seen of the body so far, each time that a text comes of it, and at its end."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    failure = None
    try:
        for _text in texts:
            yield decoder.decode(b"".join(seen))
            seen.clear()
    except Failure as error:
        failure = error
    yield decoder.decode(b"".join(seen), final=True)
    if failure:
        raise failure


def read_texts(
    blocks: Iterator[bytes], reply: Reply, status: StatusLine, *, is_stream: bool
) -> Iterator[str]:
    """Yield the text of the reply, and "" where an event has none; note what else it says."""
    head, blocks = peek(blocks)
    if head[:1] in (b"{", b"<") or not (is_stream or re.match(rb"data|event|id|retry|:", head)):
        texts = read_completion(b"".join(blocks), reply)
    else:
        texts = read_stream(blocks, reply, status)
    for text in texts:
        text = without_surrogates(text)
        reply.texts.append(text)
        yield text


def without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", text)
    return text


def peek(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return what the body begins with, white space and a byte-order mark aside, and all of it."""
    seen, head = [], b""
    while not head and (block := next(blocks, b"")):
        seen.append(block)
        head = block.lstrip(BOM + b" \t\r\n")
    return head, itertools.chain(seen, blocks)


def read_completion(body: bytes, reply: Reply) -> Iterator[str]:
    """Yield the text of the first choice of a completion.

    The body is a ChatResponse: https://docs.x.ai/docs/api-reference#chat-completions.
    """
    value = parse_reply(body)
    reply.note(value)
    try:
        choice = value["choices"][0]
        message = dict(choice["message"])
        text = message.get("content") or ""
    except (LookupError, TypeError, ValueError):
        raise BadReply(f"not a completion: {excerpt(body)}") from None
    if not isinstance(text, str):
        raise BadReply(f"not a completion: {excerpt(body)}")
    if text:
        yield text
    check_finish(choice.get("finish_reason"), message, is_empty=not text)


def read_stream(blocks: Iterator[bytes], reply: Reply, status: StatusLine) -> Iterator[str]:
    """Yield the text of the first choice of a streamed completion, as it comes.

    The events are ChatResponseChunks: https://docs.x.ai/docs/guides/streaming-response. With a
    finish reason the text is whole; whatever goes wrong after it does not matter.
    """
    message: JSON = {}
    is_done, is_empty = False, True
    failure = None
    try:
        for events in read_events(blocks):
            texts = []
            try:
                for data in events:
                    is_done = is_done or data == b"[DONE]"
                    if not is_done:
                        chunk = parse_reply(data)
                        reply.note(chunk)
                        texts.append(add_chunk(message, chunk, status))
            except Failure as error:
                failure = error
            text = "".join(texts)
            is_empty = is_empty and not text
            yield text
            if is_done or failure:
                break
    except Failure as error:
        failure = error
    finish_reason = message.get("finish_reason")
    if failure and not finish_reason:
        raise failure
    if not (is_done or finish_reason):
        raise BadReply("the reply is cut short: the stream ended without a finish reason")
    check_finish(finish_reason, message, is_empty=is_empty)


def add_chunk(message: JSON, chunk: JSON, status: StatusLine) -> str:
    """Return the text that a chunk has of the first choice; note in the message what else."""
    text = ""
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if not isinstance(choice, dict) or choice.get("index"):
            continue
        message["finish_reason"] = choice.get("finish_reason") or message.get("finish_reason")
        delta = mapping_in(choice, "delta")
        content = delta.get("content")
        text += content if isinstance(content, str) else ""
        if isinstance(delta.get("refusal"), str):
            message["refusal"] = message.get("refusal", "") + delta["refusal"]
        if delta.get("tool_calls"):
            message["tool_calls"] = delta["tool_calls"]
        if delta.get("reasoning_content"):
            status.activity = "thinking"
    return text


def read_events(blocks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the data of the server-sent events that end in each block.

    By https://html.spec.whatwg.org/#server-sent-events; but a final [DONE] needs no blank line.
    """
    data: list[bytes] = []
    for lines in read_lines(blocks):
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line:
                if any(data):
                    events.append(b"\n".join(data))
                data = []
        yield events
    if data == [b"[DONE]"]:
        yield data


def read_lines(blocks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the lines that end in each block, with LF, CRLF or CR, and at last what is left."""
    begin: list[bytes] = []
    is_first, after_cr = True, False
    for block in blocks:
        if after_cr:
            block = block.removeprefix(b"\n")
        after_cr = block.endswith(b"\r")
        lines = block.splitlines()
        rest = [] if block.endswith((b"\n", b"\r")) else lines[-1:]
        ended = lines[: len(lines) - len(rest)]
        if ended:
            ended[0] = b"".join([*begin, ended[0]])
            begin = []
            if is_first:
                ended[0] = ended[0].removeprefix(BOM)
                is_first = False
        begin += rest
        yield ended
    yield [b"".join(begin)]


def parse_reply(body: bytes) -> JSON:
    """Return a completion or a chunk of one as JSON; an error object raises what it means."""
    try:
        value = json.loads(body.removeprefix(BOM).decode(errors="replace"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadReply(f"not a completion: {excerpt(body)}")
    if value.get("error") and not value.get("choices"):
        raise error_in_reply(value)
    return value


def check_finish(reason: Any, message: JSON, *, is_empty: bool) -> None:
    """Raise BadReply when what came is not a whole reply."""
    if reason == "length":
        raise BadReply("the reply is cut off at the token limit (finish reason 'length')")
    if reason == "content_filter":
        raise BadReply("the reply is cut off by the content filter")
    if is_empty and message.get("tool_calls"):
        raise BadReply("the reply is a call of a tool, not text")
    if is_empty:
        why = message.get("refusal") or (reason and f"finish reason {reason!r}")
        raise BadReply(f"the reply is empty{f': {why}' if why else ''}")


# a 429 or an error in a 200 says only in words that it is not about the rate
NO_CREDIT = r"(?i)\bcredits?\b|spending limit|insufficient_quota"


def refusal(response: requests.Response, blocks: Iterator[bytes]) -> Failure:
    """Return the failure that a response outside 200 to 299 means, in the API's words."""
    status = response.status_code
    place = f"{status} {response.reason or ''}".strip()
    if 300 <= status < 400:
        return Refused(f"{place}: redirects are not followed")
    text = read_begin(blocks).decode(errors="replace").strip()
    is_html = re.match(r"<(!doctype|html|head)", text, re.IGNORECASE)
    words = "a page of HTML" if is_html else api_words(text) or "no reason given"
    message = f"{place}: {words}"
    if status == 408:
        return Unavailable(message)
    if status >= 500 or (status == 429 and not re.search(NO_CREDIT, words)):
        is_lasting = status in (525, 526)  # certificates behind the API's own proxy
        return Unavailable(message, repeat_after=None if is_lasting else retry_after(response))
    return Refused(message)


def read_begin(blocks: Iterator[bytes]) -> bytes:
    """Return as much of an error's body as is of use, cut short or late or not."""
    body = b""
    with contextlib.suppress(Failure):
        while len(body) < ERROR_LIMIT and (block := next(blocks, b"")):
            body += block
    return body


def retry_after(response: requests.Response) -> float:
    """Return the seconds that Retry-After names, as a number or a date; 0 where it does not."""
    from email.utils import parsedate_to_datetime

    value = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value, re.ASCII):
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0)
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0


# codes for what repeating does not help: the API's, old and new, and those of its like
REFUSAL_CODE = (
    r"(?i)invalid|permission|unauthenticated|authentication|not[ _-]found|content.policy"
    r"|^4(?!08|29)\d\d$"
)


def error_in_reply(value: JSON) -> Failure:
    """Return the failure that an error object with status 200 means."""
    inner = value["error"] if isinstance(value["error"], dict) else value
    code = str(inner.get("code") or inner.get("type"))
    words = api_words(value)
    is_lasting = re.search(REFUSAL_CODE, code) or re.search(NO_CREDIT, words)
    return (Refused if is_lasting else Unavailable)(f"error in the reply: {words}")


def api_words(error: Any) -> str:
    """Return what an error says, parsed or not, in any of the shapes that it comes in."""
    words = words_in(error) or (error if isinstance(error, str) else json.dumps(error))
    return re.sub(r"\s*\[WKE=[^]]*\]", "", words)  # a marker for the API's own clients


def words_in(value: Any, depth: int = 0) -> str:
    """Return the text in {"error": text}, {"error": {"message": text}}, a string of JSON, ..."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            return (depth < 5 and words_in(json.loads(value), depth + 1)) or value
        return value
    if isinstance(value, list) and value and depth < 5:
        return words_in(value[0], depth + 1)
    if isinstance(value, dict) and depth < 5:
        found = (value[key] for key in ("error", "message", "detail", "msg") if value.get(key))
        return words_in(next(found, ""), depth + 1)
    return ""


def excerpt(body: bytes) -> str:
    """Return the begin of what should have been a completion."""
    text = body[:ERROR_LIMIT].decode(errors="replace").strip()
    if text.startswith("<"):
        return "a page of HTML; a login page of the network?"
    return text or "an empty body"


# begins a block of code; in a list it may be indented, or stand behind the item's bullet
FENCE = r"(?m)^([ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*)(`{3,}(?!`|.*`)|~{3,}(?!~)).*\n"


def extract_code(text: str) -> str:
    """Return the inside of the first fenced code block, or all where there is none.

    A fence is what CommonMark says: https://spec.commonmark.org/0.31.2/#fenced-code-blocks.
    """
    begin = re.search(FENCE, text)
    if not begin:
        return text
    indent, fence = len(begin[1]), begin[2]
    closing = re.compile(rf"(?m)^[ \t]{{,{indent + 3}}}{fence}{fence[0]}*[ \t\r]*$")
    end = closing.search(text, begin.end())
    inside = text[begin.end() : end.start() if end else None]
    if not inside.strip():
        raise BadReply("the code block is empty")
    return re.sub(rf"(?m)^[ \t]{{1,{indent}}}", "", inside) if indent else inside


def check_json(pieces: Iterable[str], reply: Reply, *, extract: bool) -> Iterator[str]:
    """Pass on the pieces, and raise BadReply at the end if the reply is not JSON."""
    yield from pieces
    try:
        load_json(extract_code(reply.text) if extract else reply.text)
    except (ValueError, RecursionError) as error:
        raise BadReply(f"the reply is not JSON: {error}") from None


def whole(pieces: Iterable[str]) -> Iterator[str]:
    """Yield all pieces as one that ends in a newline, those of a reply that is not whole too."""
    held = []
    failure = None
    try:
        for piece in pieces:
            held.append(piece)
    except Failure as error:
        failure = error
    if text := "".join(held):
        yield text if text.endswith("\n") else f"{text}\n"
    if failure:
        raise failure


def write_reply(pieces: Iterable[str]) -> None:
    """Write each piece of the reply as it comes, and a final newline."""
    end = "\n"
    try:
        for piece in pieces:
            end = piece[-1:]  # first, lest an interrupt comes between
            write_output(piece)
    except Interrupt:
        if not os.isatty(1):  # a pipe may be full for ever
            end = "\n"
        raise
    finally:
        if end not in ("", "\n"):
            write_output("\n")


def write_output(text: str) -> None:
    """Write all of the text to standard output, or raise BadReply; die when its reader is gone."""
    check_output(None)
    try:
        write_text(1, text)
    except BrokenPipeError:
        die_of(signal.SIGPIPE)
    except OSError as error:
        raise BadReply(f"standard output: {error.strerror}") from None


def write_text(fd: int, text: str) -> None:
    write_bytes(fd, encode_output(show_controls(text) if os.isatty(fd) else text))


def encode_output(text: str) -> bytes:
    """Return the bytes that a reply's text or body came from."""
    return text.encode(errors="surrogateescape")


def write_bytes(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            select.select([], [fd], [])


# what could move the cursor, set the title or reverse the text of a terminal; and bytes of a body
# that are not UTF-8
CONTROL = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\udc80-\udcff]"


def show_controls(text: str) -> str:
    """Return the text with its control characters made visible: ^[ and <U+202E>."""

    def name(match: re.Match[str]) -> str:
        code = ord(match[0])
        if code >= 0xDC80:
            return "\ufffd"
        return f"^{chr(code ^ 64)}" if code < 128 else f"<U+{code:04X}>"

    return re.sub(CONTROL, name, text)


def die_of(number: int) -> NoReturn:
    """End by the signal itself, which is what a shell's loop looks for."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    sys.exit(128 + number)  # the parent has blocked it


def tell_usage(reply: Reply, *, key: str) -> None:
    """Write what the reply took to standard error: one line of JSON."""

    if not (reply.texts or reply.usage):
        return

    def number(value: Any) -> int | float | None:
        is_sane = isinstance(value, (int, float)) and abs(value) < 1 << 53
        return value if is_sane else None

    usage = reply.usage
    ticks = number(usage.get("cost_in_usd_ticks"))  # 10^10 to the dollar
    prompt = mapping_in(usage, "prompt_tokens_details")
    completion = mapping_in(usage, "completion_tokens_details")
    facts = {
        "model": reply.model if isinstance(reply.model, str) else None,
        "prompt_tokens": number(usage.get("prompt_tokens")),
        "cached_tokens": number(prompt.get("cached_tokens")),
        "completion_tokens": number(usage.get("completion_tokens")),
        "reasoning_tokens": number(completion.get("reasoning_tokens")),
        "total_tokens": number(usage.get("total_tokens")),
        "cost_usd": None if ticks is None else ticks / 1e10,
        "seconds": round(time.monotonic() - reply.start, 3),
        "request_id": reply.request_id,
    }
    known = {name: value for name, value in facts.items() if value is not None}
    write_error(hide(json.dumps(known), key) + "\n")


# Replying: files -----------------------------------------------------------------------------


def deliver(
    pieces: Iterable[str], output: str | None, added: contextlib.AbstractContextManager[None]
) -> None:
    """Write the reply; then replace the output file and the one it is added to, both or none."""
    if output is None:
        write_reply(pieces)
        with added:
            return
    text = "".join(pieces)
    with added, at(output, BadReply), replaced(output, text, mode=0o666):
        pass


def check_output(path: str | None) -> None:
    """Refuse what could not be written, before a reply is paid for; None is standard output."""
    if path is None:
        if sys.stdout is None:
            raise BadReply("standard output: closed")
        return
    with at(path or "''"):
        if os.path.isdir(path) or not os.path.basename(path):
            raise BadInput("is a directory")
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # for a loop of links, and the like
            if not os.access(path, os.W_OK):
                raise BadInput("no permission to write it")
        if not is_special(path):
            directory = os.path.dirname(os.path.realpath(path))
            os.stat(directory)
            if not os.access(directory, os.W_OK):
                raise BadInput(f"no permission to write in {directory}")


def is_special(path: str) -> bool:
    """Say whether the file is there but can't be replaced by another one: a device, a pipe."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


@contextlib.contextmanager
def replaced(path: str, text: str, *, mode: int) -> Iterator[None]:
    """Write a new file, which takes the place of the old one if all goes well inside.

    The new file has the old one's mode and, where possible, its owner; mode is for a file where
    there was none. What can't be replaced is written to.
    """
    if is_special(path):
        with open(path, "wb", buffering=0) as file:
            write_text(file.fileno(), text)
        yield
        return
    path = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(path), f".xchat-{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        mode = 0o600 if os.path.exists(path) else mode  # nobody may open it before it is alike
        with open(os.open(temporary, flags, mode), "wb", buffering=0) as file:
            be_like(path, file.fileno())
            write_bytes(file.fileno(), encode_output(text))
            os.fsync(file.fileno())
        yield
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # an interrupt may come as it is renamed
            os.unlink(temporary)
        raise


def be_like(path: str, fd: int) -> None:
    """Give the file the mode and, where possible, the owner of another, if there is one."""
    if os.path.exists(path):
        old = os.stat(path)
        with contextlib.suppress(OSError):
            os.fchown(fd, old.st_uid, old.st_gid)
        os.fchmod(fd, stat.S_IMODE(old.st_mode))


def is_new(path: str) -> bool:
    """Say whether a conversation begins in this file: it is missing or empty."""
    return not os.path.exists(path) or (os.path.isfile(path) and not os.path.getsize(path))


@contextlib.contextmanager
def appended(path: str, turn: list[JSON], reply: Reply, *, systems: list[JSON]) -> Iterator[None]:
    """Add a turn to a conversation file as it is by now, the system messages to a new one.

    The file is replaced if all goes well inside.
    """
    target = os.path.realpath(path)
    turn = [*turn, {"role": "assistant", "content": reply.text}]
    with at(f"{path}: the turn is not added", BadReply), locked(os.path.dirname(target)):
        if is_new(target):
            text = new_conversation(target, systems + turn)
        else:
            text = add_messages("".join(decode(read_file(target, warn=say_nothing))), turn)
        with replaced(target, text, mode=0o600):
            yield


@contextlib.contextmanager
def locked(directory: str) -> Iterator[None]:
    """Keep other writers out; a file that is replaced can't carry the lock itself."""
    import fcntl

    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def new_conversation(path: str, messages: list[JSON]) -> str:
    """Return the text of a conversation file, in the format of its name."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".json":
        return add_messages("[\n]\n", messages)
    if suffix in (".jsonl", ".ndjson"):
        return "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in messages)
    return to_yaml(short(messages))


def short(messages: list[JSON]) -> list[JSON]:
    """Return the messages, as {ROLE: text} where they are no more than that."""
    return [
        {message["role"]: message["content"]} if isinstance(message["content"], str) else message
        for message in messages
    ]


def add_messages(text: str, turn: list[JSON]) -> str:
    """Return the text of a conversation file with more messages, in its format and line ends.

    Of the ways to write it, the first counts that is read as what it should be.
    """
    fields, messages = split_conversation(parse_text(text))
    try:
        parse_json(text)
        ways = write_json
    except ValueError:
        ways = write_yaml
    is_crlf = 0 < text.count("\n") == text.count("\r\n")
    for new in ways(text.replace("\r\n", "\n") if is_crlf else text, turn):
        new = new.replace("\n", "\r\n") if is_crlf else new
        with contextlib.suppress(Failure):
            if split_conversation(parse_text(new)) == (fields, messages + turn):
                return new
    raise BadReply("no way found to write it so that it can be read again")


def write_json(text: str, turn: list[JSON]) -> Iterator[str]:
    """Yield the text with more messages: in its last list, after the text, or written anew."""
    lines = [json.dumps(message, ensure_ascii=False) for message in turn]
    head, bracket, tail = text.rpartition("]")
    if bracket:
        begin = head.rstrip()
        gap = re.search(r"\[(\s*)", text)[1] or " "  # type: ignore[index]  # it has a bracket
        for comma in (f",{gap}", gap.strip(" ")):
            yield begin + comma + f",{gap}".join(lines) + head[len(begin) :] + "]" + tail
    yield "\n".join([text.rstrip(), *lines, ""])
    yield json.dumps(with_messages(parse_json(text), turn), ensure_ascii=False, indent=2) + "\n"


def write_yaml(text: str, turn: list[JSON]) -> Iterator[str]:
    """Yield the text with more messages: after those it has, comments kept, or written anew."""
    import yaml

    node: Any = yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    heading = ""
    if isinstance(node, yaml.MappingNode):
        lists = [item for key, item in node.value if key.value in ("history", "messages")]
        heading = "" if lists else "history:\n"
        node = lists[0] if lists else node
    end = node.end_mark.index
    if node.flow_style:
        lines = ", ".join(json.dumps(message, ensure_ascii=False) for message in turn)
        for comma in (", ", ""):
            yield text[: end - 1] + comma + lines + text[end - 1 :]
    else:
        if end < len(text):
            end -= node.end_mark.column
        indent = " " * node.start_mark.column
        lines = re.sub(r"^(?=.)", indent, heading + to_yaml(short(turn)), flags=re.MULTILINE)
        for place in dict.fromkeys([before_comments(text, end), end]):
            gap = "" if text[:place].endswith("\n") else "\n"
            yield text[:place] + gap + lines + text[place:]
    yield to_yaml(with_messages(parse_yaml(text), short(turn)))


def before_comments(text: str, end: int) -> int:
    """Return the place before the comments that belong to what stands at the end, if anything."""
    lines = text[:end].splitlines(keepends=True)
    is_followed = bool(text[end:].strip())
    while is_followed and re.match(r"#|\s*$", lines[-1]):
        lines.pop()
    return len("".join(lines))


def with_messages(value: Any, turn: list[JSON]) -> Any:
    """Return the value of a conversation file with more messages."""
    if isinstance(value, list):
        return value + turn
    if "role" in value:
        return [value, *turn]
    name = "messages" if "messages" in value else "history"
    return {**value, name: value.get(name, []) + turn}


def to_yaml(value: Any) -> str:
    """Return a value as YAML; text of several lines as a block, where it can be read again."""
    text = dump_yaml(value, is_quoted=False)
    return text if parse_yaml(text) == value else dump_yaml(value, is_quoted=True)


def dump_yaml(value: Any, *, is_quoted: bool) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):  # libyaml's escapes whatever has an emoji
        pass

    def represent(dumper: Any, text: str) -> Any:
        style = '"' if is_quoted else "|" if "\n" in text else None
        return dumper.represent_scalar(f"{YAML_TAG}str", text, style=style)

    Dumper.add_representer(str, represent)
    text: str = yaml.dump(value, Dumper=Dumper, allow_unicode=True, sort_keys=False, width=1 << 30)
    return text


# Command -------------------------------------------------------------------------------------


class Option(click.Option):
    """An option that the help lists under a heading."""

    def __init__(self, *args: Any, heading: str, **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.heading = heading

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return what an error calls the option; not all releases of click name its variable."""
        return " / ".join([*self.opts, *([str(self.envvar)] if self.envvar else [])])


class Command(click.Command):
    """A command whose help lists the options by heading, in the order of their declaration."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {}
        for option in self.params:
            if isinstance(option, Option) and (row := option.get_help_record(ctx)):
                headings.setdefault(option.heading, []).append(row)
        for heading, rows in headings.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


def check_stdin_uses(words: Sequence[str], inputs: Sequence[Any], *, no_stdin: bool) -> None:
    """Refuse to read standard input twice, or both to read it and not to."""
    uses = inputs.count("-")
    if uses and no_stdin:
        raise BadInput("'-' reads standard input and -n forbids it; drop one")
    if not no_stdin:
        uses += words.count("-")
    if uses > 1:
        raise BadInput("'-' is given more than once, but standard input can be read only once")


def check_usage(
    *, files: Sequence[str], append: bool, output: str | None, extract: bool, raw: bool
) -> None:
    """Refuse options that do not go together."""
    if raw and extract:
        raise BadInput("--json writes all that came and -x a part of the text; drop one")
    if not append:
        return
    if len(files) != 1:
        raise BadInput("-a adds to one file: give -f once")
    if files[0] == "-" or is_special(files[0]):
        raise BadInput(f"-a cannot add to {name_of(files[0])}: drop it, or name a file with -f")
    if output and os.path.realpath(output) == os.path.realpath(files[0]):
        raise BadInput(f"-a and -o would both write {output}; drop one")


def check_unicode(_ctx: Any, _param: Any, value: Any) -> Any:
    """Refuse arguments that are not text in this locale."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise click.BadParameter("not text in the encoding of this locale.") from None
    return value


class Number(click.FloatRange):
    """A number in a range; not NaN, which click lets through."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a valid number.", param, ctx)
        return number


def write_about(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    """Write the help or the version, and exit."""
    if wanted:
        text = ctx.get_help() if option.name == "help" else f"xchat {__version__}"
        write_output(text + "\n")
        ctx.exit()


prompt_option = functools.partial(click.option, cls=Option, heading="Prompt")
request_option = functools.partial(click.option, cls=Option, heading="Request")
reply_option = functools.partial(click.option, cls=Option, heading="Reply")
connection_option = functools.partial(click.option, cls=Option, heading="Connection")


# fmt: off
@click.command(
    cls=Command, add_help_option=False,
    epilog="The key comes from XAI_API_KEY, or the file that XAI_API_KEY_FILE names.",
)
@click.argument("words", metavar="[PROMPT]...", nargs=-1, callback=check_unicode)
@prompt_option("-s", "--system", "systems", metavar="TEXT", multiple=True, callback=check_unicode,
               help="Begin with a system message; repeatable.")
@prompt_option("-f", "--file", "files", metavar="FILE", multiple=True, type=click.Path(),
               help="Send this conversation first; repeatable.")
@prompt_option("-a", "--append", is_flag=True,
               help="Add the prompt and the reply to that FILE.")
@prompt_option("-i", "--image", "images", metavar="FILE|URL", multiple=True, type=click.Path(),
               help="Show the model an image; repeatable.")
@prompt_option("-n", "--no-stdin", is_flag=True,
               help="Leave standard input alone, as a loop needs it.")
@request_option("-m", "--model", metavar="NAME", callback=check_unicode,
                help=f"Ask this model.  [env var: XCHAT_MODEL; default: {MODEL}]")
@request_option("-t", "--temperature", metavar="NUMBER", type=Number(0, 2),
                help="How random the reply is.")
@request_option("--max-tokens", metavar="N", type=click.IntRange(1),
                help="Let the reply have at most N tokens.")
@request_option("--schema", metavar="FILE", type=click.Path(),
                help="Ask for JSON by this JSON Schema.")
@request_option("-p", "--param", "params", metavar="NAME=VALUE", multiple=True,
                callback=check_unicode,
                help="Set any field, also NAME=@FILE; repeatable.")
@request_option("--dry-run", is_flag=True,
                help="Write the request; send nothing.")
@reply_option("--stream/--no-stream", default=None,
              help="Write as it comes (as to a terminal), or at once.")
@reply_option("-x", "--extract", is_flag=True,
              help="Write only the first code block, if there is one.")
@reply_option("--json", "raw", is_flag=True,
              help="Write the whole response, as it came.")
@reply_option("-o", "--output", metavar="FILE", type=click.Path(),
              help="Write to FILE, if the reply is whole.")
@reply_option("-u", "--usage", is_flag=True,
              help="Tell tokens and cost on standard error, as JSON.")
@reply_option("-q", "--quiet", is_flag=True,
              help="Tell nothing but errors.")
@reply_option("--version", is_flag=True, is_eager=True, expose_value=False,
              callback=write_about, help="Show the version.")
@reply_option("-h", "--help", is_flag=True, is_eager=True, expose_value=False,
              callback=write_about, help="Show this help.")
@connection_option("--timeout", metavar="SECONDS", type=Number(0, min_open=True),
                   envvar="XCHAT_TIMEOUT", show_envvar=True, default=TIMEOUT, show_default=True,
                   help="Wait this long for the whole answer.")
@connection_option("--retries", metavar="N", type=click.IntRange(0),
                   envvar="XCHAT_RETRIES", show_envvar=True, default=0, show_default=True,
                   help="Ask again when overloaded or not connected.")
def xchat(
    *,
    words: tuple[str, ...],
    systems: tuple[str, ...],
    files: tuple[str, ...],
    append: bool,
    images: tuple[str, ...],
    no_stdin: bool,
    model: str | None,
    temperature: float | None,
    max_tokens: int | None,
    schema: str | None,
    params: tuple[str, ...],
    dry_run: bool,
    stream: bool | None,
    extract: bool,
    raw: bool,
    output: str | None,
    usage: bool,
    quiet: bool,
    timeout: float,
    retries: int,
) -> None:
    # fmt: on
    """Send a prompt to a chat model; write its reply to standard output.

    The prompt is standard input, or the PROMPT words, or both: the words, a blank line, and what
    is piped in. A lone - among the words stands for standard input at that place. Words that come
    from elsewhere go after --, lest they be taken for options.

    \b
      cat article.txt | xchat -s "Summarize"
      git diff | xchat "Review this change" | tee review.txt
      while read -r line; do xchat -n -- "$line"; done <list
    """
    output = None if output == "-" else output
    warn = say_nothing if quiet else tell
    check_usage(files=files, append=append, output=output, extract=extract, raw=raw)
    values = [param.partition("=")[2] for param in params]
    inputs = [*files, *images, schema, *(value[1:] for value in values if value.startswith("@"))]
    check_stdin_uses(words, inputs, no_stdin=no_stdin)
    server = None if dry_run else read_server(warn=warn)
    check_output(output)
    if append and server:
        check_output(files[0])

    old_files = [path for path in files if not (append and is_new(path))]
    fields, messages = read_conversations(old_files, warn=warn)
    options = merge_options(
        {
            "model": model,
            "temperature": temperature,
            "max_completion_tokens": max_tokens,
            "response_format": read_schema(schema, warn=warn) if schema else None,
            "stream": stream,
        },
        read_params(params, warn=warn),
    )
    urls = [image_url(image, warn=warn) for image in images]
    is_asked = bool(messages) and messages[-1]["role"] == "user"
    is_complete = is_asked and not words and sys.stdin is not None and os.isatty(0)
    prompt = read_prompt(words, no_stdin=no_stdin or "-" in inputs or is_complete, warn=warn)

    first = [{"role": "system", "content": text} for text in systems]
    turn = prompt_messages(PROMPT if prompt else "", urls)
    body = build_body(first + messages + turn, fields=fields, options=options)
    is_live = os.isatty(1) and not (output or extract or raw)
    choose_stream(body, stream, is_live=is_live)
    if append:
        turn = prompt_messages(text_of(prompt), urls)
    data = encode_body(body, prompt)
    reply = Reply()
    if server is None:
        pieces = iter([data.decode() + "\n"])
    else:
        status = StatusLine(str(body["model"]), quiet=quiet)
        pieces = ask(
            server, data, reply, raw=raw, timeout=timeout, retries=retries, status=status, warn=warn
        )
        if schema:
            pieces = check_json(pieces, reply, extract=extract)
        if output or extract or not body.get("stream"):
            pieces = whole(pieces)
        if extract:
            pieces = map(extract_code, pieces)
    is_added = append and server
    added = appended(files[0], turn, reply, systems=first) if is_added else contextlib.nullcontext()
    try:
        deliver(pieces, output, added)
    except Interrupt:
        usage = False
        raise
    finally:
        if usage and server:
            tell_usage(reply, key=server.key)


# Main ----------------------------------------------------------------------------------------


def main() -> int:
    """Run the command and return its exit status; the signals end it as they end any filter."""
    atexit.register(gc.freeze)  # at the end it would scan all there is: 16 of 110 ms
    try:
        with interruptible():
            status = xchat.main(prog_name="xchat", standalone_mode=False)
    except click.ClickException as error:
        tell(explain_usage(error) if isinstance(error, click.UsageError) else error.message)
        return error.exit_code
    return status or 0


class Interrupt(BaseException):
    """A signal that ends the run, once what must not be left behind is cleaned up."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal clean up, on the terminal and among the files, before it ends the run."""

    def interrupt(number: int, _frame: Any) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)  # the second one does not wait for the cleaning
        raise Interrupt(number)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    usual = (signal.SIG_DFL, signal.default_int_handler)  # the parent may ignore it instead
    caught = [number for number in numbers if signal.getsignal(number) in usual]
    try:
        for number in caught:
            signal.signal(number, interrupt)
        yield
    except Interrupt as error:
        die_of(error.args[0])
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


def explain_usage(error: click.UsageError) -> str:
    if not isinstance(error, click.NoSuchOption):
        return f"{error.format_message().rstrip('.')}; try 'xchat --help'"
    hint = did_you_mean(error.option_name, error.possibilities or [])
    hint = hint or "; a prompt that begins with - goes after --"
    return f"no such option: {error.option_name}{hint}"


if __name__ == "__main__":
    sys.exit(main())
