"""Rows of tables and samples of graphs: the same in any order of columns, however they are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persistlib import table_rows
from persistlib.errors import PersistlibError
from persistlib.manifest.schema import TensorSpec
from persistlib.runtime import batching
from persistlib.training import tables
from persistlib.training.csv_files import read_table
from persistlib.training.data_sources import placed
from persistlib.training.labelled import Asked
from persistlib.training.row_files import read_rows

if TYPE_CHECKING:
    from pathlib import Path

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)
TABLES = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, st.sampled_from("xy")), min_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def written(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    lines = [columns, *(tuple(f"{row[name]}" for name in columns) for row in rows)]
    path.write_text("".join(f"{','.join(line)}\n" for line in lines), encoding="utf-8")
    return str(path)


@settings(deadline=None, max_examples=40)
@given(TABLES, st.permutations(["a", "b", "c", "kind"]))
def test_a_table_with_its_columns_in_another_order_gives_a_model_that_names_them_the_same_rows(
    folder: Path, given_rows: list[tuple[float, float, float, str]], order: list[str]
) -> None:
    columns = tuple[str, ...](("a", "b", "c", "kind"))
    rows: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in given_rows]
    asked = Asked(1, known=("x", "y"), task="classification", columns=("a", "b", "c"))
    plain = written(folder / "plain.csv", columns, rows)
    turned = written(folder / "turned.csv", tuple(order), rows)
    one, other = (tables.survey(path, asked).require() for path in (plain, turned))
    assert isinstance(one, tables.TableData)
    assert isinstance(other, tables.TableData)
    assert np.array_equal(one.rows, other.rows)
    assert (one.labels, one.digests, one.digest) == (other.labels, other.digests, other.digest)
    record = table_rows.TablePreprocessing.of(("a", "b", "c"), one.rows)
    read = read_rows(turned, record)
    named = [{name: row[name] for name in "abc"} for row in rows]
    assert np.array_equal(table_rows.apply(read.values, record), table_rows.apply(named, record))
    assert read.passed_over == ("kind",)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.sampled_from(["1", "2.5", "", "x", "1_0"]), min_size=2, max_size=2)))
def test_every_bad_cell_is_reported_with_its_line_and_column(
    folder: Path, cells: list[list[str]]
) -> None:
    path = folder / "cells.csv"
    path.write_text("a,b\n" + "".join(f"{','.join(row)}\n" for row in cells), encoding="utf-8")
    table, _ = read_table(str(path))
    _, faults = table.numbers(("a", "b"))
    bad = {
        f"{path}:{number}: {name}"
        for number, row in enumerate(cells, 2)
        for name, cell in zip("ab", row, strict=True)
        if cell not in {"1", "2.5"}
    }
    assert {found.location for found in faults} == bad
    assert len(faults) == len(bad)


@given(st.sampled_from(["", "cifar10:", "mnist:", "sklearn:", "emnist:"]), st.text(max_size=9))
def test_what_stands_before_a_path_and_the_path_are_the_text(before: str, rest: str) -> None:
    try:
        found = placed(before + rest)
    except PersistlibError:
        assert before == "sklearn:"
    else:
        assert "".join(found) == before + rest


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_joined_outputs_of_pieces_are_those_of_the_whole_whatever_the_size_of_a_piece(
    count: int, size: int, is_fixed: bool
) -> None:
    axis: int | str = size if is_fixed else "batch"
    specs = [
        TensorSpec(name="x", dtype="F32", shape=(axis, 3)),
        TensorSpec(name="scale", dtype="F32", shape=()),
    ]
    outputs = [TensorSpec(name="y", dtype="F32", shape=(axis, 3))]
    x = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
    inputs = {"x": x, "scale": np.float32(2)}
    pieces = batching.pieces(inputs, specs, None if is_fixed else size)
    parts = [
        batching.cut({"y": part["x"] * part["scale"]}, rows, pieces, outputs)
        for part, rows in pieces.parts()
    ]
    assert len(parts) == -(-count // size)
    assert np.array_equal(batching.joined(parts)["y"], x * 2)
