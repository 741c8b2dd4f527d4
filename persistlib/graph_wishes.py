"""What is asked of a graph beside the model that it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, TypedDict, cast

from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Collection

    from persistlib.files import StrPath


class GraphOptions(TypedDict, total=False):
    """The arguments of `persistlib.convert` that only a graph has.

    Attributes:
        opset: version of the default operator set.
        ir: version of the file format.
        target: the runtime that must be able to run it, such as "onnxruntime==1.17.3"; chooses
            `opset` and `ir` where these are not given.
        dynamic: free axes beside the batch, texts `INPUT:AXIS=NAME`; axes of one name have one
            extent. A first axis of the batch may be called otherwise, an axis called `batch` takes
            its place, and `none` leaves only the axes that the other texts name.
        quantize: "dynamic" or "static": weights and arithmetic in int8.
        calibration: a folder of images that static quantization takes its ranges from; by default
            the bundle's example inputs.
        pure: with dtype "bf16", whether `target` computes in it too, where its provider has a
            kernel; by default only the weights are stored so. Not proved where nothing here does.
    """

    opset: int | None
    ir: int | None
    target: str | None
    dynamic: Collection[str]
    quantize: str | None
    calibration: StrPath | None
    pure: bool


@dataclass(frozen=True, kw_only=True)
class GraphWishes:
    """`GraphOptions` with every field, and the precision.

    Attributes:
        opset: as `GraphOptions`.
        ir: as `GraphOptions`.
        target: as `GraphOptions`.
        dynamic: as `GraphOptions`.
        quantize: as `GraphOptions`.
        calibration: as `GraphOptions`.
        pure: as `GraphOptions`.
        dtype: what floating-point weights are cast to, by the name of `persistlib.dtypes`.
    """

    opset: int | None = None
    ir: int | None = None
    target: str | None = None
    dynamic: Collection[str] = field(default_factory=tuple)
    quantize: str | None = None
    calibration: StrPath | None = None
    pure: bool = False
    dtype: str | None = None

    @property
    def derives(self) -> bool:
        """Whether a graph is asked for that is derived from another."""
        return self != self.base

    @property
    def base(self) -> GraphWishes:
        """What is asked of the graph that others are derived from."""
        return replace(self, dtype=None, quantize=None, calibration=None, pure=False)

    def require_unsaid(self, where: str, *, but: Collection[str] = ()) -> None:
        """Raise for the first thing that is asked where nothing could be done about it.

        Args:
            where: what it means nothing for.
            but: the fields that may be said.

        Raises:
            UsageError: something else is asked.
        """
        for wish in fields(self):
            if wish.name not in but and getattr(self, wish.name):
                reason = f"means nothing for {where}"
                raise error(Code.USAGE, f"{wish.name}=", reason, "leave it out")


def graph_wishes(onnx: bool | GraphOptions) -> bool | GraphWishes:
    """Return what is asked of a graph: whether there is one, or what it is to be.

    Raises:
        UsageError: something is no option of a graph.
    """
    if isinstance(onnx, bool):
        return onnx
    known = GraphOptions.__annotations__
    given = cast("object", onnx)
    unknown = set(given) - set(known) if isinstance(given, dict) else {type(given).__name__}
    if unknown:
        reason = f"no option of a graph: {', '.join(sorted(map(str, unknown)))}"
        raise error(Code.USAGE, "onnx", reason, f"give True or a dict of {', '.join(known)}")
    return GraphWishes(**onnx)
