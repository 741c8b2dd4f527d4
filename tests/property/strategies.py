"""What the laws are tried on: checkpoints and manifests as odd as they may be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from persistlib.checkpoint import Entry, MemoryCheckpoint
from persistlib.digests import digest
from persistlib.dtypes import DType, of_torch
from persistlib.formats import FORMATS
from persistlib.manifest import document
from persistlib.manifest.schema import (
    Architecture,
    Base,
    Edit,
    Environment,
    FileEntry,
    Graph,
    Interface,
    Lineage,
    Manifest,
    State,
    TensorRecord,
    TensorSpec,
    Training,
    UnsavedTensor,
    Weights,
    Writer,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# Unpaired surrogates have no UTF-8, and NUL is no part of a tensor's name.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# Twins under case folding and Unicode forms, what turns text around, and what means something.
odd_names = st.sampled_from(
    [
        *("", ".", "a.b", "\uff21", "\u00e9", "e\u0301", "\u00df", "SS", "\u202eabc", "a\nb"),
        *(" ", "0", "__metadata__", "\U0001d54f"),
    ]
)
tensor_names = st.one_of(
    odd_names,
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
)
# Those that a bundle keeps; a format's own set is `held_by`.
dtypes = st.sampled_from([dtype for dtype in DType if of_torch(dtype.value.torch)])
# Scalars, empty ones, and extents that no vector width divides.
shapes = st.one_of(
    st.just(()),
    st.lists(st.sampled_from([0, 1, 2, 3, 5, 7, 11, 13]), min_size=1, max_size=4)
    .map(tuple)
    .filter(lambda shape: DType.C64.nbytes(shape) <= 1 << 14),
)


@st.composite
def tensor_bytes(draw: st.DrawFn, dtype: DType, shape: tuple[int, ...]) -> memoryview:
    """Bytes of a tensor, NaN payloads and infinities among them."""
    size = dtype.nbytes(shape)
    seed = draw(st.binary(max_size=32)) or b"\0"
    data = bytearray((seed * (size // len(seed) + 1))[:size])
    if dtype is DType.BOOL:
        data = bytearray(byte & 1 for byte in data)
    if data and (used := math.prod(shape) * dtype.value.bits % 8):
        data[-1] &= (1 << used) - 1
    return memoryview(data)


def held_by(*formats: str) -> st.SearchStrategy[DType]:
    """Dtypes that all these formats can hold."""
    return st.sampled_from([d for d in DType if all(FORMATS[name].holds(d) for name in formats)])


@st.composite
def checkpoints(
    draw: st.DrawFn,
    names: st.SearchStrategy[str] = tensor_names,
    of: st.SearchStrategy[DType] = dtypes,
    max_size: int = 6,
) -> MemoryCheckpoint:
    """Checkpoints with odd names, every dtype, scalars, empty tensors, aliases and metadata."""
    unique = draw(st.lists(names, unique=True, max_size=max_size))
    count = draw(st.integers(0, len(unique)))
    entries = tuple(Entry(name, draw(of), draw(shapes)) for name in unique[:count])
    buffers = {e.name: draw(tensor_bytes(e.dtype, e.shape)) for e in entries}
    aliases = {alias: draw(st.sampled_from(unique[:count])) for alias in unique[count:] if entries}
    metadata = draw(st.dictionaries(texts, texts, max_size=3))
    return MemoryCheckpoint(entries, buffers, aliases, metadata)


# -- JSON --------------------------------------------------------------------------------------

integers = st.integers(-(1 << 63), 1 << 63)
floats = st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: str(x) != "-0.0")
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | integers | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(texts, json_values, max_size=4)

# -- manifests ---------------------------------------------------------------------------------

digests = st.binary(min_size=1, max_size=4).map(digest)
identities = digests.map("blake3:{}".format)
builders = st.sampled_from(["torchvision.models:resnet18", "torch.nn:Linear", "a.b_c:D"])
_words = st.sampled_from(["a", "b.c", "fc", "layer1.0.conv", "ключ"])


@st.composite
def file_names(draw: st.DrawFn, count: int) -> Sequence[str]:
    """Plain names that can stand in one folder."""
    stems = st.sampled_from(["model", "model-00001-of-00002", "examples", "состояние", "x y"])
    ends = st.sampled_from([".safetensors", ".onnx", ".bin", ""])
    name = st.tuples(stems, ends).map("".join)
    return draw(st.lists(name, min_size=count, max_size=count, unique_by=str.casefold))


@st.composite
def _tensors(draw: st.DrawFn, files: int) -> tuple[tuple[TensorRecord, ...], dict[str, str]]:
    unique = draw(st.lists(tensor_names, unique=True, max_size=5 if files else 0))
    count = draw(st.integers(min(1, len(unique)), len(unique)))
    records = tuple(
        TensorRecord(
            name=name,
            dtype=draw(dtypes).name,
            shape=draw(shapes),
            blake3=draw(digests),
            file=draw(st.none() | st.integers(0, files - 1)),
            role=draw(st.sampled_from(["parameter", "buffer"])),
            frozen=draw(st.booleans()),
        )
        for name in unique[:count]
    )
    return records, {alias: draw(st.sampled_from(unique[:count])) for alias in unique[count:]}


def _entry(path: str, *, header: bool, size: int = 1 << 40) -> FileEntry:
    blake3 = digest(path.encode())
    if header:
        return FileEntry(path=path, size=size, header_blake3=blake3)
    return FileEntry(path=path, size=size, blake3=blake3, sha256=blake3)


@st.composite
def _architectures(draw: st.DrawFn) -> Architecture:
    edits = [
        Edit(op="replace", path="fc", builder=draw(builders), arguments=draw(json_objects)),
        Edit(op="set", path="", attribute="flag", value=draw(json_values)),
        Edit(op="remove", path="head"),
    ]
    return Architecture(
        builder=draw(builders),
        arguments=draw(json_objects),
        edits=tuple(draw(st.lists(st.sampled_from(edits), max_size=3))),
        structure=draw(identities),
        source=draw(st.none() | identities),
    )


@st.composite
def _states(draw: st.DrawFn, file: str, taken: set[str]) -> State:
    names = draw(st.lists(_words.filter(lambda name: name not in taken), unique=True, max_size=2))
    stored = draw(st.booleans())
    return State(
        training=tuple(draw(st.lists(_words, max_size=2))),
        unsaved_buffers={
            name: UnsavedTensor(
                dtype="F32", shape=(2,), blake3=draw(digests), file=0 if stored else None
            )
            for name in names
        },
        files=(_entry(file, header=True),) if stored else (),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Sealed manifests with every section here and there, the strangest values included."""
    paths = draw(file_names(4))
    count = draw(st.integers(0, 2))
    records, aliases = draw(_tensors(count))
    base = Base(identity=draw(identities), hint=draw(st.none() | st.sampled_from(["1", "эпоха"])))
    weights = Weights(
        identity=document.UNSEALED,
        base=base if any(record.file is None for record in records) else None,
        files=tuple(_entry(path, header=True) for path in paths[:count]),
        tensors=records,
        aliases=aliases,
    )
    weights = weights.model_copy(update={"identity": document.identity_of_weights(weights)})
    taken = {record.name for record in records} | set(aliases)
    graph = Graph(
        files=(_entry(paths[2], header=False),),
        ir_version=10,
        opsets={"": draw(st.integers(1, 30))},
        weights_identity=weights.identity,
        proof=draw(json_objects),
    )
    spec = TensorSpec(name="input", dtype="F32", shape=("batch", 3, draw(st.integers(0, 1 << 40))))
    return document.seal(
        Manifest(
            writer=Writer(name="persistlib", version=draw(texts)),
            bundle_id=document.UNSEALED,
            digest=document.UNSEALED,
            created="2026-11-22T00:00:00Z",
            name=draw(st.none() | texts),
            architecture=draw(_architectures()),
            interface=Interface(
                inputs=draw(st.sampled_from([(), (spec,)])),
                labels=draw(st.none() | st.lists(texts, max_size=3).map(tuple)),
                preprocessing=draw(st.none() | json_objects),
            ),
            weights=weights,
            state=draw(_states(paths[3], taken)),
            training=draw(
                st.none()
                | st.builds(
                    Training,
                    strategy=json_objects,
                    seed=integers,
                    metrics=st.dictionaries(texts, floats, max_size=2),
                    history=st.lists(json_objects, max_size=2).map(tuple),
                )
            ),
            evaluations=tuple(draw(st.lists(json_objects, max_size=2))),
            environment=Environment(python="3.11.7", platform=draw(texts)),
            graphs=draw(st.sampled_from([(), (graph,)])),
            lineage=draw(st.sampled_from([(), (Lineage(relation="fine-tuned-from"),)])),
            documents=draw(st.sampled_from([(), ("README.md",)])),
            extensions=draw(st.dictionaries(st.just("org.example.team"), json_values, max_size=1)),
        )
    )
