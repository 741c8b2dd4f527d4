"""Weights that a builder fetches itself: torchvision's, by name.

Law: what is wrong is said by its cause. A name that the builder does not have is told with those
that it has; weights that are out of reach, with the address where they lie.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import sys
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError

from persistlib.architecture import trusted
from persistlib.architecture.encoding import decode
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Collection, Generator

    from torch import nn

    from persistlib.architecture.recipe import Recipe
    from persistlib.errors import PersistlibError

# What torch.hub raises of a file that is not the one it asked for.
_DAMAGED = "invalid hash value"
_ZOO = "torchvision."


def fetch(recipe: Recipe, weights: object, trust: Collection[str]) -> nn.Module:
    """Return what a builder builds with pretrained weights, its edits not yet carried out.

    Raises:
        ArchitectureError: the builder takes no such weights, or fetching them failed.
    """
    function = trusted.resolve_builder(recipe.builder, trust)
    try:
        with _quiet():
            module: nn.Module = function(weights=weights, **decode(recipe.arguments, trust))
    except Exception as fault:
        raise _refusal(recipe.builder, function, weights, fault) from fault
    return module


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep the lines of torch.hub, and its bar, from stdout, and from all that is no terminal."""
    is_watched = sys.stderr is not None and sys.stderr.isatty()
    shown = sys.stderr if is_watched else io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        yield


def _refusal(builder: str, function: Any, weights: object, fault: Exception) -> PersistlibError:
    """Return the error that says why a builder did not give these weights."""
    known = _known(builder, function)
    member = _member(known, weights)
    if isinstance(weights, str) and known is not None and member is None:
        return _unknown(builder, weights, [*known.__members__])
    is_damaged = isinstance(fault, RuntimeError) and _DAMAGED in str(fault)
    if is_damaged or isinstance(fault, (OSError, HTTPException)):
        address = getattr(member, "url", None)
        what = f"fetching {address or f'weights={weights!r}'} failed"
        name = getattr(weights, "name", weights)
        remedy = f"fetch it where there is a network, and name the file in place of {name!r}"
        return error(Code.WEIGHTS_UNREACHABLE, builder, f"{what}: {_cause(fault)}", remedy)
    return error(
        Code.BUILDER_FAILED,
        builder,
        f"with weights={weights!r}: {type(fault).__name__}: {fault}",
        "name weights that the builder knows, or give the path of a checkpoint file",
    )


def _unknown(builder: str, weights: str, names: list[str]) -> PersistlibError:
    near = difflib.get_close_matches(weights.upper(), names, n=1)
    listed = f"name one of {', '.join(names)}, or the path of a checkpoint file"
    remedy = f"did you mean {near[0]}? Else {listed}" if near else listed
    return error(Code.BUILDER_FAILED, builder, f"has no weights {weights!r}", remedy)


def _known(builder: str, function: Any) -> Any:
    """Return the enumeration of the weights that one of torchvision's builders has, or None."""
    if not builder.startswith(_ZOO):
        return None
    from torchvision.models import get_model_weights

    with contextlib.suppress(ValueError):  # a builder without weights
        return get_model_weights(function)
    return None


def _member(known: Any, weights: object) -> Any:
    """Return which of the known weights is meant, or None."""
    if known is None:
        return None
    name = str(getattr(weights, "name", weights)).removeprefix(f"{known.__name__}.")
    return known.__members__.get(name)


def _cause(fault: Exception) -> str:
    """Return what went wrong in words: of the socket's fault, where a URLError holds one."""
    if isinstance(fault, URLError) and not isinstance(fault, HTTPError):
        fault = fault.reason if isinstance(fault.reason, OSError) else OSError(fault.reason)
    if isinstance(fault, HTTPError) or not isinstance(fault, OSError) or not fault.strerror:
        return str(fault) or type(fault).__name__
    place = f": {fault.filename}" if fault.filename else ""
    return f"{fault.strerror}{place}"
