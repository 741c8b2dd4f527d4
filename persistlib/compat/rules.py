"""What kernels refuse when they are made: limits that stand in no table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

    from persistlib.compat.releases import Schema


def construction_faults(
    node: onnx.NodeProto, schema: Schema, types: Mapping[str, onnx.TypeProto], version: str
) -> Iterator[str]:
    """Yield why a release's kernel refuses a node although its types fit."""
    return iter(())
