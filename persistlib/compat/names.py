"""Types of ONNX values and how operators' schemas spell them.

Law: `name_of(type_of(name)) == canonical(name)` for every name that a schema of ONNX holds.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx


@cache
def elements() -> Mapping[int, str]:
    """Return the schemas' names of element types by their number."""
    import onnx

    return {number: name.lower() for name, number in onnx.TensorProto.DataType.items() if number}


@cache
def _numbers() -> Mapping[str, int]:
    return {name: number for number, name in elements().items()}


def name_of(kind: onnx.TypeProto) -> str:
    """Return the name of a type; empty where it is not known whole."""
    match kind.WhichOneof("value"):
        case "tensor_type":
            element = elements().get(kind.tensor_type.elem_type)
            return f"tensor({element})" if element else ""
        case "sparse_tensor_type":
            element = elements().get(kind.sparse_tensor_type.elem_type)
            return f"sparse_tensor({element})" if element else ""
        case "sequence_type":
            return _around("seq", name_of(kind.sequence_type.elem_type))
        case "optional_type":
            return _around("optional", name_of(kind.optional_type.elem_type))
        case "map_type":
            key = elements().get(kind.map_type.key_type)
            value = name_of(kind.map_type.value_type)
            return f"map({key},{value})" if key and value else ""
        case _:
            return ""


def _around(word: str, inner: str) -> str:
    return f"{word}({inner})" if inner else ""


def type_of(name: str) -> onnx.TypeProto:
    """Return the type of a name, of unknown shape.

    Raises:
        ValueError: no schema spells a type so.
    """
    import onnx

    kind = onnx.TypeProto()
    if (found := re.fullmatch(r"(\w+)\((.*)\)", name)) is None:
        raise ValueError(name)
    word, inner = found.groups()
    if word == "tensor":
        kind.tensor_type.elem_type = _numbers()[inner]
    elif word == "sparse_tensor":
        kind.sparse_tensor_type.elem_type = _numbers()[inner]
    elif word == "seq":
        kind.sequence_type.elem_type.CopyFrom(type_of(inner))
    elif word == "optional":
        kind.optional_type.elem_type.CopyFrom(type_of(inner))
    elif word == "map":
        key, _, value = inner.partition(",")
        kind.map_type.key_type = _numbers()[key.strip()]
        value = value.strip()
        kind.map_type.value_type.CopyFrom(type_of(value if "(" in value else f"tensor({value})"))
    else:
        raise ValueError(name)
    return kind


@cache
def canonical(name: str) -> str:
    """Return the one spelling of a type's name: schemas and kernels write maps in several ways."""
    return name_of(type_of(name)) if "map(" in name else name
