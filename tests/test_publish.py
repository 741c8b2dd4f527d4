"""Where a folder or file may be published, what is refused, and who may write or read meanwhile."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crash_shim import (
    FILES,
    REAL_EXCHANGE,
    Tape,
    content,
    nothing_foreign,
    quiet,
    recorded,
    save,
    whole,
)
from persistlib import lock, publish
from persistlib.errors import LockedError, PersistlibError, PersistlibWarning, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from persistlib.files import Folder


HERE = os.path.dirname(__file__)


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def code(fault: pytest.ExceptionInfo[PersistlibError]) -> str:
    return fault.value.code


def refused(path: object, *, overwrite: bool = True) -> str:
    """Return the code that saving there is refused with."""
    with pytest.raises(PersistlibError) as caught:
        save(str(path), 1, overwrite=overwrite)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    return caught.value.code


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# -- where -------------------------------------------------------------------------------------


def test_missing_parents_are_made(tmp_path: Path) -> None:
    save(str(tmp_path / "a" / "b" / "model"), 1)
    assert whole(str(tmp_path / "a" / "b" / "model")) == 1


def test_missing_parents_are_made_durable_before_anything_is_published(tmp_path: Path) -> None:
    with recorded(Tape()) as tape:
        save(str(tmp_path / "a" / "b" / "model"), 1)
    done = tape.operations
    for index, made in enumerate(o for o in done if o["op"] == "mkdir"):
        start = done.index(made)
        later = next(o for o in done[start:] if o["op"] == "fsync" and o["id"] == made["dir"])
        assert later is done[start + 1] or index == 2


@pytest.mark.parametrize("path", ["model", "model/", "./model", "model/.", "deep/../model"])
def test_every_spelling_of_a_path_is_the_same_target(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "model").mkdir()
    save(path, 1)
    assert whole(path) == whole(str(tmp_path / "model")) == 1
    assert sorted(os.listdir(tmp_path)) == ["deep", "model"]


def test_a_path_object_will_do(tmp_path: Path) -> None:
    with publish.folder(tmp_path / "model", overwrite=False, foreign=nothing_foreign):
        pass
    with publish.open_folder(tmp_path / "model") as folder:
        assert folder.names() == []


def test_dots_after_a_link_lead_where_the_system_leads(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/inner")
    save(str(tmp_path / "link" / ".." / "model"), 1)
    assert whole(str(tmp_path / "real" / "model")) == 1


def test_a_linked_parent_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    save(str(tmp_path / "link" / "model"), 1)
    save(str(tmp_path / "link" / "model"), 2)
    assert whole(str(tmp_path / "real" / "model")) == 2


@pytest.mark.parametrize("length", [200, 221, 240, 255])
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path, length: int) -> None:
    for name in ("n" * length, "é" * (length // 2)):
        for version in (1, 2):
            save(str(tmp_path / name), version)
            with recorded(Tape(can_exchange=False)):
                save(str(tmp_path / name), version + 1)
        assert whole(str(tmp_path / name)) == 3
    assert len(os.listdir(tmp_path)) == 2


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / ("n" * 256)) == "PL404"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["", "\0", "a\0b", "\ud800"])
def test_a_path_that_is_no_path_is_refused_and_nothing_stands_there(path: str) -> None:
    assert refused(path) == "PL414"
    with pytest.raises(TargetError) as caught:
        publish.open_folder(path)
    assert code(caught) == ("PL414" if path else "PL412")


def test_the_root_folder_is_refused() -> None:
    assert refused("/") == refused("//") == refused("/..") == "PL403"


def test_the_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "model"
    here.mkdir()
    monkeypatch.chdir(here)
    assert refused(".") == refused(str(here)) == "PL403"
    save("inner", 1)
    assert whole("inner") == 1


def test_a_current_folder_that_was_deleted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    here.rmdir()
    assert refused("model") == "PL404"
    with pytest.raises(TargetError):
        publish.open_folder("model")


def make_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


THINGS: dict[str, Any] = {
    "link": make_link,
    "dangling link": make_dangling,
    "file": Path.touch,
    "fifo": os.mkfifo,
}


@pytest.mark.parametrize("thing", THINGS)
def test_what_is_no_folder_is_never_replaced(tmp_path: Path, thing: str) -> None:
    target = tmp_path / "model"
    THINGS[thing](target)
    before = target.lstat()
    assert refused(target) == refused(f"{target}/") == "PL403"
    assert os.path.samestat(before, target.lstat())


@pytest.mark.parametrize("thing", ["link", "dangling link", "fifo"])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, thing: str) -> None:
    target = tmp_path / "model"
    THINGS[thing](target)
    with pytest.raises(TargetError) as caught, publish.file(target):
        pass
    assert code(caught) == "PL403"
    with pytest.raises(TargetError) as caught, publish.file(tmp_path):
        pass
    assert code(caught) == "PL403"


def test_a_file_for_a_parent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file" / "model") == "PL403"
    (tmp_path / "loop").symlink_to("loop")
    assert refused(tmp_path / "loop" / "model") == "PL403"


def test_an_old_version_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    save(str(tmp_path / "model"), 1)
    assert refused(tmp_path / "model", overwrite=False) == "PL401"
    assert whole(str(tmp_path / "model")) == 1


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save(str(tmp_path / "model"), 1, overwrite=False)
    assert whole(str(tmp_path / "model")) == 1


def not_ours(folder: Folder) -> list[str]:
    return [name for name in folder.names() if name not in FILES]


def replace_while(target: Path, happens: Callable[[], None], *, overwrite: bool) -> None:
    with publish.folder(target, overwrite=overwrite, foreign=not_ours):
        happens()


def test_foreign_files_are_never_deleted_though_they_come_while_writing(tmp_path: Path) -> None:
    target = tmp_path / "model"
    save(str(target), 1)
    with pytest.raises(TargetError) as caught:
        replace_while(target, (target / "thesis.tex").touch, overwrite=True)
    assert code(caught) == "PL402"
    assert "thesis.tex" in caught.value.reason
    assert sorted(os.listdir(target)) == sorted([*FILES, "thesis.tex"])
    assert os.listdir(tmp_path) == ["model"]


def test_a_version_that_comes_while_writing_is_not_replaced_unasked(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(TargetError) as caught:
        replace_while(target, lambda: make_link(target), overwrite=False)
    assert code(caught) == "PL403"
    target.unlink()

    def come() -> None:
        target.mkdir()
        (target / "thesis.tex").touch()

    with pytest.raises(TargetError) as caught:
        replace_while(target, come, overwrite=False)
    assert code(caught) == "PL401"
    assert os.listdir(target) == ["thesis.tex"]


def test_names_that_no_reader_would_open_are_not_written(tmp_path: Path) -> None:
    for name in ("../x", ".x", "a/b", "", "con", "x\0"):
        with (
            pytest.raises(TargetError) as caught,
            publish.folder(tmp_path / "m", overwrite=True, foreign=nothing_foreign) as new,
            new.create(name),
        ):
            pass
        assert code(caught) == "PL414"
    assert os.listdir(tmp_path) == []


def test_a_mount_point_is_refused_before_anything_is_written() -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for path in ("/dev/shm", "/proc", "/dev"):
        if path in mounts and os.access(os.path.dirname(path), os.W_OK):
            assert refused(path) == "PL403"


def test_another_targets_hidden_names_are_not_ours(tmp_path: Path) -> None:
    others = [".a.new-b.lock", ".a.new-0123456789abcdef.lock", ".a.new-xyz", ".ab.new-" + "0" * 16]
    for name in [*others, ".a.new-" + "0" * 16]:
        (tmp_path / name).touch()
    save(str(tmp_path / "a"), 1)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "a"])


# -- permissions -------------------------------------------------------------------------------


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007, 0o002])
def test_new_things_have_the_umasks_modes(tmp_path: Path, mask: int) -> None:
    os.umask(mask)
    save(str(tmp_path / "model"), 1)
    with publish.file(tmp_path / "file"):
        pass
    assert mode(tmp_path / "model") == 0o777 & ~mask
    assert mode(tmp_path / "model" / "weights") == 0o666 & ~mask
    assert mode(tmp_path / "file") == 0o666 & ~mask


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("can_exchange", [True, False])
def test_what_was_private_stays_private(tmp_path: Path, can_exchange: bool) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model").chmod(0o700)
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o640)
    with recorded(Tape(can_exchange=can_exchange)):
        save(str(tmp_path / "model"), 1)
    with publish.file(tmp_path / "file") as out:
        out.write(b"new")
    assert mode(tmp_path / "model") == 0o700
    assert mode(tmp_path / "file") == 0o640


@pytest.mark.parametrize("fault", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_read_only_place_is_said_before_anything_is_written(tmp_path: Path, fault: int) -> None:
    for only in ("open", "mkdir"):
        tape = Tape(at=1, action=errno.errorcode[fault], sticky=True, only=(only,))
        with pytest.raises(TargetError) as caught, recorded(tape):
            save(str(tmp_path / "deep" / "model"), 1)
        assert code(caught) == "PL405"
        assert not [o for o in tape.operations if o["op"] == "write" and o["at"]]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    save(str(tmp_path / "model"), 1)
    (tmp_path / "model").chmod(0o555)
    assert refused(tmp_path / "model") == "PL405"
    tmp_path.chmod(0o555)
    assert refused(tmp_path / "other") == "PL405"


def test_a_folder_without_write_permission_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(str(tmp_path / "model"), 1)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert refused(tmp_path / "model") == "PL405"
    assert whole(str(tmp_path / "model")) == 1


# -- one file ----------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_only_when_allowed(tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    for version in (b"old", b"new"):
        with publish.file(target) as out:
            assert out.write(version) == 3
            assert out.size == 3
    assert target.read_bytes() == b"new"
    with pytest.raises(TargetError) as caught, publish.file(target, overwrite=False):
        pass
    assert code(caught) == "PL401"
    assert os.listdir(tmp_path) == ["model.pt"]


def test_killed_at_any_call_a_file_is_the_old_or_the_new_one_and_leftovers_go(
    tmp_path: Path,
) -> None:
    target = tmp_path / "model.pt"
    at = 0
    for at in range(1, 40):
        target.write_bytes(b"old")
        script = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from crash_shim import Tape, recorded; from persistlib import publish\n"
            "tape = Tape(at=int(sys.argv[3]), action='kill')\n"
            "with recorded(tape), publish.file(sys.argv[2]) as out: out.write(b'new')\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script, HERE, target, str(at)],
            check=False,
        )
        assert target.read_bytes() in ({b"new"} if done.returncode == 0 else {b"old", b"new"})
        if done.returncode == 0:
            break
    assert at > 10
    with publish.file(target) as out:
        out.write(b"newer")
    assert os.listdir(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("fault", ["EIO", "ENOSPC"])
def test_a_fault_at_any_call_leaves_the_old_file(tmp_path: Path, fault: str) -> None:
    target = tmp_path / "model.pt"
    at = 0
    for at in range(1, 40):
        target.write_bytes(b"old")
        tape = Tape(at=at, action=fault)
        outcome = ""
        try:
            with quiet(), recorded(tape), publish.file(target) as out:
                out.write(b"new")
        except PersistlibError as error:
            outcome = error.code
        if len(tape.calls) < at:
            break
        assert outcome in {"", "PL410", {"EIO": "PL404", "ENOSPC": "PL406"}[fault]}
        assert target.read_bytes() == (b"new" if outcome in {"", "PL410"} else b"old")
    assert at > 10


def test_a_failure_of_the_body_leaves_nothing(tmp_path: Path) -> None:
    class BodyError(Exception):
        pass

    def write_half(out: publish.OutFile) -> None:
        out.write(b"half")
        raise BodyError

    with pytest.raises(BodyError), publish.file(tmp_path / "file") as out:
        write_half(out)
    with (
        pytest.raises(BodyError),
        publish.folder(tmp_path / "m", overwrite=False, foreign=nothing_foreign) as new,
        new.create("weights") as out,
    ):
        write_half(out)
    assert os.listdir(tmp_path) == []


@given(st.lists(st.binary(max_size=300), max_size=6))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_in_pieces_is_there_in_order(tmp_path: Path, pieces: list[bytes]) -> None:
    with publish.file(tmp_path / "file") as out:
        for piece in pieces:
            assert out.write(memoryview(piece)) == len(piece)
        assert out.size == sum(map(len, pieces))
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


def test_any_buffer_is_written_by_its_bytes(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    table = numpy.arange(12, dtype="<i4").reshape(3, 4)
    with publish.file(tmp_path / "file") as out:
        assert out.write(table) == 48
        assert out.write(numpy.zeros((0, 4))) == 0
    assert (tmp_path / "file").read_bytes() == table.tobytes()


# -- locks -------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with publish.folder(target, overwrite=True, foreign=nothing_foreign):
        with pytest.raises(LockedError) as caught:
            save(str(target), 2)
        assert code(caught) == "PL407"
        assert str(os.getpid()) in caught.value.reason
        save(str(tmp_path / "other"), 1)
    save(str(target), 2)
    assert whole(str(target)) == 2


def test_one_writer_of_a_file_at_a_time(tmp_path: Path) -> None:
    with publish.file(tmp_path / "f") as out:
        with pytest.raises(LockedError), publish.file(tmp_path / "f"):
            pass
        out.write(b"first")
    assert (tmp_path / "f").read_bytes() == b"first"


def leave_lock(folder: Path, owner: object) -> Path:
    path = folder / ".model.lock"
    path.write_text(owner if isinstance(owner, str) else json.dumps(owner))
    return path


def test_a_dead_writers_lock_is_taken_over_and_said(tmp_path: Path) -> None:
    leave_lock(tmp_path, {"pid": 4_000_000, "host": socket.gethostname()})
    with (
        pytest.warns(PersistlibWarning, match="4000000") as caught,
        publish.folder(tmp_path / "model", overwrite=False, foreign=nothing_foreign),
    ):
        pass
    assert [w.message.finding.code for w in caught] == ["PL409"]  # type: ignore[union-attr]
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("remote", [True, False])
def test_another_machines_lock_is_left_alone_where_flock_does_not_reach(
    tmp_path: Path, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave_lock(tmp_path, {"pid": 1, "host": "elsewhere.example"})
    before = path.read_bytes()
    monkeypatch.setattr(lock, "is_remote", lambda _: remote)
    if not remote:
        save(str(tmp_path / "model"), 1)
        assert whole(str(tmp_path / "model")) == 1
        return
    with pytest.raises(LockedError) as caught:
        save(str(tmp_path / "model"), 1)
    assert code(caught) == "PL408"
    assert "elsewhere.example" in caught.value.reason
    assert ".model.lock" in caught.value.remedy
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "garbage", ["", "null", "[]", "{", "[" * 4000, "\udcff", "9" * 5000, '{"pid": "\\u001b[2J"}']
)
def test_a_garbled_lock_is_taken_over(tmp_path: Path, garbage: str) -> None:
    (tmp_path / ".model.lock").write_bytes(garbage.encode(errors="surrogateescape"))
    save(str(tmp_path / "model"), 1)
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "folder"])
def test_what_is_no_lock_is_neither_followed_nor_changed(tmp_path: Path, kind: str) -> None:
    (tmp_path / "precious").write_text("precious")
    path = tmp_path / ".model.lock"
    make: dict[str, Callable[[], object]] = {
        "link": lambda: path.symlink_to("precious"),
        "hard link": lambda: path.hardlink_to(tmp_path / "precious"),
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }
    make[kind]()
    assert refused(tmp_path / "model").startswith("PL40")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_flock_the_lock_file_itself_is_the_lock(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, "fcntl", _Fcntl(flock))
    for version in (1, 2):
        save(str(tmp_path / "model"), version)
    assert whole(str(tmp_path / "model")) == 2
    assert os.listdir(tmp_path) == ["model"]
    with publish.folder(tmp_path / "model", overwrite=True, foreign=nothing_foreign):
        assert refused(tmp_path / "model") == "PL408"
    assert os.listdir(tmp_path) == ["model"]


class _Fcntl:
    LOCK_EX, LOCK_NB, LOCK_SH = fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_SH

    def __init__(self, flock: object) -> None:
        self.flock = flock


def test_a_lock_that_was_removed_while_it_was_awaited_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def flock(fd: int, how: int) -> None:
        fcntl.flock(fd, how)
        calls.append(fd)
        if len(calls) == 1:
            (tmp_path / ".model.lock").unlink()

    monkeypatch.setattr(lock, "fcntl", _Fcntl(flock))
    save(str(tmp_path / "model"), 1)
    assert len(calls) > 1
    assert whole(str(tmp_path / "model")) == 1


# -- readers -----------------------------------------------------------------------------------


def test_nothing_is_told_from_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    expected = {
        "nothing": "PL412",
        "no/parent": "PL412",
        "file": "PL411",
        "file/below": "PL411",
        "fifo": "PL411",
        "dangling": "PL412",
        "loop": "PL413",
        "n" * 300: "PL413",
    }
    for name, wanted in expected.items():
        with pytest.raises(TargetError) as caught:
            publish.open_folder(tmp_path / name)
        assert code(caught) == wanted, name


def test_a_linked_folder_is_read_and_its_gap_mended(tmp_path: Path) -> None:
    save(str(tmp_path / "model"), 1)
    (tmp_path / "link").symlink_to("model")
    assert whole(str(tmp_path / "link")) == 1
    (tmp_path / "model").rename(tmp_path / f".model.old-{0:016x}")
    assert whole(str(tmp_path / "link")) == 1
    assert sorted(os.listdir(tmp_path)) == ["link", "model"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_what_is_being_read_is_swept_by_a_later_save(tmp_path: Path, can_exchange: bool) -> None:
    target = tmp_path / "model"
    save(str(target), 1)
    with recorded(Tape(can_exchange=can_exchange)):
        with publish.open_folder(target) as reader:
            save(str(target), 2)
            save(str(target), 3)
            assert not reader.is_current()
            for name in FILES:
                assert reader.read(name, limit=1 << 20) == content(1, name)
        assert whole(str(target)) == 3
        assert len(os.listdir(tmp_path)) == 2
        save(str(target), 4)
    assert os.listdir(tmp_path) == ["model"]


def test_another_programs_lock_on_the_folder_keeps_no_reader_out(tmp_path: Path) -> None:
    save(str(tmp_path / "model"), 1)
    fd = os.open(tmp_path / "model", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert whole(str(tmp_path / "model")) == 1
    finally:
        os.close(fd)


def test_a_slow_writer_between_two_renames_keeps_no_reader_waiting(tmp_path: Path) -> None:
    """The version that stepped aside is read while its writer holds the lock."""
    target = tmp_path / "model"
    save(str(target), 1)
    seen: list[int | None] = []

    class Slow(Tape):
        def _act(self, name: str, real: Any, args: Any, kwargs: Any) -> Any:
            del name, real, kwargs
            assert not target.exists()
            seen.append(whole(str(target)))
            return args

    with recorded(Slow(at=2, only=("rename",), can_exchange=False)):
        save(str(target), 2)
    assert seen == [1]
    assert whole(str(target)) == 2


def test_a_reader_in_a_gap_is_not_stopped_by_warnings_made_errors(tmp_path: Path) -> None:
    save(str(tmp_path / "model"), 1)
    (tmp_path / "model").rename(tmp_path / f".model.old-{0:016x}")
    leave_lock(tmp_path, {"pid": 4_000_000, "host": socket.gethostname()})
    with publish.open_folder(tmp_path / "model") as folder:
        assert folder.names() == sorted(FILES)


# -- the system's corners ----------------------------------------------------------------------


def test_exchange_swaps_two_names_or_says_that_it_cannot(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        REAL_EXCHANGE(fd, "a", "b")
        with pytest.raises(FileNotFoundError):
            REAL_EXCHANGE(fd, "a", "missing")
    finally:
        os.close(fd)
    assert (tmp_path / "a").read_text() == "b"


def test_without_the_call_there_is_no_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "_libc", lambda: None)
    for version in (1, 2):
        save(str(tmp_path / "model"), version)
    assert whole(str(tmp_path / "model")) == 2
    assert os.listdir(tmp_path) == ["model"]


def test_a_refused_exchange_is_an_error_and_not_two_renames(tmp_path: Path) -> None:
    save(str(tmp_path / "model"), 1)
    tape = Tape(at=1, action="EBUSY", only=("exchange",))
    with pytest.raises(TargetError) as caught, recorded(tape):
        save(str(tmp_path / "model"), 2)
    assert code(caught) == "PL403"
    assert whole(str(tmp_path / "model")) == 1
    assert not [o for o in tape.operations if o["op"] == "rename"]


def test_a_file_system_that_cannot_sync_folders_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    save(str(tmp_path / "model"), 1)
    assert whole(str(tmp_path / "model")) == 1


def test_a_sweep_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / f".model.new-{1:016x}").symlink_to("precious")
    left = tmp_path / f".model.gone-{2:016x}"
    left.mkdir()
    (left / "inner").symlink_to("../precious")
    os.mkfifo(left / "fifo")
    save(str(tmp_path / "model"), 1)
    assert sorted(os.listdir(tmp_path)) == ["model", "precious"]
    assert os.listdir(tmp_path / "precious") == ["file"]


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    save(str(tmp_path / "model"), 1)
    before = os.listdir("/proc/self/fd")
    for version in range(2, 6):
        save(str(tmp_path / "model"), version)
        whole(str(tmp_path / "model"))
        refused(tmp_path / "model", overwrite=False)
        with pytest.raises(TargetError):
            publish.open_folder(tmp_path / "nothing")
    assert os.listdir("/proc/self/fd") == before
