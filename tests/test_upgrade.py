"""Older bundles are brought up in place: the same model, nothing lost, all or nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import persistlib
from crash_shim import (
    Disk,
    Killed,
    Tape,
    descriptors_closed,
    kinds,
    lost,
    power_loss,
    quiet,
    recorded,
)
from older_schemas import STEPS, make_older, sealed
from persistlib.cli.main import cli
from persistlib.errors import LockedError, PersistlibError
from persistlib.evaluation import recording
from persistlib.lock import locked
from persistlib.manifest import upgrades
from persistlib.manifest.identity import bundle_id
from persistlib.place import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIXTURES = Path(__file__).parent.parent / "fixtures" / "v1"
NAMES = ("perceptron", "shards", "tied")


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this release know the older schemas."""
    for version, step in STEPS.items():
        monkeypatch.setitem(upgrades.STEPS, version, step)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copied("perceptron", tmp_path / "model")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in memory where there is one: syncing a disk a hundred times is slow."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def copied(name: str, to: Path) -> Path:
    shutil.copytree(FIXTURES / name, to)
    return to


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def raw(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_bytes())
    return found


def code_of(work: Callable[[], object]) -> str:
    with pytest.raises(PersistlibError) as caught:
        work()
    return caught.value.code


# -- one bundle --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.9", "0.8"])
@pytest.mark.parametrize("name", NAMES)
def test_an_upgraded_bundle_is_the_same_model_with_all_it_had(
    tmp_path: Path, name: str, version: str
) -> None:
    bundle = copied(name, tmp_path / "model")
    current = raw(bundle)
    old = make_older(bundle, version)
    before = files(bundle)
    (done,) = persistlib.upgrade(bundle).bundles
    assert (done.before, done.after, done.is_older) == (version, "1.0", True)
    assert done.kept == f"manifest-{version}.json"
    after = files(bundle)
    assert after.pop(str(done.kept)) == old
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == ["manifest.json"]
    upgraded = raw(bundle)
    assert upgraded.pop("documents") == [*current.pop("documents"), done.kept]
    assert upgraded.pop("digest") != current.pop("digest")
    assert upgraded == current
    assert done.bundle_id == current["bundle_id"]
    assert persistlib.verify(bundle).findings == ()
    assert persistlib.check(bundle).verdict == "ok"
    assert os.listdir(tmp_path) == ["model"]


def test_the_upgraded_model_computes_what_it_did(bundle: Path) -> None:
    make_older(bundle)
    assert persistlib.verify(bundle, behaviour=True).findings == ()
    persistlib.upgrade(bundle)
    assert persistlib.verify(bundle, behaviour=True).findings == ()


def test_an_older_bundle_is_used_as_it_is_and_never_rewritten_by_reading(bundle: Path) -> None:
    make_older(bundle)
    before = files(bundle)
    report = persistlib.check(bundle)
    assert report.verdict == "ok-after-upgrade"
    (found,) = [f for f in report.findings if f.code == "PL108"]
    assert found.remedy == f"persistlib upgrade {bundle}"
    assert persistlib.inspect(bundle).manifest.upgraded_from == "0.9"
    assert persistlib.verify(bundle).ok
    assert persistlib.load(bundle) is not None
    assert files(bundle) == before


def test_upgrading_again_changes_nothing(bundle: Path) -> None:
    make_older(bundle)
    persistlib.upgrade(bundle)
    before = files(bundle)
    stamp = (bundle / "manifest.json").stat()
    (done,) = persistlib.upgrade(bundle).bundles
    assert (done.is_older, done.kept, done.changes) == (False, None, ())
    assert files(bundle) == before
    assert (bundle / "manifest.json").stat() == stamp


def test_what_another_program_left_out_is_not_filled_in(bundle: Path) -> None:
    spare = raw(bundle)
    del spare["evaluations"], spare["resume"], spare["status"]
    (bundle / "manifest.json").write_bytes(sealed(spare))
    before = files(bundle)
    assert not persistlib.upgrade(bundle).bundles[0].is_older
    persistlib.set_status(bundle, "active")
    assert files(bundle) == before


def test_a_dry_run_says_the_same_and_writes_nothing(bundle: Path) -> None:
    make_older(bundle)
    before = files(bundle)
    promised = persistlib.upgrade(bundle, dry_run=True)
    assert files(bundle) == before
    assert os.listdir(bundle.parent) == ["model"]
    assert persistlib.upgrade(bundle) == promised
    rows = {row.field: row for row in promised.bundles[0].changes}
    assert rows["manifest_version"][1:] == ("0.9", "1.0")
    assert rows["architecture.module"].after is None
    assert rows["architecture.builder"].after == raw(bundle)["architecture"]["builder"]
    assert "digest" not in rows


def test_what_needs_no_upgrade_is_not_even_locked(bundle: Path) -> None:
    place = Place(bundle)
    place.open()
    with locked(place.fd, place.lock, place.path):
        assert not persistlib.upgrade(bundle).bundles[0].is_older
        make_older(bundle)
        with pytest.raises(LockedError):
            persistlib.upgrade(bundle)
    place.close()
    assert persistlib.upgrade(bundle).bundles[0].is_older


def test_a_newer_minor_version_is_left_as_it_is(bundle: Path) -> None:
    waived = {"must_understand": False, "value": 1}
    (bundle / "manifest.json").write_bytes(
        sealed(raw(bundle) | {"manifest_version": "1.9", "later": waived})
    )
    before = files(bundle)
    (done,) = persistlib.upgrade(bundle).bundles
    assert (done.before, done.after, done.is_older) == ("1.9", "1.9", False)
    assert files(bundle) == before


def test_the_mode_of_the_manifest_is_kept(bundle: Path) -> None:
    make_older(bundle)
    (bundle / "manifest.json").chmod(0o600)
    persistlib.upgrade(bundle)
    for name in ("manifest.json", "manifest-0.9.json"):
        assert stat.S_IMODE((bundle / name).stat().st_mode) == 0o600


def test_a_link_is_not_replaced(bundle: Path) -> None:
    old = make_older(bundle)
    (bundle / "manifest.json").rename(bundle.parent / "blob")
    (bundle / "manifest.json").symlink_to(bundle.parent / "blob")
    assert code_of(lambda: persistlib.upgrade(bundle)) == "PL403"
    assert (bundle / "manifest.json").is_symlink()
    assert (bundle.parent / "blob").read_bytes() == old
    assert "manifest-0.9.json" not in os.listdir(bundle)


def test_a_link_to_the_bundle_is_followed(bundle: Path) -> None:
    make_older(bundle)
    (bundle.parent / "link").symlink_to(bundle)
    persistlib.upgrade(bundle.parent / "link")
    assert raw(bundle)["manifest_version"] == "1.0"
    assert (bundle.parent / "link").is_symlink()


@pytest.mark.parametrize("name", ["manifest-0.9.json", "MANIFEST-0.9.json"])
@pytest.mark.parametrize(("stands", "listed"), [(True, False), (True, True), (False, True)])
def test_a_name_that_is_taken_is_given_to_no_kept_manifest(
    bundle: Path, name: str, stands: bool, listed: bool
) -> None:
    if stands:
        (bundle / name).write_text("mine")
    if listed:
        document = raw(bundle)
        document["documents"].append(name)
        (bundle / "manifest.json").write_bytes(sealed(document))
    old = make_older(bundle)
    (done,) = persistlib.upgrade(bundle).bundles
    assert done.kept not in {None, name, "manifest-0.9.json"}
    assert (bundle / str(done.kept)).read_bytes() == old
    assert not stands or (bundle / name).read_text() == "mine"


def test_going_back_is_one_rename_and_going_up_again_keeps_both(bundle: Path) -> None:
    old = make_older(bundle)
    persistlib.upgrade(bundle)
    (bundle / "manifest-0.9.json").replace(bundle / "manifest.json")
    assert (bundle / "manifest.json").read_bytes() == old
    assert persistlib.verify(bundle).findings == ()
    persistlib.upgrade(bundle)
    assert (bundle / "manifest-0.9.json").read_bytes() == old


def test_every_other_change_of_an_older_manifest_keeps_it_too(bundle: Path) -> None:
    old = make_older(bundle)
    bundle_id = persistlib.inspect(bundle).manifest.bundle_id
    recording.keep(bundle, bundle_id, {"accuracy": 1.0})
    assert (bundle / "manifest-0.9.json").read_bytes() == old
    assert raw(bundle)["evaluations"] == [{"accuracy": 1.0}]
    assert persistlib.verify(bundle).findings == ()
    assert persistlib.check(bundle).verdict == "ok"


LABELS = {"labels": ("other", "labels", "here")}


def test_an_upgrade_that_would_make_another_model_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = persistlib.inspect(bundle).manifest
    other = other.model_copy(update={"interface": other.interface.model_copy(update=LABELS)})

    def step(document: dict[str, Any]) -> dict[str, Any]:
        document["interface"]["labels"] = list(LABELS["labels"])
        return document | {"bundle_id": bundle_id(other)}

    (bundle / "manifest.json").write_bytes(sealed(raw(bundle) | {"manifest_version": "0.9"}))
    monkeypatch.setitem(upgrades.STEPS, "0.9", upgrades.Step("1.0", step))
    before = files(bundle)
    assert code_of(lambda: persistlib.upgrade(bundle)) == "PL107"
    assert files(bundle) == before


def test_writers_take_turns_and_readers_see_whole_manifests(memory: Path) -> None:
    bundle = copied("tied", memory / "model")
    make_older(bundle)

    def write(number: int) -> None:
        for count in range(5):
            while not written(f"{number} {count}"):
                time.sleep(0.001)

    def written(reason: str) -> bool:
        with contextlib.suppress(LockedError):
            persistlib.set_status(bundle, "withdrawn", reason=reason)
            return True
        return False

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(persistlib.inspect(bundle).manifest.status.reason)
    assert seen <= {None, *(f"{number} {count}" for number in range(3) for count in range(5))}
    assert raw(bundle)["status"]["reason"] in {"0 4", "1 4", "2 4"}
    assert sorted(name for name in os.listdir(bundle) if name.startswith("manifest")) == [
        "manifest-0.9.json",
        "manifest.json",
    ]
    assert persistlib.verify(bundle).ok
    assert os.listdir(memory) == ["model"]


# -- folders of bundles ------------------------------------------------------------------------


def test_all_bundles_below_a_folder_are_upgraded_and_faults_are_told(tmp_path: Path) -> None:
    for name in NAMES:
        copied(name, tmp_path / "runs" / name)
    copied("tied", tmp_path / "runs" / "deep" / "er")
    copied("tied", tmp_path / "runs" / ".hidden")
    copied("tied", tmp_path / "runs" / "tied" / "within")
    (tmp_path / "runs" / "notes").mkdir()
    for where in ("perceptron", "deep/er", ".hidden", "tied/within"):
        make_older(tmp_path / "runs" / where)
    (tmp_path / "runs" / "shards" / "manifest.json").write_bytes(b"{")
    report = persistlib.upgrade(tmp_path / "runs")
    assert not report.ok
    assert [(Path(b.path).name, b.is_older) for b in report.bundles] == [
        ("er", True),
        ("perceptron", True),
        ("tied", False),
    ]
    assert [found.code for found in report.findings] == ["PL101"]
    assert "shards" in report.findings[0].location
    for where in (".hidden", "tied/within"):
        assert raw(tmp_path / "runs" / where)["manifest_version"] == "0.9"


def test_what_holds_no_bundle_is_told_as_that(tmp_path: Path) -> None:
    assert code_of(lambda: persistlib.upgrade(tmp_path)) == "PL411"
    assert code_of(lambda: persistlib.upgrade(tmp_path / "a" / "b")) == "PL412"
    (tmp_path / "file").touch()
    assert code_of(lambda: persistlib.upgrade(tmp_path / "file")) == "PL411"
    assert os.listdir(tmp_path) == ["file"]


# -- crashes -----------------------------------------------------------------------------------


class Site:
    """An older bundle in a folder of its own, and what its manifest is before and after."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = copied("tied", folder / "site" / "model")
        self.old = make_older(self.bundle)
        self.before = files(self.bundle)
        persistlib.upgrade(self.bundle)
        self.after = files(self.bundle)
        self.reset()

    def reset(self) -> None:
        shutil.rmtree(self.bundle.parent)
        self.bundle.mkdir(parents=True)
        for name, data in self.before.items():
            (self.bundle / name).write_bytes(data)

    def upgrade(self, tape: Tape) -> None:
        with quiet(), recorded(tape), descriptors_closed(), contextlib.suppress(Killed):
            persistlib.upgrade(self.bundle)

    def settle(self, where: Path | None = None) -> bool:
        """Hold that one whole bundle stands there, and that an upgrade ends the matter.

        Returns: whether the upgrade had been published.
        """
        bundle = where or self.bundle
        found = files(bundle)
        kept = {name: data for name, data in self.after.items() if name not in self.before}
        assert found in (self.before, self.before | kept, self.after)
        report = persistlib.verify(bundle)
        assert [f.severity for f in report.findings] == ["warning"] * (found == self.before | kept)
        with quiet():
            persistlib.upgrade(bundle)
        assert files(bundle) == self.after
        assert persistlib.verify(bundle).findings == ()
        left = [name for name in os.listdir(bundle.parent) if ".new-" in name]
        assert not left or found == self.after, "the next writer sweeps"
        return found == self.after


def test_after_a_crash_at_any_call_one_whole_manifest_stands(memory: Path) -> None:
    site = Site(memory)
    published: list[bool] = []
    for at in itertools.count(1):
        site.reset()
        site.upgrade(tape := Tape(at=at, action="die"))
        if not tape.dead:
            break
        published.append(site.settle())
    assert published == sorted(published)
    assert published.count(False) > 10
    assert any(published)


def test_after_a_power_cut_one_whole_manifest_stands(memory: Path) -> None:
    site = Site(memory)
    tape = Tape()
    disk = Disk.of(str(site.bundle.parent), tape)
    site.upgrade(tape)
    chance = random.Random(5)
    seen: set[str] = set()
    for upto in range(len(tape.operations) + 1):
        for _ in range(6):
            left = lost(disk, tape, upto, chance)
            if (state := f"{upto} {left.state()}") not in seen:
                seen.add(state)
                shutil.rmtree(memory / "left", ignore_errors=True)
                left.write(str(memory / "left"), kinds(tape.operations))
                published = site.settle(memory / "left" / "model")
                assert published or upto < len(tape.operations), "what returned survives"
    assert len(seen) > 30


def test_without_any_of_its_fsyncs_the_simulated_disk_would_lose(memory: Path) -> None:
    site = Site(memory)
    tape = Tape()
    disk = Disk.of(str(site.bundle.parent), tape)
    site.upgrade(tape)
    syncs = [i for i, o in enumerate(tape.operations) if o["op"] == "fsync"]
    assert len(syncs) == 4
    for index in (syncs[0], syncs[1], syncs[3]):  # the third orders the two names
        operations = [o for i, o in enumerate(tape.operations) if i != index]
        left = power_loss(disk, operations, lambda _: False)
        shutil.rmtree(memory / "left", ignore_errors=True)
        left.write(str(memory / "left"), kinds(tape.operations))
        with pytest.raises((AssertionError, PersistlibError)):
            assert site.settle(memory / "left" / "model")


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_a_failing_call_leaves_the_bundle_as_it_was(memory: Path, fault: str) -> None:
    site = Site(memory)
    codes: list[str] = []
    for at in itertools.count(1):
        site.reset()
        tape = Tape(at=at, action=fault)
        try:
            with quiet(), recorded(tape):
                persistlib.upgrade(site.bundle)
        except PersistlibError as caught:
            codes.append(caught.code)
            expected = site.after if caught.code == "PL410" else site.before
            assert files(site.bundle) == expected
            assert not [n for n in os.listdir(site.bundle.parent) if ".new-" in n]
        if len(tape.calls) < at:
            break
    assert set(codes) == {"PL410", "PL406" if fault == "ENOSPC" else "PL404"}
    assert codes.count("PL410") == 1


def test_what_an_interrupted_upgrade_left_does_not_stop_a_save(bundle: Path) -> None:
    from persistlib.files import Folder
    from persistlib.gap import open_folder
    from persistlib.upkeep import foreign_files

    old = make_older(bundle)
    (bundle / "manifest-0.9.json").write_bytes(old)

    def strange() -> list[str]:
        with open_folder(bundle) as folder:
            assert isinstance(folder, Folder)
            return foreign_files(folder)

    assert strange() == []
    (bundle / "manifest-0.9.json").write_bytes(old[:-1])
    assert strange() == ["manifest-0.9.json"]
    assert not persistlib.verify(bundle).ok


# -- the command line --------------------------------------------------------------------------


def told(*words: object) -> tuple[dict[str, Any], int]:
    result = CliRunner().invoke(cli, ["upgrade", *map(str, words), "--json"])
    envelope: dict[str, Any] = json.loads(result.stdout)
    return envelope, result.exit_code


def test_the_verb_promises_checks_and_does_it(bundle: Path) -> None:
    assert told(bundle, "--check")[1] == 0
    make_older(bundle)
    before = files(bundle)
    dry, code = told(bundle, "--dry-run")
    assert (dry["ok"], dry["data"]["dry_run"], code) == (True, True, 0)
    assert told(bundle, "--check")[1] == 1
    assert files(bundle) == before
    done, code = told(bundle)
    assert (done["ok"], code) == (True, 0)
    assert done["data"] == dry["data"] | {"dry_run": False}
    (told_of,) = done["data"]["bundles"]
    assert (told_of["before"], told_of["after"], told_of["kept"]) == (
        "0.9",
        "1.0",
        "manifest-0.9.json",
    )
    assert {"field": "manifest_version", "before": "0.9", "after": "1.0"} in told_of["changes"]
    assert told(bundle, "--check")[1] == 0


def test_the_verb_shows_old_and_new_and_quietly_the_paths_alone(bundle: Path) -> None:
    make_older(bundle)
    runner = CliRunner()
    shown = runner.invoke(cli, ["upgrade", str(bundle), "--dry-run"]).stdout
    for text in ("1 bundle to upgrade", "0.9 → 1.0", "architecture.builder", '"torch.nn"'):
        assert text in shown
    assert "manifest-0.9.json" in shown
    assert runner.invoke(cli, ["upgrade", str(bundle), "-q"]).stdout == f"{bundle}\n"
    assert "up to date" in runner.invoke(cli, ["upgrade", str(bundle)]).stdout


def test_the_verb_goes_on_after_a_bundle_that_it_cannot_read(tmp_path: Path) -> None:
    for name in ("perceptron", "tied"):
        make_older(copied(name, tmp_path / name))
    (tmp_path / "perceptron" / "manifest.json").write_bytes(sealed({"manifest_version": "2.0"}))
    envelope, code = told(tmp_path)
    assert (envelope["ok"], code) == (False, 1)
    assert [found["code"] for found in envelope["findings"]] == ["PL104"]
    assert [Path(b["path"]).name for b in envelope["data"]["bundles"]] == ["tied"]
    assert raw(tmp_path / "tied")["manifest_version"] == "1.0"
