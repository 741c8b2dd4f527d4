"""What kernels refuse when they are made, and what releases infer otherwise: found by trial.

No table of a release says these. Each row was tried on every release of the table: see
`docs/compatibility.md`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import onnx

_FIRST, _LAST = Version("0"), Version("9999")
_RECURRENT = ("RNN", "GRU", "LSTM")
_RESIZES = ("Resize", "Upsample")
_ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
_ACTIVATIONS = {
    *("affine", "relu", "leakyrelu", "thresholdedrelu", "tanh", "scaledtanh"),
    *("sigmoid", "hardsigmoid", "elu", "softsign", "softplus"),
}
_COORDINATES = {
    *("half_pixel", "asymmetric", "pytorch_half_pixel", "tf_half_pixel_for_nn"),
    *("align_corners", "tf_crop_and_resize", "half_pixel_symmetric"),
}
_LOCALE = "en_US.UTF-8"
_ALL_CATEGORIES = 0x1FBF  # LC_ALL_MASK of glibc


class Limit(NamedTuple):
    """What an attribute must be for a kernel to be made.

    Attributes:
        domain: of the operators.
        operators: that have the attribute.
        attribute: its name; where it does not stand, there is no limit.
        holds: whether a value is taken.
        since: the first release that refuses others.
        before: the first release that takes them again.
    """

    domain: str
    operators: tuple[str, ...]
    attribute: str
    holds: Callable[[Any], bool]
    since: Version = _FIRST
    before: Version = _LAST


def _one_of(*values: object) -> Callable[[Any], bool]:
    return set(values).__contains__


LIMITS = (
    Limit("", _RECURRENT, "layout", _one_of(0)),
    Limit("", _RECURRENT, "direction", _one_of("forward", "reverse", "bidirectional")),
    Limit("", _RECURRENT, "activations", lambda v: all(n.lower() in _ACTIVATIONS for n in v)),
    Limit("", ("GRU", "LSTM"), "hidden_size", lambda value: value > 0),
    Limit("", ("GRU", "LSTM"), "clip", lambda value: value > 0),
    Limit("", ("BitShift",), "direction", _one_of("LEFT", "RIGHT")),
    Limit("", ("DepthToSpace",), "mode", _one_of("DCR", "CRD")),
    Limit(
        "", ("GridSample",), "mode", _one_of("bilinear", "linear", "nearest", "bicubic", "cubic")
    ),
    Limit("", ("LpNormalization",), "p", _one_of(1, 2)),
    Limit("", ("LRN",), "size", lambda value: value % 2 == 1),
    Limit("", ("Pad",), "mode", _one_of("constant", "reflect", "edge", "wrap")),
    Limit("", _RESIZES, "mode", _one_of("nearest", "linear", "cubic")),
    Limit("", _RESIZES, "coordinate_transformation_mode", _COORDINATES.__contains__),
    Limit("", ("RoiAlign",), "mode", _one_of("avg", "max")),
    Limit("com.microsoft", _ATTENTION, "num_heads", lambda value: value > 0),
    Limit(
        "com.microsoft",
        ("FusedConv",),
        "activation",
        _one_of("", "Relu", "Tanh", "Sigmoid", "LeakyRelu", "Clip", "HardSigmoid"),
    ),
    Limit(
        "com.microsoft",
        ("MatMulNBits",),
        "bits",
        _one_of(4),
        Version("1.17"),
        Version("1.22"),
    ),
    Limit("com.microsoft", ("MatMulNBits",), "bits", _one_of(2, 4, 8), Version("1.22")),
)


_LIMITED: dict[tuple[str, str], list[Limit]] = {("", "DFT"): [], ("", "StringNormalizer"): []}
for _limit in LIMITS:
    for _operator in _limit.operators:
        _LIMITED.setdefault((_limit.domain, _operator), []).append(_limit)


# Attributes that an operator's schema lets out and its kernel does not.
NEEDED = {
    ("", "RNN"): ("hidden_size",),
    ("", "GRU"): ("hidden_size",),
    ("", "LSTM"): ("hidden_size",),
    ("", "ScaledTanh"): ("alpha", "beta"),
    ("", "ParametricSoftplus"): ("alpha", "beta"),
    ("", "ImageScaler"): ("scale", "bias"),
    ("ai.onnx.ml", "Scaler"): ("scale", "offset"),
    ("com.microsoft", "AttnLSTM"): ("hidden_size",),
}
for _name in NEEDED:
    _LIMITED.setdefault(_name, [])


class Change(NamedTuple):
    """A rule of inference that releases had, lost or gained.

    Attributes:
        operator: of the default domain.
        says: what the installed onnx says when it refuses.
        since: the first release that refuses.
    """

    operator: str
    says: str
    since: Version


CHANGES = (
    Change("DFT", "one-sided DFT requires real input", Version("1.25")),
    Change("Einsum", "Equation output contains a label missing", Version("1.32")),
)


def is_inferred_there(operator: str, message: str, release: Version) -> bool:
    """Return whether a release refuses a node with what the installed onnx says of it."""
    return all(
        release >= change.since
        for change in CHANGES
        if change.operator == operator and change.says in message
    )


def construction_faults(node: onnx.NodeProto, release: Version) -> Iterator[str]:
    """Yield why a release's kernel refuses a node although its types fit."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    if (domain, node.op_type) not in _LIMITED:
        return
    given = _values(node)
    for needed in NEEDED.get((domain, node.op_type), ()):
        if needed not in given:
            yield f"no kernel without {needed} on the CPU provider"
    for limit in _LIMITED[domain, node.op_type]:
        value = given.get(limit.attribute)
        if value is not None and limit.since <= release < limit.before and not limit.holds(value):
            yield f"no kernel for {limit.attribute} = {value!r} on the CPU provider"
    yield from _special_faults(node.op_type, given, release)


def _special_faults(op: str, given: Mapping[str, Any], release: Version) -> Iterator[str]:
    """Yield what depends on several attributes, or on the machine."""
    if op == "Resize" and given.get("antialias") and given.get("mode", "") in _NEAREST:
        yield "no kernel for antialias with the nearest element on the CPU provider"
    both = bool(given.get("inverse") and given.get("onesided"))
    if op == "DFT" and both and release < Version("1.25"):
        yield "a DFT cannot be both inverse and one-sided in this release"
    if op == "StringNormalizer" and _needs_locale(given, release):
        name = given.get("locale", _LOCALE)
        if not has_locale(name):
            yield f"the kernel needs the locale {name}, which this machine does not have"


_NEAREST = {"", "nearest"}


def _values(node: onnx.NodeProto) -> Mapping[str, Any]:
    from onnx import helper

    plain = {
        attribute.name: helper.get_attribute_value(attribute)
        for attribute in node.attribute
        if not attribute.ref_attr_name and not attribute.HasField("g")
    }
    return {name: _text(value) for name, value in plain.items()}


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_text(item) for item in value]
    return value


def _needs_locale(given: Mapping[str, Any], release: Version) -> bool:
    """Return whether the kernel of a release makes a locale for what the attributes ask."""
    changes = given.get("case_change_action", "NONE") != "NONE"
    ignores_case = not given.get("is_case_sensitive", 0)
    if release < Version("1.18"):
        return True
    if release < Version("1.27"):
        return ignores_case
    return changes or (ignores_case and bool(given.get("stopwords")))


@cache
def has_locale(name: str) -> bool:
    """Return whether this machine has a locale; nothing of the process is changed."""
    library = ctypes.CDLL(None)
    library.newlocale.restype = ctypes.c_void_p
    library.newlocale.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    library.freelocale.argtypes = (ctypes.c_void_p,)
    made = library.newlocale(_ALL_CATEGORIES, name.encode(), None)
    if made:
        library.freelocale(made)
    return bool(made)
