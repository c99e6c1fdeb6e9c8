"""-o and -a: a file is replaced by one like it or else written over; who may read it still may."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TOP, File, Result, Run, needs
from server import Api, completion, reply

OLD = "- user: a\n"
SAID = Result(b"Hello\n", "", 0)

# by the option: what is printed and what the file holds, if all goes well
WAYS = {
    "-o": (b"", "Hello\n"),
    "-af": (b"Hello\n", "- user: a\n- user: Q\n- assistant: Hello\n"),
}

is_root = os.geteuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="only root can give a file away")


def put(path: Path, text: str = OLD) -> Path:
    path.write_text(text)
    path.chmod(0o640)
    return path


def ask(run: Run, option: str, path: Path | str) -> None:
    """Have the file written, which must go well."""
    assert run(option, str(path), "Q") == Result(WAYS[option][0], "", 0)


def files_in(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def injecting(run: Run, *faults: str) -> None:
    """Have system calls fail, as in rename:error=EBUSY."""
    options = [word for fault in faults for word in ("-e", f"inject={fault}")]
    run.command = ["strace", "-f", "-qq", "-o", "/dev/null", *options, *run.command]


REPLACED = {  # the fault: whether the file is the same one as before
    "/^rename.*:error=EBUSY": True,
    "/^rename.*:error=EPERM": True,
    "/^rename.*:error=EXDEV": True,
    "/^f?chmod.*:error=EPERM": True,
    "/^f?chown.*:error=EPERM": True,
    "/listxattr:error=EOPNOTSUPP": False,
    "linkat:error=EPERM": False,
}


@needs("strace")
@pytest.mark.parametrize("option", WAYS)
@pytest.mark.parametrize(("fault", "is_same"), REPLACED.items(), ids=REPLACED)
def test_a_file_that_cannot_be_replaced_is_written_over(
    api: Api, run: Run, tmp_path: Path, option: str, fault: str, is_same: bool
) -> None:
    path = put(tmp_path / "c", OLD)
    before = path.stat()
    injecting(run, fault)
    api.will(reply(completion()))
    ask(run, option, path)
    after = path.stat()
    assert path.read_text() == WAYS[option][1]
    assert after.st_mode == before.st_mode
    assert (after.st_ino == before.st_ino) == is_same
    assert files_in(tmp_path) == ["c"]


LOST = {
    "/^rename.*:error=EBUSY": "Device or resource busy",
    "fsync:error=EIO": "Input/output error",
}


@needs("strace")
@pytest.mark.parametrize("option", WAYS)
@pytest.mark.parametrize(("fault", "message"), LOST.items(), ids=LOST)
def test_a_new_file_that_cannot_be_written_leaves_the_reply_on_standard_output(
    api: Api, run: Run, tmp_path: Path, option: str, fault: str, message: str
) -> None:
    injecting(run, fault)
    api.will(reply(completion()))
    result = run(option, "new", "Q")
    assert (result.out, result.status) == (b"Hello\n", 1)
    assert result.err.startswith("xchat: new: ")
    assert result.err.endswith(f"{message}\n")
    assert files_in(tmp_path) == []


@needs("strace")
@pytest.mark.parametrize("option", WAYS)
def test_an_error_of_the_disk_leaves_the_file_as_it_was_and_the_reply_on_standard_output(
    api: Api, run: Run, tmp_path: Path, option: str
) -> None:
    path = put(tmp_path / "c")
    injecting(run, "fsync:error=EIO")
    api.will(reply(completion()))
    result = run(option, "c", "Q")
    assert (result.out, result.err.count("\n"), result.status) == (b"Hello\n", 1, 1)
    assert path.read_text() == OLD
    assert files_in(tmp_path) == ["c"]


@needs("strace")
def test_a_file_system_without_locks_is_one_warning(api: Api, run: Run, tmp_path: Path) -> None:
    path = put(tmp_path / "c")
    injecting(run, "flock:error=ENOLCK")
    api.will(reply(completion()))
    why = "No locks available"
    warning = f"xchat: {path}: cannot be locked ({why}); append from one run at a time\n"
    assert run("-af", "c", "Q") == Result(b"Hello\n", warning, 0)
    assert path.read_text() == WAYS["-af"][1]


@pytest.mark.parametrize("option", WAYS)
def test_both_names_of_a_file_hold_the_new_text(
    api: Api, run: Run, tmp_path: Path, option: str
) -> None:
    path = put(tmp_path / "c")
    (tmp_path / "other").hardlink_to(path)
    api.will(reply(completion()))
    ask(run, option, path)
    assert (tmp_path / "other").read_text() == path.read_text() == WAYS[option][1]
    assert path.stat().st_nlink == 2
    assert files_in(tmp_path) == ["c", "other"]


@pytest.mark.parametrize("option", WAYS)
def test_a_shorter_text_leaves_nothing_of_the_old_one(
    api: Api, run: Run, tmp_path: Path, option: str
) -> None:
    path = put(tmp_path / "c", f"[{{user: {'a' * 9999}}}]\n")
    (tmp_path / "other").hardlink_to(path)
    api.will(reply(completion()))
    ask(run, option, path)
    expected = WAYS[option][1].replace("user: a\n", f"user: {'a' * 9999}\n")
    assert path.read_text() == expected


@pytest.mark.parametrize("option", WAYS)
def test_where_there_is_no_room_to_write_over_a_file_it_stays_as_it_was(
    api: Api, run: Run, tmp_path: Path, option: str
) -> None:
    path = put(tmp_path / "c")
    (tmp_path / "other").hardlink_to(path)
    api.will(reply(completion("x" * 9999)))
    run.command = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", *run.command]
    result = run(option, "c", "Q")
    assert (result.out, result.status) == (b"x" * 9999 + b"\n", 1)
    assert path.read_text() == OLD
    assert files_in(tmp_path) == ["c", "other"]


def acl_of(path: Path) -> str:
    return subprocess.run(["getfacl", "-cpE", str(path)], stdout=-1, text=True, check=True).stdout


def set_acl(path: Path, acl: str) -> None:
    process = subprocess.run(["setfacl", "-m", acl, str(path)], check=False)
    if process.returncode:
        pytest.skip("this file system has no ACLs")


@needs("setfacl", "getfacl")
@pytest.mark.parametrize("option", WAYS)
@pytest.mark.parametrize("acl", ["u:1:rw", "g:1:r", "u:1:-"])
def test_an_acl_is_kept(api: Api, run: Run, tmp_path: Path, option: str, acl: str) -> None:
    path = put(tmp_path / "c")
    set_acl(path, acl)
    before = acl_of(path)
    api.will(reply(completion()))
    ask(run, option, path)
    assert acl_of(path) == before
    assert path.read_text() == WAYS[option][1]


@needs("setfacl", "getfacl")
@pytest.mark.parametrize("option", WAYS)
def test_the_acl_of_the_directory_lets_nobody_in(
    api: Api, run: Run, tmp_path: Path, option: str
) -> None:
    path = put(tmp_path / "c")
    path.chmod(0o660)
    before = acl_of(path)
    set_acl(tmp_path, "d:u:1:rw")
    api.will(reply(completion()))
    ask(run, option, path)
    assert acl_of(path) == before
    assert path.read_text() == WAYS[option][1]


def weakened(run: Run) -> None:
    """Have root run it with no more rights than any other user has."""
    rights = "-chown,-fowner,-fsetid,-dac_override,-dac_read_search"
    run.command = ["setpriv", f"--bounding-set={rights}", *run.command]


@needs_root
@needs("setpriv")
@pytest.mark.parametrize("option", WAYS)
@pytest.mark.parametrize(
    ("uid", "gid", "mode"),
    [
        pytest.param(0, 1, 0o660, id="another group"),
        pytest.param(1, 0, 0o660, id="another owner"),
        pytest.param(1, 1, 0o666, id="another owner and group"),
        pytest.param(0, 0, 0o2640, id="a set-group-id bit"),
    ],
)
@pytest.mark.parametrize("directory", [0o777, 0o1777, 0o555], ids=["open", "sticky", "closed"])
def test_owner_group_and_mode_are_kept(
    api: Api, run: Run, tmp_path: Path, option: str, uid: int, gid: int, mode: int, directory: int
) -> None:
    weakened(run)
    (tmp_path / "d").mkdir()
    path = put(tmp_path / "d" / "c")
    os.chown(path, uid, gid)
    path.chmod(mode)
    os.chown(tmp_path / "d", 1, 1)
    (tmp_path / "d").chmod(directory)
    api.will(reply(completion()))
    ask(run, option, path)
    after = path.stat()
    assert (after.st_uid, after.st_gid) == (uid, gid)
    assert stat.S_IMODE(after.st_mode) & 0o777 == mode & 0o777
    assert path.read_text() == WAYS[option][1]
    assert files_in(tmp_path / "d") == ["c"]


@needs_root
@pytest.mark.parametrize("option", WAYS)
def test_root_leaves_a_file_to_its_owner(api: Api, run: Run, tmp_path: Path, option: str) -> None:
    path = put(tmp_path / "c")
    os.chown(path, 1, 2)
    inode = path.stat().st_ino
    api.will(reply(completion()))
    ask(run, option, path)
    after = path.stat()
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (1, 2, 0o640)
    assert after.st_ino != inode
    assert path.read_text() == WAYS[option][1]


@pytest.mark.parametrize("option", WAYS)
def test_a_directory_that_cannot_be_read_is_none_of_our_business(
    api: Api, run: Run, tmp_path: Path, option: str
) -> None:
    if is_root:
        weakened(run)
    (tmp_path / "d").mkdir()
    path = put(tmp_path / "d" / "c")
    (tmp_path / "d").chmod(0o300)
    api.will(reply(completion()))
    ask(run, option, path)
    assert path.read_text() == WAYS[option][1]
    (tmp_path / "d").chmod(0o700)
    assert files_in(tmp_path / "d") == ["c"]


def can_mount() -> bool:
    try:
        words = ["unshare", "-rm", "true"]
        return subprocess.run(words, stderr=-3, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_mount(), reason="unshare does not allow mounts here")
@pytest.mark.parametrize("option", WAYS)
def test_a_mount_point_is_written_over(api: Api, run: Run, tmp_path: Path, option: str) -> None:
    put(tmp_path / "c", "")
    (tmp_path / "volume").mkdir()
    path = put(tmp_path / "volume" / "real")
    script = 'mount --bind volume/real c && exec "$@"'
    run.command = ["unshare", "-rm", "sh", "-c", script, "sh", *run.command]
    api.will(reply(completion()))
    ask(run, option, "c")
    assert path.read_text() == WAYS[option][1]
    assert (tmp_path / "c").read_text() == ""
    assert files_in(tmp_path) == ["c", "volume"]
    assert files_in(tmp_path / "volume") == ["real"]


@pytest.mark.parametrize("is_old", [False, True])
def test_a_link_that_appears_while_the_reply_is_awaited_is_not_followed(
    api: Api, run: Run, tmp_path: Path, is_old: bool
) -> None:
    secret = put(tmp_path / "secret", "secret")
    path = tmp_path / "c"

    def become_a_link(_connection: Any) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to("secret")

    for option in WAYS:
        path.unlink(missing_ok=True)
        if is_old:
            put(path)
        api.will([become_a_link, *reply(completion())])
        result = run(option, "c", "Q")
        assert secret.read_text() == "secret"
        if option == "-o":
            assert result == Result(b"", "", 0)
            assert path.read_text() == "Hello\n"
            assert not path.is_symlink()
        else:
            message = "xchat: c: cannot append the turn: is no longer a regular file\n"
            assert result == Result(b"Hello\n", message, 1)
    assert files_in(tmp_path) == ["c", "secret"]


def test_what_a_name_resolves_to_is_decided_before_the_request(
    api: Api, run: Run, tmp_path: Path
) -> None:
    one, two = put(tmp_path / "one"), put(tmp_path / "two")
    link = tmp_path / "link"

    def turn(_connection: Any) -> None:
        link.unlink()
        link.symlink_to("two")

    for option, (_out, text) in WAYS.items():
        put(one)
        link.unlink(missing_ok=True)
        link.symlink_to("one")
        api.will([turn, *reply(completion())])
        ask(run, option, "link")
        assert (one.read_text(), two.read_text()) == (text, OLD)


@pytest.mark.parametrize("option", WAYS)
def test_a_file_that_is_closed_to_others_while_the_reply_is_awaited_stays_closed(
    api: Api, run: Run, tmp_path: Path, option: str
) -> None:
    path = put(tmp_path / "c")
    path.chmod(0o644)
    api.will([lambda _connection: path.chmod(0o600), *reply(completion())])
    ask(run, option, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_lies_beside_the_file_while_the_reply_is_awaited(
    api: Api, run: Run, tmp_path: Path
) -> None:
    put(tmp_path / "c")
    found = []
    for args in (["-af", "c"], ["-o", "c"], ["-o", "new"], ["-af", "new.yaml", "-o", "c"]):
        api.will([lambda _connection: found.append(files_in(tmp_path)), *reply(completion())])
        assert run(*args, "Q").status == 0
    assert found == [["c"], ["c"], ["c"], ["c", "new"]]


# when the first of three signals comes; the others come as what is left is removed
MOMENTS = {
    "as the file is written": "os.fsync = lambda fd: kick()",
    "as it is renamed": "os.replace = lambda *paths: kick()",
    "after it is renamed": "os.replace = lambda *paths: (rename(*paths), kick())",
}


@pytest.mark.parametrize("option", WAYS)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_signals_in_a_row_leave_no_file_behind(
    api: Api, run: Run, tmp_path: Path, option: str, moment: str, second: int
) -> None:
    path = put(tmp_path / "c")
    script = f"""
import os, sys, xchat
rename, unlink, signals = os.replace, os.unlink, [15, {int(second)}, 15]
kick = lambda: signals and os.kill(os.getpid(), signals.pop(0))
{MOMENTS[moment]}
os.unlink = lambda path: (len(signals) < 3 and kick(), unlink(path))
xchat.main()
"""
    run.command = [sys.executable, "-c", script]
    api.will(reply(completion()))
    result = run(option, "c", "Q", env={"PYTHONPATH": str(TOP)})
    assert (result.err, -result.status) in [("", signal.SIGTERM), ("", signal.SIGINT)]
    assert path.read_text() == (WAYS[option][1] if "after" in moment else OLD)
    assert files_in(tmp_path) == ["c"]


def test_a_file_that_comes_while_the_reply_is_awaited_is_replaced(
    api: Api, run: Run, file: File, tmp_path: Path
) -> None:
    def come(_connection: Any) -> None:
        put(tmp_path / "new", "other")

    api.will([come, *reply(completion())])
    ask(run, "-o", "new")
    assert (tmp_path / "new").read_text() == "Hello\n"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
