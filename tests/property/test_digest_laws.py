"""The laws of `persistlib.digests` and of the identity of a checkpoint."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from persistlib import checkpoint, digests
from persistlib.checkpoint import Entry, MemoryCheckpoint, identity, tensor_rows
from persistlib.digests import TensorRow, digest, digest_all, encode_name, weights_identity
from persistlib.dtypes import DType
from persistlib.errors import FormatError
from property.strategies import checkpoints, dtypes, shapes, tensor_names

rows = st.builds(TensorRow, tensor_names, dtypes, shapes, st.binary(max_size=4).map(digest))
row_lists = st.lists(rows, unique_by=lambda row: row.name, max_size=6)


@given(st.binary(max_size=3000))
def test_a_digest_is_the_blake3_of_the_bytes_of_any_buffer(data: bytes) -> None:
    expected = blake3(data).hexdigest()
    array: Any = np.frombuffer(data, "u1")
    buffers: list[Any] = [data, bytearray(data), memoryview(data), array]
    assert {digest(buffer) for buffer in buffers} == {expected}


def test_a_digest_covers_the_bytes_of_a_table_in_order() -> None:
    table: Any = np.arange(12, dtype="<i4").reshape(3, 4)
    assert digest(table) == digest(table.tobytes())
    assert digest(table[:0]) == digest(b"")


@given(st.lists(st.binary(max_size=300), max_size=20))
@settings(max_examples=40)
def test_digesting_all_is_digesting_each(buffers: list[bytes]) -> None:
    assert digest_all(buffers) == [digest(buffer) for buffer in buffers]


def test_digesting_all_keeps_the_order_of_large_and_small() -> None:
    sizes = [3 << 20, 0, 7, 1 << 20, (1 << 20) - 1, 100_000, 5] * 3
    buffers = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    assert digest_all(buffers) == [blake3(buffer).hexdigest() for buffer in buffers]


def test_a_forked_child_digests_alone() -> None:
    """The thread pool of the parent is not there in the child."""
    data = bytes(range(256)) * (3 << 12)
    expected = digest(data)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, "".join({digest(data), *digest_all([data, data])}).encode())
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with open(reading) as pipe:
        assert pipe.read() == expected
    assert status == 0
    assert digests._Threads.count != 1


@given(row_lists, st.randoms())
def test_the_order_of_the_rows_does_not_matter(some: list[TensorRow], random: Any) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)
    assert weights_identity(some) == weights_identity(shuffled)


@given(row_lists, row_lists)
def test_different_weights_have_different_identities(
    some: list[TensorRow], others: list[TensorRow]
) -> None:
    assume(set(some) != set(others))
    assert weights_identity(some) != weights_identity(others)


@given(row_lists, rows)
def test_a_name_that_stands_twice_is_refused(some: list[TensorRow], twin: TensorRow) -> None:
    assume(some)
    twin = twin._replace(name=some[0].name)
    with pytest.raises(FormatError) as caught:
        weights_identity([*some, twin])
    assert caught.value.code == "PL504"


@given(checkpoints())
def test_ties_do_not_change_the_identity(tied: MemoryCheckpoint) -> None:
    copies = [
        Entry(alias, tied.tensors[name].dtype, tied.tensors[name].shape)
        for alias, name in tied.aliases.items()
    ]
    buffers = dict(tied.buffers) | {a: tied.buffers[n] for a, n in tied.aliases.items()}
    untied = MemoryCheckpoint((*copies, *tied.entries), buffers)
    assert identity(tied) == identity(untied)


@given(checkpoints(), st.data())
def test_any_changed_byte_changes_the_identity(some: MemoryCheckpoint, data: Any) -> None:
    full = [entry for entry in some.entries if entry.nbytes]
    assume(full)
    name = data.draw(st.sampled_from(full)).name
    before = identity(some)
    changed = bytearray(some.buffers[name])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    buffers = dict(some.buffers) | {name: memoryview(changed)}
    assert identity(MemoryCheckpoint(some.entries, buffers, some.aliases)) != before


@given(checkpoints())
def test_rows_do_not_depend_on_how_much_is_read_at_a_time(some: MemoryCheckpoint) -> None:
    expected = tensor_rows(some)
    before, checkpoint.WINDOW = checkpoint.WINDOW, 3
    try:
        assert tensor_rows(some) == expected
    finally:
        checkpoint.WINDOW = before
    assert {row.name for row in expected} == set(some.tensors) | set(some.aliases)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "\0"])
def test_names_that_no_row_can_hold_are_refused(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        encode_name(name)
    assert caught.value.code == "PL504"
    with pytest.raises(FormatError):
        weights_identity([TensorRow(name, DType.F32, (), digest(b""))])


@given(checkpoints())
def test_a_checkpoint_reads_as_arrays_of_its_dtypes_and_bytes(some: MemoryCheckpoint) -> None:
    with some:
        for entry in some:
            array = some.read(entry.name)
            assert array.shape == entry.shape
            assert array.dtype == entry.dtype.numpy
            assert array.tobytes() == some.read_bytes(entry.name)
            assert entry.nbytes == len(some.read_bytes(entry.name))


def test_a_checkpoint_that_contradicts_itself_is_refused() -> None:
    entry = Entry("a", DType.F32, (2,))
    data = {"a": memoryview(bytes(8))}
    cases: list[tuple[Any, ...]] = [
        ((entry, entry), data),
        ((entry,), data, {"a": "a"}),
        ((entry,), data, {"b": "c"}),
        ((entry,), {"a": memoryview(bytes(7))}),
    ]
    for arguments in cases:
        with pytest.raises(FormatError):
            MemoryCheckpoint(*arguments)
