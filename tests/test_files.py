"""Files are read once, from one open folder, by plain names alone."""

from __future__ import annotations

import builtins
import errno
import io
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persistlib import files
from persistlib.errors import Code, IntegrityError, PersistlibError, TargetError
from persistlib.files import Folder, is_remote, map_private, name_fault, read_all, read_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    with Folder(tmp_path, os.open(tmp_path, os.O_RDONLY)) as opened:
        yield opened


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "a/b", "/a", "a\\b", "..\\a", "C:a", "a:stream", ".hidden", "a.", "a "),
        *("a\0b", "a\n", "a\x1b[2J", "a\u202eb", "a\u200bb", "\ud800", "e\u0301", "\u00a0"),
        *("a*", "a?", "a|b", '"', "<", "con", "CON", "Con.txt", "nul.safetensors", "com1", "prn"),
        *("LPT9.x", "aux .txt", "com\u00b9.x", "conin$", "n" * 256, "\u00e9" * 128),
    ],
)
def test_a_name_that_would_not_stay_or_not_travel_is_refused(name: str, tmp_path: Path) -> None:
    assert name_fault(name)
    with Folder(tmp_path, os.open(tmp_path, os.O_RDONLY)) as opened:
        with pytest.raises(TargetError) as caught:
            opened.open(name)
        assert caught.value.code == "PL414"
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name",
    [
        *("a", "model-00001-of-00002.safetensors", "a..b", "console", "com10", "a b", "~", "-rf"),
        *("\u00e9", "n" * 255, "\u0441\u043e", "\U0001d54f", "{}", "$HOME", "nul0"),
    ],
)
def test_a_plain_name_is_taken(name: str) -> None:
    assert name_fault(name) is None


@given(st.text(max_size=300))
def test_a_name_without_fault_is_one_component_that_stays(name: str) -> None:
    if name_fault(name) is None:
        path = os.path.normpath(os.path.join("/folder", name))
        assert os.path.dirname(path) == "/folder"
        assert os.path.basename(path) == name
        assert len(name.encode()) <= 255


# -- opening -----------------------------------------------------------------------------------


def test_a_folder_is_read_through_its_descriptor(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "a").write_bytes(b"old")
    with Folder(old, os.open(old, os.O_RDONLY)) as opened:
        assert opened.is_current()
        old.rename(tmp_path / "aside")
        old.mkdir()
        (old / "a").write_bytes(b"new")
        assert opened.read("a", limit=10) == b"old"
        assert opened.names() == ["a"]
        assert not opened.is_current()
    opened.close()
    assert opened.fd == -1


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


THINGS: dict[str, Callable[[Path], Any]] = {
    "fifo": os.mkfifo,
    "socket": make_socket,
    "folder": lambda path: path.mkdir(),
    "link to a folder": lambda path: path.symlink_to("."),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("thing", THINGS)
def test_what_is_no_regular_file_is_refused_and_nobody_waits(
    tmp_path: Path, folder: Folder, thing: str
) -> None:
    THINGS[thing](tmp_path / "x")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(IntegrityError) as caught:
        folder.read("x", limit=10)
    assert caught.value.code == "PL113"
    assert os.listdir("/proc/self/fd") == before


def test_links_are_followed_to_a_regular_file_only_when_allowed(
    tmp_path: Path, folder: Folder
) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    assert folder.read("link", limit=10) == b"a"
    expected = {"link": "PL113", "dangling": "PL113", "loop": "PL113", "nowhere": "PL110"}
    for name, code in expected.items():
        with pytest.raises(IntegrityError) as caught:
            folder.read(name, limit=10, follow=False)
        assert caught.value.code == code
    with pytest.raises(IntegrityError) as caught:
        folder.open("dangling")
    assert caught.value.code == "PL110"


@given(st.integers(0, 30), st.integers(0, 30))
def test_no_more_is_read_than_one_byte_beyond_the_limit(size: int, limit: int) -> None:
    fd = os.memfd_create("x")
    try:
        os.write(fd, bytes(range(size)))
        assert read_all(fd, limit) == bytes(range(size))[:limit]
    finally:
        os.close(fd)


def test_a_file_that_is_too_large_is_read_up_to_where_that_shows(
    tmp_path: Path, folder: Folder
) -> None:
    (tmp_path / "x").write_bytes(bytes(100))
    assert len(folder.read("x", limit=10)) == 11
    assert len(folder.read("x", limit=100)) == 100


def fail(*_: object, **__: object) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("call", ["pread", "listdir", "open"])
def test_a_failing_disk_is_an_error_of_ours(
    tmp_path: Path, folder: Folder, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(TargetError) as caught:
        _ = folder.names() if call == "listdir" else folder.read("x", limit=10)
    assert caught.value.code == "PL413"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOENT, Code.SOURCE_MISSING),
        (errno.ENOTDIR, Code.SOURCE_MISSING),
        (errno.EACCES, Code.SOURCE_READ),
        (errno.EIO, Code.SOURCE_READ),
        (errno.EMFILE, Code.SOURCE_READ),
    ],
)
def test_a_fault_of_reading_has_its_code_and_remedy(number: int, code: Code) -> None:
    fault = read_fault(OSError(number, os.strerror(number)), "here")
    assert isinstance(fault, PersistlibError)
    assert fault.code == code.identifier
    assert fault.remedy


# -- mapping -----------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["mapped", "copied"])
def mapped(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def opened(path: Path, data: bytes) -> int:
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


def test_what_is_mapped_is_the_files_bytes_writable_and_private(
    tmp_path: Path, mapped: bool
) -> None:
    data = bytes(range(256)) * 40
    fd = opened(tmp_path / "x", data)
    view = map_private(fd, 5000, mapped=mapped)
    os.close(fd)
    assert bytes(view) == data[:5000]
    assert (view.format, view.ndim, view.readonly) == ("B", 1, False)
    view[:3] = b"abc"
    assert (tmp_path / "x").read_bytes() == data


def test_what_is_mapped_is_not_shared_with_forked_children(tmp_path: Path, mapped: bool) -> None:
    fd = opened(tmp_path / "x", b"parent")
    view = map_private(fd, 6, mapped=mapped)
    os.close(fd)
    if (child := os.fork()) == 0:
        view[:] = b"child!"
        os._exit(0)
    os.waitpid(child, 0)
    assert bytes(view) == b"parent"


def test_a_copy_keeps_what_the_file_was(tmp_path: Path) -> None:
    fd = opened(tmp_path / "x", b"before")
    view = map_private(fd, 6, mapped=False)
    os.close(fd)
    (tmp_path / "x").write_bytes(b"after!")
    assert bytes(view) == b"before"


def test_an_empty_file_is_an_empty_view(tmp_path: Path, mapped: bool) -> None:
    fd = opened(tmp_path / "x", b"")
    assert bytes(map_private(fd, 0, mapped=mapped)) == b""
    with pytest.raises(EOFError):
        map_private(fd, 1, mapped=mapped)
    with pytest.raises(EOFError):
        map_private(fd, 1 << 62, mapped=mapped)
    os.close(fd)


def test_a_file_that_shrinks_while_it_is_copied_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = opened(tmp_path / "x", bytes(100))
    real = os.preadv
    monkeypatch.setattr(files, "_CHUNK", 40)

    def preadv(*arguments: Any) -> int:
        count = real(*arguments)
        os.truncate(tmp_path / "x", 50)
        return count

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(EOFError):
        map_private(fd, 100, mapped=False)
    os.close(fd)


def test_a_remote_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = opened(tmp_path / "x", b"before")
    monkeypatch.setattr(files, "is_remote", lambda _: True)
    view = map_private(fd, 6)
    os.close(fd)
    (tmp_path / "x").write_bytes(b"after!")
    assert bytes(view) == b"before"


@pytest.mark.parametrize(
    ("kind", "remote"),
    [
        ("ext4", False),
        ("tmpfs", False),
        ("overlay", False),
        ("nfs4", True),
        ("cifs", True),
        ("fuse.sshfs", True),
        ("fuseblk", True),
        ("9p", True),
        ("virtiofs", True),
    ],
)
def test_the_mount_table_says_which_files_are_remote(
    tmp_path: Path, kind: str, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = opened(tmp_path / "x", b"x")
    device = os.fstat(fd).st_dev
    table = (
        f"1 2 {os.major(device)}:{os.minor(device)} / /a b rw shared:1 - {kind} server:/x rw\n"
        f"broken {os.major(device)}:{os.minor(device)}\n"
        "3 4 0:999 / /b rw - nfs4 x rw\n"
    )
    table = table.replace("broken ", "1 2 ")
    monkeypatch.setattr(builtins, "open", lambda *_, **__: io.StringIO(table))
    assert is_remote(fd) is remote
    os.close(fd)


def test_without_a_mount_table_files_are_local_but_on_windows_they_never_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = opened(tmp_path / "x", b"x")
    monkeypatch.setattr(builtins, "open", fail)
    assert not is_remote(fd)
    monkeypatch.setattr(sys, "platform", "win32")
    assert is_remote(fd)
    os.close(fd)
