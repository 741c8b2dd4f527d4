"""From a file that holds a whole model, architecture and all, to a bundle or a graph."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from persistlib.calls import require_torch
from persistlib.errors import Code, error
from persistlib.sources import BUNDLE, is_folder, open_file

if TYPE_CHECKING:
    from collections.abc import Collection

    from persistlib.conversion import ConversionReport
    from persistlib.files import StrPath
    from persistlib.graph_wishes import GraphWishes


def convert_whole(
    source: StrPath,
    destination: StrPath,
    to: str,
    wishes: GraphWishes,
    *,
    trust: Collection[str],
    overwrite: bool,
    architecture: str | None = None,
) -> ConversionReport:
    """Write a file that holds a whole model, architecture and all, as a bundle or a graph.

    Args:
        source: the file.
        destination: the folder or file to make.
        to: "bundle" or "onnx".
        wishes: what is asked of the graph.
        trust: packages that may be imported to rebuild the module.
        overwrite: whether what stands there is replaced.
        architecture: of an ONNX file, the builder whose module it is.

    Raises:
        UsageError: the file holds weights alone.
        PersistlibError: as `keras_conversion.convert_keras` or `graph_bundles.convert_onnx`.
    """
    if is_folder(source):
        raise error(Code.USAGE, source, "a bundle is not converted into one", "copy the folder")
    with open_file(source) as file:
        if file.format == "keras":
            require_torch("a whole Keras model")
            from persistlib.keras_conversion import convert_keras

            return convert_keras(
                source, file, destination, to=to, wishes=wishes, trust=trust, overwrite=overwrite
            )
        if file.format == "onnx" and to == BUNDLE:
            require_torch("a module from an ONNX file")
            from persistlib.graph_bundles import convert_onnx

            return convert_onnx(
                source, destination, architecture=architecture, trust=trust, overwrite=overwrite
            )
        if file.format == "onnx":
            name = os.path.splitext(os.fspath(source))[0]
            first = shlex.join(("persistlib", "convert", os.fspath(source), name))
            raise error(
                Code.USAGE,
                source,
                "a graph is written anew from a bundle, which it gives first",
                f"{first}, and convert that with the same options",
            )
    raise error(
        Code.USAGE,
        source,
        "a weights file has no graph",
        f"persistlib identify {os.fspath(source)} --bundle DIR finds its architecture; or name an"
        " ONNX file that has the graph (--template)",
    )
