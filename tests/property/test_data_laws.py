"""Laws of data: mutants of data sets' own files, drawn splits, split files, and standardization."""

from __future__ import annotations

import gzip
import resource
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_files import idx, pickle, pictures, python2_batch, records
from persistlib import table_rows
from persistlib.errors import PersistlibError
from persistlib.training.array_images import image_data
from persistlib.training.data_sources import survey_data
from persistlib.training.labelled import Asked
from persistlib.training.splits import Division, again, divide
from persistlib.training.tables import TableData

if TYPE_CHECKING:
    from collections.abc import Callable

    from persistlib.training.labelled import ImageData

MEMORY = 300 << 20  # above what the process has: no header may take it
TEXTS = ('"', ",", "\n", "\0", "nan", "1e999", "\r", "é", "9" * 400)
WORDS = (0, 1, 3, 8, 127, 128, 255, 256, 65535, 1 << 31, (1 << 32) - 1)


def seeds() -> dict[str, tuple[str, str, bytes]]:
    """Return, of each reader, its source, the file that is changed, and good bytes of it."""
    pixels, labels = pictures(3, 0, 3)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(3, -1)
    images = np.zeros((4, 5, 6), np.uint8)
    table = "x,y,kind\n" + "".join(f"{i / 3},{i * 7},{'ab'[i % 2]}\n" for i in range(6))
    return {
        "cifar": ("cifar10:", "data_batch_1.bin", records(pixels, labels)),
        "cifar, Python 2": ("cifar10:", "data_batch_1", python2_batch(pixels, labels)),
        "cifar, Python 3": (
            "cifar10:",
            "data_batch_1",
            pickle.dumps({b"labels": labels.tolist(), b"data": planes}, protocol=4),
        ),
        "idx": ("mnist:", "train-images-idx3-ubyte", idx(images)),
        "idx, packed": ("mnist:", "train-images-idx3-ubyte.gz", gzip.compress(idx(images))),
        "table": ("", "table.csv", table.encode()),
    }


SEEDS = seeds()


def asked(source: str) -> Asked:
    """Return how a model of ten digits, or of any classes, is judged."""
    return Asked(least=1, known=tuple("0123456789") if source else None)


@st.composite
def mutants(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw bytes that differ in some places: set, cut, repeated, or a number put in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        # What stands at the beginning says how the rest is read.
        near = draw(st.booleans())
        at = draw(st.integers(0, min(len(changed), 120) if near else len(changed)))
        kind = draw(st.sampled_from(("byte", "cut", "drop", "repeat", "number", "text")))
        if kind == "byte" and at < len(changed):
            changed[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del changed[at:]
        elif kind == "drop":
            del changed[at : at + draw(st.integers(1, 9))]
        elif kind == "repeat":
            changed[at:at] = changed[at : at + draw(st.integers(1, 40))]
        elif kind == "number":
            size = draw(st.sampled_from((1, 2, 4)))
            word = draw(st.sampled_from(WORDS)) & ((1 << (8 * size)) - 1)
            changed[at : at + size] = word.to_bytes(size, draw(st.sampled_from(("big", "little"))))
        elif kind == "text":
            changed[at:at] = draw(st.sampled_from(TEXTS)).encode()
    return bytes(changed)


@pytest.fixture
def bounded() -> Any:
    """Let no address space be taken but some."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("name", SEEDS)
@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(choose=st.data())
def test_mutants_end_in_data_or_in_one_of_our_errors(name: str, choose: st.DataObject) -> None:
    source, file, data = SEEDS[name]
    mutant = choose.draw(mutants(data))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / file
        path.write_bytes(mutant)
        if source == "mnist:":
            (Path(folder) / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
        try:
            found = survey_data(f"{source}{folder if source else path}", asked(source))
        except PersistlibError:
            return
        if found.faults:
            return
        read = found.require()
        assert len(read) == len(read.digests)
        if isinstance(read, TableData):
            assert np.isfinite(read.rows).all()
        assert read.digest == read.digest


def test_the_seeds_themselves_are_read() -> None:
    """Otherwise every mutant would be refused, and nothing tried."""
    for source, file, data in SEEDS.values():
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder) / file
            path.write_bytes(data)
            if source == "mnist:":
                labels = idx(np.zeros(4, np.uint8))
                (Path(folder) / "train-labels-idx1-ubyte").write_bytes(labels)
            found = survey_data(f"{source}{folder if source else path}", asked(source))
            assert len(found.require()) >= 3


@st.composite
def labelled(draw: st.DrawFn) -> ImageData:
    """Draw images, some of them copies, of classes with at least two images each."""
    classes = draw(st.integers(1, 4))
    labels = [*range(classes)] * 2
    labels += draw(st.lists(st.integers(0, classes - 1), max_size=30))
    values = draw(st.lists(st.integers(0, 40), min_size=len(labels), max_size=len(labels)))
    pixels = np.array(values, np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    return image_data("drawn", pixels, labels, [str(i) for i in range(classes)])


@settings(deadline=None)
@given(labelled(), st.floats(0.01, 0.99), st.integers(0, 1 << 40))
def test_a_split_lists_no_sample_twice_and_is_drawn_again_from_its_record(
    data: ImageData, fraction: float, seed: int
) -> None:
    split = divide(data, fraction, seed)
    assert sorted((*split.train, *split.valid)) == [*range(len(data))]
    for side in (split.train, split.valid):
        assert {data.labels[index] for index in side} == {*range(len(data.classes))}
    assert again(data, split.how) == split


@settings(deadline=None)
@given(labelled(), st.data())
def test_a_split_follows_from_the_samples_whatever_their_order(
    data: ImageData, choose: st.DataObject
) -> None:
    order = choose.draw(st.permutations(range(len(data))))
    turned = image_data(
        "turned",
        np.stack([data.images[index] for index in order]),
        [data.labels[index] for index in order],
        data.classes,
    )
    left, right = divide(data, 0.3, 5), divide(turned, 0.3, 5)

    def held(of: ImageData, indices: tuple[int, ...]) -> list[tuple[int, bytes]]:
        return sorted((of.labels[index], of.digests[index]) for index in indices)

    assert held(data, left.valid) == held(turned, right.valid)


@settings(deadline=None)
@given(labelled(), st.data())
def test_a_division_is_taken_as_it_is_and_known_by_its_parts(
    data: ImageData, choose: st.DataObject
) -> None:
    words = st.sampled_from(("train", "valid", "test", ""))
    draw: Callable[[], tuple[str, ...]] = lambda: tuple(  # noqa: E731 - drawn twice
        choose.draw(st.lists(words, min_size=len(data), max_size=len(data)))
    )
    first, second = (
        image_data("d", np.stack(data.images), data.labels, data.classes, Division(parts, "x"))
        for parts in (draw(), draw())
    )
    split = divide(first)
    chosen = [*split.train, *split.valid, *split.test]
    assert len(chosen) == len({*chosen}) <= len(data)
    assert again(first, split.how) == split
    other = divide(second)
    same = [[sorted(data.digests[i] for i in part) for part in s[:3]] for s in (split, other)]
    if same[0] != same[1]:
        assert again(second, split.how) is None


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=2, max_size=20))
def test_standardized_rows_are_the_same_by_name_and_by_order(rows: list[list[float]]) -> None:
    record = table_rows.TablePreprocessing.of(("a", "b", "c"), np.array(rows))
    assert table_rows.parse(record.to_dict()) == record
    prepared = table_rows.apply(rows, record)
    named = [{"c": c, "a": a, "b": b} for a, b, c in rows]
    assert np.array_equal(table_rows.apply(named, record), prepared)
    assert np.isfinite(prepared).all()
    assert np.abs(prepared.mean(axis=0)).max() < 1e-2
