#!/usr/bin/env python3
"""One prompt in, one request to a chat-completions API, one reply out.

The data passes the sections below in their order:

    diagnostics what is said on standard error: a Failure ends the run, the rest are warnings
    reading     environment -> server and key; arguments and standard input -> prompt;
                files -> request fields and messages
    asking      all of these -> one JSON body -> one POST
    replying    response bytes -> text; text -> standard output, or files
    command     the options, and the order of the steps
    main        the signals, and from failure to exit status

Input becomes text in decode() and as_text(), a reply in add_event(); text becomes bytes in
encode_body(), receive(), deliver() and appended().  Messages are the API's own JSON mappings all
the way, checked once by check_message().  Over https the connection is begun before the prompt is
read; see the comment above ask().  Whatever is expected to go wrong is a Failure, whose class
carries the exit status; anything else that is raised is a bug.

An import inside a function is one that many runs do without; imports are what most runs spend
their time on.
"""

from __future__ import annotations

import gc

gc.disable()  # before the imports, which it would scan again and again: 4 % of all instructions
import signal

usual_sigint = signal.getsignal(signal.SIGINT)
if usual_sigint is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main(), it would be a traceback
import contextlib
import functools
import io
import itertools
import json
import logging
import math
import os
import re
import select
import stat
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

if TYPE_CHECKING:
    import ipaddress
    import socket
    from urllib.parse import SplitResult

    import requests


__version__ = "0.1.0"

BASE_URL = "https://api.x.ai/v1"
MODEL = "grok-4"
TIMEOUT = 3600  # seconds: what the API's guide advises for reasoning models
CONNECT_TIMEOUT = 10  # seconds, of the above
HINT_DELAY = 10  # seconds of silence on standard input before a hint
MIB = 1 << 20
INPUT_LIMIT = 64 * MIB  # bytes of standard input, or of one file
REPLY_LIMIT = 64 * MIB  # bytes of a reply, decompressed
ERROR_LIMIT = MIB  # bytes of an error's body that are looked at
BLOCK = 1 << 16  # bytes per read
NESTING_LIMIT = 100  # levels of a conversation file
EVENT_LIMIT = 1_000_000  # of YAML: four a message, so more than any model can read
IDLE_LIMIT = 4  # seconds a connection may wait for the prompt; some servers close it after 5
KEEPALIVE = (60, 30)  # seconds of silence before the first probe, and between probes
BACKOFF_LIMIT = 30  # seconds between two attempts, if the server names no time
RETRY_AFTER_LIMIT = 120  # seconds; a server that asks for a longer wait is not asked again
REPEATABLE = (429, 500, 503, 529)  # statuses; a gateway's may hide a reply that was paid for

JSON = dict[str, Any]


# Diagnostics ---------------------------------------------------------------------------------


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
    """Options, prompt, file, key or set-up are unusable; nothing was sent."""

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


# What is said beside the reply: ERROR is what main() ends with, WARNING what -q silences, DEBUG
# what -v adds.
log = logging.getLogger("xchat")

hidden_words: dict[str, str] = {}  # the key and its like, and what is shown instead

# control characters, line separators, and what makes a terminal write from right to left
UNPRINTABLE = r"[\x00-\x20\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]+"

ERASE_LINE = "\r\x1b[K"


class StandardError(logging.Handler):
    """Writes each message as one line of printable text without the secrets."""

    def emit(self, record: logging.LogRecord) -> None:
        line = re.sub(UNPRINTABLE, " ", hide(record.getMessage())).strip()
        if len(line) > 1000:  # the end has the request id
            line = f"{line[:800]} ... {line[-100:]}"
        if record.levelno > logging.DEBUG:
            line = f"xchat: {line}"
        elif line.startswith("*"):
            line = f"* {record.relativeCreated / 1000:.3f} s: {line[2:]}"
        write_error(f"{line}\n")


def conceal(secret: str, name: str) -> None:
    """Have hide() show the name in place of the secret, in whatever form a server echoes it."""
    from urllib.parse import quote

    if secret:
        escaped = json.dumps(secret)[1:-1]
        quoted = quote(secret, safe="", errors="replace")
        forms = [secret, quoted, escaped, escaped.replace("/", "\\/")]
        hidden_words.update(dict.fromkeys(forms, name))


def hide(text: str) -> str:
    """Return the text without the secrets."""
    for secret, name in sorted(hidden_words.items(), key=lambda item: -len(item[0])):
        if len(secret) > 7:
            pattern = f"(?:{UNPRINTABLE})?".join(map(re.escape, secret))
        else:  # it may well be a part of a word or of an address
            pattern = rf"(?<!\w)(?<!\w[.:-]){re.escape(secret)}(?!\w|[.:-]\w)"
        text = re.sub(pattern, name, text)
    return text


def write_error(text: str) -> None:
    """Write to standard error; a lost message must not lose the reply."""
    # not print(): what a full disk leaves in sys.stderr's buffer turns the exit status into 120
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))


# Reading: the environment --------------------------------------------------------------------


class Server(NamedTuple):
    """Where the request goes, and how.  Comes from the environment alone."""

    url: str
    host: str  # with the port, where one is given
    key: str  # may be empty for a server other than the API's
    headers: dict[str, str]  # of XCHAT_HEADERS
    proxies: dict[str, str]
    proxy: str  # the host of the one that is used, empty for none
    trust: str  # a file or a list of directories


def read_server() -> Server:
    """Return the server and what it is sent, or raise BadInput."""
    with at("XCHAT_BASE_URL"):
        base_url = os.environ.get("XCHAT_BASE_URL", "").strip().rstrip("/") or BASE_URL
        parts = parse_base_url(base_url)
    key = read_key()
    host = parts.hostname or ""
    if not key and host.rstrip(".") == "api.x.ai":
        raise BadInput(
            "no API key: set XAI_API_KEY, or XAI_API_KEY_FILE to a file that holds it"
            " (keys: https://console.x.ai)"
        )
    if key and parts.scheme == "http" and not on_loopback(host):
        raise BadInput(
            "XCHAT_BASE_URL: plain http would show the key to the network: use https,"
            " or unset XAI_API_KEY"
        )
    with at("XCHAT_HEADERS"):
        headers = read_headers(os.environ.get("XCHAT_HEADERS", ""))
    import_requests()
    url = f"{base_url}/chat/completions"
    proxies, proxy = ({}, "") if on_loopback(host) else read_proxies(url)
    trust = trust_store() if parts.scheme == "https" else ""
    log.debug(f"* proxy: {proxy or 'none'}")
    if parts.scheme == "https":
        log.debug(f"* trusted certificates: {trust}")
    return Server(url, parts.netloc, key, headers, proxies, proxy, trust)


def import_requests() -> None:
    """Import requests before standard input is read: a slow producer pays for it."""
    # requests can do without what guesses character sets: 10 % of all instructions
    sys.modules.update(dict.fromkeys(["chardet", "charset_normalizer"]))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that they are missing
        import requests  # noqa: F401


def parse_base_url(url: str) -> SplitResult:
    """Return the parts of the base URL, checked."""
    parts = check_url(url, schemes=("https", "http"))
    if "@" in parts.netloc:
        raise BadInput("contains a user name or password; put the key in XAI_API_KEY")
    if "?" in url or "#" in url:
        raise BadInput("must end with the path; remove what follows '?' or '#'")
    if parts.path.endswith("/chat/completions"):
        raise BadInput("remove /chat/completions; xchat adds it")
    return parts


NOT_GRAPHIC = r"[^!-~]"
HAS_NOT_GRAPHIC = "contains a space, a control character or a letter outside ASCII"
HOST_NAME = r"(?!-)[\w-]{1,63}(\.[\w-]{1,63})*\.?"


def check_url(url: str, *, schemes: Sequence[str]) -> SplitResult:
    """Return the parts of a URL, or raise BadInput, which shows nothing of it."""
    from urllib.parse import urlsplit

    if re.search(NOT_GRAPHIC, url):
        raise BadInput(HAS_NOT_GRAPHIC)
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise BadInput("not a URL") from None
    try:
        _port = parts.port
    except ValueError:
        raise BadInput("has no valid port") from None
    if parts.scheme not in schemes:
        raise BadInput(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    address = address_of(host)
    if "[" in parts.netloc and (address is None or address.version != 6):
        raise BadInput("has no valid address in the brackets")
    if not (address or re.fullmatch(HOST_NAME, host)):
        raise BadInput("has no valid host name")
    return parts


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a host is given as, None for a name."""
    import ipaddress

    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


def on_loopback(host: str) -> bool:
    address = address_of(host)
    return address.is_loopback if address else host == "localhost"


def read_key() -> str:
    """Return the API key from XAI_API_KEY or XAI_API_KEY_FILE; "" where there is none.

    What would not pass as a header's value is refused; no message shows the key.
    """
    name = "XAI_API_KEY"
    key = os.environ.get(name, "").strip()
    if not key and (path := os.environ.get("XAI_API_KEY_FILE")):
        name = "XAI_API_KEY_FILE"
        with at(name), at(path), open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.readline(BLOCK).decode("latin-1").strip()
        if stat.S_ISREG(mode) and mode & 0o044:
            log.warning(f"{name}: {path}: other users can read the key; chmod 600 protects it")
    if key[:1] in ("'", '"') or key[-1:] in ("'", '"'):
        raise BadInput(f"{name}: the key is in quotation marks; remove them")
    if re.match(r"bearer\s", key, re.IGNORECASE):
        raise BadInput(f"{name}: the key begins with 'Bearer '; remove that")
    if re.search(NOT_GRAPHIC, key):
        raise BadInput(f"{name}: the key {HAS_NOT_GRAPHIC}")
    conceal(key, "[the key]")
    return key


def read_headers(text: str) -> dict[str, str]:
    """Return the headers that are lines "Name: value"; a message never shows a value."""
    headers: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not line.strip():
            continue
        if not (colon and re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII)):
            raise BadInput(f"line {number}: expected 'Name: value'")
        if not re.fullmatch(r"[ -~]+", value):
            raise BadInput(f"line {number}: {name}: the value is empty or not printable ASCII")
        if re.match(r"(authorization|host|transfer-encoding)$|content-", name, re.IGNORECASE):
            raise BadInput(f"line {number}: {name} is set by xchat itself")
        if name.lower() in map(str.lower, headers):
            raise BadInput(f"line {number}: {name} is given twice")
        headers[name] = value
        conceal(value, "[hidden]")
    return headers


PROXY_SCHEMES = ("http", "https", "socks5h", "socks5", "socks4a", "socks4")


def read_proxies(url: str) -> tuple[dict[str, str], str]:
    """Return the proxies by scheme, and the host of the one for the URL.

    They are what HTTPS_PROXY, ALL_PROXY and NO_PROXY say.
    """
    import base64
    import importlib.util
    from urllib.parse import unquote

    from requests.utils import get_environ_proxies, select_proxy

    proxies = get_environ_proxies(url)
    proxy = select_proxy(url, proxies)
    if not proxy:
        return proxies, ""
    scheme = url.partition(":")[0].upper()
    with at(f"{scheme}_PROXY or ALL_PROXY"):
        parts = check_url(proxy if "://" in proxy else f"http://{proxy}", schemes=PROXY_SCHEMES)
        if parts.scheme.startswith("socks") and not importlib.util.find_spec("socks"):
            raise BadInput("SOCKS needs PySocks: pip install PySocks, or Debian's python3-socks")
    if parts.password:
        user, password = unquote(parts.username or ""), unquote(parts.password)
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        for secret in (parts.password, password, token):
            conceal(secret, "[hidden]")
    return proxies, parts.netloc.rpartition("@")[2]


def trust_store() -> str:
    """Return the file or the list of directories of trusted certificates."""
    import ssl

    from requests.utils import DEFAULT_CA_BUNDLE_PATH

    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        if path := os.environ.get(name):
            with at(name), at(path):
                paths = path.split(os.pathsep) if name == "SSL_CERT_DIR" else [path]
                directories = list(filter(os.path.isdir, paths))
                if any(map(is_hashed, directories)):
                    return os.pathsep.join(directories)
                if directories:
                    raise BadInput("contains no hashed certificate; run openssl rehash on it")
                os.stat(path)
                try:
                    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
                except ssl.SSLError:
                    raise BadInput("contains no certificate in PEM") from None
                return path
    default = ssl.get_default_verify_paths()
    if default.capath and is_hashed(default.capath):
        return default.capath
    return default.cafile or DEFAULT_CA_BUNDLE_PATH


def is_hashed(directory: str) -> bool:
    """Say whether certificates can be looked up there by the hash that is their file's name."""
    with contextlib.suppress(OSError):
        return any(re.match(r"[0-9a-f]{8}\.\d", name) for name in os.listdir(directory))
    return False


# Reading: bytes and text ---------------------------------------------------------------------


STDIN_NAMES = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


def name_of(path: str) -> str:
    return "standard input" if path == "-" else path


def read_file(path: str) -> bytearray:
    """Return what a file holds ("-": standard input)."""
    if path == "-":
        return read_stdin()
    with open(path, "rb", buffering=0) as file:
        return read_bytes(file)


def read_stdin(*, advice: str = "", timeout: float = math.inf) -> bytearray:
    """Return standard input, to its end; closed standard input is empty.

    When it stays open and silent for HINT_DELAY seconds, a hint says so and adds the advice; after
    timeout seconds that is an error.
    """
    if sys.stdin is None:
        return bytearray()
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        if stdin.isatty():
            log.warning("reading from the terminal; end with Ctrl-D")
            return read_bytes(stdin)
        delay = min(HINT_DELAY, timeout)
        if not select.select([stdin], [], [], delay)[0]:
            if timeout > delay:
                if os.isatty(2):  # another xchat of the pipeline may have a status line there
                    write_error(ERASE_LINE)
                log.warning(f"still waiting for standard input{advice}")
            left = None if timeout == math.inf else min(timeout - delay, 1e6)
            if not select.select([stdin], [], [], left)[0]:
                raise BadInput(f"nothing came within {timeout:g} s{advice}")
        return read_bytes(stdin)


def read_bytes(file: io.FileIO) -> bytearray:
    data = bytearray()
    while (block := file.read(BLOCK)) != b"":
        if block is None:  # the descriptor is non-blocking; whoever shares it may have set that
            select.select([file], [], [])
            continue
        data += block
        if len(data) > INPUT_LIMIT:
            raise BadInput(f"more than {INPUT_LIMIT // MIB} MiB")
    return data


def decode(data: bytes | bytearray) -> str:
    """Return UTF-8 as text without a leading byte-order mark; refuse anything else."""
    nul = data.find(0)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        place = f"not UTF-8 at byte {error.start}"
        is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        if nul >= 0 and not is_utf16:
            raise BadInput(f"binary data, not text: {place}") from None
        charset = "UTF-16" if is_utf16 else "ISO-8859-1"
        raise BadInput(f"{place}; convert it, as in: iconv -f {charset} -t UTF-8") from None
    if nul >= 0:
        raise BadInput(f"binary data, not text: NUL at byte {nul}")
    return text.removeprefix("\ufeff")


def as_text(word: str) -> str:
    """Return an argument as the UTF-8 that it is, whatever the locale took it for."""
    try:
        return os.fsencode(word).decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8 at byte {error.start}") from None


# Reading: the prompt -------------------------------------------------------------------------


def read_prompt(words: Sequence[str], *, no_stdin: bool, is_asked: bool, timeout: float) -> str:
    """Return the words, standard input, or both, set off by a blank line; empty if all is blank.

    is_asked: the conversation ends with a question, for which no terminal is read.  Words need not
    wait more than timeout seconds for the first byte of standard input.
    """
    place = words.index("-") if "-" in words and not no_stdin else len(words)
    parts = [" ".join(words[:place]), " ".join(words[place + 1 :])]
    has_words = any(part.strip() for part in parts)
    if words and "-" not in words and not stdin_is_pipe_or_file():
        no_stdin = True
    if is_asked and not words and sys.stdin is not None and os.isatty(0):
        no_stdin = True
    if not no_stdin:
        advice, limit = ("; use -n to ignore it", timeout) if has_words else ("", math.inf)
        with at("standard input"):
            parts.insert(1, decode(read_stdin(advice=advice, timeout=limit)))
        if has_words and not parts[1].strip() and stdin_is_pipe_or_file():
            log.warning(
                "standard input was empty; only the arguments are sent"
                " (2>&1 would include error messages)"
            )
    return "\n\n".join(part for part in parts if part.strip())


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


def image_url(image: str) -> str:
    """Return the URL as it is, or a file as a data URL."""
    import base64

    if re.match(r"https?://|data:", image, re.IGNORECASE):
        with at("-i"):
            return as_text(image)
    with at(name_of(image)):
        data = read_file(image)
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

TALK = r"\b(role|user|assistant|system|history|messages)\b"  # a word that conversations have

# -f is not for a text, as it is in other tools
TEXT_ADVICE = '; to send plain text, use standard input, as in: xchat "Summarize" <notes.txt'


def read_conversations(paths: Iterable[str]) -> tuple[JSON, list[JSON]]:
    """Return the request fields and the messages of all files; a later field wins."""
    fields: JSON = {}
    messages: list[JSON] = []
    for path in paths:
        with at(name_of(path)):
            _value, more_fields, more_messages = parse_conversation(decode(read_file(path)))
        warn_of_unknown(more_fields, place=name_of(path))
        fields.update(more_fields)
        messages.extend(more_messages)
    return fields, messages


@functools.lru_cache(maxsize=1)  # -a reads the same text again
def parse_conversation(text: str) -> tuple[Any, JSON, list[JSON]]:
    """Return the value of a conversation file; its request fields and messages, all checked."""
    try:
        value = parse_text(text)
    except BadInput as failure:
        is_text = failure.message.startswith("not ") or not re.search(TALK, text)
        raise BadInput(f"{failure.message}{TEXT_ADVICE if is_text else ''}") from None
    return value, *split_conversation(value)


def warn_of_unknown(fields: Iterable[str], *, place: str) -> None:
    unknown = [field for field in fields if field not in FIELDS]
    if unknown:
        what = "field" if len(unknown) == 1 else "fields"
        names = ", ".join(field + did_you_mean(field, FIELDS, " ({})") for field in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        log.warning(f"{place}: unknown request {what}, sent as given: {names}{more}")


def split_conversation(value: Any) -> tuple[JSON, list[JSON]]:
    """Return the request fields and the messages, the short form {ROLE: text} written out."""
    if isinstance(value, list):
        return {}, check_messages(value)
    if not isinstance(value, dict):
        check_value(value)
        raise BadInput(
            f"expected a list of messages, or a mapping with 'system' and 'history';"
            f" found {show(value)}{TEXT_ADVICE}"
        )
    if "role" in value:
        check_value([value])  # as deep as it is in the list that -a makes
        return {}, check_messages([value])
    if value.keys() == {"user"}:
        raise BadInput("'user' alone is a request field; a message is a list item: - user: ...")
    if "history" in value and "messages" in value:
        raise BadInput("'history' and 'messages' mean the same; use one of them")
    fields = {name: field for name, field in value.items() if name not in CONVERSATION}
    messages = []
    if "system" in value:
        with at("system"):
            check_value(value["system"])
            check_content(value["system"])
        messages.append({"role": "system", "content": value["system"]})
    for name in value.keys() & {"history", "messages"}:
        with at(name):
            messages += check_messages(value[name])
    is_known = bool(value.keys() & {*CONVERSATION, *FIELDS})
    if is_known or len(fields) == 1:  # a single one may be a typo
        for name in fields:
            check_field_name(name)
    if fields and not is_known:
        raise BadInput(f"not a conversation: it has no known key{TEXT_ADVICE}")
    for name, field in fields.items():
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
    if len(messages) > EVENT_LIMIT // 4:
        raise BadInput(f"more than {EVENT_LIMIT // 4:,} messages")
    checked = []
    for number, message in enumerate(messages, start=1):
        with at(f"message {number}"):
            check_value(message)
            checked.append(check_message(message))
    return checked


def check_message(message: Any) -> Any:
    """Return the message, the short form {ROLE: text} written out."""
    if not isinstance(message, dict):
        advice = TEXT_ADVICE if isinstance(message, str) else ""
        raise BadInput(f"expected {{role: ..., content: ...}}, found {show(message)}{advice}")
    if len(message) == 1 and not message.keys() & {"role", "content"}:
        ((role, content),) = message.items()
        message = {"role": role, "content": content}
    require("role", message, advice=TEXT_ADVICE if len(message) > 1 else "")
    role = message["role"]
    if role not in ROLES:
        hint = isinstance(role, str) and did_you_mean(role, ROLES)
        hint = hint or f"; expected one of {', '.join(ROLES)}"
        raise BadInput(f"unknown role {show(role)}{hint}")
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


TOO_DEEP = f"nested more than {NESTING_LIMIT} levels deep"


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
            raise BadInput("contains half of a surrogate pair") from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadInput("NaN and infinity are not JSON")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise BadInput(f"YAML reads {value} as a date; quote it")


def require(key: str, mapping: JSON, *, advice: str = "") -> None:
    """Refuse a mapping without the key; a misspelt one is pointed out, or else the advice given."""
    if key not in mapping:
        wrong = next((other for other in mapping if nearest(other, [key])), None)
        hint = f"; is {wrong!r} a typo?" if wrong else advice
        raise BadInput(f"{key!r} is missing{hint}")


def nearest(word: Any, known: Iterable[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(str(word)[:50], [*known], n=1)), None)


def did_you_mean(word: Any, known: Iterable[str], form: str = "; {}") -> str:
    """Return "; did you mean 'that'?" where a known word is near, else an empty string."""
    match = nearest(word, known)
    return form.format(f"did you mean {match!r}?") if match else ""


def show(value: Any) -> str:
    """Return what an error message calls a value that is not what was expected."""
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None:
        return "nothing"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


# Reading: JSON and YAML ----------------------------------------------------------------------

SEEMS_JSON = r'[\s\[{]*[\[{]\s*(["\]}]|\Z)'  # begins as a list or mapping of JSON, not of YAML

# strings, in which no comma counts, and commas before a closing bracket: the API's guide prints a
# conversation with one, and with and without a comma between two messages
STRING_OR_TRAILING_COMMA = r'(?s)"[^"\\]*(?:\\.[^"\\]*)*"?|,(?=\s*[\]}])'


def parse_text(text: str) -> Any:
    """Return the value of a text in JSON or YAML; several JSON values are a list."""
    if not text.strip():
        raise BadInput("empty; expected JSON or YAML")
    is_json = re.match(SEEMS_JSON, text)
    try:
        return parse_json(text)
    except RecursionError:
        raise BadInput(TOO_DEEP) from None
    except json.JSONDecodeError as error:
        json_error = f"line {error.lineno}, column {error.colno}: {error.msg.lower()}"
    except (ValueError, BadInput) as error:
        json_error = str(error)
    for match in re.finditer(STRING_OR_TRAILING_COMMA, text) if is_json else ():
        if re.search(r"[\r\n]", match[0].rstrip()) and match[0] != ",":  # YAML would fold it
            line = text.count("\n", 0, match.start()) + 1
            raise BadInput(f"line {line}: a line break in a string; write \\n")
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise BadInput(f"not JSON: {json_error}" if is_json else f"not YAML: {error}") from None


def unique(pairs: list[tuple[str, Any]]) -> JSON:
    """Return the mapping, or raise BadInput if it has a key twice."""
    mapping: JSON = {}
    for key, value in pairs:
        if key in mapping:
            raise BadInput(f"duplicate key {key!r}")
        mapping[key] = value
    return mapping


def load_json(text: str) -> Any:
    """Return the one value of a text that is JSON to the letter; raise ValueError or BadInput."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise BadInput(TOO_DEEP) from None


def parse_json(text: str) -> Any:
    """Return one JSON value, or a list of several that stand in a row; raise ValueError."""
    decoder = json.JSONDecoder(object_pairs_hook=unique)
    gap = re.compile(r"\s*,?\s*")
    text = text.rstrip()
    values = []
    end = len(text) - len(text.lstrip())
    while end < len(text):
        try:
            value, end = decoder.raw_decode(text, end)
        except json.JSONDecodeError:
            if text[end] not in "[{" or len(text) > MIB:  # that may take 100 times the memory
                raise
            text = re.sub(STRING_OR_TRAILING_COMMA, lambda m: " " if m[0] == "," else m[0], text)
            value, end = decoder.raw_decode(text, end)
        values.append(value)
        end = gap.match(text, end).end()  # type: ignore[union-attr]  # it matches anywhere
    if len(values) > 1 and all(isinstance(value, (str, int, float)) for value in values):
        raise ValueError("several numbers or strings")  # a date, say
    return values[0] if len(values) == 1 else values


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text; raise ValueError, or BadInput for what is not accepted.

    It is built from the parser's events, and the first that is hostile ends it: PyYAML's own
    loader keeps the last of duplicate keys, and lets aliases and nesting grow without bound.
    """
    import yaml

    # libyaml compares each %TAG with all before it: 64 MiB of them would take hours
    if tag := re.search(r"^%TAG", text, re.MULTILINE):
        line = text.count("\n", 0, tag.start()) + 1
        raise BadInput(f"line {line}: %TAG is not accepted; remove it")
    events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    events = itertools.islice(events, EVENT_LIMIT)
    try:
        next(events)  # the start of the stream
        if not isinstance(next(events), yaml.DocumentStartEvent):
            raise BadInput("empty; expected JSON or YAML")
        value = build_value(next(events), events)
        next(events)  # the end of the document
        event = next(events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise not_accepted(event, "a second YAML document")
        return value
    except StopIteration:
        raise BadInput(f"more than {EVENT_LIMIT:,} values") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        is_text = re.search("mapping values|start any token|alphabetic", str(error.problem))
        hint = "; quote text with a special character in it" if is_text else ""
        raise ValueError(f"{place}{error.problem}{hint}") from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"{error.reason} (character {error.position})") from None


def build_value(event: Any, events: Iterator[Any], depth: int = 0) -> Any:
    """Return the value that begins with the event."""
    import yaml

    if depth > NESTING_LIMIT:
        raise not_accepted(event, TOO_DEEP)
    if isinstance(event, yaml.AliasEvent) or event.anchor:
        raise not_accepted(event, "anchors and aliases (& and *) are not accepted; repeat the text")
    if event.tag not in (None, "!"):
        tag = event.tag.replace("tag:yaml.org,2002:", "!!")
        raise not_accepted(event, f"the YAML tag {tag} is not accepted; remove it")
    if isinstance(event, yaml.ScalarEvent):
        return build_scalar(event)
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(build_value(event, events, depth + 1))
        return items
    mapping: JSON = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = build_value(event, events, depth + 1)
        if not isinstance(key, str):
            raise not_accepted(event, f"the key {show(key)} is not text; quote it")
        if key == "<<":
            raise not_accepted(event, "merge keys (<<) are not accepted; write the keys out")
        if key in mapping:
            raise not_accepted(event, f"duplicate key {key!r}")
        mapping[key] = build_value(next(events), events, depth + 1)
    return mapping


LONG_NUMBER = 1000  # characters; the time for a number like 1:1:1 grows as its square


@functools.cache
def yaml_scalars() -> tuple[Any, Any]:
    """Return what tells the type of plain text by YAML 1.1, and what builds the value."""
    import yaml

    return yaml.resolver.Resolver(), yaml.constructor.SafeConstructor()


def build_scalar(event: Any) -> Any:
    """Return text, or what YAML 1.1 reads plain text as: a number, a boolean, null, a date."""
    import yaml

    if not event.implicit[0] or len(event.value) > LONG_NUMBER:
        return event.value
    resolver, constructor = yaml_scalars()
    tag = resolver.resolve(yaml.ScalarNode, event.value, (True, False))
    kind = tag.rpartition(":")[2]
    if kind in ("str", "value", "merge"):
        return event.value
    try:
        return constructor.yaml_constructors[tag](constructor, yaml.ScalarNode(tag, event.value))
    except (ValueError, LookupError, OverflowError):
        raise not_accepted(event, f"{show(event.value)} is not a valid {kind}") from None


def not_accepted(event: Any, message: str) -> BadInput:
    return BadInput(f"line {event.start_mark.line + 1}: {message}")


# Reading: the request fields of the options -------------------------------------------------

TOKEN_LIMITS = {"max_completion_tokens", "max_tokens"}  # the same under its old name


def request_fields(
    *,
    model: str | None,
    temperature: float | None,
    max_tokens: int | None,
    schema: str | None,
    stream: bool | None,
    params: Iterable[str],
) -> JSON:
    """Return the request fields that the options give, each by one of them."""
    given = {
        "model": model,
        "temperature": temperature,
        "max_completion_tokens": max_tokens,
        "response_format": read_schema(schema) if schema else None,
        "stream": stream,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    more = read_params(params)
    taken = fields.keys() | (TOKEN_LIMITS if TOKEN_LIMITS & fields.keys() else set())
    for name in taken & more.keys():
        raise BadInput(f"-p {name}: also set by its own option; drop one")
    return fields | more


def read_params(params: Iterable[str]) -> JSON:
    """Return the request fields that NAME=VALUE and NAME=@FILE stand for; a later one wins."""
    fields: JSON = {}
    for param in params:
        name, equals, value = param.partition("=")
        if not (name and equals):
            raise BadInput(f"-p {param}: expected NAME=VALUE or NAME=@FILE")
        with at(f"-p {name}"):
            if name in CONVERSATION:
                raise BadInput("not a field; messages come from -s, -f and the prompt")
            check_field_name(name)
            file = file_in(param)
            fields[name] = parse_param(value) if file is None else read_value(file)
            check_value(fields[name])
    warn_of_unknown(fields, place="-p")
    return fields


def file_in(param: str) -> str | None:
    """Return the name of the file in NAME=@FILE, as the locale encodes it."""
    value = param.partition("=")[2]
    return os.fsdecode(value[1:].encode()) if value.startswith("@") else None


def parse_param(value: str) -> Any:
    """Return the value of JSON, or else the text as it is."""
    try:
        return load_json(value)
    except ValueError:
        return value


def read_schema(schema: str) -> JSON:
    """Return the request field for a JSON Schema, or for the file that holds one.

    See https://docs.x.ai/docs/guides/structured-outputs.
    """
    is_inline = schema.lstrip().startswith("{")
    with at("--schema" if is_inline else name_of(schema)):
        value = parse_text(as_text(schema) if is_inline else decode(read_file(schema)))
        check_value(value)
        if not isinstance(value, dict):
            raise BadInput(f"expected a JSON Schema, found {show(value)}")
    return {
        "type": "json_schema",
        "json_schema": {"name": "reply", "schema": value, "strict": True},
    }


def read_value(path: str) -> Any:
    """Return the value that a file holds in JSON or YAML ("-": standard input)."""
    with at(name_of(path)):
        value = parse_text(decode(read_file(path)))
        check_value(value)
        return value


# Asking --------------------------------------------------------------------------------------


def build_body(messages: list[JSON], *, fields: JSON, options: JSON) -> JSON:
    """Return the body of the request: https://docs.x.ai/docs/api-reference#chat-completions.

    fields are those of the files, options those of the command line, which win.
    """
    if not any(message["role"] == "user" for message in messages):
        raise BadInput("no prompt; pass it as arguments or on standard input")
    if TOKEN_LIMITS & options.keys():
        fields = {name: fields[name] for name in fields if name not in TOKEN_LIMITS}
    with at("XCHAT_MODEL"):
        model = as_text(os.environ.get("XCHAT_MODEL", "")).strip() or MODEL
    return {"model": model, "messages": messages, **fields, **options}


# What the API is asked for, and whether each piece of text is written as it arrives ("live") or
# all at the end:
#
#                    --stream         --no-stream   neither     neither, but a field "stream"
#   to a terminal    stream, live     no stream     like --stream      as it says, live
#   elsewhere        stream, live     no stream     no stream          as it says, live
#   -x, -o           stream           no stream     no stream          as it says
#   --json           is an error      no stream     no stream          as it says
def choose_stream(body: JSON, option: bool | None, *, is_held: bool) -> bool:
    """Ask for a stream or not; return whether the text is written live."""
    if option or (option is None and "stream" not in body and os.isatty(1) and not is_held):
        body["stream"] = True
        body.setdefault("stream_options", {"include_usage": True})
    elif option is False:
        body.pop("stream", None)
        body.pop("stream_options", None)
    return bool(body.get("stream")) and not is_held


def encode_body(body: JSON) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


# Two threads carry out an exchange.  The main thread is in fetch(), where it hands over the request
# and waits for the headers, and then in read_blocks().  The other one, in run(), does in turn:
#
#   connects early                over https without a proxy, if the request is not there at once
#   waits for the request         on a connection that is idle for IDLE_LIMIT at most
#   connects                      unless the early connection stands
#   takes the gate, sends the request, and waits for the headers
#   waits for the attempt's end   and shuts the connection down if the deadline is first
#
# It takes two because nothing interrupts a look-up of the host, because the deadline must hold
# whatever else blocks (a header that drips, a block that does not decompress to a single byte), and
# because one can connect while the other waits for a prompt.  Either of them draws the status line.
#
# The gate is a lock for each attempt, which is taken once and never released: by run() before it
# sends, or by fetch() for want of a connection.  The second one gives up.  So a request that is
# given up is never sent, and one that may have been sent is never repeated.  no_answer() and
# refusal() set repeat_after by this table, and seconds_to_wait() obeys it:
#
#   what ended the attempt                 the gate      the body is posted again, if asked for
#   connecting failed, or took 10 s        fetch()'s     yes, unless it will fail again
#   no headers by the deadline             run()'s       no
#   the connection failed before them      run()'s       no
#   a status that is not 2xx               run()'s       as refusal() says
#   anything in or after a body of 2xx     run()'s       no


def ask(
    exchange: Exchange, body: JSON, reply: Reply, *, timeout: float, retries: int
) -> Iterator[str]:
    """Post the body and yield the text of the reply, piece by piece as it comes.

    A reply that is not whole ends in a Failure.  timeout is in seconds, from now to the last byte.
    The body is posted again, at most retries times, where it cannot have produced a reply.
    """
    server = exchange.server
    data = encode_body(body)
    headers = request_headers(server, is_stream=bool(body.get("stream")))
    wait = Wait(timeout, activity=f"waiting for {body['model']}")
    for attempt in range(retries + 1):
        reply.begin()
        wait.begin()
        try:
            response = exchange.fetch(headers, data, wait)
            reply.request_id = response.headers.get("x-request-id")
            blocks = read_blocks(response, reply, wait)
            if response.status_code == 407 and server.proxy:
                raise NoAnswer(f"the proxy {server.proxy} failed: 407 {response.reason}")
            if not 200 <= response.status_code < 300:
                is_redirect = 300 <= response.status_code < 400
                with response:  # what a redirect says is of no use but for --json
                    said = b"" if is_redirect and reply.body is None else read_error(blocks)
                    raise refusal(response, said, has_key=bool(server.key))
            for text in read_reply(blocks, reply, wait):
                wait.end()
                yield text
            return
        except Failure as failure:
            message = reply.blame(failure.message)
            seconds = seconds_to_wait(failure, attempt)
            if attempt == retries or seconds is None or seconds > wait.seconds_left():
                raise type(failure)(message) from None
        finally:
            wait.end()
            exchange.is_over.set()
        log.warning(f"{message}; trying again in {seconds:.1f} s")
        time.sleep(seconds)
        exchange = Exchange(server)


def seconds_to_wait(failure: Failure, attempt: int) -> float | None:
    """Return how long to wait before the body is posted again; None: it is not."""
    import random

    if failure.repeat_after is None or failure.repeat_after > RETRY_AFTER_LIMIT:
        return None
    backoff = min(2.0 ** min(attempt, 9), BACKOFF_LIMIT)
    return (failure.repeat_after or backoff) + random.uniform(0, backoff)


def request_headers(server: Server, *, is_stream: bool) -> dict[str, str]:
    accept = ["application/json", "text/event-stream"]
    headers = {
        "Content-Type": "application/json",
        "Accept": ", ".join(reversed(accept) if is_stream else accept),
        "User-Agent": f"xchat/{__version__}",
        **server.headers,
    }
    if server.key:
        headers["Authorization"] = f"Bearer {server.key}"
    return headers


class Wait:
    """What goes on while we wait: the time runs out, and a terminal is told what we wait for.

    seconds_left, late             the deadline of the run
    until                          what another thread does, if that is in time
    activity, begin, draw, end     the status line, drawn once a second by either thread
    """

    def __init__(self, timeout: float, *, activity: str) -> None:
        self.timeout = timeout
        self.start = self.drawn = time.monotonic()
        self.activity = activity
        is_dumb = os.environ.get("TERM", "dumb") == "dumb" or sys.stderr is None
        self.is_wanted = not is_dumb and os.isatty(2) and log.level == logging.WARNING
        self.is_waiting = self.is_drawn = False
        self.lock = threading.Lock()  # one thread draws the line, another erases it

    def seconds_left(self) -> float:
        return max(self.start + self.timeout - time.monotonic(), 0)

    def late(self, what: str = "no answer") -> NoAnswer:
        return NoAnswer(f"{what} within {self.timeout:g} s; --timeout sets a longer limit")

    def until(self, event: threading.Event, *, at_most: float = math.inf) -> bool:
        """Wait for the event, until the deadline at most; return whether it came."""
        end = time.monotonic() + min(at_most, self.seconds_left())
        while not event.wait(min(end - time.monotonic(), 1)):
            if time.monotonic() >= end:
                return False
            self.draw()
        return True

    def begin(self) -> None:
        """Let the line be drawn from now on."""
        self.is_waiting = self.is_wanted

    def draw(self) -> None:
        """Draw the line, at most once a second."""
        now = time.monotonic()
        with contextlib.suppress(OSError), self.lock:  # the terminal may be gone
            if self.is_waiting and now >= self.drawn + 1:
                self.drawn, self.is_drawn = now, True
                activity = re.sub(UNPRINTABLE, " ", hide(self.activity))
                line = f"{activity}, {now - self.start:.0f} s"
                width = (os.get_terminal_size(2).columns or 80) - 1
                write_error(ERASE_LINE + line.encode("ascii", "replace").decode()[:width])

    def end(self) -> None:
        """Erase the line before output."""
        if self.is_waiting:
            with self.lock:
                self.is_waiting = False
                if self.is_drawn:
                    self.is_drawn = False
                    write_error(ERASE_LINE)


class Exchange:
    """One request and its response, by way of a thread that connects at once.

    fetch      hands the request to the thread, and returns the response
    run        is what the thread does
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.gate = threading.Lock()
        self.has_request = threading.Event()  # headers, data and wait are set
        self.is_answered = threading.Event()  # answer is set: a response or an exception
        self.is_over = threading.Event()
        self.answer: Any = None
        threading.Thread(target=self.run, daemon=True).start()

    def fetch(self, headers: dict[str, str], data: bytes, wait: Wait) -> requests.Response:
        """Post the body once and return the response as soon as its headers are there."""
        self.headers, self.data, self.wait = headers, data, wait
        self.has_request.set()
        limit = min(CONNECT_TIMEOUT, wait.seconds_left())
        wait.until(self.is_answered, at_most=limit)
        is_sent = not self.gate.acquire(blocking=False)
        if is_sent and not wait.until(self.is_answered):
            way = f" through the proxy {self.server.proxy}" if self.server.proxy else ""
            raise wait.late(f"no answer{way}")
        answer = self.answer
        if answer is None:
            secure = "secure " if self.server.url.startswith("https:") else ""
            answer = TimeoutError(None, f"no {secure}connection within {limit:.2g} s")
        if isinstance(answer, wire_errors()):
            raise no_answer(answer, self.server, is_sent=is_sent)
        if isinstance(answer, BaseException):
            raise answer
        log.debug("* the response begins")
        log.debug(f"< HTTP/{answer.raw.version / 10} {answer.status_code} {answer.reason}")
        for name, value in answer.headers.items():
            log.debug(f"< {name}: {value}")
        return answer  # type: ignore[no-any-return]

    def run(self) -> None:
        """Connect, post the request, hand over the response, and watch the clock."""
        import socket

        import requests

        connection = None
        try:
            # the adapter, not a session: no netrc, no redirects, no cookies
            response = make_adapter(self).send(
                requests.Request("POST", self.server.url).prepare(),
                stream=True,
                timeout=(CONNECT_TIMEOUT / 2, None),  # for each address of the host
                verify=self.server.trust,
                proxies=self.server.proxies,
            )
            with contextlib.suppress(OSError, ValueError):  # it has no body, and is closed
                connection = socket.socket(fileno=os.dup(response.raw.fileno()))
            self.answer = response
        except BaseException as error:  # noqa: BLE001  # the main thread raises it again
            self.answer = error
        self.is_answered.set()
        if connection:
            with connection, contextlib.suppress(OSError):
                if not self.wait.until(self.is_over):
                    connection.shutdown(socket.SHUT_RDWR)  # which ends whatever waits for it


def no_answer(error: Exception, server: Server, *, is_sent: bool) -> NoAnswer:
    """Return the failure of an exchange that ended without a response."""
    import ssl

    import requests

    message, root = explain(error), root_of(error)
    is_certificate = isinstance(root, ssl.SSLCertVerificationError)
    is_proxy = bool(server.proxy) and not (is_sent and server.url.startswith("https:"))
    proxy_refused = False
    if is_certificate:
        message += f" (trusted: {server.trust})"
    if is_proxy and is_certificate and not isinstance(error, requests.exceptions.ProxyError):
        message = f"through the proxy {server.proxy}: {message}"
    elif is_proxy:
        message = f"the proxy {server.proxy} failed: {message}"
        has_status = re.search(r"\b[34]\d\d\b", str(root))
        proxy_refused = bool(has_status) or type(root).__module__ == "socks"
    is_lasting = is_sent or is_certificate or proxy_refused
    return NoAnswer(message, repeat_after=None if is_lasting else 0)


def wire_errors() -> tuple[type[Exception], ...]:
    """Return what requests and urllib3 raise; some of it is a bare OSError or ValueError."""
    from urllib3.exceptions import HTTPError

    return (OSError, ValueError, HTTPError)


def make_adapter(exchange: Exchange) -> requests.adapters.HTTPAdapter:
    """Return what connects and then sends the exchange's request, once."""
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
            """Prepare a pool: for OpenSSL, a list of directories; and our own connections."""
            first = verify if os.path.exists(verify) else verify.split(os.pathsep)[0]
            super().cert_verify(conn, url, first, cert)  # type: ignore[no-untyped-call]
            if first != verify:
                conn.ca_certs, conn.ca_cert_dir = None, verify
            if log.isEnabledFor(logging.DEBUG):
                conn.ConnectionCls = telling(conn.ConnectionCls)
            conn.ConnectionCls = posting(conn.ConnectionCls, exchange)

    return Adapter()


def posting(connection: Any, exchange: Exchange) -> Any:
    """Return the class of connections that send the exchange's request.

    Where connecting takes round trips, and there is no proxy, it is done before the request is
    there.  If that fails, or the connection is closed by then, another one is made.
    """
    import ssl

    server, has_request = exchange.server, exchange.has_request

    class Posting(connection):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "socket_options": socket_options()})

        def connect(self) -> None:
            """Connect; the request is there when this returns."""
            is_direct = server.url.startswith("https:") and not server.proxy
            if is_direct and not has_request.wait(0.02):  # a prompt that is ready gains nothing
                with contextlib.suppress(*wire_errors()):
                    super().connect()
                    # who is in between may forget an idle connection, and tell nobody
                    if has_request.wait(IDLE_LIMIT) and is_idle(self.sock):
                        return
                self.close()
                log.debug("* the early connection is not used")
            has_request.wait()
            super().connect()

        def request(self, *args: Any, headers: Any, **kwargs: Any) -> None:
            if self.is_closed:  # over plain http; the gate is taken with a connection only
                self.connect()
            if not exchange.gate.acquire(blocking=False):
                raise TimeoutError
            self.timeout = None  # was that of connecting; a busy server may take long to read
            # those of an empty request, and perhaps one for a proxy
            headers.update(exchange.headers, **{"Content-Length": str(len(exchange.data))})
            try:
                super().request(*args, **{**kwargs, "body": exchange.data, "headers": headers})
            except ssl.SSLEOFError:  # the server may have answered before it closed
                raise BrokenPipeError from None  # after which urllib3 reads

    return Posting


def socket_options() -> list[tuple[int, int, int]]:
    """Return TCP's options: no delay, and keep-alive, as middleboxes forget silent connections."""
    import socket

    idle, interval = KEEPALIVE
    seconds = {"TCP_KEEPIDLE": idle, "TCP_KEEPALIVE": idle, "TCP_KEEPINTVL": interval}
    return [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        *[
            (socket.IPPROTO_TCP, getattr(socket, name), value)
            for name, value in seconds.items()
            if hasattr(socket, name)
        ],
    ]


def is_idle(connection: socket.socket) -> bool:
    """Say whether the TLS connection stands, and the server has said nothing, such as a 408.

    The connection is left without a timeout; urllib3 sets one with each request.
    """
    import ssl

    connection.settimeout(0)
    try:
        connection.recv(1)  # beyond the session tickets
    except ssl.SSLWantReadError:
        return True
    except OSError:
        pass
    return False


def telling(connection: Any) -> Any:
    """Return the class of connections with what -v tells added."""

    class Telling(connection):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            certificate = hasattr(self.sock, "getpeercert") and self.sock.getpeercert()
            if certificate:
                issuer = ", ".join(value for part in certificate["issuer"] for _name, value in part)
                log.debug(
                    f"* {self.sock.version()}, certificate of {issuer},"
                    f" expires {certificate.get('notAfter')}"
                )
            log.debug("* connected")

        def send(self, data: Any) -> None:
            super().send(data)
            if data.startswith(b"POST "):  # the head; the body, which is JSON, comes after it
                for line in data.decode("latin-1").rstrip().split("\r\n"):
                    line = re.sub("(?i)^([^:]*authorization[^:]*): .*", r"\1: [hidden]", line)
                    log.debug(f"> {line}")

    return Telling


def tell_sockets(event: str, args: Any) -> None:
    """Tell which addresses are tried; an audit hook of Python."""
    if event == "socket.getaddrinfo":
        log.debug(f"* looking up {args[0]}")
    elif event == "socket.connect":
        log.debug(f"* connecting to {' port '.join(map(str, args[1][:2]))}")


def root_of(error: BaseException) -> BaseException:
    """Return what an error began with; behind a proxy urllib3 keeps it in the arguments."""
    while True:
        context = None if error.__suppress_context__ else error.__context__
        inner = next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        deeper = error.__cause__ or context or getattr(error, "reason", None) or inner
        if not isinstance(deeper, BaseException):
            return error
        error = deeper


# OpenSSL's reasons where the peer speaks no TLS
NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "RECORD_LAYER_FAILURE")


def explain(error: Exception) -> str:
    """Return what failed an exchange, in words for its user."""
    import errno
    import http.client
    import socket
    import ssl
    import zlib

    import requests

    root = root_of(error)
    if isinstance(error, requests.ReadTimeout):  # only connecting has a limit of time
        return f"connected, but got no answer within {CONNECT_TIMEOUT / 2:g} s"
    if isinstance(root, TimeoutError) and not root.errno:
        return root.strerror or f"no connection within {CONNECT_TIMEOUT / 2:g} s"
    if isinstance(root, socket.gaierror):
        return f"cannot find the host: {root.strerror}"
    if isinstance(root, ssl.SSLCertVerificationError):
        return f"cannot trust its certificate: {root.verify_message}"
    is_closed = isinstance(root, (ssl.SSLEOFError, http.client.RemoteDisconnected))
    if is_closed or (isinstance(root, OSError) and root.errno == errno.ENOTCONN):
        return "closed the connection without an answer"
    if isinstance(root, ssl.SSLError):
        words = (root.reason or str(root)).replace("_", " ").lower()
        failed = f"the secure connection failed: {words}"
        return "does not speak https" if root.reason in NO_TLS else failed
    if isinstance(root, http.client.BadStatusLine):
        return f"does not speak HTTP: {root}"
    if isinstance(root, http.client.IncompleteRead):
        return "closed the connection in the middle"
    if isinstance(root, zlib.error):
        return "the compressed data is damaged"
    return (isinstance(root, OSError) and root.strerror) or str(root) or type(root).__name__


# Replying: the response ----------------------------------------------------------------------


class Reply:
    """What is known of the reply so far.  Of the choices, only that with index 0 counts."""

    def __init__(self, host: str, *, keep_body: bool = False) -> None:
        self.host = host
        self.start = time.monotonic()
        self.request_id: str | None = None
        self.texts: list[str] = []
        self.model: Any = None
        self.usage: JSON = {}
        self.has_message = False
        self.finish_reason: Any = None
        self.refusals: list[str] = []
        self.tool_calls: Any = None
        self.body: bytearray | None = bytearray() if keep_body else None

    def begin(self) -> None:
        """Discard the traces of an earlier attempt."""
        self.request_id = None
        if self.body:
            self.body.clear()

    def blame(self, message: str) -> str:
        """Return the message with what it is about: the host and the request."""
        suffix = f" (request id {self.request_id})" if self.request_id else ""
        return f"{self.host}: {message}{suffix}"

    @property
    def text(self) -> str:
        return "".join(self.texts)


def read_blocks(response: requests.Response, reply: Reply, wait: Wait) -> Iterator[bytes]:
    """Yield the blocks of a body as they arrive, and raise a Failure unless it ends well."""
    size = 0
    raw = response.raw
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *raw.CONTENT_DECODERS):  # also "gzip, gzip", as of a bomb
        raise BadReply(f"cannot read a reply that is compressed as {encoding!r}")
    try:
        read1 = functools.partial(raw.read1, BLOCK, decode_content=True)
        # both hold nothing back; a chunk costs stream() a quarter less, but only a chunk
        for block in raw.stream(BLOCK, decode_content=True) if raw.chunked else iter(read1, b""):
            if reply.body is not None:
                reply.body += block
            yield block
            size += len(block)
            if size > REPLY_LIMIT:
                raise BadReply(f"the reply is larger than {REPLY_LIMIT // MIB} MiB")
    except wire_errors() as error:
        if wait.seconds_left():
            raise BadReply(f"the reply is cut short: {explain(error)}") from None
    if not wait.seconds_left():
        raise wait.late("not the whole answer" if size else "no answer")


def read_reply(blocks: Iterable[bytes], reply: Reply, wait: Wait) -> Iterator[str]:
    """Yield the text of the reply as it comes; raise a Failure if that is not all of it.

    A completion is a stream of one event: a ChatResponse for a body that is no stream,
    ChatResponseChunks for one that is, https://docs.x.ai/docs/guides/streaming-response.  With a
    finish reason the text is whole; whatever goes wrong after it does not matter.
    """
    failure = None
    is_done = False
    half = ""  # of a surrogate pair, which servers in JavaScript split over two events
    last = b""
    try:
        for events in read_events(blocks):
            text = half
            try:
                for data in events:
                    is_done = is_done or data == b"[DONE]"
                    if not is_done:
                        last = data
                        text += add_event(reply, data, wait)
            except Failure as error:
                failure = error
                if isinstance(error, BadReply) and (text or reply.texts):
                    failure = BadReply(f"the reply is cut short: the rest is {error.message}")
            half = text[-1] if "\ud800" <= text[-1:] <= "\udbff" else ""
            if text := without_surrogates(text.removesuffix(half)):
                reply.texts.append(text)
                yield text
            if is_done or failure:
                break
    except Failure as error:
        failure = error
    if half:
        reply.texts.append("\ufffd")
        yield "\ufffd"
    if failure and not reply.finish_reason:
        raise failure
    if not (is_done or reply.finish_reason):
        raise BadReply("the reply is cut short: the stream ended without a finish reason")
    if last and not reply.has_message:
        raise BadReply(f"not a completion: {excerpt(last)}")
    check_finish(reply)


def read_events(blocks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the data of the server-sent events that end in each block.

    By https://html.spec.whatwg.org/#server-sent-events, but the end of the stream ends its last
    event, if that is whole.  A body without an event is the data of one, with [DONE] after it.
    """
    data: list[bytes] = []
    head: list[bytes] | None = []  # the lines so far, while there was no event
    for lines in read_lines(blocks):
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line:
                if any(data):
                    events.append(b"\n".join(data))
                data = []
        if events:
            yield events
            head = None
        elif head is not None:
            head += lines
    last = b"\n".join(data)
    if last == b"[DONE]" or is_whole(last):
        yield [last]
    elif head is not None:
        body = b"\n".join(head)
        if not re.match(rb"\s*(data|event|id|retry)?:", body):
            yield [body, b"[DONE]"]


def is_whole(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


BOM = b"\xef\xbb\xbf"


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


def add_event(reply: Reply, data: bytes, wait: Wait) -> str:
    """Return the text of a completion or a chunk; record the rest in the reply."""
    try:
        value = json.loads(data.removeprefix(BOM).decode(errors="replace"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        is_cut = re.match(rb"\s*\{", data) and not re.search(rb"\}\s*\Z", data)
        raise BadReply(f"not a {'whole ' if is_cut else ''}completion: {excerpt(data)}")
    if value.get("error") and not value.get("choices"):
        raise error_in_reply(value)
    reply.model = value.get("model") or reply.model
    reply.usage = mapping_in(value, "usage") or reply.usage
    choices = value.get("choices")
    choice: JSON = {}
    for item in choices if isinstance(choices, list) else ():
        if isinstance(item, dict) and not item.get("index"):  # a server may leave out a single 0
            choice = item
            break
    reply.finish_reason = choice.get("finish_reason") or reply.finish_reason
    message = choice.get("delta") or choice.get("message")
    if not isinstance(message, dict):
        reply.has_message = reply.has_message or "delta" in choice
        return ""
    reply.has_message = True
    if message.get("refusal"):
        reply.refusals.append(text_in(message["refusal"]))
    reply.tool_calls = message.get("tool_calls") or reply.tool_calls
    if message.get("reasoning_content"):
        wait.activity = "thinking"
    return text_in(message.get("content"))


def text_in(content: Any) -> str:
    """Return the text of a message's content, which may be a list of parts."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def mapping_in(value: JSON, name: str) -> JSON:
    item = value.get(name)
    return item if isinstance(item, dict) else {}


def without_surrogates(text: str) -> str:
    """Return the text with its surrogate pairs joined, and U+FFFD for half of one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def check_finish(reply: Reply) -> None:
    """Raise BadReply when what came is not a whole reply."""
    reason = reply.finish_reason
    if reason == "length":
        raise BadReply("the reply is cut off at the token limit (finish reason 'length')")
    if reason == "content_filter":
        raise BadReply("the reply is cut off by the content filter")
    if not reply.texts and reply.tool_calls:
        raise BadReply("the reply is a tool call, not text")
    if not reply.texts:
        why = "".join(reply.refusals) or (reason and f"finish reason {reason!r}")
        raise BadReply(f"the reply is empty{f': {why}' if why else ''}")


def excerpt(body: bytes) -> str:
    """Return the beginning of what should have been a completion."""
    text = body[:ERROR_LIMIT].removeprefix(BOM).decode(errors="replace").strip()
    if text.startswith("<"):
        return f"{page_words(text)}; is it a login page of the network?"
    return text or "an empty body"


# Replying: errors ----------------------------------------------------------------------------

# a 429 or an error in a 200 says only in words that it is not about the rate
NO_CREDIT = r"(?i)\bcredits?\b|spending limit|insufficient_quota"


# the API's words, Ollama's and LiteLLM's for a model that is not there
NO_MODEL = (
    r"(?i)\bmodel\b.{,200}\bnot (found|exist)|\b(unknown|invalid|no such) model|model_not_found"
)


def refusal(response: requests.Response, body: bytes, *, has_key: bool) -> Failure:
    """Return the failure that a response outside 200 to 299 means, in the API's words."""
    status = response.status_code
    message = f"{status} {response.reason or ''}".strip()
    if 300 <= status < 400:
        location = response.headers.get("location")
        where = f" (to {location})" if location else ""
        return Refused(f"{message}: redirects are not followed{where}")
    text = body.removeprefix(BOM).decode(errors="replace").strip()
    words = page_words(text) if text.startswith("<") else api_words(text) or "no reason given"
    message += f": {words}"
    if status in (400, 404) and re.search(NO_MODEL, words):
        message += "; -m or XCHAT_MODEL names another"
    if status in (401, 403, 500) and not has_key:
        message += "; no key was sent"
    is_refused = status < 500 and status not in (408, 429)
    if is_refused or (status == 429 and re.search(NO_CREDIT, words)):
        return Refused(message)
    seconds = retry_after(response)
    if 1 <= seconds < 1e10:
        message += f"; asks to wait {seconds:.0f} s"
    return Unavailable(message, repeat_after=seconds if status in REPEATABLE else None)


def read_error(blocks: Iterator[bytes]) -> bytes:
    """Return as much of an error's body as is of use, cut short or late or not."""
    body = bytearray()
    with contextlib.suppress(Failure):
        while len(body) < ERROR_LIMIT and (block := next(blocks, b"")):
            body += block
    return bytes(body)


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
    return re.sub(r"\s?\[WKE=[^]]*\]", "", words[:9999])  # a marker for the API's own clients


def words_in(value: Any, depth: int = 0) -> str:
    """Return the text in {"error": text}, {"error": {"message": text}}, a string of JSON, ...

    What a body says beside that is added: the errors of problem+json (RFC 9457), the place and
    the message of each item in FastAPI's detail.
    """
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            return (depth < 5 and words_in(json.loads(value), depth + 1)) or value
        return value
    if isinstance(value, list) and depth < 5:
        return "; ".join(filter(None, (words_in(item, depth + 1) for item in value[:5])))
    if isinstance(value, dict) and depth < 5:
        keys = ("error", "message", "detail", "msg", "title")
        found = (words_in(value[key], depth + 1) for key in keys if value.get(key))
        words = next(filter(None, found), "")
        place = value.get("loc") or value.get("pointer")
        more = value.get("errors") or value.get("error_description")
        if isinstance(place, list):
            place = ".".join(map(str, place))
        words = f"{place}: {words}" if place and words else words
        return ": ".join(filter(None, [words, words_in(more, depth + 1) if more else ""]))
    return ""


def page_words(text: str) -> str:
    """Return what a page of HTML or XML says: its title, if it has one."""
    import html

    title = re.search(r"(?i)<(?:title|message)\b[^<>]*>([^<]*)<", text)
    return (title and html.unescape(title[1]).strip()) or "a page of HTML"


# Replying: the output ------------------------------------------------------------------------


def receive(texts: Iterator[str], *, is_live: bool) -> Failure | None:
    """Take in the reply, and write each piece as it comes if that is wanted, with a final newline.

    The failure is returned, not raised, as the reply is dealt with whether it is whole or not.
    """
    end = b"\n"
    try:
        for text in texts:
            if is_live:
                end = text[-1:].encode()  # first: an interrupt may come between
                write_output(text.encode())
    except Failure as failure:
        return failure
    except Interrupt:
        if not os.isatty(1):  # a pipe may be full for ever
            end = b"\n"
        raise
    finally:
        if end != b"\n":
            with contextlib.suppress(Failure):
                write_output(b"\n")
    log.debug("* the reply is whole")
    return None


# Where the reply goes, unless it is written live:
#
#   -o        a whole reply                               what is not whole
#   none      to standard output                          to standard output
#   -         to standard output                          nowhere
#   a file    to the file, or else to standard output     to standard output


def deliver(
    reply: Reply,
    failure: Failure | None,
    *,
    output: str | None,
    target: str | int,
    added: contextlib.AbstractContextManager[None],
    is_live: bool,
    extract: bool,
    has_schema: bool,
) -> Failure | None:
    """Write what is not written yet of the reply; return the failure so far, or a new one."""
    try:
        text = extract_code(reply.text) if extract else reply.text
    except Failure as error:
        return failure or error
    if has_schema and not failure:
        try:
            load_json(text)
        except (ValueError, BadInput):
            failure = BadReply(reply.blame("the reply is not JSON"))
    data = text.encode() if reply.body is None else bytes(reply.body)
    if data and not data.endswith(b"\n"):
        data += b"\n"
    try:
        if target == 1 and not is_live and not (failure and output):
            write_output(data)
        if not failure:
            with added:  # neither file is replaced if one cannot be written
                if target != 1:
                    write_to(target, data, name=output)
            return None
    except Failure as error:
        failure = failure or error
    if target != 1:
        with contextlib.suppress(Failure):
            write_output(data)
    return failure


def write_to(target: str | int, data: bytes, *, name: str | None) -> None:
    """Write to the file of -o, or to standard output."""
    if target == 1:
        write_output(data)
        return
    with at(str(name), BadReply):
        if isinstance(target, int):
            write_bytes(target, data)
        else:
            replace(target, data, mode=0o666)


# begins a block of code; in a list it may be indented, or stand behind the item's bullet
FENCE = (
    r"(?m)^([ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+){,9})"
    r"(`{3,99}(?!`|.*`)|~{3,99}(?!~))[ \t]*(\w*).*\n"
)


def extract_code(text: str) -> str:
    """Return the inside of the first fenced code block, or all where there is none.

    A fence is what CommonMark says: https://spec.commonmark.org/0.31.2/#fenced-code-blocks.
    """
    begin = re.search(FENCE, text)
    if not begin:
        return text
    indent, fence = len(begin[1]), begin[2]
    fences = re.compile(
        rf"(?m)^[ \t]{{,{indent + 3}}}({fence}{fence[0]}*)[ \t]*([^`\n]*)$"
        r"(?=(\n[ \t\r]*(?:\n|\Z)|\Z)?)"  # a blank line or the end of the text
    ).finditer(text, begin.end())
    end = end_of_block(fences, has_blocks=begin[3].lower() in ("markdown", "md"))
    inside = text[begin.end() : end]
    if not inside.strip():
        raise BadReply("the code block is empty")
    return re.sub(rf"(?m)^[ \t]{{1,{indent}}}", "", inside) if indent else inside


def end_of_block(fences: Iterable[re.Match[str]], *, has_blocks: bool) -> int | None:
    """Return where a block ends, None if it is not closed; blocks inside it belong to it.

    A bare fence with text on the next line opens one, if that is closed in its turn.
    """
    end, inner = None, ""
    for fence in fences:
        is_bare = not fence[2].strip()
        if inner:
            inner = "" if is_bare and len(fence[1]) >= len(inner) else inner
        elif is_bare:
            end = fence.start()
            if fence[3] is not None or not has_blocks:
                break
            inner = fence[1]
        elif has_blocks:
            inner = fence[1]
    return end


def write_output(data: bytes) -> None:
    """Write all of it to standard output, or raise BadReply; die when its reader is gone.

    A terminal is shown the control characters.
    """
    if sys.stdout is None:
        raise BadReply("standard output: closed")
    try:
        write_bytes(1, data)
    except BrokenPipeError:
        die_of(signal.SIGPIPE)
    except OSError as error:
        raise BadReply(f"standard output: {error.strerror}") from None


@functools.cache  # it is asked for every piece of a stream
def is_terminal(fd: int) -> bool:
    return os.isatty(fd)


def write_bytes(fd: int, data: bytes) -> None:
    if is_terminal(fd):
        data = show_controls(data.decode(errors="replace")).encode()
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            select.select([], [fd], [])


# what could move the cursor, set the title or reverse the text of a terminal
CONTROL = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"


def show_controls(text: str) -> str:
    """Return the text with its control characters made visible: ^[ and <U+202E>."""

    def name(match: re.Match[str]) -> str:
        code = ord(match[0])
        return f"^{chr(code ^ 64)}" if code < 128 else f"<U+{code:04X}>"

    return re.sub(CONTROL, name, text)


def tell_usage(reply: Reply) -> None:
    """Print usage to standard error as one line of JSON."""

    def number(value: Any) -> int | float | None:
        if type(value) not in (int, float) or not abs(value) < 1 << 63:
            return None
        return int(value) if value == int(value) else value

    usage = reply.usage
    if not (reply.texts or usage):
        return
    ticks = number(usage.get("cost_in_usd_ticks"))  # 10^10 to the dollar
    prompt = mapping_in(usage, "prompt_tokens_details")
    completion = mapping_in(usage, "completion_tokens_details")
    facts = {
        "model": hide(reply.model) if isinstance(reply.model, str) else None,
        "prompt_tokens": number(usage.get("prompt_tokens")),
        "cached_tokens": number(prompt.get("cached_tokens")),
        "completion_tokens": number(usage.get("completion_tokens")),
        "reasoning_tokens": number(completion.get("reasoning_tokens")),
        "total_tokens": number(usage.get("total_tokens")),
        "cost_usd": None if ticks is None else ticks / 1e10,
        "cost_usd_ticks": ticks,
        "seconds": round(time.monotonic() - reply.start, 3),
        "request_id": reply.request_id and hide(reply.request_id),
    }
    known = {name: value for name, value in facts.items() if value is not None}
    write_error(json.dumps(known).replace("\x7f", "\\u007f") + "\n")


# Replying: files -----------------------------------------------------------------------------


# What the name of -o or -a leads to is found once, before a reply is paid for, and not followed
# again at the end:
#
#   a device, a pipe, what is open for writing already   is written to, where it stands
#   a file, or nothing                                   is replaced by a new file like it
#   a file that cannot be replaced so                    is written over
#
# A new file is like the old one if it has the same owner, group, mode and attributes (ACLs are
# some), and the old one has no other name: nobody gets to read it, and nobody is shut out.  It is
# made before the request, too, and removed, so that what fails fails then, and nothing lies about
# while the model thinks.  Writing over begins behind the end: where there is no room, the file
# stays as it was.  What can be written nowhere goes to standard output.


def find_target(name: str) -> str | int:
    """Return the path of a file to be replaced, or the descriptor of what is written to."""
    import fcntl

    if name == "-":
        if sys.stdout is None:
            raise BadReply("standard output: closed")
        return 1
    with at(name):
        if (fd := descriptor_of(name)) is not None:
            return fd
        if is_special(name):  # 1 is standard output, even if that is closed
            return fcntl.fcntl(os.open(name, os.O_WRONLY), fcntl.F_DUPFD, 3)
    return find_file(name, mode=0o666)


def find_file(name: str, *, mode: int) -> str:
    """Return the path of a file without links, or raise BadInput if it could not be written.

    mode is that of a new file.
    """
    with at(name):
        if os.path.isdir(name) or not os.path.basename(name):
            raise BadInput("is a directory")
        if os.path.exists(name) and not os.access(name, os.W_OK):
            raise BadInput("no permission to write it")
        path = os.path.realpath(name)
        try:
            new_file(path, mode=mode).close()
        except OSError:
            if not os.path.exists(path):
                raise
        remove_temporary()
        return path


def is_special(path: str) -> bool:
    """Say whether something is there that is not to be replaced."""
    is_there = os.path.exists(path) and not os.path.isdir(path)
    return is_there and not (os.path.isfile(path) and descriptor_of(path) is None)


def descriptor_of(path: str) -> int | None:
    """Return the descriptor through which the file is open for writing, None if it is not."""
    import fcntl

    with contextlib.suppress(FileNotFoundError):
        status = os.stat(path)
        for fd in (1, *map(int, os.listdir("/dev/fd"))):
            with contextlib.suppress(OSError):  # that of the list is closed by now
                is_this = os.path.samestat(os.fstat(fd), status)
                if is_this and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
                    return fd
    return None


temporary: list[str] = []  # files that must not be left behind


def remove_temporary() -> None:
    for path in temporary:  # which stays as it is, as a signal may begin this again
        with contextlib.suppress(OSError):
            os.unlink(path)


def new_file(path: str, *, mode: int) -> io.FileIO:
    """Make a file to replace that of the path; raise OSError if it cannot be like it."""
    name = os.path.join(os.path.dirname(path), f".xchat-{os.urandom(8).hex()}")
    is_old = os.path.isfile(path) and not os.path.islink(path)
    mode = 0o600 if is_old else mode  # nobody may open it before it is alike
    temporary.append(name)
    file = io.FileIO(name, "x", opener=functools.partial(os.open, mode=mode))
    if is_old:
        old = os.stat(path)
        with contextlib.suppress(OSError):
            os.fchown(file.fileno(), old.st_uid, old.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
        if old.st_nlink > 1 or likeness(file.fileno()) != likeness(path):
            raise OSError(None, "cannot be replaced by a file like it")
    return file


def likeness(file: int | str) -> tuple[Any, ...]:
    """Return what says who may do what with a file."""
    status = os.stat(file)
    attributes = {}
    with contextlib.suppress(OSError, AttributeError):  # some file systems, and macOS, have none
        attributes = {name: os.getxattr(file, name) for name in os.listxattr(file)}
    return status.st_uid, status.st_gid, status.st_mode, attributes


def replace(path: str, data: bytes, *, mode: int) -> None:
    """Put the data in place of what a file holds; mode is that of a new file."""
    try:
        with new_file(path, mode=mode) as file:
            write_bytes(file.fileno(), data)
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except OSError:
        if not os.path.exists(path):
            raise
        write_over(path, data)


def write_over(path: str, data: bytes) -> None:
    with io.FileIO(os.open(path, os.O_WRONLY | os.O_NOFOLLOW), "w") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            for begin, part in ((size, data[size:]), (0, data[:size])):
                file.seek(begin)
                write_bytes(file.fileno(), part)
                os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise
        file.truncate(len(data))


# Replying: the turn that is added to the conversation ----------------------------------------


def is_new(path: str) -> bool:
    """Say whether a conversation begins in this file: it is missing or empty."""
    return not os.path.exists(path) or (os.path.isfile(path) and not os.path.getsize(path))


# Writers keep each other out by a lock on the file, which is one under all its names, or while it
# is missing, on its directory.  The lock is tried before the request and let go, and taken again to
# read the file once more and write it: nobody waits for another's reply.


@contextlib.contextmanager
def appended(
    path: str, turn: list[JSON], *, name: str, systems: list[JSON], until: float
) -> Iterator[None]:
    """Add a turn to a conversation file as it is by now, the system messages to a new one.

    It is written if all goes well inside.
    """
    with at(f"{name}: cannot append the turn", BadReply), locked(path, until=until) as old:
        if old:
            text = add_messages(decode(old), turn, path=name)
        else:
            text = new_conversation(path, systems + turn)
        yield
        replace(path, text.encode(), mode=0o600)


@contextlib.contextmanager
def locked(path: str, *, until: float) -> Iterator[bytearray]:
    """Lock a file, and return what it holds; nothing if it is missing."""
    for attempt in itertools.count():
        place = lock_place(path)
        fd = os.open(place, os.O_NOFOLLOW | (os.O_RDWR if place == path else os.O_RDONLY))
        try:  # who has waited may have the lock of a file that has been replaced
            if has_lock(fd, path) and os.path.samestat(os.fstat(fd), os.stat(lock_place(path))):
                yield read_bytes(io.FileIO(fd, closefd=False)) if place == path else bytearray()
                return
        finally:
            os.close(fd)
        if time.monotonic() > until:
            raise BadReply(f"locked by another process; fuser {place} shows which")
        if attempt == 50 * HINT_DELAY:
            log.warning(f"still waiting for the lock of {path}")
        time.sleep(0.02)


def lock_place(path: str) -> str:
    if not os.path.lexists(path):
        return os.path.dirname(path)
    if not stat.S_ISREG(os.lstat(path).st_mode):  # a pipe, say, would not end
        raise BadReply("is no longer a regular file")
    return path


warn_once = functools.cache(log.warning)  # of what is met both before the request and after it


def has_lock(fd: int, path: str) -> bool:
    """Lock the file, or return False if another process has done so."""
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        warn_once(f"{path}: cannot be locked ({error.strerror}); append from one run at a time")
    return True


def new_conversation(path: str, messages: list[JSON]) -> str:
    """Return the text of a conversation file, in the format of its name."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".json":
        return json.dumps(messages, ensure_ascii=False, indent=2) + "\n"
    if suffix in (".jsonl", ".ndjson"):
        return json_lines(messages)
    return to_yaml(short(messages)) + "\n"


def json_lines(messages: list[JSON]) -> str:
    return "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in messages)


def short(messages: list[JSON]) -> list[JSON]:
    """Return the messages, as {ROLE: text} where they are no more than that."""
    return [
        {message["role"]: message["content"]} if isinstance(message["content"], str) else message
        for message in messages
    ]


def add_messages(text: str, turn: list[JSON], *, path: str) -> str:
    """Return the text of a conversation file with more messages, in its format and line ends.

    They are lines at its end where that is read as what it should be; else the text is written
    anew, in which comments are lost.
    """
    value, fields, messages = parse_conversation(text)
    for new in ways_to_add(text, value, turn):
        if 0 < text.count("\n") == text.count("\r\n"):
            new = new.replace("\r\n", "\n").replace("\n", "\r\n")
        with contextlib.suppress(Failure):
            if split_conversation(parse_text(new)) == (fields, messages + turn):
                has_comments = text.count("#") > json.dumps(value).count("#")
                if has_comments and not new.startswith(text):
                    log.warning(f"{path}: rewritten to append the turn; its comments are lost")
                return new
    raise BadReply("the result could not be read back")


HEADING = r"^(?:messages|history):.*\n(?:[ \t]*(?:#.*)?\r?\n)*"  # of the list of messages


def ways_to_add(text: str, value: Any, turn: list[JSON]) -> Iterator[str]:
    """Yield the text with more messages at its end, then the value written anew."""
    end = "" if text.endswith("\n") else "\n"
    try:
        parse_json(text)
    except (ValueError, RecursionError):
        heading = HEADING if isinstance(value, dict) else "^"
        first = re.search(heading + r"( *)- ", text, re.MULTILINE)
        if first:
            yield f"{text}{end}{first[1]}{to_yaml(short(turn), first[1])}\n"
        elif isinstance(value, dict):
            yield f"{text}{end}{to_yaml({'history': short(turn)})}\n"
        yield to_yaml(with_messages(value, short(turn))) + "\n"
    else:
        yield text + end + json_lines(turn)
    yield json.dumps(with_messages(value, turn), ensure_ascii=False, indent=2) + "\n"


def with_messages(value: Any, turn: list[JSON]) -> Any:
    """Return the value of a conversation file with more messages."""
    if isinstance(value, list):
        return value + turn
    if "role" in value:
        return [value, *turn]
    name = "messages" if "messages" in value else "history"
    return {**value, name: value.get(name, []) + turn}


def to_yaml(value: Any, indent: str = "") -> str:
    """Return a value in block style: its lines with this indent, but the first without."""
    deeper = f"{indent}  "
    lines = []
    if value and isinstance(value, list):
        lines = [f"- {to_yaml(item, deeper)}" for item in value]
    elif value and isinstance(value, dict):
        for key, item in value.items():
            below = indent if isinstance(item, list) else deeper
            gap = f"\n{below}" if item and isinstance(item, (list, dict)) else " "
            lines.append(f"{text_to_yaml(key)}:{gap}{to_yaml(item, below)}")
    elif isinstance(value, str):
        return text_to_yaml(value, indent)
    else:
        return re.sub(r"^(-?\d+)e", r"\1.0e", json.dumps(value))  # 1e+22 would be text
    return f"\n{indent}".join(lines)


# what no block of text can hold in YAML, and what text of one line must not hold to be plain
NOT_IN_YAML = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]"
NOT_PLAIN = rf"\A[\s!-/:-@\[-`{{-~]|[\t\n]|: | #|[\s:]\Z|{NOT_IN_YAML}"


def text_to_yaml(text: str, indent: str = "") -> str:
    """Return text as a block with this indent, plain, or quoted if it would not be read so."""
    import yaml

    if "\n" in text and text.strip() and indent and not re.search(NOT_IN_YAML, text):
        begin = "2" if text[0].isspace() else ""
        end = "+" if text.endswith("\n\n") else "" if text.endswith("\n") else "-"
        return f"|{begin}{end}\n" + re.sub("(?m)^(?=.)", indent, text.removesuffix("\n"))
    tag = yaml_scalars()[0].resolve(yaml.ScalarNode, text, (True, False))
    if tag.endswith(":str") and not re.search(NOT_PLAIN, text):
        return text
    if not re.search(f"\n|{NOT_IN_YAML}", text):
        return "'" + text.replace("'", "''") + "'"
    quoted = json.dumps(text, ensure_ascii=False)
    return re.sub(NOT_IN_YAML, lambda match: f"\\u{ord(match[0]):04x}", quoted)


# Command -------------------------------------------------------------------------------------

# in the help, before the option
HEADINGS = {"systems": "Prompt", "model": "Request", "stream": "Reply", "timeout": "General"}


class Command(click.Command):
    """A command whose help lists the options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: list[tuple[str, list[tuple[str, str]]]] = []
        for param in self.params:
            if isinstance(param, click.Option) and (row := param.get_help_record(ctx)):
                if param.name in HEADINGS:
                    sections.append((HEADINGS[param.name], []))
                sections[-1][1].append(row)
        for heading, rows in sections:
            with formatter.section(heading):
                formatter.write_dl(rows)


class Number(click.ParamType):  # type: ignore[type-arg]
    """A finite number in a range, whole or not."""

    name = "number"

    def __init__(self, wanted: str, is_valid: Callable[[float], bool], *, kind: Any = float):
        self.wanted, self.is_valid, self.kind = wanted, is_valid, kind

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        with contextlib.suppress(ValueError, OverflowError):
            number = self.kind(str(value).replace("_", "?"))  # no 1_000
            if math.isfinite(number) and self.is_valid(number):
                return number
        return self.fail(f"expected {self.wanted}, not {value!r}", param, ctx)


class Text(click.ParamType):  # type: ignore[type-arg]
    """UTF-8, whatever the locale."""

    name = "text"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return as_text(value)
        except BadInput as failure:
            self.fail(failure.message, param, ctx)


def not_empty(_ctx: Any, _param: Any, value: Any) -> Any:
    """Refuse empty values, as from an unset variable."""
    values = value if isinstance(value, tuple) else [value]
    if any(item is not None and not item.strip() for item in values):
        raise click.BadParameter("is empty")
    return value


def check_options(
    words: Sequence[str],
    inputs: Sequence[Any],
    *,
    files: Sequence[str],
    no_stdin: bool,
    append: bool,
    output: str | None,
    stream: bool | None,
    extract: bool,
    raw: bool,
) -> None:
    """Refuse options that do not go together."""
    uses = inputs.count("-")
    if uses and no_stdin:
        raise BadInput("'-' and -n cannot be combined")
    if uses + (0 if no_stdin else words.count("-")) > 1:
        raise BadInput("'-' is given more than once, but standard input can be read only once")
    if raw and stream:
        raise BadInput("--json and --stream cannot be combined")
    if raw and extract:
        raise BadInput("--json and -x cannot be combined")
    if not append:
        return
    if len(files) != 1:
        raise BadInput("-a needs exactly one -f")
    if files[0] == "-" or is_special(files[0]):
        raise BadInput(f"-a cannot append to {name_of(files[0])}: drop it, or name a file with -f")
    if output:
        with at(files[0]):  # the working directory may be gone
            is_same = os.path.realpath(files[0]) == os.path.realpath(output)
        if is_same:
            raise BadInput(f"-a and -o would both write to {output}; drop one")


def complete_file(_ctx: Any, _param: Any, incomplete: str) -> list[Any]:
    """Complete a file, also behind NAME=@, and behind -af, which click takes for a word."""
    import glob

    from click.shell_completion import CompletionItem

    begin = re.match(r"([\w.]+=)?@", incomplete)
    if not begin:
        return [CompletionItem(incomplete, type="file")]
    files = glob.glob(glob.escape(incomplete[begin.end() :]) + "*")
    return [CompletionItem(begin[0] + file + "/" * os.path.isdir(file)) for file in sorted(files)]


def write_about(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    """Write the help or the version, and exit."""
    if wanted:
        text = ctx.get_help() if option.name == "help" else f"xchat {__version__}"
        write_output(f"{text}\n".encode())
        ctx.exit()


about = functools.partial(
    click.option, is_flag=True, is_eager=True, expose_value=False, callback=write_about
)
ZERO_TO_TWO = Number("a number from 0 to 2", lambda number: 0 <= number <= 2)
SECONDS = Number("a number of seconds above 0", lambda number: number > 0)
COUNT = Number("a whole number above 0", lambda number: number > 0, kind=int)
COUNT_OR_0 = Number("a whole number, 0 or more", lambda number: number >= 0, kind=int)


# fmt: off
@click.command(
    cls=Command, add_help_option=False,
    epilog="Set XAI_API_KEY, or XAI_API_KEY_FILE, to give the API key. More: man xchat",
)
@click.argument("words", metavar="[PROMPT]...", nargs=-1, type=Text(),
                shell_complete=complete_file)
@click.option("-s", "--system", "systems", metavar="TEXT", multiple=True, type=Text(),
              help="Add a system message (repeatable)")
@click.option("-f", "--file", "files", metavar="FILE", multiple=True, type=click.Path(),
              callback=not_empty, help="Send this conversation file first (repeatable)")
@click.option("-a", "--append", is_flag=True, help="Append the prompt and the reply to FILE")
@click.option("-i", "--image", "images", metavar="FILE|URL", multiple=True, type=click.Path(),
              callback=not_empty, help="Attach an image (JPEG, PNG, WebP; repeatable)")
@click.option("-n", "--no-stdin", is_flag=True,
              help="Do not read standard input (for loops and cron)")
@click.option("-m", "--model", metavar="NAME", type=Text(), callback=not_empty,
              help=f"Model to use [default: {MODEL}, or $XCHAT_MODEL]")
@click.option("-t", "--temperature", metavar="NUMBER", type=ZERO_TO_TWO,
              help="Sampling temperature, from 0 to 2")
@click.option("--max-tokens", metavar="N", type=COUNT,
              help="Limit the length of the reply to N tokens")
@click.option("--schema", metavar="FILE|JSON", type=click.Path(), callback=not_empty,
              help="Request JSON that matches this JSON Schema")
@click.option("-p", "--param", "params", metavar="NAME=VALUE", multiple=True, type=Text(),
              shell_complete=complete_file,
              help="Set a request field; also NAME=@FILE (repeatable)")
@click.option("--dry-run", is_flag=True, help="Print the request without sending it")
@click.option("--stream/--no-stream", default=None,
              help="Print the reply as it arrives, as on a terminal")
@click.option("-x", "--extract", is_flag=True, help="Print only the first code block")
@click.option("--json", "raw", is_flag=True, help="Print the response body instead of its text")
@click.option("-o", "--output", metavar="FILE", type=click.Path(), callback=not_empty,
              help="Write to FILE, but only a complete reply")
@click.option("-u", "--usage", is_flag=True,
              help="Print tokens and cost to standard error, as JSON")
@click.option("--timeout", metavar="SECONDS", type=SECONDS, default=TIMEOUT, envvar="XCHAT_TIMEOUT",
              help=f"Time limit for the whole answer [default: {TIMEOUT}]")
@click.option("--retries", metavar="N", type=COUNT_OR_0, default=0, envvar="XCHAT_RETRIES",
              help="Retries when overloaded or not connected [default: 0]")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only")
@click.option("-v", "--verbose", is_flag=True, help="Show the connection and all headers")
@about("-h", "--help", help="Print this help")
@about("-V", "--version", help="Print the version")
def xchat(
    *,
    words: tuple[str, ...],
    systems: tuple[str, ...],
    files: tuple[str, ...],
    append: bool,
    images: tuple[str, ...],
    no_stdin: bool,
    dry_run: bool,
    extract: bool,
    raw: bool,
    output: str | None,
    usage: bool,
    quiet: bool,
    verbose: bool,
    timeout: float,
    retries: int,
    **request: Any,  # the options that become request fields
) -> None:
    # fmt: on
    """Send a prompt to a chat model and print its reply. The prompt is standard input, the
    PROMPT words, or both. Put words from elsewhere after --.

    \b
      cat article.txt | xchat -s "Summarize"
      while read -r line; do xchat -n -- "$line"; done <list
    """
    log.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING)
    if verbose:
        sys.addaudithook(tell_sockets)
    inputs = [*files, *images, request["schema"], *map(file_in, request["params"])]
    check_options(
        words, inputs, files=files, no_stdin=no_stdin, append=append,
        output=output, stream=request["stream"], extract=extract, raw=raw,
    )  # fmt: skip
    server = None if dry_run else read_server()
    target = find_target(output or "-")
    conversation = find_file(files[0], mode=0o600) if append and server else ""
    exchange = Exchange(server) if server else None

    old_files = [path for path in files if not (append and is_new(path))]
    fields, history = read_conversations(old_files)
    options = request_fields(**request)
    urls = [image_url(image) for image in images]
    is_asked = bool(history) and history[-1]["role"] == "user"
    no_stdin = no_stdin or any(path in STDIN_NAMES for path in inputs)
    prompt = read_prompt(words, no_stdin=no_stdin, is_asked=is_asked, timeout=timeout)

    first = [{"role": "system", "content": text} for text in systems]
    turn = prompt_messages(prompt, urls)
    body = build_body(first + history + turn, fields=fields, options=options)
    is_live = choose_stream(body, request["stream"], is_held=bool(output) or extract or raw)
    if exchange is None:
        write_to(target, encode_body(body) + b"\n", name=output)
        return

    until = time.monotonic() + timeout
    if append:
        with at(files[0]), locked(conversation, until=until):
            timeout -= round(timeout - (until - time.monotonic()))  # the seconds of waiting

    reply = Reply(exchange.server.host, keep_body=raw)
    texts = ask(exchange, body, reply, timeout=timeout, retries=retries)
    failure = receive(texts, is_live=is_live)

    turn.append({"role": "assistant", "content": reply.text})
    failure = deliver(
        reply, failure, output=output, target=target,
        added=appended(conversation, turn, name=files[0], systems=first, until=until)
        if append else contextlib.nullcontext(),
        is_live=is_live, extract=extract, has_schema=bool(request["schema"]),
    )  # fmt: skip
    if usage:
        tell_usage(reply)
    if failure:
        raise failure


# Main ----------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Run the command and exit with its status; the signals end it as they end any filter."""
    log.addHandler(StandardError())
    conceal(os.environ.get("XAI_API_KEY", "").strip(), "[the key]")  # options may hold it
    status = 0
    try:
        with interruptible():
            xchat.main(prog_name="xchat", standalone_mode=False)
    except click.ClickException as error:
        log.error(explain_usage(error) if isinstance(error, click.UsageError) else error.message)
        status = error.exit_code
    except MemoryError:
        log.error("not enough memory")
        status = 1
    # all is written; the usual end would crash if OpenSSL is at work in the other thread
    os._exit(status)


class Interrupt(BaseException):
    """A signal that ends the run, once what must not be left behind is cleaned up."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal clean up, on the terminal and among the files, before it ends the run."""
    first = 0  # the first signal, or -1 at the end
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    usual = (signal.SIG_DFL, signal.default_int_handler)  # the parent may ignore it instead
    caught = [number for number in numbers if signal.getsignal(number) in usual]

    def interrupt(number: int, _frame: Any) -> NoReturn:
        nonlocal first
        if first:  # a second one does not wait until all is cleaned up
            die_of(number)
        first = number
        raise Interrupt

    try:
        for number in caught:
            signal.signal(number, interrupt)
        yield
    finally:
        first = first or -1  # before the next call, in which a signal would be an Interrupt
        if first > 0:  # whatever came of it: the threading module may turn it into more
            die_of(first)
        remove_temporary()
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


def die_of(number: int) -> NoReturn:
    """End by the signal itself, which is what a shell's loop looks for."""
    remove_temporary()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the parent has blocked it


SEE_HELP = "; see xchat --help"


def explain_usage(error: click.UsageError) -> str:
    """Return what is wrong with the options, in words like ours."""
    if isinstance(error, click.NoSuchOption):
        names = {opt.lstrip("-"): opt for param in xchat.params for opt in param.opts}
        word = error.option_name.lstrip("-")
        longer = [name for name in names if len(word) > 1 and name.startswith(word)]
        near = names.get(longer[0] if longer else nearest(word, names) or "")
        hint = f"; did you mean {near!r}?" if near and len(word) > 1 else ""
        is_prompt = any(re.match(r"-\S*\s|-\d", word) for word in sys.argv[1:])
        hint = hint or ("; a prompt that begins with - goes after --" if is_prompt else SEE_HELP)
        return f"no such option: {error.option_name}{hint}"
    message = error.message[:1].lower() + error.message[1:].rstrip(".")
    if isinstance(error, click.BadParameter):
        option, place = error.param, "PROMPT"
        if isinstance(option, click.Option):
            is_given = any(word.partition("=")[0] in option.opts for word in sys.argv[1:])
            place = option.opts[0] if is_given or not option.envvar else str(option.envvar)
        return f"{place}: {message}"
    return f"{message}{SEE_HELP}"


if usual_sigint is signal.default_int_handler:
    signal.signal(signal.SIGINT, usual_sigint)
if __name__ == "__main__":
    main()
