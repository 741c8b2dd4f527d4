"""The schema of the manifest, and the only place that says what a field may hold.

`docs/manifest.md` explains every field and publishes the JSON Schema made from these classes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, PrivateAttr

from persistlib.dtypes import DType
from persistlib.files import name_fault
from persistlib.manifest.version import VERSION


def _dtype_name(name: str) -> str:
    if name not in DType.__members__:
        raise ValueError(f"unknown dtype {name!r}")
    return name


def _file_name(name: str) -> str:
    if fault := name_fault(name):
        raise ValueError(fault)
    return name


def _tensor_name(name: str) -> str:
    if "\0" in name:
        raise ValueError("a tensor name holds NUL")
    return name


def _reverse_dns(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]+(\.[A-Za-z0-9_-]+)+", name):
        raise ValueError("not a reverse-DNS name such as org.example.team")
    return name


Identity = Annotated[str, Field(pattern=r"^blake3:[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
DTypeName = Annotated[
    str, AfterValidator(_dtype_name), Field(json_schema_extra={"enum": list(DType.__members__)})
]
FileName = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_file_name)]
TensorName = Annotated[str, AfterValidator(_tensor_name)]
Builder = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")]
Count = Annotated[int, Field(ge=0)]
Shape = tuple[Count, ...]
Timestamp = Annotated[str, Field(pattern=r"^[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z$")]
Version = Annotated[str, Field(pattern=r"^[0-9]{1,4}\.[0-9]{1,4}$")]
Arguments = dict[str, JsonValue]


class Section(BaseModel):
    """A part of the manifest: strict, frozen, and without room for unknown fields."""

    # Built when first used: most runs read a manifest and never make a section by itself.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", defer_build=True)


class Writer(Section):
    """Which program wrote the manifest.

    Attributes:
        name: the program's name.
        version: its version.
    """

    name: str
    version: str


class Status(Section):
    """Whether the model may be used.

    Attributes:
        state: active, superseded-by or withdrawn.
        reason: why, for people.
        date: since when, ISO 8601 date.
        successor: the bundle_id of what replaces it.
    """

    state: Literal["active", "superseded-by", "withdrawn"] = "active"
    reason: str | None = None
    date: str | None = None
    successor: Identity | None = None


class Edit(Section):
    """One change to what the builder builds, carried out in order.

    Attributes:
        op: replace, insert, remove or share a submodule; set a plain attribute; parametrize.
        path: dotted path of the submodule; of the owner of an attribute (empty: the root).
        builder: what builds the submodule or parametrizes, for replace, insert and parametrize.
        arguments: its arguments.
        attribute: the attribute's name, for set, parametrize, and for removing an attribute.
        value: the attribute's value, for set; the path of the shared module, for share.
        index: place among its siblings, for insert; null puts it last.
    """

    op: Literal["replace", "insert", "remove", "share", "set", "parametrize"]
    path: str
    builder: Builder | None = None
    arguments: Arguments = {}
    attribute: str | None = None
    value: JsonValue = None
    index: Count | None = None


class Architecture(Section):
    """How to rebuild the module, without its values.

    Attributes:
        kind: "builder", the only kind of schema 1.0.
        builder: `package.module:callable` from the allow-list or a trusted module.
        arguments: keyword arguments; values that JSON lacks are tagged (docs/manifest.md).
        edits: changes after building, in order.
        structure: digest of paths, classes, configuration and tensor rows.
        source: digest of the builder's source text, when it could be read.
    """

    kind: Literal["builder"] = "builder"
    builder: Builder
    arguments: Arguments = {}
    edits: tuple[Edit, ...] = ()
    structure: Identity
    source: Identity | None = None


class TensorSpec(Section):
    """An input or output.

    Attributes:
        name: of the forward argument, or of the output.
        dtype: element type.
        shape: extents; a free one is given by a name, such as batch.
    """

    name: str
    dtype: DTypeName
    shape: tuple[Count | str, ...]


class Interface(Section):
    """What goes in, what comes out, and what it means.

    Attributes:
        inputs: the forward arguments in order.
        outputs: the outputs in order.
        preprocessing: how an image becomes the first input (docs/manifest.md).
        labels: class names in the order of the output.
    """

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    preprocessing: dict[str, JsonValue] | None = None
    labels: tuple[str, ...] | None = None


class FileEntry(Section):
    """A file of the bundle.

    Attributes:
        path: its name inside the folder.
        size: bytes.
        header_blake3: of a safetensors file's length and header; its tensors cover the rest.
        blake3: of all bytes, where header_blake3 is not given.
        sha256: of all bytes, when asked for.
    """

    path: FileName
    size: Count
    header_blake3: Digest | None = None
    blake3: Digest | None = None
    sha256: Digest | None = None


class TensorRecord(Section):
    """A stored tensor.

    Attributes:
        name: as in the state_dict.
        dtype: element type.
        shape: extents.
        blake3: digest of its little-endian row-major bytes.
        file: index into the section's files; null for a tensor that the base holds.
        role: parameter or buffer.
        frozen: a parameter that does not train (`requires_grad` false).
    """

    name: TensorName
    dtype: DTypeName
    shape: Shape
    blake3: Digest
    file: Count | None
    role: Literal["parameter", "buffer"]
    frozen: bool = False


class Base(Section):
    """The whole bundle that a delta stands on; it has every tensor that the delta does not store.

    Attributes:
        identity: its weights identity.
        hint: the name of a folder beside this one where it may be found.
    """

    identity: Identity
    hint: FileName | None = None


class Weights(Section):
    """The state_dict: where its tensors are and what they are.

    Attributes:
        identity: the weights identity, ties expanded.
        base: the bundle that holds the tensors not stored here.
        index: the shard index file, when there are shards.
        files: the safetensors files.
        tensors: in the order of the state_dict.
        aliases: second names of tied tensors, each to the smallest name.
    """

    identity: Identity
    base: Base | None = None
    index: FileEntry | None = None
    files: tuple[FileEntry, ...]
    tensors: tuple[TensorRecord, ...]
    aliases: dict[TensorName, TensorName] = {}


class UnsavedTensor(Section):
    """A tensor that is no part of the state_dict.

    Attributes:
        dtype: element type.
        shape: extents.
        blake3: digest of its bytes.
        file: index into the state's files, or null when building the module makes it.
    """

    dtype: DTypeName
    shape: Shape
    blake3: Digest
    file: Count | None = None


class State(Section):
    """What the module remembers besides its state_dict.

    Attributes:
        training: paths of modules whose training flag differs from their parent's, the root's
            parent being in evaluation.
        frozen_modules_in_eval: paths of modules kept in evaluation by `persistlib.freeze`.
        unsaved_buffers: non-persistent buffers and tensor attributes by dotted name.
        files: safetensors files holding those that building does not make.
        strides: of tensors that are dense but not row-major in memory, such as channels-last ones.
    """

    training: tuple[str, ...] = ()
    frozen_modules_in_eval: tuple[str, ...] = ()
    unsaved_buffers: dict[TensorName, UnsavedTensor] = {}
    files: tuple[FileEntry, ...] = ()
    strides: dict[TensorName, tuple[Count, ...]] = {}


class Data(Section):
    """What it was trained on.

    Attributes:
        name: the data set as it was asked for.
        digest: of the samples and their labels, in order.
        classes: how many.
        sizes: items in each split.
        split: how the split was drawn.
    """

    name: str = ""
    digest: str = ""
    classes: Count | None = None
    sizes: dict[str, Count] = {}
    split: dict[str, JsonValue] = {}


class Training(Section):
    """How the weights came about.

    Attributes:
        strategy: what was trained, how and on what precision.
        seed: of every random choice.
        epochs: how many were trained.
        optimizer: its name and settings.
        data: what it was trained on.
        metrics: of the weights that were saved, on the held-out split.
        history: a record for each epoch.
    """

    strategy: dict[str, JsonValue] = {}
    seed: int | None = None
    epochs: Count | None = None
    optimizer: dict[str, JsonValue] = {}
    data: Data | None = None
    metrics: dict[str, float] = {}
    history: tuple[dict[str, JsonValue], ...] = ()


class Environment(Section):
    """Where it was saved.

    Attributes:
        python: version.
        platform: operating system and machine.
        packages: versions of the packages that matter.
        accelerator: the device it was trained or saved on, when not the CPU.
    """

    python: str
    platform: str
    packages: dict[str, str] = {}
    accelerator: str | None = None


class Graph(Section):
    """An ONNX graph of the model.

    Attributes:
        files: the model first, then its external data.
        ir_version: as read back from the file.
        opsets: domain to version, as read back from the file.
        weights_identity: of the weights it was made from.
        precision: dtype that it computes in.
        derived_from: the blake3 of the graph file it was derived from.
        proof: how its outputs were compared (docs/manifest.md).
    """

    files: Annotated[tuple[FileEntry, ...], Field(min_length=1)]
    ir_version: Count
    opsets: dict[str, Count]
    weights_identity: Identity
    precision: str = "F32"
    derived_from: str | None = None
    proof: dict[str, JsonValue] = {}


class Examples(Section):
    """Stored inputs and outputs, and how closely outputs must be met.

    Attributes:
        files: one safetensors file of tensors named `input.NAME` and `output.NAME`.
        tolerance: relative to the output's scale, by runtime.
    """

    files: Annotated[tuple[FileEntry, ...], Field(min_length=1)]
    tolerance: dict[str, float] = {}


class Lineage(Section):
    """One ancestor.

    Attributes:
        relation: such as fine-tuned-from.
        id: its bundle or weights identity.
        source: where it came from, for people.
        license: SPDX identifier.
    """

    relation: str
    id: Identity | None = None
    source: str = ""
    license: str | None = None


class Manifest(Section):
    """A bundle's manifest, schema 1.0.

    Attributes:
        manifest_version: major.minor of the schema.
        writer: which program wrote it.
        bundle_id: what the model is; see "Two digests".
        digest: of every other byte of the manifest; see "Two digests".
        created: when, in UTC.
        name: for people.
        license: SPDX identifier of the weights' licence.
        status: whether the model may be used.
        architecture: how to rebuild the module.
        interface: what goes in, what comes out, and what it means.
        weights: where the tensors are and what they are.
        state: what the module remembers besides its state_dict.
        training: how the weights came about.
        evaluations: results of `evaluate`, oldest first.
        resume: what an interrupted training goes on from.
        environment: where it was saved.
        requires: version ranges by package, `python` among them, without which it cannot be used.
        graphs: ONNX graphs of the model.
        examples: stored inputs and outputs.
        lineage: ancestors, nearest first.
        documents: files for people, outside the verified set; nothing is read from them.
        extensions: others' fields, by reverse-DNS name; always waived.
    """

    manifest_version: Version = VERSION
    writer: Writer
    bundle_id: Identity
    digest: Identity
    created: Timestamp
    name: str | None = None
    license: str | None = None
    status: Status = Status()
    architecture: Architecture
    interface: Interface = Interface()
    weights: Weights
    state: State = State()
    training: Training | None = None
    evaluations: tuple[dict[str, JsonValue], ...] = ()
    resume: dict[str, JsonValue] | None = None
    environment: Environment
    requires: dict[str, str] = {}
    graphs: tuple[Graph, ...] = ()
    examples: Examples | None = None
    lineage: tuple[Lineage, ...] = ()
    documents: tuple[FileName, ...] = ()
    extensions: dict[Annotated[str, AfterValidator(_reverse_dns)], JsonValue] = {}

    _unknown: tuple[tuple[tuple[str | int, ...], Any], ...] = PrivateAttr(())
    _upgraded_from: str | None = PrivateAttr(None)

    def read_from(
        self, unknown: tuple[tuple[tuple[str | int, ...], Any], ...], upgraded_from: str | None
    ) -> Manifest:
        """Return the manifest with what reading learned beside the schema's fields."""
        copy = self.model_copy()
        copy._unknown = unknown  # noqa: SLF001 - a private attribute of this class
        copy._upgraded_from = upgraded_from  # noqa: SLF001 - as above
        return copy

    @property
    def unknown(self) -> tuple[tuple[tuple[str | int, ...], Any], ...]:
        """Fields of a newer minor version that said they need not be understood."""
        return self._unknown

    @property
    def upgraded_from(self) -> str | None:
        """The version the file was written in, when it was older than this release's."""
        return self._upgraded_from

    def verified_files(self) -> tuple[FileEntry, ...]:
        """Every file that the manifest vouches for, in a fixed order; documents are not among."""
        index = (self.weights.index,) if self.weights.index else ()
        graphs = tuple(entry for graph in self.graphs for entry in graph.files)
        examples = self.examples.files if self.examples else ()
        return (*index, *self.weights.files, *self.state.files, *graphs, *examples)
