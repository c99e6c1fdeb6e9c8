#!/usr/bin/env python3
"""One prompt in, one request to a chat-completions API, one reply out.

The data passes the sections below in their order:

    diagnostics      what is said on standard error: a Failure ends the run, the rest are warnings
    reading          environment -> server and key; arguments and standard input -> prompt;
                     files -> request fields and messages
    asking           all of these -> one JSON body -> one POST
    connecting       server, proxy and certificates -> a connection
    replying         response bytes -> text, and whether that is a whole reply
    what went wrong  errors of the wire and of servers -> a Failure, to be repeated or not
    delivering       text -> standard output, or files
    command          the options, and the order of the steps
    main             the signals, and from failure to exit status

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
import queue
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
    import http.client
    import ipaddress
    import socket
    import ssl
    from urllib.parse import SplitResult

    from urllib3.connection import HTTPConnection
    from urllib3.response import HTTPResponse


__version__ = "0.1.0"

BASE_URL = "https://api.x.ai/v1"
MODEL = "grok-4"
TIMEOUT = 3600  # seconds: what the API's guide advises for reasoning models
CONNECT_TIMEOUT = 10  # seconds, of the above
HINT_DELAY = 10  # seconds of silence on standard input before a hint
MIB = 1 << 20
INPUT_LIMIT = 64 * MIB  # bytes of standard input, or of one file
REPLY_LIMIT = 64 * MIB  # bytes of a reply, decompressed
ERROR_TIMEOUT = 5  # seconds that an error's body is waited for
ERROR_LIMIT = MIB  # bytes of an error's body that are looked at
BLOCK = 1 << 16  # bytes per read
NESTING_LIMIT = 100  # levels of a conversation file
EVENT_LIMIT = 1_000_000  # of YAML: four a message, so more than any model can read
ATTEMPT_DELAY = 0.25  # seconds that an address may be silent until the next is tried
IDLE_LIMIT = 4  # seconds an early connection may wait; some servers close it after 5
ITEMS_AHEAD = 64  # blocks that are read before they are wanted
BACKOFF_LIMIT = 30  # seconds between two attempts, if the server names no time
RETRY_AFTER_LIMIT = 120  # seconds; a server that asks for a longer wait is not asked again

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

HIDDEN = "[hidden]"
hidden_words: dict[str, str] = {}  # the key and its like, and what is shown instead

# control characters, line separators, and what makes a terminal write from right to left
UNPRINTABLE = r"[\x00-\x20\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]+"

ERASE_LINE = "\r\x1b[K"


class StandardError(logging.Handler):
    """Writes each message as a line, after what kind of line it is."""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if record.levelno > logging.DEBUG:
            line = f"xchat: {line}"
        elif line.startswith("*"):
            line = f"* {record.relativeCreated / 1000:.3f} s: {line[2:]}"
        write_error(line)


def write_error(
    line: str, *, begin: str = "", width: int | None = None, is_json: bool = False
) -> None:
    """Write a line to standard error, printable and without the secrets; the one way to get there.

    With a width it is a status line, and does not end.  A lost message must not lose the reply.
    """
    line = re.sub(UNPRINTABLE, " ", hide(line, is_json=is_json)).strip()
    if width is not None:
        line = line.encode("ascii", "replace").decode()[:width]
    elif len(line) > 1000 and not is_json:  # the end has the request id
        line = f"{line[:800]} ... {line[-100:]}"
    text = f"{begin}{line}" if width is not None else f"{line}\n"
    # not print(): what a full disk leaves in sys.stderr's buffer turns the exit status into 120
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))


def conceal(secret: str, name: str) -> None:
    """Have hide() show the name in place of the secret, in whatever form a server echoes it."""
    from urllib.parse import quote

    if secret:
        escaped = json.dumps(secret)[1:-1]
        quoted = quote(secret, safe="", errors="replace")
        forms = [secret, quoted, escaped, escaped.replace("/", "\\/")]
        hidden_words.update(dict.fromkeys(forms, name))


def hide(text: str, *, is_json: bool = False) -> str:
    """Return the text without the secrets; in JSON, a header's value may be just a number."""
    for secret, name in sorted(hidden_words.items(), key=lambda item: -len(item[0])):
        if is_json and (len(secret) < 8 or name == HIDDEN):
            continue
        if len(secret) > 7:
            pattern = f"(?:{UNPRINTABLE})?".join(map(re.escape, secret))
        else:  # it may well be a part of a word or of an address
            pattern = rf"(?<!\w)(?<!\w[.:-]){re.escape(secret)}(?!\w|[.:-]\w)"
        text = re.sub(pattern, name, text, flags=re.IGNORECASE)
    return text


# Reading: the environment --------------------------------------------------------------------


class Proxy(NamedTuple):
    """The proxy on the way to the server."""

    url: str  # with the password
    host: str  # with the port, where one is given
    headers: dict[str, str]  # which carry the password to an HTTP proxy

    @property
    def is_socks(self) -> bool:
        return self.url.startswith("socks")


class Server(NamedTuple):
    """Where the request goes, and how.  Comes from the environment alone."""

    url: str
    host: str  # with the port, where one is given
    key: str  # may be empty for a server other than the API's
    headers: dict[str, str]  # of XCHAT_HEADERS
    proxy: Proxy | None
    trust: str  # a file or a list of directories; empty where nobody speaks TLS
    tls: ssl.SSLContext | None

    @property
    def is_secure(self) -> bool:
        return self.url.startswith("https:")

    @property
    def forwarder(self) -> Proxy | None:
        """The proxy that reads the request and passes it on, if there is one."""
        return None if self.is_secure or (self.proxy and self.proxy.is_socks) else self.proxy


def read_server() -> Server:
    """Return the server and what it is sent, or raise BadInput."""
    with at("XCHAT_BASE_URL"):
        base_url = os.environ.get("XCHAT_BASE_URL", "").strip().rstrip("/") or BASE_URL
        parts = parse_base_url(base_url)
    base_url = parts.geturl()  # with its scheme in lower case
    key = read_key()
    with at("XCHAT_HEADERS"):
        headers = parse_headers(os.environ.get("XCHAT_HEADERS", ""))
    host = parts.hostname or ""
    if not key and host.rstrip(".") == "api.x.ai":
        raise BadInput(
            "no API key: set XAI_API_KEY, or XAI_API_KEY_FILE to a file that holds it"
            " (keys: https://console.x.ai)"
        )
    if parts.scheme == "http" and not on_loopback(host):
        if key:
            raise BadInput(
                "XCHAT_BASE_URL: plain http would show the key to the network: use https,"
                " or unset XAI_API_KEY"
            )
        if headers:
            log.warning("XCHAT_HEADERS: plain http shows the headers to the network")
    import_requests()
    if log.isEnabledFor(logging.DEBUG):
        sys.addaudithook(tell_sockets)
    url = f"{base_url}/chat/completions"
    proxy = None if on_loopback(host) else read_proxy(url)
    log.debug(f"* proxy: {proxy.host if proxy else 'none'}")
    needs_tls = "https" in (parts.scheme, proxy and proxy.url.partition(":")[0])
    trust, tls = read_tls() if needs_tls else ("", None)
    return Server(url, parts.netloc.lower(), key, headers, proxy, trust, tls)


def import_requests() -> None:
    """Import requests before standard input is read: a slow producer pays for it."""
    # requests can do without what guesses character sets: 10 % of all instructions
    sys.modules.update(dict.fromkeys(["chardet", "charset_normalizer"]))  # type: ignore[arg-type]
    warnings.simplefilter("ignore")  # of that, and of what else only a programmer understands
    import requests  # noqa: F401


def parse_base_url(url: str) -> SplitResult:
    """Return the parts of the base URL, checked."""
    parts = split_url(url, schemes=("https", "http"))
    if parts is None or "?" in url or "#" in url:
        raise BadInput("expected https://HOST[:PORT]/PATH")
    if "@" in parts.netloc:
        raise BadInput("contains a user name or password; put the key in XAI_API_KEY")
    if parts.path.endswith("/chat/completions"):
        raise BadInput("remove /chat/completions; xchat adds it")
    return parts


HOST = r"\[[^\[\]]+\]|(?!-)[\w-]{1,63}(\.[\w-]{1,63})*\.?"


def split_url(url: str, *, schemes: Sequence[str]) -> SplitResult | None:
    """Return the parts of a URL, None where it is none."""
    from urllib.parse import urlsplit

    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port
        place = parts.netloc.rpartition("@")[2]
        is_host = re.fullmatch(rf"({HOST})(:\d*)?", place) and not re.search(NOT_GRAPHIC, url)
        if is_host and parts.scheme in schemes and (":" not in host or address_of(host)):
            return parts
    return None


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a host is given as, None for a name."""
    import ipaddress

    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


def on_loopback(host: str) -> bool:
    address = address_of(host)
    return address.is_loopback if address else host == "localhost"


def conceal_environment() -> None:
    """Keep out of all messages what the environment says about the key and XCHAT_HEADERS."""
    conceal(os.environ.get("XAI_API_KEY", "").strip(), "[the key]")
    for line in os.environ.get("XCHAT_HEADERS", "").splitlines():
        conceal(line.partition(":")[2].strip(), HIDDEN)


NOT_GRAPHIC = r"[^!-~]"


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
        raise BadInput(f"{name}: the key contains a character that is not printable ASCII")
    conceal(key, "[the key]")
    return key


def parse_headers(text: str) -> dict[str, str]:
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
    return headers


PROXY_SCHEMES = ("http", "https", "socks5h", "socks5", "socks4a", "socks4")


def read_proxy(url: str) -> Proxy | None:
    """Return the proxy for the URL by HTTPS_PROXY (or HTTP_PROXY), ALL_PROXY and NO_PROXY."""
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(url, get_environ_proxies(url))
    if not proxy:
        return None
    with at(f"{url.partition(':')[0].upper()}_PROXY or ALL_PROXY"):
        return parse_proxy(proxy if "://" in proxy else f"http://{proxy}")


def parse_proxy(url: str) -> Proxy:
    import importlib.util
    from urllib.parse import unquote

    if re.search(r"[/?#@]", url.partition("://")[2].rpartition("@")[0]):
        raise BadInput("in a password, write / as %2F, ? as %3F, # as %23 and @ as %40")
    parts = split_url(url, schemes=PROXY_SCHEMES)
    if parts is None:
        schemes = ", ".join(PROXY_SCHEMES)
        raise BadInput(f"expected SCHEME://[USER:PASSWORD@]HOST[:PORT]; SCHEME is one of {schemes}")
    proxy = Proxy(parts.geturl(), parts.netloc.rpartition("@")[2], {})
    if proxy.is_socks and not importlib.util.find_spec("socks"):
        raise BadInput("SOCKS needs PySocks: pip install PySocks, or Debian's python3-socks")
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
        for secret in (parts.password or parts.username, password or user, f"{user}:{password}"):
            conceal(secret, "[the password]")
        if not proxy.is_socks:
            proxy.headers["Proxy-Authorization"] = basic_authorization(f"{user}:{password}")
    return proxy


def basic_authorization(login: str) -> str:
    """Return the value of a header with USER:PASSWORD, https://www.rfc-editor.org/rfc/rfc7617."""
    import base64

    try:
        tokens = [base64.b64encode(login.encode(name)).decode() for name in ("latin-1", "utf-8")]
    except UnicodeEncodeError:
        raise BadInput("the user name or password has a letter outside Latin-1") from None
    for token in tokens:
        conceal(token, "[the password]")
    return f"Basic {tokens[0]}"


TRUST_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


def read_tls() -> tuple[str, ssl.SSLContext]:
    """Return the file or the directories of trusted certificates, and what connects by them."""
    import ssl

    from requests.utils import DEFAULT_CA_BUNDLE_PATH
    from urllib3.util import create_urllib3_context

    context = create_urllib3_context()
    name = next((name for name in TRUST_VARIABLES if os.environ.get(name)), "")
    usual = ssl.get_default_verify_paths()
    path = os.environ.get(name) or usual.capath or ""
    if not name and not is_hashed(path):
        path = usual.cafile or DEFAULT_CA_BUNDLE_PATH
    with at(name or "certificates"), at(path):
        paths = path.split(os.pathsep) if name == "SSL_CERT_DIR" else [path]
        trust = load_certificates(context, paths)
    log.debug(f"* trusted certificates: {trust}")
    if path := os.environ.get("XCHAT_CLIENT_CERT", ""):
        with at("XCHAT_CLIENT_CERT"), at(path):
            try:
                context.load_cert_chain(path, password="")  # nobody is asked for one
            except ssl.SSLError:
                what = "a certificate and its key in PEM, without a password"
                raise BadInput(f"expected {what}") from None
        log.debug(f"* client certificate: {path}")
    return trust, context


def load_certificates(context: ssl.SSLContext, paths: list[str]) -> str:
    """Trust the certificates of a file or of hashed directories; return what was used."""
    import ssl

    directories = os.pathsep.join(filter(os.path.isdir, paths))
    if any(map(is_hashed, paths)):
        context.load_verify_locations(capath=directories)
        return directories
    if directories:
        raise BadInput("contains no hashed certificate; run openssl rehash on it")
    file = os.pathsep.join(paths)
    try:
        context.load_verify_locations(file)
    except ssl.SSLError:
        raise BadInput("contains no certificate in PEM") from None
    return file


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


def may_wait(words: Sequence[str]) -> bool:
    """Say whether standard input may take a while: a pipe, or a terminal that is read."""
    if sys.stdin is None:
        return False
    return stat.S_ISFIFO(os.fstat(0).st_mode) or (not words and os.isatty(0))


def system_messages(texts: Iterable[str]) -> list[JSON]:
    return [{"role": "system", "content": text} for text in texts]


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
        raise BadInput("contains an invalid Unicode character") from None
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

# in which no comma and no bracket counts; the group is empty where the string has no end
STRING = r'(?s)"[^"\\]*(?:\\.[^"\\]*)*("?)'

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


CUT = r"[ \t]*[ \t](#+[^\s#][^\r\n]*)"


def refuse_cut(event: Any, text: str) -> Any:
    """Return the event, unless it is a plain text whose rest YAML takes for a comment."""
    cut = not getattr(event, "style", "-") and re.compile(CUT).match(text, event.end_mark.index)
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
ROW = r"\s*[^\W\d][\w-]*(\s+(str|int|float|bool|string|integer|number|boolean))?\s*"
TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}

# a schema that constrains anything has one of these
SCHEMA_KEYS = set("$ref type enum const properties required items anyOf oneOf allOf not if".split())


def read_schema(schema: str) -> JSON:
    """Return the request field for a JSON Schema, for a row of names, or for a file with a schema.

    See https://docs.x.ai/docs/guides/structured-outputs.
    """
    is_row = all(re.fullmatch(ROW, name) for name in schema.split(","))
    if schema.lstrip().startswith("{"):
        with at("--schema"):
            value = parse_text(as_text(schema))
    elif is_row and re.search(r"\S[\s,]", schema) and not os.path.exists(schema):
        value = schema_of(as_text(schema))
    elif schema != "-" and not os.path.exists(schema):
        raise BadInput(f"--schema {schema}: no such file; a schema itself begins with {{")
    else:
        value = read_value(schema)
    for wrapping in ("response_format", "json_schema", "schema"):
        if isinstance(value, dict):
            value = value.get(wrapping, value)
    is_schema = isinstance(value, dict) and value.get("type") not in ("json_object", "text")
    if not is_schema or (value and not value.keys() & SCHEMA_KEYS):
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


# Two generators do what may block for ever: a look-up of the host, a handshake, headers that drip,
# a block that does not decompress to a single byte.  Each runs in the background, in a thread that
# shares nothing but the queue of what it yields:
#
#   connect    yields a connection that stands; over https it begins before there is a prompt
#   exchange   posts the request on a connection, and yields the response, then its blocks
#
# The main thread takes from the queue, until the deadline at most.  There, and only there, it draws
# the status line and gets the signals.  So a request is posted on a connection that the main thread
# holds, or never; and where a failure is raised tells whether that is before or after.


def ask(
    server: Server,
    early: Background | None,
    body: JSON,
    reply: Reply,
    *,
    deadline: Deadline,
    retries: int,
) -> Iterator[str]:
    """Post the body and yield the text of the reply, piece by piece as it comes.

    Without a reply this ends in a Failure; whether a reply is whole, judge() says.  The body is
    posted again, at most retries times, where it cannot have produced a reply.
    """
    data = encode_body(body)
    is_stream = bool(body.get("stream"))
    headers = request_headers(server, is_stream=is_stream, length=len(data))
    status = StatusLine(reply, f"waiting for {body['model']}")
    deadline.tick = status.draw
    for attempt in range(retries + 1):
        reply.forget_attempt()
        try:
            connection = take_connection(None if attempt else early, server, deadline)
            answer = Background(exchange(connection, server, headers, data))
            response = take_response(answer, server, deadline)
            reply.request_id = response.headers.get("x-request-id")
            if not 200 <= response.status < 300:
                said = read_error(response, answer, reply, deadline)
                raise refusal(response, said, server, is_stream=is_stream)
            for text in read_reply(read_blocks(answer, reply, deadline), reply):
                status.end()
                yield text
            return
        except Failure as failure:
            blamed = reply.blame(failure)
            seconds = seconds_to_wait(failure, attempt)
            if attempt == retries or seconds is None or seconds > deadline.seconds_left():
                raise blamed from None
        finally:
            status.erase()
        log.warning(f"{blamed.message}; trying again in {seconds:.1f} s")
        time.sleep(seconds)


def request_headers(server: Server, *, is_stream: bool, length: int) -> dict[str, str]:
    """Return the headers of the request, all of them: urllib3 adds none to these."""
    accept = ["text/event-stream", "application/json"]
    headers = {
        "Host": server.host,
        "Content-Type": "application/json",
        "Content-Length": str(length),
        "Accept": ", ".join(accept if is_stream else accept[::-1]),
        "Accept-Encoding": "identity",
        "User-Agent": f"xchat/{__version__}",
    }
    if server.key:
        headers["Authorization"] = f"Bearer {server.key}"
    if server.forwarder:
        headers |= server.forwarder.headers
    given = {name.lower() for name in server.headers}
    ours = {name: value for name, value in headers.items() if name.lower() not in given}
    return ours | server.headers


def take_connection(early: Background | None, server: Server, deadline: Deadline) -> HTTPConnection:
    """Return the connection that was begun early if it is of use by now, or else a new one."""
    limit = min(CONNECT_TIMEOUT, deadline.seconds_left())
    end = time.monotonic() + limit
    try:
        connection = take_early(early, deadline, end) if early else None
        return connection or Background(connect(server)).take(deadline, end)
    except queue.Empty:
        raise no_connection(TimeoutError(), server, limit=limit) from None


def connect_early(server: Server) -> Background | None:
    """Begin to connect while the prompt is read, where that takes more than one round trip."""
    return Background(connect(server)) if server.is_secure else None


def take_early(early: Background, deadline: Deadline, end: float) -> HTTPConnection | None:
    """Return the early connection if it is of use; a failure is one if it would come again."""
    try:
        if early.age() < IDLE_LIMIT:
            connection: HTTPConnection = early.take(deadline, end)
            if is_idle(connection.sock):
                return connection
    except NoAnswer as failure:
        if failure.repeat_after is None:
            raise
    log.debug("* the early connection is not used")
    return None


def exchange(
    connection: HTTPConnection, server: Server, headers: dict[str, str], data: bytes
) -> Iterator[Any]:
    """Post the data, once, and yield the response, then the blocks of its body as they arrive."""
    import ssl
    from urllib.parse import urlsplit

    target = server.url if server.forwarder else urlsplit(server.url).path
    log.debug(f"> POST {target} HTTP/1.1")
    for name, value in headers.items():
        is_secret = "authorization" in name.lower()
        log.debug(f"> {name}: {'[hidden]' if is_secret else value}")
    connection.timeout = None  # was that of connecting; a busy server may take long to read
    try:
        # the server may have answered before it closed
        with contextlib.suppress(ConnectionError, ssl.SSLEOFError):
            connection.request("POST", target, data, headers, preload_content=False)
        response = connection.getresponse()
    except wire_errors() as error:
        message = explain(error)
        if server.forwarder:
            message = f"the proxy {server.forwarder.host} failed: {message}"
        raise NoAnswer(message) from None
    log.debug("* the response begins")
    log.debug(f"< HTTP/{response.version / 10} {response.status} {response.reason}")
    for name, value in response.headers.items():
        log.debug(f"< {name}: {value}")
    yield response
    try:
        yield from blocks_of(response)
    except wire_errors() as error:
        raise BadReply(f"the reply is cut short: {explain(error)}") from None


def blocks_of(response: HTTPResponse) -> Iterator[bytes]:
    """Return the blocks of a body, decompressed; each as soon as it has arrived."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    # what is left is "gzip, gzip", say, as of a bomb
    if encoding not in ("identity", "", "none", *response.CONTENT_DECODERS):
        raise BadReply(f"cannot read a reply that is compressed as {encoding!r}")
    read1 = functools.partial(response.read1, BLOCK, decode_content=True)
    size = 0
    # a chunk costs stream() a quarter less than read1(), but only a chunk
    for block in response.stream(BLOCK) if response.chunked else iter(read1, b""):
        size += len(block)
        yield block
    if encoding != "identity" and response.tell() and not size:
        raise BadReply("the reply is cut short: its compressed data is not complete")


def take_response(answer: Background, server: Server, deadline: Deadline) -> HTTPResponse:
    """Return the response to the request, as soon as its headers are there."""
    try:
        response: HTTPResponse = answer.take(deadline)
        return response
    except queue.Empty:
        way = f" through the proxy {server.proxy.host}" if server.proxy else ""
        raise deadline.late(f"no answer{way}") from None


def read_blocks(answer: Background, reply: Reply, deadline: Deadline) -> Iterator[bytes]:
    """Yield the body as it arrives, decompressed; what breaks it off is recorded in the reply."""
    size = 0
    try:
        while block := b"".join(answer.take_all(deadline)):
            if reply.body is not None:
                reply.body += block
            yield block
            size += len(block)
            if size > REPLY_LIMIT:
                raise BadReply(f"the reply is larger than {REPLY_LIMIT // MIB} MiB")
    except queue.Empty:
        reply.cut = deadline.late("not the whole answer" if size else "no answer")
    except Failure as failure:
        reply.cut = failure


# Asking: the time ----------------------------------------------------------------------------


class Deadline:
    """The end of the time for the whole answer, which begins when the prompt is complete."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout  # in seconds
        self.end = time.monotonic() + timeout
        self.tick: Callable[[], None] = lambda: None  # is called while something is waited for

    def seconds_left(self) -> float:
        return max(self.end - time.monotonic(), 0)

    def late(self, what: str) -> NoAnswer:
        return NoAnswer(f"{what} within {self.timeout:g} s; --timeout sets a longer limit")


class StatusLine:
    """What a terminal shows while nothing comes, drawn once a second, until there is output."""

    def __init__(self, reply: Reply, activity: str) -> None:
        self.reply = reply
        self.activity = activity
        self.start = self.drawn = time.monotonic()
        is_dumb = os.environ.get("TERM", "dumb") == "dumb" or sys.stderr is None
        self.is_wanted = not is_dumb and os.isatty(2) and log.level == logging.WARNING
        self.is_drawn = False

    def draw(self) -> None:
        """Draw the line if a second has passed since the last time."""
        now = time.monotonic()
        if self.is_wanted and now >= self.drawn + 1:
            self.drawn, self.is_drawn = now, True
            activity = "thinking" if self.reply.is_thinking else self.activity
            with contextlib.suppress(OSError):  # the terminal may be gone
                width = (os.get_terminal_size(2).columns or 80) - 1
                write_error(f"{activity}, {now - self.start:.0f} s", begin=ERASE_LINE, width=width)

    def erase(self) -> None:
        if self.is_drawn:
            self.is_drawn = False
            write_error("", begin=ERASE_LINE, width=0)

    def end(self) -> None:
        """Erase the line for good, before output."""
        self.is_wanted = False
        self.erase()


class Background:
    """A generator in a thread of its own, which goes on while there is room for its items.

    take       returns the next item, or raises what the generator raised
    take_all   returns what has piled up
    """

    def __init__(self, generator: Iterator[Any]) -> None:
        self.start = time.monotonic()
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.room: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(ITEMS_AHEAD):  # a slow reader holds the server up
            self.room.put(None)
        # which the thread inherits: a signal that it got would not wake the main thread
        usual = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            threading.Thread(target=self.run, args=[generator], daemon=True).start()
        except RuntimeError:
            limit = "the machine's limit of processes (ulimit -u) is reached"
            raise BadInput(f"cannot start a thread: {limit}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, usual)

    def run(self, generator: Iterator[Any]) -> None:
        """Put the items into the queue, and last an exception, or None."""
        last = None
        try:
            for item in generator:
                self.room.get()
                self.items.put(item)
        except BaseException as error:  # noqa: BLE001  # take() raises it again
            last = error
        self.items.put(last)

    def age(self) -> float:
        """Return the seconds since it began."""
        return time.monotonic() - self.start

    def take(self, deadline: Deadline, end: float = math.inf) -> Any:
        """Return the next item, None after the last one; queue.Empty if the time is over first."""
        while True:
            deadline.tick()
            left = min(deadline.end, end) - time.monotonic()
            try:
                item = self.items.get(timeout=min(max(left, 0), 1))
                break
            except queue.Empty:
                if left <= 0:
                    raise
        self.room.put(None)
        if isinstance(item, BaseException):
            raise item
        return item

    def take_all(self, deadline: Deadline) -> list[Any]:
        """Return the next item and what has piled up behind it; an empty list after the last."""
        items = [self.take(deadline)]
        while self.items.qsize() > 1:  # the last one may be the end
            items.append(self.take(deadline))
        return [] if items == [None] else items


# Connecting ----------------------------------------------------------------------------------


def connect(server: Server) -> Iterator[HTTPConnection]:
    """Yield a connection that stands, to the server or to the proxy that forwards to it."""
    connection = new_connection(server)
    try:
        connection.connect()
    except wire_errors() as error:
        failure = no_connection(error, server, beyond_proxy=connection.has_connected_to_proxy)
        log.debug(f"* no connection: {failure.message}")
        raise failure from None
    sock: Any = connection.sock
    for layer in (getattr(sock, "socket", None), sock):  # TLS to a proxy may carry that to a server
        if layer and hasattr(layer, "getpeercert"):
            certificate = layer.getpeercert()
            issuer = ", ".join(value for part in certificate["issuer"] for _name, value in part)
            expiry = certificate.get("notAfter")
            log.debug(f"* {layer.version()}, certificate of {issuer}, expires {expiry}")
    log.debug("* connected")
    yield connection


def new_connection(server: Server) -> HTTPConnection:
    """Return a connection that is yet to be made: the one place for address, proxy and trust."""
    from urllib.parse import urlsplit

    from urllib3.connection import HTTPConnection, HTTPSConnection, ProxyConfig

    kinds: Any = HTTPConnection, HTTPSConnection
    options: JSON = {"timeout": CONNECT_TIMEOUT, "socket_options": socket_options()}
    target, proxy = urlsplit(server.url), server.proxy
    if proxy and proxy.is_socks:
        from urllib3.contrib import socks

        kinds = socks.SOCKSConnection, socks.SOCKSHTTPSConnection
        manager = socks.SOCKSProxyManager(proxy.url)
        options["_socks_options"] = manager.connection_pool_kw["_socks_options"]
        proxy = None
    hop = urlsplit(proxy.url) if proxy else target
    is_secure = "https" in (hop.scheme, target.scheme)
    if is_secure:
        options["ssl_context"] = server.tls
        options["proxy_config"] = ProxyConfig(server.tls, False, None, None)
    hop_port = hop.port or (443 if hop.scheme == "https" else 80)
    connection: HTTPConnection = kinds[is_secure](host=hop.hostname, port=hop_port, **options)
    if proxy and server.is_secure:
        host, port = target.hostname or "", target.port or 443
        connection.set_tunnel(host, port, proxy.headers, scheme=hop.scheme)
    connection.response_class = final_response  # type: ignore[assignment]
    if "_socks_options" not in options:
        # urllib3 tries one address after the other: https://github.com/urllib3/urllib3/issues/797
        new_socket = functools.partial(open_socket, hop.hostname or "", hop_port)
        connection._new_conn = new_socket  # type: ignore[method-assign]
    return connection


def open_socket(host: str, port: int) -> socket.socket:
    """Connect to the first address of a host that answers, tried in turn of families.

    By RFC 8305 the next one is tried ATTEMPT_DELAY seconds after one that stays silent, and at once
    after one that fails.
    """
    import socket

    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    families = [item[0] for item in found]
    turns = sorted(range(len(found)), key=lambda n: families[:n].count(families[n]))
    addresses = [found[n] for n in turns]
    error: OSError = TimeoutError()
    end = time.monotonic() + CONNECT_TIMEOUT
    pending: list[socket.socket] = []
    try:
        while addresses or (pending and time.monotonic() < end):
            try:
                pending += [begin_connecting(addresses.pop(0))] if addresses else []
                wait = ATTEMPT_DELAY if addresses else end - time.monotonic()
                for sock in select.select([], pending, [], max(wait, 0))[1]:
                    pending.remove(sock)
                    if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        sock.close()
                        raise OSError(code, os.strerror(code))
                    sock.settimeout(CONNECT_TIMEOUT)
                    return sock
            except OSError as failure:
                error = failure
                log.debug(f"* {failure.strerror}")
    finally:
        for sock in pending:
            sock.close()
    raise error if not pending else TimeoutError()


def begin_connecting(found: tuple[Any, ...]) -> socket.socket:
    """Return a socket that connects to what getaddrinfo() found; OSError if that fails at once."""
    import errno
    import socket

    *kind, _name, address = found
    sock = socket.socket(*kind)
    for option in socket_options():
        sock.setsockopt(*option)
    sock.setblocking(False)
    code = sock.connect_ex(address)
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock


def final_response(*args: Any, **kwargs: Any) -> http.client.HTTPResponse:
    """Make a response that passes over informational ones (RFC 9110, 15.2), not only 100."""
    import http.client

    response = http.client.HTTPResponse(*args, **kwargs)

    def begin() -> None:
        http.client.HTTPResponse.begin(response)
        while 101 < response.status < 200:
            response.headers = None  # type: ignore[assignment]  # or it would not begin again
            http.client.HTTPResponse.begin(response)

    response.begin = begin  # type: ignore[method-assign]
    return response


# seconds of silence before the first probe, under either of its names, and between probes
TCP_OPTIONS = {"TCP_NODELAY": 1, "TCP_KEEPIDLE": 60, "TCP_KEEPALIVE": 60, "TCP_KEEPINTVL": 30}


def socket_options() -> list[tuple[int, int, int]]:
    """Return TCP's options: no delay, and keep-alive, as middleboxes forget silent connections."""
    import socket

    level = socket.IPPROTO_TCP
    known = {getattr(socket, name, None): value for name, value in TCP_OPTIONS.items()}
    options = [(level, name, value) for name, value in known.items() if name is not None]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *options]


def is_idle(sock: Any) -> bool:
    """Say whether a TLS connection stands, and the server has said nothing, such as a 408.

    The socket is left without a timeout; urllib3 sets one with each request.
    """
    import ssl

    sock.settimeout(0)
    try:
        sock.recv(1)  # beyond the session tickets
    except OSError as error:
        return isinstance(error, ssl.SSLWantReadError)
    return False


def tell_sockets(event: str, args: Any) -> None:
    """Tell which addresses are tried; an audit hook of Python."""
    if event == "socket.getaddrinfo":
        log.debug(f"* looking up {args[0]}")
    elif event == "socket.connect":
        log.debug(f"* connecting to {' port '.join(map(str, args[1][:2]))}")


# Replying: the response ----------------------------------------------------------------------


class Reply:
    """What is known of the reply.  Of the choices, only that with index 0 counts."""

    def __init__(self, host: str, *, keep_body: bool = False, is_appended: bool = False) -> None:
        self.host = host
        self.takes_calls = keep_body and not is_appended  # of tools, in place of text
        self.start = time.monotonic()
        self.request_id: str | None = None
        self.body: bytearray | None = bytearray() if keep_body else None
        self.pieces: list[str] = []  # of the text
        self.model: Any = None
        self.usage: JSON = {}
        self.finish_reason = ""
        self.refusals: list[str] = []
        self.has_choice = self.has_deltas = self.has_tool_calls = self.is_thinking = False
        self.is_done = False  # [DONE] came, or the end of a body that is no stream
        self.other: bytes | None = None  # the first data, if that is no completion
        self.odd = b""  # the first data that is neither a completion nor a heartbeat
        self.error: Failure | None = None  # in the server's words
        self.cut: Failure | None = None  # why nothing more could be read

    def forget_attempt(self) -> None:
        """Discard the traces of an earlier attempt."""
        self.request_id = self.cut = None
        if self.body:
            self.body.clear()

    def blame(self, failure: Failure) -> Failure:
        """Return the failure with what it is about: the host and the request."""
        suffix = f" (request id {self.request_id})" if self.request_id else ""
        return type(failure)(f"{self.host}: {failure.message}{suffix}")

    @property
    def text(self) -> str:
        return without_surrogates("".join(self.pieces))


# When a reply is whole: the first row that fits decides.  What is not whole is status 1, but for an
# error in the server's words, 4 or 5, and the deadline, 3.
#
#   what came                                               what is said
#   an error or broken JSON, not after a natural end        that
#   what broke off, unless it is a stream after its end     why
#   no choice, but other data                               how it begins
#   no finish reason, no [DONE], no end of a single body    cut short
#   no finish reason, and data that is no heartbeat         cut short, and how that begins
#   a tool call at its end, with --json and without -a      nothing: it is whole
#   no text, but a tool call, a refusal or reasoning        which of them
#   a finish reason that is no natural end                  what cut it off
#   no text, or with -x nothing in the block                empty
#   text that is not JSON, with --schema                    not JSON
#   anything else                                           nothing: it is whole
NATURAL_ENDS = ("stop", "end_turn", "stop_sequence", "eos", "eos_token", "complete", "completed")
TOOL_ENDS = ("tool_calls", "function_call", "tool_use")
CUTS = {
    **dict.fromkeys(("length", "max_tokens", "model_length"), " at the token limit"),
    **dict.fromkeys(TOOL_ENDS, " by a tool call"),
    "content_filter": " by the content filter",
}


def judge(reply: Reply, text: str, *, wants_json: bool) -> Failure | None:
    """Return why the reply is not whole, None if it is; text is what will be written of it."""
    reason = reply.finish_reason.lower()
    is_natural = reason in ("", *NATURAL_ENDS)
    if reply.error or (reply.cut and not (reason and reply.has_deltas)):
        return reply.error or reply.cut
    said = ""
    if not reply.has_choice and reply.other is not None:
        said = f"the server's answer is not a chat completion: {excerpt(reply.other)}"
    elif not (reason or reply.is_done):
        said = "the reply is cut short: the stream ended without a finish reason"
    elif not reason and reply.odd:
        said = f"the reply is cut short: the rest is {excerpt(reply.odd)}"
    elif reply.takes_calls and reply.has_tool_calls and (is_natural or reason in TOOL_ENDS):
        pass
    elif not reply.pieces and (found := found_instead(reply)):
        said = f"the reply is {found}"
    elif not is_natural:
        said = f"the reply is cut off{CUTS.get(reason, '')}"
    elif not reply.pieces:
        said = f"the reply is empty{reason and f': finish reason {reason!r}'}"
    elif not text and reply.text:
        said = "the code block is empty"
    elif wants_json and not is_json(text):
        said = "the reply is not JSON"
    end = "" if is_natural else f" (finish reason {reply.finish_reason!r})"
    return BadReply(said + end) if said else None


def found_instead(reply: Reply) -> str:
    """Return what a reply without text is, as far as it is known."""
    if reply.has_tool_calls:
        return "a tool call, not text"
    may_help = "-p reasoning_effort=low or a larger --max-tokens may help"
    thinking = f"the model only reasoned; {may_help}" if reply.is_thinking else ""
    said = "".join(reply.refusals) or thinking
    return said and f"empty: {said}"


def is_json(text: str) -> bool:
    try:
        load_json(text)
    except (ValueError, BadInput):
        return False
    return True


def read_reply(blocks: Iterable[bytes], reply: Reply) -> Iterator[str]:
    """Yield the text of the reply as it comes, and record the rest in the reply.

    A completion is a stream of one event: a ChatResponse for a body that is no stream,
    ChatResponseChunks for one that is, https://docs.x.ai/docs/guides/streaming-response.
    """
    half = ""  # of a surrogate pair, which servers in JavaScript split over two events
    for events in read_events(blocks):
        text = half
        for data in events:
            if not (reply.is_done or reply.error):
                text += add_event(reply, data)
        half = text[-1] if "\ud800" <= text[-1:] <= "\udbff" else ""
        if text := without_surrogates(text.removesuffix(half)):
            yield text
        if reply.is_done or reply.error:
            break
    if half:
        yield "\ufffd"


KNOWN_LINE = rb"(?:data|event|id|retry)?:"


def read_events(blocks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the data of the server-sent events that end in each block.

    By https://html.spec.whatwg.org/#server-sent-events, but the end of the stream ends its last
    event, if that is whole.  The data of an error, by the event's name or in llama.cpp's own field,
    becomes {"error": data}.  A body without a line of a stream is the data of one event, with
    [DONE] after it.
    """
    data = bytearray()  # of an event, a line break before each line
    is_error = False
    body: bytearray | None = bytearray()  # the lines so far, while none is one of a stream
    for lines in read_lines(blocks):
        events = []
        for line in lines:
            if line.startswith((b"data:", b"error:")):
                name, _colon, value = line.partition(b":")
                data += b"\n" + value.removeprefix(b" ")
                is_error = is_error or name == b"error"
                body = None
            elif not line:
                if data.strip():
                    events.append(error_data(data[1:]) if is_error else bytes(data[1:]))
                data, is_error = bytearray(), False
            elif re.match(KNOWN_LINE, line):
                is_error = is_error or re.fullmatch(rb"event: ?error", line) is not None
                body = None
            elif body is not None:
                body += line + b"\n"
        yield events
    last = error_data(data[1:]) if is_error else bytes(data[1:])
    if last == b"[DONE]" or json_in(last.decode(errors="replace")) is not None:
        yield [last]
    elif body is not None:
        yield [bytes(body), b"[DONE]"]


def error_data(data: bytearray) -> bytes:
    text = data.decode(errors="replace")
    return json.dumps({"error": json_in(text) or text}).encode()


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


def add_event(reply: Reply, data: bytes) -> str:
    """Return the text of a completion or a chunk; record the rest of it, or an error."""
    if data == b"[DONE]":
        reply.is_done = True
        return ""
    has_ended = reply.finish_reason.lower() in NATURAL_ENDS
    text = data.removeprefix(BOM).decode(errors="replace").strip()
    value = json_in(text)
    if value is None and text[:1] == "{":
        value = half_of_json(text)
        is_cut = reply.has_choice or first_choice(value) or text[-1:] != "}"
        if is_cut and not (reply.cut or has_ended):
            reply.error = BadReply(f"the reply is cut short: broken JSON: {excerpt(data)}")
    elif value is None and re.match(r"\W{,9}error\b", text, re.IGNORECASE):
        value = {"error": text}
    value = value[0] if isinstance(value, list) and value else value  # as Gemini has errors
    choice = first_choice(value) if isinstance(value, dict) else {}
    if not (choice or is_heartbeat(value, text)):
        reply.odd = reply.odd or data
    value = value if isinstance(value, dict) else {}
    inner = choice.get("error") or mapping_in(choice, "delta").get("error")
    if (inner or is_error(value)) and not has_ended:
        reply.error = error_in_reply({"error": inner, **value}, text)
    reply.model = value.get("model") or reply.model
    reply.usage = mapping_in(value, "usage") or reply.usage
    reply.finish_reason = reply.finish_reason or str(choice.get("finish_reason") or "")
    text = add_choice(reply, choice)
    if not reply.has_choice and reply.other is None:
        reply.other = data
    return text


def is_heartbeat(value: Any, text: str) -> bool:
    """Say whether data that is no choice may come in a stream that is whole."""
    if isinstance(value, dict):
        return not value or value.get("type") == "ping" or bool({"choices", "usage"} & {*value})
    return re.fullmatch(r'"?[\w.:-]*"?', text) is not None  # null, "" or a word


def half_of_json(text: str) -> JSON:
    """Return what a mapping in JSON holds that is cut; a text in it may be cut, too."""
    closing = ""
    ends: list[tuple[int, str]] = []  # where it may be cut, and what closes it; the best one last
    for token in re.finditer(STRING + r"|[\[\]{},]", text):
        if token[0] in ("[", "{"):
            closing = ("]" if token[0] == "[" else "}") + closing
            ends = [*ends[-1:], (token.end(), closing)]
        elif token[0] in ("]", "}"):
            closing = closing[1:]
            ends = [*ends[-1:], (token.end(), closing)]
        elif token[0] == ",":
            ends = [*ends[-1:], (token.start(), closing)]
        elif not token[1]:  # the last one: half an escape is left out
            whole = re.match(r'"[^"\\]*(?:\\(?:u[0-9a-fA-F]{4}|[^u])[^"\\]*)*', token[0])
            ends.append((token.start() + whole.end() if whole else 0, f'"{closing}'))
        if len(closing) > NESTING_LIMIT:
            return {}
    for end, rest in [(len(text), closing), *reversed(ends)]:
        if isinstance(value := json_in(text[:end] + rest), dict):
            return value
    return {}


def first_choice(value: JSON) -> JSON:
    """Return the choice with index 0, which a server may leave out; empty where there is none."""
    choices = value.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and choice.get("index") in (None, 0, "0"):
            return choice
    return {}


def add_choice(reply: Reply, choice: JSON) -> str:
    """Return the text of a choice that is new; record what else it is."""
    reply.has_choice = reply.has_choice or "delta" in choice or "message" in choice
    delta, message = mapping_in(choice, "delta"), mapping_in(choice, "message")
    for part in (delta, message):
        if part.get("reasoning_content") or part.get("reasoning"):
            reply.is_thinking = True
        if part.get("tool_calls") or part.get("function_call"):
            reply.has_tool_calls = True
        if part.get("refusal"):
            reply.refusals.append(text_in(part["refusal"]))
    text = text_in(delta.get("content"))
    if text:
        reply.has_deltas = True
    elif (text := text_in(message.get("content"))) and reply.has_deltas:  # which have brought it
        so_far = "".join(reply.pieces)
        text = text[len(so_far) :] if text.startswith(so_far) else ""
    if text:
        reply.pieces.append(text)
    return text


def text_in(content: Any) -> str:
    """Return the text of a message's content, which may be a list of parts."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    parts = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in content]
    texts = [part.get("text") for part in parts if part.get("type") in ("text", "output_text")]
    return "".join(text for text in texts if isinstance(text, str))


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


# What went wrong -----------------------------------------------------------------------------

# When the request is posted again, at most as often as --retries says: only where no reply can have
# been paid for.  Each failure says so in its repeat_after, which seconds_to_wait() obeys.
#
#   what ended the attempt                     again?
#   connecting: nothing was sent               yes, unless it will fail again: no_connection()
#   no response, or a part of one              no
#   429; 500, 503 and 529 with a JSON body     yes, unless there is no credit: refusal()
#   another status, or an error in a reply     no
#   a wait over RETRY_AFTER_LIMIT              no
REPEATABLE = (500, 503, 529)  # with the API's own words; a page or a text is a gateway's


def seconds_to_wait(failure: Failure, attempt: int) -> float | None:
    """Return how long to wait before the request is posted again; None: it is not."""
    import random

    if failure.repeat_after is None or failure.repeat_after > RETRY_AFTER_LIMIT:
        return None
    backoff = min(2.0 ** min(attempt, 9), BACKOFF_LIMIT)
    return (failure.repeat_after or backoff) + random.uniform(0, backoff)


def no_connection(
    error: Exception, server: Server, *, beyond_proxy: bool = False, limit: float = CONNECT_TIMEOUT
) -> NoAnswer:
    """Return the failure of connecting, before anything was sent; limit is in seconds."""
    import ssl

    *_, root = chain = causes_of(error)
    message = explain(error)
    if isinstance(root, TimeoutError) and not root.errno:
        message = f"no {'secure ' * server.is_secure}connection within {limit:.2g} s"
    if isinstance(root, ssl.SSLCertVerificationError):
        message += f" (trusted: {server.trust})"
    is_lasting = isinstance(root, ssl.SSLError) and message != CLOSED
    is_reached = any(type(cause).__name__ == "GeneralProxyError" for cause in chain)  # by PySocks
    if server.proxy and is_reached and message.startswith(NO_HOST):
        message += "; with socks5h:// the proxy looks it up"
    elif server.proxy and is_lasting and (beyond_proxy or server.proxy.is_socks):
        message = f"through the proxy {server.proxy.host}: {message}"
    elif server.proxy:
        message = f"the proxy {server.proxy.host} failed: {message}"
        is_lasting = is_lasting or is_refused_by_proxy(root)
    return NoAnswer(message, repeat_after=None if is_lasting else 0)


def is_refused_by_proxy(root: BaseException) -> bool:
    """Say whether a proxy would refuse again: by a status of 3xx or 4xx, or a code of SOCKS."""
    if type(root).__module__ == "socks":
        return re.match("0x0[13456]:", str(root)) is None  # RFC 1928: not reached, for now
    return re.search(r"\b[34]\d\d\b", str(root)) is not None


def wire_errors() -> tuple[type[Exception], ...]:
    """Return what urllib3 and all below it raise; some of it is a bare OSError or ValueError."""
    from http.client import HTTPException

    from urllib3.exceptions import HTTPError

    return (OSError, ValueError, HTTPError, HTTPException)


def causes_of(error: BaseException | None) -> list[BaseException]:
    """Return an error and its causes, the first of all last; behind a proxy they are arguments."""
    causes = []
    while isinstance(error, BaseException):
        causes.append(error)
        context = None if error.__suppress_context__ else error.__context__
        inner = next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        error = error.__cause__ or context or getattr(error, "reason", None) or inner
    return causes


NO_HOST = "cannot find the host"
CLOSED = "closed the connection without an answer"

# what OpenSSL's words contain; some are alerts of the peer (RFC 8446, 6.2)
TLS_FAULTS = {
    "wrong version number|https? (proxy )?request|record layer failure|packet length":
        "does not speak https; perhaps its URL begins with http://",
    "certificate required": "wants a client certificate; XCHAT_CLIENT_CERT names one",
    "handshake failure": "refuses the secure connection: it wants a client certificate"
        " (XCHAT_CLIENT_CERT names one), or no cipher in common",
    "unrecognized name": "does not serve this host name",
    "protocol version|unsupported protocol": "speaks TLS older than 1.2 only",
    "application protocol": "speaks only HTTP/2, which xchat does not",
    "^(bad|unsupported|unknown|no) c|certificate (expired|revoked|unknown)|access denied":
        "refuses the client certificate",
}  # fmt: skip


def explain(error: Exception) -> str:
    """Return what failed an exchange, in words for its user."""
    import errno
    import http.client
    import socket
    import ssl
    import zlib

    from urllib3.exceptions import ProtocolError

    *_, root = causes_of(error)
    if isinstance(root, socket.gaierror):
        return f"{NO_HOST}: {root.strerror}"
    if isinstance(root, ssl.SSLCertVerificationError):
        return f"cannot trust its certificate: {root.verify_message}"
    ends = (ssl.SSLEOFError, ssl.SSLZeroReturnError, http.client.RemoteDisconnected)
    if isinstance(root, ends) or (isinstance(root, OSError) and root.errno == errno.ENOTCONN):
        return CLOSED
    if isinstance(root, ssl.SSLError):
        reason = re.sub(r"^\[.*?\] (\S+ alert )?| \(_ssl.*", "", str(root))
        known = (words for part, words in TLS_FAULTS.items() if re.search(part, reason))
        return next(known, f"the secure connection failed: {reason}")
    if isinstance(root, http.client.BadStatusLine):
        return explain_no_http(str(root))
    if isinstance(root, (http.client.IncompleteRead, ProtocolError)):
        return "closed the connection in the middle"
    if isinstance(root, zlib.error):
        return "the compressed data is damaged"
    words = (isinstance(root, OSError) and root.strerror) or str(root) or type(root).__name__
    return re.sub("^(0x[0-9a-f]+|Tunnel connection failed): ", "", words)


def explain_no_http(line: str) -> str:
    """Return what a first line tells that is none of HTTP/1."""
    if line.startswith("\x15\x03"):  # a record of TLS, with an alert
        return "speaks https; its URL begins with https://"
    if line.startswith("\0\0"):  # the settings, RFC 9113, 3.4
        return "speaks only HTTP/2, which xchat does not"
    is_text = re.fullmatch(r"[ -~]{1,80}\s*", line)
    return f"does not speak HTTP{f': {line}' if is_text else ''}"


NO_MODEL = (  # the API's words, Ollama's and LiteLLM's
    r"\b(models?|deployment)\b.{,200}\bnot[ _](found|exist)|\b(unknown|invalid|no such) model"
    r"|not a valid model|model_not_(found|supported)|DeploymentNotFound"
)
NO_ENDPOINT = (
    r"\b(no such|unknown|unexpected) (endpoint|route|path|url)|could not route"
    r"|\b(endpoint|route|path|url|page)\b.{,99}\bnot (found|exist)"
)
NO_CREDIT = (  # which is 403, 429 or 200 as well
    r"\bcredits?\b|spending limit|insufficient[ _](quota|balance|funds)|\bbilling_|current_quota"
    r"|payment.required|balance.{,40}(too low|insufficient|not enough)"
)
# codes for what repeating does not help: the API's, old and new, and those of its like
REFUSAL = (
    r"invalid.(argument|request|api|param|model|token)|permission|unauthenticated"
    r"|unauthori[sz]ed|authentication|not[ _-]found|content.policy|^4(?!08|29)\d\d$"
)


def refusal(response: HTTPResponse, body: bytes, server: Server, *, is_stream: bool) -> Failure:
    """Return the failure that a response outside 200 to 299 means, in the server's words."""
    status = response.status
    message = f"{status} {response.reason or ''}".strip()
    if status == 407 and server.proxy:
        return NoAnswer(f"the proxy {server.proxy.host} failed: {message}")
    if 300 <= status < 400:
        location = response.headers.get("location")
        where = f" (to {location})" if location else ""
        return Refused(f"{message}: redirects are not followed{where}")
    text = body.removeprefix(BOM).decode(errors="replace").strip()
    value = json_in(text)
    said = page_words(text, message) if text.startswith("<") else words_in(value) or text
    said = said.removeprefix(f"{response.reason}: ")
    known = with_codes(said, value)
    hint = advice(known, status=status, has_key=bool(server.key), is_stream=is_stream)
    message += f": {said or 'no reason given'}{hint}"
    is_refused = status < 500 and status not in (408, 429)
    if is_refused or says(NO_CREDIT, known):
        return Refused(message)
    seconds = retry_after(response)
    if 1 <= seconds < 1e10:
        message += f"; the server asks to wait {seconds:.0f} s"
    is_repeatable = status == 429 or (status in REPEATABLE and value is not None)
    return Unavailable(message, repeat_after=seconds if is_repeatable else None)


def advice(known: str, *, status: int, has_key: bool = True, is_stream: bool = False) -> str:
    """Return what may help, where an error is known."""
    if status in (200, 400, 404) and says(NO_MODEL, known):
        return "; -m or XCHAT_MODEL names another"
    if status in (404, 405) or (status == 200 and says(NO_ENDPOINT, known)):
        return "; XCHAT_BASE_URL usually ends in /v1"
    if status == 401 and not has_key:
        return "; no key was sent"
    if status in (400, 403) and says("no required ssl certificate", known):  # nginx's words
        return "; XCHAT_CLIENT_CERT names one"
    if is_stream and status in (400, 403, 422, 501) and says(r"\bstream", known):
        way = "--no-stream asks for the whole reply at once"
        return "; it is not sent without -u" if "stream_options" in known else f"; {way}"
    return ""


def read_error(
    response: HTTPResponse, answer: Background, reply: Reply, deadline: Deadline
) -> bytes:
    """Return as much of an error's body as is of use, cut short or late or not."""
    body = bytearray()
    if 300 <= response.status < 400 and reply.body is None:
        return b""  # what a redirect says is of no use but for --json
    patience = Deadline(min(ERROR_TIMEOUT, deadline.seconds_left()))
    for block in read_blocks(answer, reply, patience):
        body += block
        if len(body) >= ERROR_LIMIT:  # half a word at the end may be half of a secret
            return bytes(body[: body.rfind(b" ", 0, ERROR_LIMIT) + 1])
    return bytes(body)


def is_error(value: JSON) -> bool:
    """Say whether a server calls this an error; with status 200 that takes many forms."""
    if value.get("error") or "error" in (value.get("object"), value.get("type")):
        return True
    if value.get("error_code") or mapping_in(value, "base_resp").get("status_code"):
        return True
    if value.get("choices"):
        return False
    if value.get("success") is False:
        return True
    is_fine = value.get("type") == "ping" or value.get("code") in (0, 200)
    keys = ("message", "msg", "detail", "errors", "error_message", "error_msg", "errorMessage")
    return not is_fine and any(words_in(value.get(key)) for key in keys)


def error_in_reply(value: JSON, text: str) -> Failure:
    """Return the failure that an error with status 200 means; text is what came."""
    said = words_in(value) or text
    known = with_codes(said, value)
    lasting = (NO_CREDIT, NO_MODEL, NO_ENDPOINT, REFUSAL)
    kind = Refused if says("|".join(lasting), known) else Unavailable
    return kind(f"error in the reply: {said}{advice(known, status=200)}")


def with_codes(said: str, value: Any) -> str:
    """Return what says() looks at of an error: its words and its codes, as far as is sane."""
    return f"{said[:9999]}\n{codes_in(value)[:999]}"


def says(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE | re.MULTILINE | re.DOTALL) is not None


def retry_after(response: HTTPResponse) -> float:
    """Return the seconds that Retry-After names, as a number or a date; 0 where it does not."""
    from email.utils import parsedate_to_datetime

    value = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value, re.ASCII):
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0)
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0


def json_in(text: str) -> Any:
    """Return the value of a text that is JSON, else None."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


# where errors keep their words, the general before the specific, and their codes
WORD_KEYS = (
    "title error message msg error_message error_msg errormessage status_msg text detail details"
    " error_description reason base_resp metadata raw errors validation invalid-params"
).split()
CODE_KEYS = ("code", "type", "status", "status_code", "error_code")


def words_in(value: Any, depth: int = 0) -> str:
    """Return what an error says, in any of the shapes that it comes in; "" where there is nothing.

    Some are problem+json (RFC 9457), FastAPI's list of places and messages, JSON inside a text.
    Each text is said once, three of a mapping and five of a list at most.
    """
    if isinstance(value, str):
        inner = json_in(value) if value[:1] in ("{", "[") else None
        return words_in(inner, depth) or re.sub(r"\s?\[WKE=[^][]*\]", "", value).strip()
    if isinstance(value, list) and depth < 9:
        return "; ".join(dict.fromkeys(filter(None, (words_in(v, depth + 1) for v in value[:5]))))
    if not isinstance(value, dict) or depth > 8:
        return ""
    value = {key.lower(): item for key, item in value.items()}
    if isinstance(errors := value.get("errors"), dict):  # by the field that is wrong
        value["errors"] = [errors, *errors.values()]
    said: list[str] = []
    for words in (words_in(value.get(key), depth + 1) for key in WORD_KEYS):
        if words and not any(words in other for other in said):
            said = [other for other in said if other not in words] + [words]
    place = value.get("loc") or value.get("pointer") or value.get("instancepath")
    place = place or ("reason" in value and value.get("name"))
    if isinstance(place, list):
        place = ".".join(map(str, place))
    return ": ".join([*([str(place)] if place and said else []), *said[-3:]])


def codes_in(value: Any, depth: int = 0) -> str:
    """Return the codes of an error, a line each."""
    if isinstance(value, list) and depth < 9:
        return "\n".join(codes_in(item, depth + 1) for item in value[:5])
    if not isinstance(value, dict) or depth > 8:
        return ""
    codes = [str(value[key]) for key in CODE_KEYS if isinstance(value.get(key), (str, int))]
    return "\n".join([*codes, *(codes_in(value.get(key), depth + 1) for key in WORD_KEYS)])


def page_words(text: str, status: str = "") -> str:
    """Return what a page of HTML or XML says: its title, or its first sentence if that says more.

    status is the response's, with the reason, which a title may just repeat.
    """
    import html

    text = re.sub(r"(?s)<!--.*?(-->|\Z)", "", text[:20_000])
    match = re.search(r"(?i)<(?:title|message)\b[^<>]*>([^<]*)<", text)
    title = html.unescape(match[1]).strip() if match else ""
    known = re.findall(r"\w+", f"{status} error http".lower())
    if set(re.findall(r"\w+", title.lower())) - set(known):
        return title
    text = re.sub(r"(?i)</?(?:a|b|i|em|strong|span|code|tt|font)\b[^<>]*>", "", text)
    min_words = 1 if title else 3
    tags_and_texts = re.split(r"<([/?!]?\w*)(?!\w)[^<>]*>", text)[1:]
    for tag, words in zip(tags_and_texts[::2], tags_and_texts[1::2], strict=True):
        is_new = set(re.findall(r"\w+", words.lower())) - set(known)
        if tag.lower() not in ("script", "style") and is_new and len(words.split()) > min_words:
            sentence = " ".join(html.unescape(words).split())
            return re.split(r"(?<=[.!?]) ", sentence)[0]
    return title or "a page of HTML"


def excerpt(body: bytes) -> str:
    """Return the beginning of what should have been a completion."""
    text = body[:ERROR_LIMIT].removeprefix(BOM).decode(errors="replace").strip()
    if text.startswith("<"):
        return f"{page_words(text)}; is it a login page of the network?"
    return text or "an empty body"


# Delivering: the output ----------------------------------------------------------------------


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
    text = extract_code(reply.text) if extract else reply.text
    if not failure:
        fault = judge(reply, text, wants_json=has_schema)
        failure = fault and reply.blame(fault)
        log.debug("* the reply is whole" if failure is None else "* the reply is not whole")
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
            with replaced(target, data, mode=0o666):
                pass


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
        return ""
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


def write_bytes(fd: int, data: bytes) -> None:
    if os.isatty(fd):
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
    if not (reply.pieces or usage):
        return
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
        "cost_usd_ticks": ticks,
        "seconds": round(time.monotonic() - reply.start, 3),
        "request_id": reply.request_id,
    }
    known = {name: value for name, value in facts.items() if value is not None}
    write_error(json.dumps(known), is_json=True)


# Delivering: files ---------------------------------------------------------------------------


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


@contextlib.contextmanager
def replaced(path: str, data: bytes, *, mode: int) -> Iterator[None]:
    """Put the data in place of what a file holds if all goes well inside; mode is for a new one."""
    file = None
    try:
        file = new_file(path, mode=mode)
    except OSError:
        if not os.path.exists(path):
            raise
    if file:
        with file:
            write_bytes(file.fileno(), data)
            os.fsync(file.fileno())
    yield
    try:
        if file:
            os.replace(file.name, path)
    except OSError:
        if not os.path.exists(path):
            raise
        file = None
    if not file:
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


# Delivering: the turn that is added to the conversation --------------------------------------


def is_new(path: str) -> bool:
    """Say whether a conversation begins in this file: it is missing or empty."""
    return not os.path.exists(path) or (os.path.isfile(path) and not os.path.getsize(path))


# Writers keep each other out by a lock on the file, which is one under all its names, or while it
# is missing, on its directory.  The lock is tried before the request and let go, and taken again to
# read the file once more and write it: nobody waits for another's reply.


@contextlib.contextmanager
def appended(
    path: str, turn: list[JSON], *, name: str, systems: list[JSON], deadline: Deadline
) -> Iterator[None]:
    """Add a turn to a conversation file as it is by now, the system messages to a new one.

    It is written if all goes well inside.
    """
    with at(f"{name}: cannot append the turn", BadReply), locked(path, deadline) as old:
        if old:
            text = add_messages(decode(old), turn, path=name)
        else:
            text = new_conversation(path, systems + turn)
        with replaced(path, text.encode(), mode=0o600):
            yield


@contextlib.contextmanager
def locked(path: str, deadline: Deadline) -> Iterator[bytearray]:
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
        if not deadline.seconds_left():
            raise BadReply(f"locked by another process; fuser {place} shows which")
        if attempt == 50 * HINT_DELAY:
            log.warning(f"still waiting for the lock of {path}")
        time.sleep(0.02)


def check_lock(path: str, deadline: Deadline, *, name: str) -> None:
    """Wait until nobody else has the lock, before a reply is paid for."""
    with at(name), locked(path, deadline):
        pass


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


HEADING = r"^(?:messages|history):.*\n(?:[ \t]*(?:#.*)?\r?\n)*"  # of the list of messages


def ways_to_add(text: str, old: Conversation, turn: list[JSON]) -> Iterator[str]:
    """Yield the text with more messages at its end, then the value written anew."""
    end = "" if text.endswith("\n") else "\n"
    value = old.value
    if old.is_json:
        yield text + end + json_lines(turn)
    else:
        heading = HEADING if isinstance(value, dict) else "^"
        first = re.search(heading + r"( *)- ", text, re.MULTILINE)
        if first:
            yield f"{text}{end}{first[1]}{to_yaml(short(turn), first[1])}\n"
        elif isinstance(value, dict):
            yield f"{text}{end}{to_yaml({'history': short(turn)})}\n"
        yield to_yaml(with_messages(value, short(turn))) + "\n"
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


def not_an_option(_ctx: Any, _param: Any, value: Any) -> Any:
    """Refuse values that are options, as the value itself was forgotten."""
    for item in value if isinstance(value, tuple) else [value]:
        if item in ("--", *option_names().values()):
            raise click.BadParameter(f"needs a value, but {item} follows")
    return value


def not_empty(ctx: Any, param: Any, value: Any) -> Any:
    """Refuse empty values, as from an unset variable, and options."""
    values = value if isinstance(value, tuple) else [value]
    if any(item is not None and not item.strip() for item in values):
        raise click.BadParameter("is empty")
    return not_an_option(ctx, param, value)


def files_read(options: dict[str, Sequence[str | None]]) -> list[tuple[str, str]]:
    """Return what the options name, a file each, after its option."""
    return [(option, path) for option, paths in options.items() for path in paths if path]


def check_stdin(words: Sequence[str], inputs: Sequence[tuple[str, str]], *, no_stdin: bool) -> None:
    """Refuse a second use of standard input, or one beside -n."""
    uses = sum(path in STDIN_NAMES for _option, path in inputs)
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


file_option = functools.partial(
    click.option, metavar="FILE", type=click.Path(readable=False), callback=not_empty
)
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
              callback=not_an_option, help="Add a system message (repeatable)")
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
    inputs = files_read(
        {"-f": files, "-S": system_files, "-i": images, "--schema": [schema],
         "-p": [*map(file_in, params)]}
    )  # fmt: skip
    check_stdin(words, inputs, no_stdin=no_stdin)
    check_files(inputs, output=output, append=append)
    if raw and (stream or extract):
        raise BadInput(f"--json and {'--stream' if stream else '-x'} cannot be combined")
    warn_of_names(words, systems)
    server = None if dry_run else read_server()
    target = find_target(output or "-")
    conversation = find_file(files[0], mode=0o600) if append and server else ""
    early = connect_early(server) if server and not no_stdin and may_wait(words) else None

    # read
    first = system_messages([*systems, *map(read_rules, system_files)])
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
    turn = prompt_messages(prompt, urls)
    body = build_body(first + history + turn, fields=fields, options=options)
    is_live = choose_stream(body, stream, is_held=bool(output or extract or raw), usage=usage)
    if server is None:
        write_to(target, encode_body(body) + b"\n", name=output)
        return

    # ask
    deadline = Deadline(timeout)
    if append:
        check_lock(conversation, deadline, name=files[0])
    reply = Reply(server.host, keep_body=raw, is_appended=append)
    texts = ask(server, early, body, reply, deadline=deadline, retries=retries)
    failure = receive(texts, is_live=is_live)

    # deliver
    failure = deliver(
        reply, failure, output=output, target=target,
        added=appended(
            conversation, [*turn, {"role": "assistant", "content": reply.text}],
            name=files[0], systems=first, deadline=deadline,
        ) if append else contextlib.nullcontext(),
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
    status = 0
    try:
        with interruptible():
            conceal_environment()  # options may hold a secret
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
