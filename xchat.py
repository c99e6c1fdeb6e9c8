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
the way, checked once by parse_message().  Over https the connection is begun before the prompt is
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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

try:
    import click
except ModuleNotFoundError:
    sys.stderr.write("xchat: click is missing; install it, as by: apt install python3-click\n")
    sys.exit(2)

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
            if not key:
                raise BadInput("the first line is blank; the key belongs there")
        if stat.S_ISREG(mode) and mode & 0o004:  # a group may be what gives it to a service
            log.warning(f"{name}: {path}: other users can read the key; chmod 600 protects it")
    if key[:1] in ("'", '"') or key[-1:] in ("'", '"'):
        raise BadInput(f"{name}: the key is in quotation marks; remove them")
    if re.match(r"bearer\s", key, re.IGNORECASE):
        raise BadInput(f"{name}: the key begins with 'Bearer '; remove that")
    if re.match(r"(export\s+)?[A-Za-z_]\w*=[^=]", key):  # "=" at the end may be a key's own
        raise BadInput(f"{name}: the key begins with 'NAME='; remove that")
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
    try:
        text = data.decode()
        if 0 not in data:
            return text.removeprefix("\ufeff")
        place = f"NUL at byte {data.index(0)}"
    except UnicodeDecodeError as error:
        place = f"not UTF-8 at byte {error.start}"
    if charset := likely_charset(data):
        raise BadInput(f"{place}; convert it, as in: iconv -f {charset} -t UTF-8")
    raise BadInput(f"binary data, not text: {place}")


def likely_charset(data: bytes | bytearray) -> str:
    """Return what iconv may read as text that is not UTF-8; empty for binary data."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    even, odd = (data[half:1000:2].count(0) for half in (0, 1))
    if 0 in (even, odd) and max(even, odd) * 3 > len(data[:1000]):  # half of each Latin letter
        return "UTF-16LE" if odd else "UTF-16BE"
    if 0 in data:
        return ""
    text = data.decode(errors="replace")
    wrong = text.count("\ufffd")
    right = len(text) - len(text.encode("ascii", "ignore")) - wrong
    return "UTF-8 -c" if right >= wrong else "ISO-8859-1"  # -c leaves out what is wrong


def as_text(word: str) -> str:
    """Return an argument as the UTF-8 that it is, whatever the locale took it for."""
    try:
        return os.fsencode(word).decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8 at byte {error.start}") from None


# Reading: the prompt -------------------------------------------------------------------------


# What the prompt is:
#
#   arguments               standard input                      the prompt
#   none                    anything                            standard input, to its end
#   words                   terminal, device, socket, closed    the words
#   words                   pipe or regular file                the words, a blank line, the input
#   words and a lone "-"    anything                            the words, the input in place of "-"
#   any, with -n            anything                            the words
#
# Input that is blank is left out, and so is the blank line.
def read_prompt(
    words: Sequence[str], *, unread: str, history: list[JSON], has_image: bool, timeout: float
) -> str:
    """Return the words, standard input, or both, set off by a blank line; empty if all is blank.

    unread says why standard input is not to be read, if it is not.  Words need not wait more than
    timeout seconds for its first byte.  Without a prompt there must be something else to ask.
    """
    roles = [message["role"] for message in history]
    place = words.index("-") if "-" in words and not unread else len(words)
    parts = [" ".join(words[:place]), " ".join(words[place + 1 :])]
    has_words = any(part.strip() for part in parts)
    if words:
        is_left = "-" not in words and not stdin_is_pipe_or_file()
    else:  # a conversation that ends with a question needs no typing
        is_left = roles[-1:] == ["user"] and sys.stdin is not None and os.isatty(0)
    if not (unread or is_left):
        advice, limit = ("; use -n to ignore it", timeout) if has_words else ("", math.inf)
        with at("standard input"):
            parts.insert(1, decode(read_stdin(advice=advice, timeout=limit)))
        if has_words and not parts[1].strip() and stdin_is_pipe_or_file():
            log.warning(f"standard input was empty; only the arguments are sent{advice}")
    prompt = "\n\n".join(part for part in parts if part.strip())
    if not (prompt or has_image or "user" in roles):
        why = "the arguments are blank" if is_left else "standard input was empty"
        raise BadInput(f"no prompt: {unread or why}")
    return prompt


def read_rules(path: str) -> str:
    """Return the system message that a file holds."""
    with at(f"-S {path}"):
        text = decode(read_file(path))
        if not text.strip():
            raise BadInput("is empty")
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


def image_url(image: str) -> str:
    """Return the URL as it is, or a file as a data URL."""
    import base64

    if re.match(r"https?://|data:", image, re.IGNORECASE):
        with at("-i"):
            return as_text(image)
    with at(f"-i {image}"):
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

ELSEWHERE = ("choices", "input", "instructions", "prompt", "contents")  # other APIs have it there

KNOWN_KEYS = {"role", "content", *ROLES, *CONVERSATION, *FIELDS}

# a key that conversations have, where a key stands in JSON or YAML
TALK = rf"""(?m)(?:^|[{{\[,-])[ \t]*["']?(?:{"|".join(sorted(KNOWN_KEYS))})["'\s]*:"""

# -f is not for a text, as it is in other tools
TEXT_ADVICE = '; to send plain text, use standard input, as in: xchat "Summarize" <notes.txt'


class Conversation(NamedTuple):
    """What a conversation file holds, all of it checked."""

    value: Any  # as it stands in the file
    is_json: bool  # or else YAML
    fields: JSON  # of the request
    messages: list[JSON]  # the short form {ROLE: text} written out


def read_conversations(paths: Iterable[str]) -> tuple[JSON, list[JSON]]:
    """Return the request fields and the messages of all files; a later field wins."""
    fields: JSON = {}
    messages: list[JSON] = []
    for path in paths:
        with at(f"-f {path}"):
            data = read_file(path)
        with at(name_of(path)):
            advice = "; to send plain text, drop '-f -'" if path == "-" else TEXT_ADVICE
            conversation = parse_conversation(decode(data), advice=advice)
        warn_of_unknown(conversation.fields, place=name_of(path))
        fields.update(conversation.fields)
        messages.extend(conversation.messages)
    return fields, messages


def parse_conversation(text: str, *, advice: str = "") -> Conversation:
    """Return the conversation, or raise BadInput, with the advice where it seems none at all."""
    try:
        value, is_json = parse_json_or_yaml(text)
        return Conversation(value, is_json, *split_conversation(value))
    except (ValueError, BadInput) as error:
        is_text = isinstance(error, ValueError) or not re.search(TALK, text)
        raise BadInput(f"{error}{advice if is_text else ''}") from None


def warn_of_unknown(fields: Iterable[str], *, place: str) -> None:
    unknown = [field for field in fields if field not in FIELDS]
    if unknown:
        what = "field" if len(unknown) == 1 else "fields"
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        names = ", ".join(unknown[:3])
        log.warning(f"{place}: unknown request {what}, sent as given: {names}{more}")


def split_conversation(value: Any) -> tuple[JSON, list[JSON]]:
    """Return the request fields and the messages, the short form {ROLE: text} written out."""
    if isinstance(value, list):
        return {}, parse_messages(value)
    if not isinstance(value, dict):
        raise BadInput(
            "expected a list of messages, or a mapping with 'system' and 'history';"
            f" found {show(value)}"
        )
    if "role" in value:
        check_value([value])  # as deep as it is in the list that -a makes
        return {}, parse_messages([value])
    check_keys(value)
    fields = {name: field for name, field in value.items() if name not in CONVERSATION}
    for name, field in fields.items():
        with at(name):
            check_value(field)
    messages = []
    if "system" in value:
        with at("system"):
            check_value(value["system"])
            check_content(value["system"])
        messages.append({"role": "system", "content": value["system"]})
    for name in value.keys() & {"history", "messages"}:
        with at(name):
            messages += parse_messages(value[name])
    return fields, messages


def check_keys(names: Collection[str]) -> None:
    """Refuse a mapping that is no conversation, or would lose one under a key that is not ours."""
    lists = [name for name in names if name in ("history", "messages")]
    others = [name for name in names if name in ELSEWHERE]
    if others and not lists:
        raise BadInput(f"messages go under 'history', not under {others[0]!r}")
    if names and not any(name in KNOWN_KEYS or misspelt(name) for name in names):
        raise BadInput("not a conversation: it has no known key")
    if [*names] == ["user"]:
        raise BadInput("'user' alone is a request field; a message is a list item: - user: ...")
    if len(lists) > 1:
        raise BadInput("'history' and 'messages' mean the same; use one of them")
    for name in names:
        if name not in CONVERSATION:
            check_field_name(name)


def check_field_name(name: str) -> None:
    """Refuse a field that would lose messages, sent under a name the API ignores."""
    check_value(name)
    if name in ROLES and name not in FIELDS:
        raise BadInput(f"{name!r} is a role, not a request field; messages go under 'history'")
    if known := misspelt(name):
        raise BadInput(f"unknown key {name!r}; did you mean {known!r}?")


def misspelt(name: str) -> str | None:
    """Return the key of a conversation that one edit makes of the name."""
    return nearest(name, CONVERSATION, closeness=0.83)


def parse_messages(values: Any) -> list[JSON]:
    if not isinstance(values, list):
        raise BadInput(f"expected a list of messages, found {show(values)}")
    if len(values) > EVENT_LIMIT // 4:
        raise BadInput(f"more than {EVENT_LIMIT // 4:,} messages")
    messages = []
    for number, value in enumerate(values, start=1):
        with at(f"message {number}"):
            check_value(value)
            messages.append(parse_message(value))
    return messages


def parse_message(value: Any) -> JSON:
    """Return the message, the short form {ROLE: text} written out."""
    if not isinstance(value, dict):
        raise BadInput(f"expected {{role: ..., content: ...}}, found {show(value)}")
    if "role" not in value and value.keys() & {"history", "messages"}:
        raise BadInput("a conversation of its own; a file holds one conversation")
    message = value
    if len(value) == 1 and not value.keys() & {"role", "content"}:
        ((role, content),) = value.items()
        message = {"role": role, "content": content}
    role = require("role", message)
    if role not in ROLES:
        near = nearest(role, ROLES) if isinstance(role, str) else None
        hint = f"did you mean {near!r}?" if near else f"expected one of {', '.join(ROLES)}"
        raise BadInput(f"unknown role {show(role)}; {hint}")
    content = require("content", message, is_optional=role == "assistant")
    if content is not None or role != "assistant":
        with at("content"):
            check_content(content)
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
    kind = require("type", part)
    if kind == "text":
        text = require("text", part)
        with at("text"):
            check_text(text)
    if kind == "image_url":
        image = require("image_url", part)
        if not isinstance(image, dict):
            raise BadInput(f"image_url: expected {{url: ...}}, found {show(image)}")


def check_text(value: Any) -> None:
    if value is None or isinstance(value, (dict, list)):
        raise BadInput(f"expected text, found {show(value)}")
    if not isinstance(value, str):
        raise BadInput(f"read as {show(value)}, not as text; quote it")


def refuse_date(value: Any) -> NoReturn:
    raise BadInput(f"YAML reads {value} as a date; quote it")


STRICT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=refuse_date)


def check_value(value: Any) -> None:
    """Refuse what JSON or UTF-8 can't carry, and what is too deep, wherever in the value."""
    try:
        text = STRICT.encode(value)
        text.encode()
    except UnicodeEncodeError:
        raise BadInput("contains half of a surrogate pair") from None
    except ValueError:
        raise BadInput("NaN and infinity are not JSON") from None
    if text.count("[") + text.count("{") > NESTING_LIMIT:
        check_nesting(text)


def require(key: str, mapping: JSON, *, is_optional: bool = False) -> Any:
    """Return the value of a key, None for one that may be missing and is not just misspelt."""
    if key not in mapping:
        wrong = next((other for other in mapping if nearest(other, [key])), None)
        if wrong or not is_optional:
            hint = f"; is {wrong!r} a typo?" if wrong else ""
            raise BadInput(f"{key!r} is missing{hint}")
    return mapping.get(key)


def nearest(word: Any, known: Iterable[str], *, closeness: float = 0.65) -> str | None:
    """Return the known word that is most like the word, if any is as close as that."""
    import difflib

    found = difflib.get_close_matches(str(word)[:50], [*known], n=1, cutoff=closeness)
    return next(iter(found), None)


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

STRING = r'(?s)"[^"\\]*(?:\\.[^"\\]*)*"?'  # in which no comma and no bracket counts

# commas before a closing bracket: the API's guide prints a conversation with one, and with and
# without a comma between two messages
STRING_OR_TRAILING_COMMA = STRING + r"|,(?=\s*[\]}])"


def parse_text(text: str) -> Any:
    """Return the value of a text in JSON or YAML, which is fit for a request."""
    try:
        value, _is_json = parse_json_or_yaml(text)
    except ValueError as error:
        raise BadInput(str(error)) from None
    check_value(value)
    return value


def parse_json_or_yaml(text: str) -> tuple[Any, bool]:
    """Return the value of a text, and whether it is JSON: several values of that are a list.

    Raise ValueError where it is neither, BadInput for what is not accepted.
    """
    if not text.strip():
        raise BadInput("empty; expected JSON or YAML")
    try:
        return parse_json(text), True
    except json.JSONDecodeError as error:
        json_error = f"line {error.lineno}, column {error.colno}: {error.msg.lower()}"
    except (ValueError, BadInput) as error:
        json_error = str(error)
    seems_json = re.match(SEEMS_JSON, text)
    for match in re.finditer(STRING_OR_TRAILING_COMMA, text) if seems_json else ():
        if re.search(r"[\r\n]", match[0].rstrip()) and match[0] != ",":  # YAML would fold it
            line = text.count("\n", 0, match.start()) + 1
            raise BadInput(f"line {line}: a line break in a string; write \\n")
    try:
        return parse_yaml(text), False
    except ValueError as error:
        wrong = f"not JSON: {json_error}" if seems_json else f"not YAML: {error}"
        raise ValueError(wrong) from None


def check_nesting(text: str) -> None:
    """Refuse JSON that is too deep; how deep json itself can read depends on its version."""
    brackets = re.sub(STRING + r'|[^\[\]{}"]+', "", text)
    depths = itertools.accumulate(1 if bracket in "[{" else -1 for bracket in brackets)
    if any(depth > NESTING_LIMIT for depth in depths):
        raise BadInput(f"nested more than {NESTING_LIMIT} levels deep")


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

    if re.match(r"\s*[\[{]", text):
        check_nesting(text)
    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


def parse_json(text: str) -> Any:
    """Return one JSON value, or a list of several that stand in a row; raise ValueError."""
    decoder = json.JSONDecoder(object_pairs_hook=unique)
    gap = re.compile(r"\s*,?\s*")
    text = text.rstrip()
    values = []
    is_checked = False
    end = len(text) - len(text.lstrip())
    while end < len(text):
        if text[end] in "[{" and not is_checked:
            check_nesting(text[end:])
            is_checked = True
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
    events = (refuse_cut(event, text) for event in itertools.islice(events, EVENT_LIMIT))
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
    except yaml.YAMLError as error:
        raise ValueError(yaml_words(error)) from None


def yaml_words(error: Any) -> str:
    """Return the place and the cause of an error of PyYAML's scanner, parser or reader."""
    if not hasattr(error, "problem"):
        return f"{error.reason} (character {error.position})"
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    is_text = re.search("mapping values|start any token|alphabetic", str(error.problem))
    return (
        f"{place}{error.problem}{'; quote text with a special character in it' if is_text else ''}"
    )


def build_value(event: Any, events: Iterator[Any], depth: int = 0) -> Any:
    """Return the value that begins with the event."""
    import yaml

    if depth > NESTING_LIMIT:
        raise not_accepted(event, f"nested more than {NESTING_LIMIT} levels deep")
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


CUT = re.compile(r"[ \t]*[ \t](#+[^\s#][^\r\n]*)")


def refuse_cut(event: Any, text: str) -> Any:
    """Return the event, unless it is a plain text whose rest YAML takes for a comment."""
    cut = not getattr(event, "style", "-") and CUT.match(text, event.end_mark.index)
    if cut and (event.value == "" or isinstance(build_scalar(event), str)):
        raise not_accepted(event, f"YAML takes {show(cut[1])} for a comment; quote the text")
    return event


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


def request_fields(given: JSON, params: Iterable[str]) -> JSON:
    """Return the fields that are not None, and those of -p, which may not be the same ones."""
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


# what --schema takes for a row of names, and the types that are not JSON Schema's own words
ROW = re.compile(r"\s*[^\W\d][\w-]*(\s+(str|int|float|bool|string|integer|number|boolean))?\s*")
TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}

# a schema that constrains anything has one of these
SCHEMA_KEYS = set("$ref type enum const properties required items anyOf oneOf allOf not if".split())


def read_schema(schema: str) -> JSON:
    """Return the request field for a JSON Schema, for a row of names, or for a file with a schema.

    See https://docs.x.ai/docs/guides/structured-outputs.
    """
    is_names = re.search(r"\S[\s,]", schema) and all(map(ROW.fullmatch, schema.split(",")))
    if schema.lstrip().startswith("{"):
        with at("--schema"):
            value = parse_text(as_text(schema))
    elif is_names and not os.path.exists(schema):
        value = schema_of(as_text(schema))
    elif schema != "-" and not os.path.exists(schema):
        raise BadInput(f"--schema {schema}: no such file; a schema itself begins with {{")
    else:
        value = read_value(schema)
    for wrapping in ("response_format", "json_schema", "schema"):
        if isinstance(value, dict):
            value = value.get(wrapping, value)
    if not isinstance(value, dict) or (value and not value.keys() & SCHEMA_KEYS):
        raise BadInput(
            "--schema: expected a JSON Schema, with 'type', 'properties' or the like;"
            f" found {show(value)}"
        )
    return {
        "type": "json_schema",
        "json_schema": {"name": "reply", "schema": value, "strict": True},
    }


def schema_of(row: str) -> JSON:
    """Return the JSON Schema of an object that has just the names, as in "name, born int"."""
    names = [[*name.split(), "str"][:2] for name in row.split(",")]
    with at("--schema"):
        properties = unique([(name, {"type": TYPES.get(kind, kind)}) for name, kind in names])
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


def read_value(path: str) -> Any:
    """Return the value that a file holds in JSON or YAML ("-": standard input)."""
    with at(name_of(path)):
        return parse_text(decode(read_file(path)))


# Asking --------------------------------------------------------------------------------------


def build_body(messages: list[JSON], *, fields: JSON, options: JSON) -> JSON:
    """Return the body of the request: https://docs.x.ai/docs/api-reference#chat-completions.

    fields are those of the files, options those of the command line, which win.
    """
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
#
# A stream tells its usage only if it is asked to, which not every server understands; so -u alone
# asks.
def choose_stream(body: JSON, option: bool | None, *, is_held: bool, usage: bool) -> bool:
    """Ask for a stream or not; return whether the text is written live."""
    if option or (option is None and "stream" not in body and os.isatty(1) and not is_held):
        body["stream"] = True
    elif option is False:
        body.pop("stream", None)
        body.pop("stream_options", None)
    is_stream = bool(body.get("stream"))
    if is_stream and usage:
        body.setdefault("stream_options", {"include_usage": True})
    return is_stream and not is_held


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


def deliver(
    reply: Reply,
    failure: Failure | None,
    *,
    output: str | None,
    added: contextlib.AbstractContextManager[None],
    is_live: bool,
    extract: bool,
    has_schema: bool,
) -> Failure | None:
    """Write what is not written yet of the reply; return the failure so far, or a new one.

    What is not whole goes to standard output, but replaces no file and is added to none.
    """
    try:
        text = extract_code(reply.text) if extract else reply.text
        if has_schema and not failure:
            try:
                load_json(text)
            except (ValueError, BadInput):
                failure = BadReply(reply.blame("the reply is not JSON"))
        data = text.encode() if reply.body is None else bytes(reply.body)
        if data and not data.endswith(b"\n"):
            data += b"\n"
        if output is None and not is_live:
            write_output(data)
        if failure is None:
            with added:  # neither file is replaced if one cannot be written
                if output is not None:
                    write_out(output, data)
    except Failure as error:
        return failure or error
    return failure


def write_out(path: str | None, data: bytes) -> None:
    """Write to the file of -o, or to standard output."""
    if path is None:
        write_output(data)
        return
    with at(path, BadReply), replaced(path, data, mode=0o666):
        pass


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


def write_output(data: bytes) -> None:
    """Write all of it to standard output, or raise BadReply; die when its reader is gone.

    A terminal is shown the control characters.
    """
    if sys.stdout is None:
        raise BadReply("standard output: closed")
    try:
        write_bytes(1, data, is_terminal=stdout_is_terminal())
    except BrokenPipeError:
        die_of(signal.SIGPIPE)
    except OSError as error:
        raise BadReply(f"standard output: {error.strerror}") from None


@functools.cache  # it is asked for every piece of a stream
def stdout_is_terminal() -> bool:
    return os.isatty(1)


def write_bytes(fd: int, data: bytes, *, is_terminal: bool) -> None:
    if is_terminal:
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


def check_output(path: str | None) -> None:
    """Refuse what could not be written, before a reply is paid for; None is standard output."""
    import fcntl

    if path is None:
        if sys.stdout is None:
            raise BadReply("standard output: closed")
        return
    with at(path):
        if (fd := fd_of(path)) is not None:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise BadInput("is open for reading only")
            return
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
    if fd_of(path) is not None:
        return True
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def fd_of(path: str) -> int | None:
    """Return the descriptor that a name such as /dev/stdout stands for."""
    path = {"/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}.get(path, path)
    match = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", path)
    return int(match[1][:9]) if match else None


@contextlib.contextmanager
def replaced(path: str, data: bytes, *, mode: int) -> Iterator[None]:
    """Write a new file, which takes the place of the old one if all goes well inside.

    The new file has the old one's mode and, where possible, its owner; mode is for a file where
    there was none. What can't be replaced is written to.
    """
    if is_special(path):
        fd = fd_of(path)
        with open(path if fd is None else os.dup(fd), "wb", buffering=0) as file:
            write_bytes(file.fileno(), data, is_terminal=file.isatty())
        yield
        return
    path = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(path), f".xchat-{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        mode = 0o600 if os.path.exists(path) else mode  # nobody may open it before it is alike
        with open(os.open(temporary, flags, mode), "wb", buffering=0) as file:
            if os.path.exists(path):
                old = os.stat(path)
                with contextlib.suppress(OSError):
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
            write_bytes(file.fileno(), data, is_terminal=False)
            os.fsync(file.fileno())
        yield
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # an interrupt may come as it is renamed
            os.unlink(temporary)
        raise


# Replying: the turn that is added to the conversation ----------------------------------------


def is_new(path: str) -> bool:
    """Say whether a conversation begins in this file: it is missing or empty."""
    return not os.path.exists(path) or (os.path.isfile(path) and not os.path.getsize(path))


@contextlib.contextmanager
def appended(path: str, turn: list[JSON], *, systems: list[JSON]) -> Iterator[None]:
    """Add a turn to a conversation file as it is by now, the system messages to a new one.

    The file is replaced if all goes well inside.
    """
    with at(f"{path}: cannot append the turn", BadReply):
        target = os.path.realpath(path)
        with locked(os.path.dirname(target)):
            if is_special(target):  # a pipe, say, which would not end
                raise BadReply("is no longer a regular file")
            if is_new(target):
                text = new_conversation(target, systems + turn)
            else:
                text = add_messages(decode(read_file(target)), turn, path=path)
            with replaced(target, text.encode(), mode=0o600):
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
        return json.dumps(messages, ensure_ascii=False, indent=2) + "\n"
    if suffix in (".jsonl", ".ndjson"):
        return json_lines(messages)
    return to_yaml(short(messages))


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
    old = parse_conversation(text)
    for new in ways_to_add(text, old, turn):
        if 0 < text.count("\n") == text.count("\r\n"):
            new = new.replace("\r\n", "\n").replace("\n", "\r\n")
        with contextlib.suppress(Failure):
            if split_conversation(parse_text(new)) == (old.fields, old.messages + turn):
                has_comments = text.count("#") > json.dumps(old.value).count("#")
                if has_comments and not new.startswith(text):
                    log.warning(f"{path}: rewritten to append the turn; its comments are lost")
                return new
    raise BadReply("the result could not be read back")


def ways_to_add(text: str, old: Conversation, turn: list[JSON]) -> Iterator[str]:
    """Yield the text with more messages at its end, then the value written anew."""
    end = "" if text.endswith("\n") else "\n"
    value = old.value
    if old.is_json:
        yield text + end + json_lines(turn)
    else:
        heading = (
            r"^(?:messages|history):.*\n(?:[ \t]*(?:#.*)?\r?\n)*"
            if isinstance(value, dict)
            else r"^"
        )
        first = re.search(heading + r"( *)- ", text, re.MULTILINE)
        lines = to_yaml(short(turn))
        if first:
            yield text + end + re.sub(r"^(?=.)", first[1], lines, flags=re.MULTILINE)
        elif isinstance(value, dict):
            yield f"{text}{end}history:\n{lines}"
        yield to_yaml(with_messages(value, short(turn)))
    yield json.dumps(with_messages(value, turn), ensure_ascii=False, indent=2) + "\n"


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
    import yaml

    class Dumper(yaml.SafeDumper):  # libyaml's escapes whatever has an emoji
        def ignore_aliases(self, data: Any) -> bool:
            return True

        def represent_text(self, text: str) -> Any:
            style = "|" if "\n" in text and not self.default_style else None
            return self.represent_scalar("tag:yaml.org,2002:str", text, style)

    Dumper.add_representer(str, Dumper.represent_text)
    options = {"Dumper": Dumper, "allow_unicode": True, "sort_keys": False, "width": 1 << 30}
    dump: Any = functools.partial(yaml.dump, **options)
    text: str = dump(value)
    return text if parse_yaml(text) == value else dump(value, default_style='"')


# Command -------------------------------------------------------------------------------------

# in the help, before the option
HEADINGS = {"systems": "Prompt", "model": "Request", "stream": "Reply", "timeout": "General"}


DASHES = "^[-\u2010-\u2015\u2212]+"  # a text processor makes such ones of two


class Command(click.Command):
    """A command whose help has headings, and whose long options need their two dashes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse -system, which click takes for -s ystem, and dashes that are not ASCII's."""
        names = {} if ctx.resilient_parsing else option_names()
        for word in itertools.takewhile(lambda word: word != "--", args):
            option = word.partition("=")[0]
            name = re.sub(DASHES, "", option)
            if name != option and names.get(name, option) != option:
                raise click.NoSuchOption(option, ctx=ctx)
        return super().parse_args(ctx, args)

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


def option_names() -> dict[str, str]:
    """Return the options by their names without dashes."""
    options = [param for param in xchat.params if isinstance(param, click.Option)]
    names = [name for option in options for name in [*option.opts, *option.secondary_opts]]
    return {name.lstrip("-"): name for name in names}


def text_type(word: str) -> str:
    """Return an argument as UTF-8, whatever the locale."""
    try:
        return as_text(word)
    except BadInput as failure:
        raise click.BadParameter(failure.message) from None


def number_type(
    wanted: str, is_valid: Callable[[float], bool], kind: Callable[[str], float] = float
) -> Callable[[Any], float]:
    """Return what makes a finite number in a range of a word."""

    def convert(word: Any) -> float:
        with contextlib.suppress(ValueError, OverflowError):
            number = kind(str(word).replace("_", "?"))  # no 1_000
            if math.isfinite(number) and is_valid(number):
                return number
        raise click.BadParameter(f"expected {wanted}, not {word!r}")

    return convert


def not_empty(_ctx: Any, _param: Any, value: Any) -> Any:
    """Refuse empty values, as from an unset variable."""
    values = value if isinstance(value, tuple) else [value]
    if any(item is not None and not item.strip() for item in values):
        raise click.BadParameter("is empty")
    return value


def check_stdin(words: Sequence[str], inputs: Sequence[tuple[str, str]], *, no_stdin: bool) -> None:
    """Refuse a second use of standard input, or one beside -n."""
    uses = sum(path == "-" for _option, path in inputs)
    if uses and no_stdin:
        raise BadInput("'-' and -n cannot be combined")
    if uses + (0 if no_stdin else words.count("-")) > 1:
        raise BadInput("'-' is given more than once, but standard input can be read only once")


def check_files(inputs: Sequence[tuple[str, str]], *, output: str | None, append: bool) -> None:
    """Refuse an output that replaces what is read, each after its option; and a senseless -a."""
    files = [path for option, path in inputs if option == "-f"]
    if append and len(files) != 1:
        raise BadInput("-a needs exactly one -f")
    if append and (files[0] == "-" or is_special(files[0])):
        raise BadInput(f"-a cannot append to {name_of(files[0])}: drop it, or name a file with -f")
    for option, path in inputs:
        if output and is_same_file(path, output):
            if append and path in files:
                raise BadInput(f"-a and -o would both write to {output}; drop one")
            hint = "; -a appends to a conversation" if path in files else ""
            raise BadInput(f"-o would replace {output}, which {option} reads{hint}")


def is_same_file(path: str, output: str) -> bool:
    """Say whether a file that is read would be replaced."""
    if path in STDIN_NAMES or is_special(output):
        return False
    with at(path):  # the working directory may be gone
        if os.path.exists(path) and os.path.exists(output):
            return os.path.samefile(path, output)
        return os.path.realpath(path) == os.path.realpath(output)


def warn_of_names(words: Sequence[str], systems: Sequence[str]) -> None:
    """Warn of a text that is the name of a file, which other tools would read."""
    for texts, way in ((words, 'xchat "Summarize" <{}'), (systems, "-S {}")):
        for name in itertools.islice(filter(is_name_of_file, texts), 1):
            way = way.format(name.removeprefix("@"))
            log.warning(f"{name}: only the name is sent; to send the file: {way}")


def is_name_of_file(text: str) -> bool:
    path = os.fsdecode(text.removeprefix("@").encode())
    is_name = re.fullmatch(r"@\S+|\S*[./]\S*", text) is not None
    return is_name and os.path.exists(path) and not os.path.isdir(path)


def write_about(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    """Write the help or the version, and exit."""
    if wanted:
        text = ctx.get_help() if option.name == "help" else f"xchat {__version__}"
        write_output(f"{text}\n".encode())
        ctx.exit()


file_option = functools.partial(click.option, metavar="FILE", type=click.Path(), callback=not_empty)
about = functools.partial(
    click.option, is_flag=True, is_eager=True, expose_value=False, callback=write_about
)
ZERO_TO_TWO = number_type("a number from 0 to 2", lambda number: 0 <= number <= 2)
SECONDS = number_type("a number of seconds above 0", lambda number: number > 0)
COUNT = number_type("a whole number above 0", lambda number: number > 0, int)
COUNT_OR_0 = number_type("a whole number, 0 or more", lambda number: number >= 0, int)


# fmt: off
@click.command(
    cls=Command, add_help_option=False,
    epilog="Set XAI_API_KEY, or XAI_API_KEY_FILE, to give the API key. More: man xchat",
)
@click.argument("words", metavar="[PROMPT]...", nargs=-1, type=text_type,
                shell_complete=click.Path().shell_complete)  # for -af, which click takes for a word
@click.option("-s", "--system", "systems", metavar="TEXT", multiple=True, type=text_type,
              help="Add a system message (repeatable)")
@file_option("-S", "--system-file", "system_files", multiple=True,
             help="Add a system message from a file (repeatable)")
@file_option("-f", "--file", "files", multiple=True,
             help="Send this conversation file first (repeatable)")
@click.option("-a", "--append", is_flag=True,
              help="Append the prompt and the reply to the file of -f")
@file_option("-i", "--image", "images", metavar="FILE|URL", multiple=True,
             help="Attach an image (JPEG, PNG, WebP; repeatable)")
@click.option("-n", "--no-stdin", is_flag=True,
              help="Ignore standard input (in loops; in cron, if nothing is piped in)")
@click.option("-m", "--model", metavar="NAME", type=text_type, callback=not_empty,
              help=f"Model to use [default: {MODEL}, or $XCHAT_MODEL]")
@click.option("-t", "--temperature", metavar="NUMBER", type=ZERO_TO_TWO,
              help="Sampling temperature, from 0 to 2")
@click.option("--max-tokens", metavar="N", type=COUNT,
              help="Limit the length of the reply to N tokens")
@file_option("--schema", metavar="SCHEMA",
             help="Request JSON by this schema: FILE, {...} or 'name, born int'")
@click.option("-p", "--param", "params", metavar="NAME=VALUE", multiple=True, type=text_type,
              help="Set a request field; also NAME=@FILE (repeatable)")
@click.option("--dry-run", is_flag=True, help="Print the request without sending it")
@click.option("--stream/--no-stream", default=None,
              help="Print as it arrives, or only when complete")
@click.option("-x", "--extract", is_flag=True, help="Print only the first code block")
@click.option("--json", "raw", is_flag=True, help="Print the response body instead of its text")
@file_option("-o", "--output", help="Write a complete reply to FILE, or leave it alone")
@click.option("-u", "--usage", is_flag=True,
              help="Print tokens and cost to standard error, as JSON")
@click.option("--timeout", metavar="SECONDS", type=SECONDS, default=TIMEOUT, envvar="XCHAT_TIMEOUT",
              help=f"Time limit for the whole answer [default: {TIMEOUT}]")
@click.option("--retries", metavar="N", type=COUNT_OR_0, default=0, envvar="XCHAT_RETRIES",
              help="Retry N times if overloaded or unreachable [default: 0]")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only")
@click.option("-v", "--verbose", is_flag=True, help="Show the connection and all headers")
@about("-h", "--help", help="Print this help")
@about("-V", "--version", help="Print the version")
def xchat(
    *, words: tuple[str, ...],
    systems: tuple[str, ...], system_files: tuple[str, ...], files: tuple[str, ...], append: bool,
    images: tuple[str, ...], no_stdin: bool,
    model: str | None, temperature: float | None, max_tokens: int | None, schema: str | None,
    params: tuple[str, ...], dry_run: bool,
    stream: bool | None, extract: bool, raw: bool, output: str | None, usage: bool,
    timeout: float, retries: int, quiet: bool, verbose: bool,
) -> None:
    # fmt: on
    """Send a prompt to a chat model and print its reply. The prompt is standard input, the
    PROMPT words, or both. Put words from elsewhere after --.

    \b
      cat article.txt | xchat -s "Summarize"
      while read -r line; do xchat -n -- "$line"; done <list
    """
    # check
    log.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING)
    if verbose:
        sys.addaudithook(tell_sockets)
    output = None if output is None or output == "-" or fd_of(output) == 1 else output
    reads = {
        "-f": files, "-S": system_files, "-i": images, "--schema": [schema],
        "-p": map(file_in, params),
    }  # fmt: skip
    inputs = [(option, path) for option, paths in reads.items() for path in paths if path]
    check_stdin(words, inputs, no_stdin=no_stdin)
    check_files(inputs, output=output, append=append)
    if raw and (stream or extract):
        raise BadInput(f"--json and {'--stream' if stream else '-x'} cannot be combined")
    warn_of_names(words, systems)
    server = None if dry_run else read_server()
    check_output(output)
    if append and server:
        check_output(files[0])
    exchange = Exchange(server) if server else None

    # read
    rules = [*systems, *map(read_rules, system_files)]
    old_files = [path for path in files if not (append and is_new(path))]
    fields, history = read_conversations(old_files)
    options = request_fields(
        {"model": model, "temperature": temperature, "max_completion_tokens": max_tokens,
         "response_format": read_schema(schema) if schema else None, "stream": stream},
        params,
    )  # fmt: skip
    urls = [image_url(image) for image in images]
    is_taken = any(path in STDIN_NAMES for _option, path in inputs)
    prompt = read_prompt(
        words, history=history, has_image=bool(urls), timeout=timeout,
        unread="-n leaves standard input unread" if no_stdin
        else "standard input was read as a file" if is_taken else "",
    )  # fmt: skip

    # build
    first = [{"role": "system", "content": text} for text in rules]
    turn = prompt_messages(prompt, urls)
    body = build_body(first + history + turn, fields=fields, options=options)
    is_held = bool(output) or extract or raw
    is_live = choose_stream(body, stream, is_held=is_held, usage=usage)
    if exchange is None:
        write_out(output, encode_body(body) + b"\n")
        return

    # ask
    reply = Reply(exchange.server.host, keep_body=raw)
    texts = ask(exchange, body, reply, timeout=timeout, retries=retries)
    failure = receive(texts, is_live=is_live)

    # deliver
    turn.append({"role": "assistant", "content": reply.text})
    failure = deliver(
        reply, failure, output=output,
        added=appended(files[0], turn, systems=first) if append else contextlib.nullcontext(),
        is_live=is_live, extract=extract, has_schema=schema is not None,
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
    except ModuleNotFoundError as error:
        log.error(f"{error.name} is missing; install it, as by: apt install python3-{error.name}")
        status = 2
    # all is written; the usual end would crash if OpenSSL is at work in the other thread
    os._exit(status)


class Interrupt(BaseException):
    """A signal that ends the run, once what must not be left behind is cleaned up."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal clean up, on the terminal and among the files, before it ends the run."""
    received: list[int] = []

    def interrupt(number: int, _frame: Any) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        if received:  # the second one does not wait for the cleaning
            die_of(number)
        received.append(number)
        raise Interrupt

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    usual = (signal.SIG_DFL, signal.default_int_handler)  # the parent may ignore it instead
    caught = [number for number in numbers if signal.getsignal(number) in usual]
    try:
        for number in caught:
            signal.signal(number, interrupt)
        yield
    finally:
        if received:  # whatever came of the Interrupt: the threading module may turn it into more
            die_of(received[0])
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


def die_of(number: int) -> NoReturn:
    """End by the signal itself, which is what a shell's loop looks for."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # the parent has blocked it


SEE_HELP = "; see xchat --help"

# options that other tools have, and what to use instead
INSTEAD = {
    "api-key key token": "XAI_API_KEY", "base-url api-base url endpoint": "XCHAT_BASE_URL",
    "header headers": "XCHAT_HEADERS", "continue chat session": "-a -f FILE",
    "history messages conversation": "-f FILE", "system-prompt role": "-s TEXT",
    "prompt input message stdin": "arguments or standard input",
    "attachment attach": "-i FILE for an image, or standard input",
    "format": "--schema or --json", "debug": "-v",
}  # fmt: skip


def explain_usage(error: click.UsageError) -> str:
    """Return what is wrong with the options, in words like ours."""
    if isinstance(error, click.NoSuchOption):
        return f"no such option: {error.option_name}{hint_for(error.option_name)}"
    message = error.message[:1].lower() + error.message[1:].rstrip(".")
    if isinstance(error, click.BadParameter):
        option, place = error.param, "PROMPT"
        if isinstance(option, click.Option):
            is_given = any(word.partition("=")[0] in option.opts for word in sys.argv[1:])
            place = option.opts[0] if is_given or not option.envvar else str(option.envvar)
        return f"{place}: {message}"
    return f"{message}{SEE_HELP}"


def hint_for(option: str) -> str:
    """Return what to write in place of an option that there is not."""
    names = option_names()
    word = re.sub(DASHES, "", option).replace("_", "-")
    alike = [name for name in names if name.startswith("no") == word.startswith("no")]
    longer = (name for name in alike if name.startswith(word))
    near = word if word in names else len(word) > 1 and (next(longer, "") or nearest(word, alike))
    for others, here in INSTEAD.items():
        if word in others.split():
            return f"; use {here}"
    if near:
        return f"; did you mean {names[near]!r}?"
    if (field := word.replace("-", "_")) in FIELDS:
        return f"; use -p {field}=VALUE"
    is_prompt = any(re.match(r"-\S*\s|-\d", word) for word in sys.argv[1:])
    return "; a prompt that begins with - goes after --" if is_prompt else SEE_HELP


if usual_sigint is signal.default_int_handler:
    signal.signal(signal.SIGINT, usual_sigint)
if __name__ == "__main__":
    main()
