"""What is known of names while a graph is walked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


class Scope:
    """Names and what is known of them; what is not known here may be known outside."""

    def __init__(self, outer: Scope | None = None) -> None:
        self.types: dict[str, onnx.TypeProto] = dict(outer.types) if outer else {}
        self.constants: dict[str, onnx.TensorProto] = dict(outer.constants) if outer else {}
        self.names: set[str] = set(outer.names) if outer else set()

    def add(self, name: str, kind: onnx.TypeProto | None) -> None:
        """Make a name known, with its type where that is known."""
        self.names.add(name)
        self.types.pop(name, None)
        self.constants.pop(name, None)
        if kind is not None and kind.WhichOneof("value"):
            self.types[name] = kind


def unshaped(kind: onnx.TypeProto) -> onnx.TypeProto:
    """Return a type without its shape: it may change from one turn to the next."""
    import onnx

    copy = onnx.TypeProto()
    copy.CopyFrom(kind)
    if copy.WhichOneof("value") == "tensor_type":
        copy.tensor_type.ClearField("shape")
    return copy
