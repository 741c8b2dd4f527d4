"""What the public functions ask of their arguments, said once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from persistlib.canonical import encode
from persistlib.errors import (
    Code,
    ExportError,
    FormatError,
    MissingExtra,
    SessionError,
    UsageError,
    error,
    missing_extra,
    warn,
)
from persistlib.installed import is_importable
from persistlib.manifest.schema import Section

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Literal, TypedDict

    import torch

    from persistlib.adaptation.wishes import Adapt
    from persistlib.files import StrPath
    from persistlib.patterns import Patterns
    from persistlib.training.loop import FinetuneResult
    from persistlib.training.tasks import TaskLike

    class Judging(TypedDict, total=False):
        """What `evaluate` takes besides model, data and runtime."""

        task: TaskLike
        held_out: bool
        part: str | None
        split: StrPath | None
        batch_size: int
        calls: int
        threads: int | None
        providers: Sequence[Any] | None
        require: str | None
        graph: str | None
        trust: Collection[str]
        allow_withdrawn: bool
        progress: Callable[[str, int, int], None] | None

    class Opening(TypedDict, total=False):
        """What `load` takes whatever it returns."""

        device: str | torch.device
        train: bool | None
        mmap: bool
        verify: bool
        strict: bool | Literal["report"]
        trust: Collection[str]
        adapt: Adapt | None
        base: StrPath | None
        allow_withdrawn: bool
        providers: Sequence[Any] | None
        require: str | None
        min_share: float | None
        threads: int | None
        timeout: float | None
        graph: str | None


_Section = TypeVar("_Section", bound=Section)
# What a graph may end with; all else is wrong without one too.
_GRAPH_FAULTS = (ExportError, FormatError, MissingExtra, SessionError, UsageError)


def section(kind: type[_Section], value: _Section | Mapping[str, Any] | None) -> _Section | None:
    """Return a manifest section given as itself or as plain JSON.

    Raises:
        UsageError: the value does not fit the section.
    """
    if value is None or isinstance(value, kind):
        return value
    try:
        return kind.model_validate_json(encode(value))
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in (kind.__name__.lower(), *first["loc"]))
        raise error(Code.USAGE, where, first["msg"], "see docs/manifest.md") from fault


def require_torch(purpose: str) -> None:
    """Refuse what needs torch where it is not installed.

    Raises:
        MissingExtra: it is not.
    """
    if not is_importable("torch"):
        raise missing_extra("torch", "torch", purpose)


def require_module(runtime: str, only: Patterns | None, *, adapted: bool) -> None:
    """Refuse to adapt what is no module.

    Raises:
        UsageError: tensors or a session were asked for.
    """
    if adapted and (only is not None or runtime != "torch"):
        reason = "only a module is adapted, not tensors or a session"
        raise error(Code.USAGE, "adapt", reason, "load it as a module")


def require_saving(model: object, *, name: object, license: object, shard_bytes: int) -> None:  # noqa: A002 - a promised name, and the field's word for it
    """Refuse arguments of `save` that cannot mean anything.

    Raises:
        UsageError: one of them is of the wrong kind.
    """
    from torch import nn

    if not isinstance(model, nn.Module):
        raise error(
            Code.USAGE,
            "model",
            f"a {type(model).__name__} is no torch.nn.Module",
            "save the module that the weights belong to",
        )
    for argument, value in (("name", name), ("license", license)):
        if not isinstance(value, (str, type(None))):
            raise error(Code.USAGE, argument, f"a {type(value).__name__}", "give a text or None")
    if shard_bytes < 1:
        raise error(Code.USAGE, "shard_bytes", f"{shard_bytes} bytes hold nothing", "give more")


def save_trained(
    save: Callable[..., Any], result: FinetuneResult, out: StrPath, *, onnx: Any
) -> None:
    """Save what took long to make: without the graph that was asked for, where there can be none.

    Args:
        save: as `persistlib.save`.
        result: the model, and what is said of it.
        out: the bundle.
        onnx: as `persistlib.save`.

    Raises:
        PersistlibError: saving failed, as `save`; of the graph there is a warning instead.
    """
    how = {
        "example_inputs": result.example_inputs,
        "interface": result.interface,
        "training": result.training,
    }
    try:
        save(result.model, out, onnx=onnx, **how)
    except _GRAPH_FAULTS as fault:
        if not onnx:
            raise
        save(result.model, out, onnx=False, **how)
        known = next(code for code in Code if code.identifier == fault.code)
        again = f"persistlib convert {out} MODEL.onnx tries again"
        is_untold = known is Code.EXPORT_DEGENERATE
        first = (
            "train for more epochs, or with a higher learning rate" if is_untold else fault.remedy
        )
        reason = f"{fault.reason}: the bundle was saved without its ONNX graph"
        warn(known, fault.location, reason, f"{first}; {again}" if first else again)
