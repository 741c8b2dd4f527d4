"""A comparison tells every difference, and tells it alike whatever the two are held in."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import persistlib
import saved_models
from persistlib import publish
from persistlib.checkpoint import Entry, MemoryCheckpoint
from persistlib.deviation import COUNT, Deviation, deviation
from persistlib.dtypes import DType
from persistlib.errors import Code, PersistlibError, UsageError
from persistlib.formats import FORMATS
from portrait import settle

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from persistlib.difference import ChangedTensor, Difference

FILES = {"safetensors": ".safetensors", "torch": ".pt", "hdf5": ".hdf5"}


def written(
    path: Path,
    tensors: Mapping[str, tuple[DType, Any]],
    aliases: Mapping[str, str] | None = None,
) -> Path:
    """Write tensors as a file of the format that the path's ending stands for."""
    arrays = {n: (d, np.asarray(a).astype(d.numpy)) for n, (d, a) in tensors.items()}
    entries = tuple(Entry(name, dtype, array.shape) for name, (dtype, array) in arrays.items())
    buffers = {name: dtype.pack(array) for name, (dtype, array) in arrays.items()}
    row = next(row for row in FORMATS.values() if path.suffix in row.suffixes)
    with publish.file(path, overwrite=True) as out:
        row.module().write_to(MemoryCheckpoint(entries, buffers, aliases or {}), out)
    return path


@pytest.fixture
def changed(tmp_path: Path) -> Any:
    """Return what compares two tensors of the same name."""

    def compare(
        before: tuple[DType, Any], after: tuple[DType, Any], suffix: str = ".safetensors"
    ) -> ChangedTensor:
        found = persistlib.diff(
            written(tmp_path / f"a{suffix}", {"x": before}),
            written(tmp_path / f"b{suffix}", {"x": after}),
        )
        assert not found.same
        assert (found.added, found.removed, found.identical) == ((), (), 0)
        return found.changed[0]

    return compare


def far(row: ChangedTensor) -> Deviation:
    assert row.deviation is not None
    return row.deviation


BASE = {"a.w": (DType.F32, [[1.0, 2], [3, 4]]), "b": (DType.I64, [1, 2, 3]), "c": (DType.F16, 7.0)}


@pytest.mark.parametrize("left", FILES.values())
@pytest.mark.parametrize("right", FILES.values())
def test_the_same_tensors_are_the_same_in_every_two_formats(
    left: str, right: str, tmp_path: Path
) -> None:
    first = written(tmp_path / f"a{left}", BASE, {"tied": "b"})
    second = written(tmp_path / f"b{right}", dict(reversed(BASE.items())), {"tied": "b"})
    found = persistlib.diff(first, second)
    assert found.same
    assert (found.identical, found.changed, found.ties) == (4, (), ())
    assert found.before.identity == found.after.identity
    assert (found.before.tensors, found.after.tensors) == (4, 4)


def test_what_one_side_alone_has_is_named(tmp_path: Path) -> None:
    first = written(tmp_path / "a.pt", BASE)
    rest = {name: BASE[name] for name in ("a.w", "b")}
    second = written(tmp_path / "b.safetensors", rest | {"d": (DType.BOOL, [True, False])})
    found = persistlib.diff(first, second)
    assert not found.same
    assert [(row.name, row.dtype, row.shape) for row in found.added] == [("d", "BOOL", (2,))]
    assert [(row.name, row.dtype, row.shape) for row in found.removed] == [("c", "F16", ())]
    assert (found.identical, found.changed) == (2, ())
    assert (found.before.format, found.after.format) == ("torch", "safetensors")


def test_a_changed_value_is_told_with_how_far_and_where(changed: Any) -> None:
    before = np.arange(12, dtype=np.float32).reshape(3, 4)
    after = before.copy()
    after[1, 2] += 0.5
    after[2, 3] -= 0.25
    row = changed((DType.F32, before), (DType.F32, after))
    x, y = before.ravel().astype(float), after.ravel().astype(float)
    found = far(row)
    assert (row.kind, found.differing, found.at) == ("values", 2, (1, 2))
    assert found.absolute == 0.5
    assert found.relative == 0.5 / 6.5
    assert found.change == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-14)
    assert found.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-14)
    assert (found.bits, found.nan, found.infinite) == (0, 0, 0)


@pytest.mark.parametrize("place", [0, COUNT - 1, COUNT, 3 * COUNT + 5])
def test_one_element_is_found_wherever_it_is(changed: Any, place: int) -> None:
    before = np.ones((4 * COUNT + 10) // 2 * 2, np.float32).reshape(2, -1)
    after = before.copy()
    after.flat[place] = 3
    found = far(changed((DType.F32, before), (DType.F32, after)))
    assert (found.differing, found.absolute) == (1, 2.0)
    assert found.at == divmod(place, before.shape[1])


def test_a_shape_is_no_number(changed: Any) -> None:
    row = changed((DType.F32, np.ones((2, 3))), (DType.F32, np.ones((3, 2))))
    assert (row.kind, row.deviation) == ("shape", None)
    assert (row.before.shape, row.after.shape) == ((2, 3), (3, 2))
    row = changed((DType.F32, np.ones(1)), (DType.F16, np.ones(())))
    assert (row.kind, row.before.dtype, row.after.dtype) == ("shape", "F32", "F16")


@pytest.mark.parametrize(
    ("before", "after", "value", "differing"),
    [
        (DType.F32, DType.BF16, 1.5, 0),
        (DType.F32, DType.BF16, 1.001, 1),
        (DType.F32, DType.F64, 1.001, 0),
        (DType.I32, DType.I64, -3, 0),
        (DType.I64, DType.F32, -3, 0),
        (DType.BOOL, DType.U8, 1, 0),
        (DType.F8_E4M3, DType.F8_E5M2, 1.5, 0),
        (DType.F32, DType.C64, 1.5, 0),
        (DType.F4, DType.F16, 1.5, 0),
    ],
)
def test_another_dtype_is_told_with_whether_a_value_changed(
    changed: Any, before: DType, after: DType, value: float, differing: int
) -> None:
    row = changed((before, [value, 0]), (after, [np.float32(value), 0]))
    assert (row.kind, row.before.dtype, row.after.dtype) == ("dtype", before.name, after.name)
    assert far(row).differing == differing
    assert (far(row).absolute > 0) == bool(differing)


def test_equal_values_of_other_bits_are_told_as_such(changed: Any) -> None:
    quiet, other = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    before = np.array([0.0, quiet, 1.0, np.inf], np.float32)
    after = np.array([-0.0, other, 1.0, np.inf], np.float32)
    assert before.view(np.uint32)[1] != after.view(np.uint32)[1]
    row = changed((DType.F32, before), (DType.F32, after))
    assert (row.kind, far(row)) == ("bits", Deviation(bits=2))


def test_what_is_no_number_is_counted_and_stays_out_of_the_distances(changed: Any) -> None:
    nan, inf = np.nan, np.inf
    before = np.array([nan, 1.0, nan, inf, inf, 5.0, 2.0])
    after = np.array([nan, nan, 1.0, -inf, 1.0, inf, 2.5])
    for dtype in (DType.F64, DType.F32, DType.F16):
        found = far(changed((dtype, before), (dtype, after)))
        assert (found.differing, found.nan, found.infinite) == (6, 2, 3)
        assert (found.absolute, found.at) == (0.5, (6,))
        assert (found.change, found.relative) == (0.25, 0.2)
    found = far(changed((DType.F32, [1.0, 2, 3]), (DType.F32, [1.0, nan, 3])))
    assert (found.differing, found.nan, found.absolute, found.at) == (1, 1, 0.0, (1,))


def test_integers_are_compared_as_integers(changed: Any) -> None:
    big = 2**62
    found = far(changed((DType.I64, [big, 0]), (DType.I64, [big + 1, 0])))
    assert (found.differing, found.absolute, found.at) == (1, 1, (0,))
    found = far(changed((DType.I64, [2**63 - 1]), (DType.I64, [-(2**63)])))
    assert (found.absolute, found.relative, found.cosine) == (2**64 - 1, 2.0, -1.0)
    found = far(changed((DType.U64, np.array([2**64 - 1], "u8")), (DType.U64, [2**63])))
    assert found.absolute == 2**63 - 1
    found = far(changed((DType.U64, np.array([2**63 + 1], "u8")), (DType.I64, [-1])))
    assert (found.differing, found.absolute) == (1, 2**63 + 2)
    found = far(changed((DType.I64, [2**53 + 1]), (DType.F64, [2.0**53])))
    assert (found.differing, found.absolute) == (1, 1.0)
    found = far(changed((DType.I64, [2**53, 1]), (DType.F64, [2.0**53, np.nan])))
    assert (found.differing, found.nan) == (1, 1)
    found = far(changed((DType.U8, [0, 200]), (DType.U8, [100, 0])))
    assert (found.differing, found.absolute) == (2, 200)


def test_other_numbers_are_compared_as_what_they_are(changed: Any) -> None:
    found = far(changed((DType.C64, [1 + 1j, 2]), (DType.C64, [1 - 2j, 2])))
    assert (found.differing, found.absolute, found.at) == (1, 3.0, (0,))
    assert found.cosine == pytest.approx((1 - 2 + 4) / np.sqrt(6 * 9))
    found = far(changed((DType.BOOL, [True, False]), (DType.BOOL, [True, True])))
    assert (found.differing, found.absolute, found.at) == (1, 1, (1,))


@pytest.mark.parametrize(
    ("dtype", "before", "after", "absolute"),
    [
        (DType.F4, [1, 2, 6], [1, -2, 6], 4.0),
        (DType.F6_E2M3, [1, 1, 1, 1, 1], [1, 1, 1, 1, 2], 1.0),
        (DType.I4, [1, -8, 7], [1, 7, 7], 15),
        (DType.U2, [3, 0, 0], [0, 0, 0], 3),
        (DType.C128, [1 + 1j], [1 + 2j], 1.0),
    ],
)
def test_what_few_formats_hold_is_compared_too(
    changed: Any, dtype: DType, before: Any, after: Any, absolute: float
) -> None:
    found = far(changed((dtype, before), (dtype, after), ".hdf5"))
    index = next(i for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1])
    assert (found.differing, found.absolute, found.at) == (1, absolute, (index,))


def test_a_change_from_zero_has_no_ratio(changed: Any) -> None:
    found = far(changed((DType.F32, [0.0, 0.0]), (DType.F32, [0.0, 2.0])))
    assert (found.change, found.cosine, found.relative, found.absolute) == (None, None, 1.0, 2.0)


def test_the_largest_doubles_are_compared_too(changed: Any) -> None:
    found = far(changed((DType.F64, [1.7e308, 1]), (DType.F64, [-1.7e308, 1])))
    assert (found.differing, found.relative, found.change) == (1, 2.0, None)
    found = far(changed((DType.F64, [5e-324, 1]), (DType.F64, [0.0, 1])))
    assert (found.differing, found.absolute, found.at) == (1, 5e-324, (0,))


def test_rows_stand_in_the_order_of_their_change(tmp_path: Path) -> None:
    ones = np.ones(4, np.float32)
    first = dict.fromkeys("abcdef", (DType.F32, ones))
    second = first | {
        "a": (DType.F32, ones * 1.1),
        "b": (DType.F32, ones * 2),
        "c": (DType.F32, np.append(ones[1:], np.float32(np.nan))),
        "d": (DType.F32, np.ones(5)),
        "e": (DType.F16, ones),
    }
    found = persistlib.diff(written(tmp_path / "a.pt", first), written(tmp_path / "b.pt", second))
    assert [row.name for row in found.changed] == ["d", "c", "b", "a", "e"]


def test_other_ties_are_told_and_the_weights_are_the_same(tmp_path: Path) -> None:
    first = written(tmp_path / "a.pt", {"x": BASE["a.w"]}, {"y": "x", "z": "x"})
    second = written(tmp_path / "b.pt", dict.fromkeys("xyz", BASE["a.w"]))
    found = persistlib.diff(first, second)
    assert (found.same, found.identical) == (True, 3)
    assert [(tie.names, tie.where) for tie in found.ties] == [(("x", "y", "z"), "before")]
    third = written(tmp_path / "c.pt", {"x": BASE["a.w"], "z": (DType.F32, [0.0])}, {"y": "x"})
    found = persistlib.diff(first, third)
    assert [row.name for row in found.changed] == ["z"]
    assert {tie.where for tie in found.ties} == {"before", "after"}


def test_names_are_chosen_and_given_as_the_first_has_them(tmp_path: Path) -> None:
    first = written(tmp_path / "a.pt", BASE)
    renamed = {f"module.{name}": tensor for name, tensor in BASE.items()}
    second = written(tmp_path / "b.pt", renamed | {"module.c": (DType.F16, 8.0)})
    assert len(persistlib.diff(first, second).added) == 3
    found = persistlib.diff(first, second, rename=["module.*=*"])
    assert ([row.name for row in found.changed], found.identical) == (["c"], 2)
    part = persistlib.diff(first, second, rename=["module.*=*"], only=["*", "!c"])
    assert (part.same, part.identical, part.before.tensors) == (True, 2, 2)
    with pytest.raises(PersistlibError, match="matches no tensor"):
        persistlib.diff(first, second, only=["nothing"])


def test_a_key_is_for_those_that_have_parts(tmp_path: Path) -> None:
    weights = {"w": torch.ones(3)}
    torch.save({"model": weights, "ema": {"w": torch.zeros(3)}, "epoch": 1}, tmp_path / "a.pt")
    plain = written(tmp_path / "b.safetensors", {"w": (DType.F32, np.zeros(3))})
    assert persistlib.diff(tmp_path / "a.pt", plain, key="ema").same
    assert not persistlib.diff(tmp_path / "a.pt", plain, key="model").same
    with pytest.raises(UsageError, match="means nothing for either"):
        persistlib.diff(plain, plain, key="ema")


@pytest.mark.parametrize("names", [("absent", "a.pt"), ("a.pt", "absent"), ("a.pt", "no.pt")])
def test_what_cannot_be_read_is_an_error(names: tuple[str, str], tmp_path: Path) -> None:
    written(tmp_path / "a.pt", BASE)
    (tmp_path / "no.pt").write_bytes(b"no weights at all, whatever the name says")
    with pytest.raises(PersistlibError) as caught:
        persistlib.diff(*(tmp_path / name for name in names))
    assert caught.value.code in {Code.SOURCE_MISSING.identifier, Code.FORMAT_UNKNOWN.identifier}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles: two saves of one model, and others that differ in one thing each."""
    folder = tmp_path_factory.mktemp("bundles")
    inputs = torch.linspace(-1, 1, 36).reshape(3, 2, 6)
    labels = ("cat", "dog", "owl", "fox")

    def save(name: str, *, metrics: float = 0.5, seed: int = 3, **settings: Any) -> None:
        torch.manual_seed(seed)
        model = settle(saved_models.Small(), inputs)
        if settings.pop("frozen", False):
            persistlib.freeze(model, ["*"])
        interface = {"labels": settings.pop("labels", labels)}
        training = {"metrics": {"top-1": metrics}}
        persistlib.save(
            model,
            folder / name,
            example_inputs=inputs,
            interface=interface,
            training=training,
            **settings,
        )

    save("one")
    save("again")
    save("other", seed=4)
    save("frozen", frozen=True)
    save("labels", labels=("cat", "owl", "dog", "fox"))
    save("metrics", metrics=0.75)
    save("licence", license="MIT")
    return folder


def rows(found: Difference) -> dict[str, tuple[Any, Any]]:
    return {row.field: (row.before, row.after) for row in found.manifest}


def test_two_saves_of_one_model_are_the_same(bundles: Path) -> None:
    found = persistlib.diff(bundles / "one", bundles / "again")
    assert found.same
    assert (found.manifest, found.changed) == ((), ())
    identity = persistlib.inspect(bundles / "one").manifest.weights.identity
    assert (found.before.identity, found.before.format) == (identity, "bundle")


def test_a_bundle_is_the_same_as_the_file_made_from_it(bundles: Path, tmp_path: Path) -> None:
    for suffix in FILES.values():
        made = tmp_path / f"model{suffix}"
        report = persistlib.convert(bundles / "one", made)
        for pair in ((bundles / "one", made), (made, bundles / "one")):
            found = persistlib.diff(*pair)
            assert found.same
            assert found.after.identity == report.identity


def test_of_two_bundles_what_matters_in_the_manifests_is_compared(bundles: Path) -> None:
    found = persistlib.diff(bundles / "one", bundles / "labels")
    assert not found.same
    assert (found.changed, found.before.identity) == ((), found.after.identity)
    assert rows(found) == {
        "interface.labels.1": ("dog", "owl"),
        "interface.labels.2": ("owl", "dog"),
    }
    assert rows(persistlib.diff(bundles / "one", bundles / "metrics")) == {
        "training.metrics.top-1": (0.5, 0.75)
    }
    assert rows(persistlib.diff(bundles / "one", bundles / "licence")) == {"license": (None, "MIT")}
    frozen = rows(persistlib.diff(bundles / "one", bundles / "frozen"))
    flags = {field for field in frozen if field.startswith("frozen ")}
    records = persistlib.inspect(bundles / "one").manifest.weights.tensors
    assert flags == {f"frozen {r.name}" for r in records if r.role == "parameter"}
    assert {frozen[flag] for flag in flags} == {(False, True)}


def test_other_weights_of_one_recipe_differ_in_the_weights_alone(bundles: Path) -> None:
    found = persistlib.diff(bundles / "one", bundles / "other")
    assert found.changed
    assert set(rows(found)) == {"state.unsaved_buffers.noise.blake3"}  # drawn like the weights


def test_other_recipes_are_told(bundles: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    inputs = torch.randn(3, 4)
    persistlib.save(saved_models.Derived(), tmp_path / "derived", example_inputs=inputs)
    fields = rows(persistlib.diff(bundles / "one", tmp_path / "derived"))
    assert "architecture.builder" in fields
    assert "architecture.structure" not in fields


def test_a_damaged_bundle_is_refused_and_not_compared(bundles: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bundles / "one", tmp_path / "bad")
    data = bytearray((tmp_path / "bad" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "bad" / "model.safetensors").write_bytes(data)
    with pytest.raises(PersistlibError) as caught:
        persistlib.diff(bundles / "one", tmp_path / "bad")
    assert caught.value.code == Code.TENSOR_DIGEST.identifier


def test_comparing_imports_no_torch(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a.pt", BASE), written(tmp_path / "b.hdf5", BASE)
    code = (
        f"import persistlib, sys; assert persistlib.diff({str(first)!r}, {str(second)!r}).same; "
        "assert not {'torch', 'onnx', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tensor_is_no_distance_from_itself() -> None:
    values = np.array([1.0, np.nan, np.inf, -0.0, 5e-324])
    assert deviation([values], [values.copy()], (5,)) == Deviation()
