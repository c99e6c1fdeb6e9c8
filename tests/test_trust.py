"""The trust store: which one is used, and what is said of one that is unusable."""

from __future__ import annotations

import datetime
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from conftest import HELLO, KEY, File, Run, needs, serve
from network import bundle_of, hashed, tls_for
from server import Api, completion, reply

FILES = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"]
VARIABLES = [*FILES, "SSL_CERT_DIR"]


@pytest.fixture
def api(run: Run, authority: trustme.CA) -> Iterator[Api]:
    """The server that run() asks by https."""
    yield from serve(run, Api(tls=tls_for(authority, "127.0.0.1")))


NO_PEM = "contains no certificate in PEM"
KEY_ONLY = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
DAMAGED = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def refused(run: Run, name: str, path: str) -> str:
    """Return what is said of a trust store; it is said before standard input is read."""
    result = run.before_input("--retries", "3", env={name: path})
    assert (result.out, result.status) == (b"", 2)
    return result.err


@pytest.mark.parametrize(
    "content",
    ["", "\n", "\0\x30\x82", KEY_ONLY, DAMAGED],
    ids=["empty", "blank", "binary", "a key", "damaged"],
)
def test_a_file_without_a_certificate(api: Api, run: Run, file: File, content: str) -> None:
    path = file(content, "store")
    assert refused(run, FILES[0], path) == f"xchat: {FILES[0]}: store: {NO_PEM}\n"
    assert api.requests == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_text_is_no_certificate(api: Api, run: Run, file: File, name: str) -> None:
    assert refused(run, name, file("junk", "store")) == f"xchat: {name}: store: {NO_PEM}\n"


@pytest.mark.parametrize("name", VARIABLES)
def test_a_store_that_is_missing(api: Api, run: Run, name: str) -> None:
    message = f"xchat: {name}: /nowhere/ca: No such file or directory\n"
    assert refused(run, name, "/nowhere/ca") == message


@pytest.mark.parametrize("name", FILES)
def test_a_store_that_nobody_may_read(api: Api, run: Run, bundle: str, name: str) -> None:
    Path(bundle).chmod(0)
    if os.access(bundle, os.R_OK):
        pytest.skip("root may read any file")
    assert refused(run, name, bundle) == f"xchat: {name}: {bundle}: Permission denied\n"


@pytest.mark.parametrize("name", FILES)
def test_a_store_that_cannot_be_read(api: Api, run: Run, bundle: str, name: str) -> None:
    path = f"{bundle}/ca.pem"
    assert refused(run, name, path) == f"xchat: {name}: {path}: Not a directory\n"


UNHASHED = "contains no hashed certificate; run openssl rehash on it"


@pytest.mark.parametrize("name", VARIABLES)
def test_a_directory_that_is_not_hashed(api: Api, run: Run, bundle: str, name: str) -> None:
    directory = str(Path(bundle).parent)
    assert refused(run, name, directory) == f"xchat: {name}: {directory}: {UNHASHED}\n"


def test_a_list_of_directories_that_are_not_hashed(api: Api, run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert refused(run, "SSL_CERT_DIR", "a:b") == f"xchat: SSL_CERT_DIR: a:b: {UNHASHED}\n"


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_trusted(api: Api, run: Run, bundle: str, name: str) -> None:
    api.will(reply(completion()))
    assert run("Hi", env={name: bundle}) == HELLO


@needs("openssl")
@pytest.mark.parametrize("name", VARIABLES)
def test_a_hashed_directory_is_trusted(
    api: Api, run: Run, bundle: str, tmp_path: Path, name: str
) -> None:
    api.will(reply(completion()))
    assert run("Hi", env={name: hashed(bundle, tmp_path / "hashed")}) == HELLO


@needs("openssl")
@pytest.mark.parametrize("first", ["/nowhere", "unhashed", "of another"])
def test_the_second_directory_of_a_list_has_the_certificate(
    api: Api, run: Run, bundle: str, tmp_path: Path, first: str
) -> None:
    (tmp_path / "unhashed").mkdir()
    hashed(bundle_of(trustme.CA(), tmp_path / "other.pem"), tmp_path / "of another")
    second = hashed(bundle, tmp_path / "hashed")
    api.will(reply(completion()))
    assert run("Hi", env={"SSL_CERT_DIR": f"{first}:{second}"}) == HELLO


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_a_colon_in_its_name(api: Api, run: Run, bundle: str, name: str) -> None:
    path = bundle.replace("ca.pem", "a:b.pem")
    os.rename(bundle, path)
    api.will(reply(completion()))
    result = run("Hi", env={name: path})
    api.scripts.clear()
    assert result == HELLO


def untrusted(api: Api, run: Run, env: dict[str, str]) -> str:
    """Return what is said behind the certificate's fault."""
    result = run("--retries", "3", "Hi", env=env)
    begin = f"xchat: {api.host}: cannot trust its certificate: "
    assert (result.out, result.status, result.err.count("\n")) == (b"", 3, 1)
    assert result.err.startswith(begin)
    return result.err[result.err.index(" (trusted: ") + 1 : -1]


@pytest.mark.parametrize("name", FILES)
def test_which_file_was_used_is_told(api: Api, run: Run, tmp_path: Path, name: str) -> None:
    path = bundle_of(trustme.CA(), tmp_path / "other.pem")
    assert untrusted(api, run, {name: path}) == f"(trusted: {path})"


@needs("openssl")
def test_which_directories_were_used_is_told(api: Api, run: Run, tmp_path: Path) -> None:
    stores = [
        hashed(bundle_of(trustme.CA(), tmp_path / f"{name}.pem"), tmp_path / name)
        for name in ("a", "b")
    ]
    path = ":".join(["/nowhere", *stores])
    assert untrusted(api, run, {"SSL_CERT_DIR": path}) == f"(trusted: {':'.join(stores)})"


def test_that_the_systems_store_was_used_is_told(api: Api, run: Run) -> None:
    paths = ssl.get_default_verify_paths()
    stores = [paths.openssl_capath, paths.openssl_cafile, "certifi"]
    assert untrusted(api, run, {}) in [f"(trusted: {path})" for path in stores]


OLD = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)


@pytest.mark.parametrize(
    ("name", "not_after", "is_trusted"),
    [("127.0.0.1", None, False), ("other.test", None, True), ("127.0.0.1", OLD, True)],
    ids=["of an authority unknown", "of another host", "expired"],
)
def test_a_certificate_that_cannot_be_trusted(
    run: Run,
    authority: trustme.CA,
    bundle: str,
    name: str,
    not_after: datetime.datetime | None,
    is_trusted: bool,
) -> None:
    api = Api(tls=tls_for(authority, name, not_after=not_after))
    env = {"XCHAT_BASE_URL": api.url, "XAI_API_KEY": KEY}
    if is_trusted:
        env["SSL_CERT_FILE"] = bundle
    result = run("Hi", "--retries", "2", env=env)
    assert (result.out, result.status) == (b"", 3)
    assert result.err.startswith(f"xchat: {api.host}: cannot trust its certificate: ")
    assert result.err.count("\n") == 1  # no retry
    api.close()
    assert api.requests == []


def test_the_first_variable_of_several_wins(
    api: Api, run: Run, bundle: str, tmp_path: Path
) -> None:
    other = bundle_of(trustme.CA(), tmp_path / "other.pem")
    env = dict.fromkeys(VARIABLES, other)
    for name in FILES:
        api.will(reply(completion()))
        assert run("Hi", env={**env, name: bundle}) == HELLO
        env[name] = ""
