"""Laws of the HDF5 converter: round trips, names, listings, and no exception but ours."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persistlib.checkpoint import Entry, identity
from persistlib.converters import hdf5_file, hdf5_names, listing
from persistlib.converters.listing import Listing
from persistlib.errors import Code, PersistlibError
from property import strategies as own

if TYPE_CHECKING:
    from pathlib import Path

    from persistlib.checkpoint import MemoryCheckpoint

# Every example starts a process.
FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(FEW, max_examples=300)
CHECKPOINTS = own.checkpoints(of=own.held_by("hdf5"))


def keep(made: MemoryCheckpoint, path: Path, compression: str | None) -> None:
    hdf5_file.write(made, path, compression=compression)
    with hdf5_file.open_file(path) as reader:
        assert reader.entries == made.entries
        assert dict(reader.aliases) == dict(made.aliases)
        assert dict(reader.metadata) == dict(made.metadata)
        assert reader.losses == ()
        for entry in reader:
            assert bytes(reader.read_bytes(entry.name)) == bytes(made.buffers[entry.name])
        assert identity(reader) == identity(made)


@FEW
@given(made=CHECKPOINTS, compression=st.sampled_from([None, "gzip", "lzf"]))
def test_reading_what_was_written_gives_the_same_checkpoint(
    made: MemoryCheckpoint, compression: str | None, tmp_path: Path
) -> None:
    keep(made, tmp_path / "x.h5", compression)


@pytest.mark.slow
@MANY
@given(made=CHECKPOINTS, compression=st.sampled_from([None, "gzip", "lzf"]))
def test_reading_what_was_written_gives_the_same_checkpoint_many_times(
    made: MemoryCheckpoint, compression: str | None, tmp_path: Path
) -> None:
    keep(made, tmp_path / "x.h5", compression)


@settings(max_examples=20, deadline=None, suppress_health_check=FEW.suppress_health_check)
@given(made=CHECKPOINTS)
def test_the_same_checkpoint_is_the_same_bytes(made: MemoryCheckpoint, tmp_path: Path) -> None:
    for name in ("x.h5", "y.h5"):
        hdf5_file.write(made, tmp_path / name)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()


odd = st.one_of(own.tensor_names, st.text("a./%\u00e9" + "0F2E5", max_size=12))


@given(name=odd, is_marked=st.booleans())
def test_the_name_of_the_path_of_a_name_is_the_name(name: str, is_marked: bool) -> None:
    path = hdf5_names.path_of(name, is_marked=is_marked)
    assert hdf5_names.name_of(path) == name
    assert not {"", ".", ".."} & set(path.split("/"))
    assert "\0" not in path


@given(path=st.text("a./%\u00e9\0" + "02E5Ff", max_size=12))
def test_a_path_is_a_spelling_of_its_name_or_of_none(path: str) -> None:
    name = hdf5_names.name_of(path)
    if name is not None:
        assert path in {hdf5_names.path_of(name), hdf5_names.path_of(name, is_marked=True)}


@given(names=st.lists(odd, unique=True, max_size=12))
def test_the_datasets_of_any_names_stand_side_by_side(names: list[str]) -> None:
    paths = hdf5_names.paths_of(names)
    assert len(set(paths.values())) == len(names)
    groups = {
        path[:at] for path in paths.values() for at, letter in enumerate(path) if letter == "/"
    }
    assert not groups & set(paths.values())


@given(made=CHECKPOINTS, losses=st.lists(own.texts, max_size=3))
def test_parsing_a_rendered_listing_gives_the_listing(
    made: MemoryCheckpoint, losses: list[str]
) -> None:
    said = Listing("hdf5", "x", made.entries, made.aliases, made.metadata, tuple(losses), ("n",))
    assert listing.parse(listing.render(said), 0, "file") == said


@given(
    data=st.binary(max_size=200)
    | own.json_objects.map(lambda value: str(value).replace("'", '"').encode())
)
def test_bytes_that_are_no_listing_are_our_error(data: bytes) -> None:
    try:
        said = listing.parse(data, 0, "file")
    except PersistlibError:
        return
    assert listing.parse(listing.render(said), 0, "file") == said


def mutate(path: Path, seed: int) -> None:
    """Change, cut or double some of a file's bytes, most of them where the structure is."""
    chance = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 2, 8, 64])):
        at = chance.randrange(len(data))
        kind = chance.randrange(6)
        if kind < 4:
            data[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        elif kind == 4:
            data[at : at + 8] = chance.choice([b"\0", b"\xff", b"\x7f"]) * 8
        else:
            del data[at : at + chance.randrange(9)]
    path.write_bytes(data)


def survive(path: Path, made: MemoryCheckpoint, seed: int) -> None:
    """Read a mutant: what comes is a checkpoint or our error."""
    import h5py

    if seed % 2:
        hdf5_file.write(made, path)
    else:  # the older structures have no checksums, so mutants get further
        with h5py.File(path, "w") as file:
            for number, entry in enumerate(made.entries):
                values = made.read(entry.name)
                if not entry.dtype.value.extension:
                    file.create_dataset(f"g/{number}", data=values, fletcher32=values.size > 1)
            file.attrs["text"] = "text"
            file["text"] = "text"
    mutate(path, seed)
    code = ""
    try:
        with hdf5_file.open_file(path) as reader:
            for entry in reader:
                assert isinstance(entry, Entry)
                assert reader.read_bytes(entry.name).nbytes == entry.nbytes
    except PersistlibError as fault:
        code = fault.code
    assert code != Code.INTERNAL.identifier


SEEDS = st.integers(0, 1 << 32)


@settings(FEW, max_examples=25)
@given(made=CHECKPOINTS, seed=SEEDS)
def test_a_mutant_is_a_checkpoint_or_one_of_our_errors(
    made: MemoryCheckpoint, seed: int, tmp_path: Path
) -> None:
    survive(tmp_path / "x.h5", made, seed)


@pytest.mark.slow
@MANY
@given(made=CHECKPOINTS, seed=SEEDS)
def test_a_mutant_is_a_checkpoint_or_one_of_our_errors_many_times(
    made: MemoryCheckpoint, seed: int, tmp_path: Path
) -> None:
    survive(tmp_path / "x.h5", made, seed)
