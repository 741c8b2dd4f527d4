"""What the process that parses a Keras file tells the one that asked, beside tensors.

Law: `parse_details(render_details(details), ...) == details`; what no well-meant child would say is
refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from persistlib.canonical import parse
from persistlib.converters.listing import LISTING_LIMIT
from persistlib.errors import Code, error

if TYPE_CHECKING:
    from collections.abc import Mapping

# The key in a listing's metadata; it is no metadata of the file, and the parent takes it out.
DETAILS = "keras"
# The two ways in which Keras files say which layer a weight belongs to.
LEGACY, STORED = "legacy", "stored"


class Details(NamedTuple):
    """What a Keras file says about its weights.

    Attributes:
        kind: `LEGACY` for `.h5` files (a group a layer), `STORED` for `.weights.h5` and `.keras`.
        paths: of each weight in order, where it stands: group and weight, or components.
        names: layers' own names by where they stand, as far as a stored file has them.
        config: the model's configuration as text, None where there is none.
        version: Keras' version; empty in the oldest files.
        backend: what Keras ran on; empty where the file does not say.
    """

    kind: str
    paths: tuple[tuple[str, ...], ...]
    names: Mapping[tuple[str, ...], str]
    config: str | None
    version: str
    backend: str


def render_details(details: Details) -> str:
    """Return the text of what is told."""
    names = [[list(path), name] for path, name in details.names.items()]
    value = {**details._asdict(), "names": names}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def parse_details(text: str, count: int, location: object) -> Details:
    """Return what a child tells about a file of `count` weights.

    Raises:
        FormatError: it is malformed.
    """
    value = parse(text.encode(), location, code=Code.FORMAT_HEADER, limit=LISTING_LIMIT)
    paths: Any = value.get("paths")
    names: Any = value.get("names")
    config = value.get("config")
    texts = [value.get(key) for key in ("kind", "version", "backend")]
    is_whole = (
        set(value) == set(Details._fields)
        and all(isinstance(text, str) for text in texts)
        and isinstance(config, (str, type(None)))
        and _are_paths(paths)
        and len(paths) == count
        and isinstance(names, list)
        and all(_is_named(pair) for pair in names)
    )
    if not is_whole:
        raise error(Code.FORMAT_HEADER, location, "malformed details of a Keras file")
    return Details(
        value["kind"],
        tuple(tuple(path) for path in paths),
        {tuple(path): name for path, name in names},
        config,
        value["version"],
        value["backend"],
    )


def _are_paths(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(path, list) and len(path) > 1 and all(isinstance(part, str) for part in path)
        for path in value
    )


def _is_named(pair: Any) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], list)
        and all(isinstance(part, str) for part in pair[0])
        and isinstance(pair[1], str)
    )
