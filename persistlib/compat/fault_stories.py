"""The long story of faults that no rule finds: what is broken, or cannot be proved.

They are told like the codes of rules (`stories`), for they end a verb and its verdict alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persistlib.compat.stories import Story
from persistlib.errors import Code

if TYPE_CHECKING:
    from collections.abc import Mapping

_REFUSED = "refused: nothing that the bundle says can be relied on"
_AGAIN = "Fetch the bundle again from where it came, or save the model again."
_EDITED = (
    "Take back the manifest as it was written. What may be said afterwards is set by verbs, as"
    " persistlib status does; a name, labels or a licence are given to save."
)
_VERIFY = (
    "persistlib verify BUNDLE names every file that differs. Fetch those again from where the"
    " bundle came, or save the model again."
)

FAULTS: Mapping[Code, Story] = {
    Code.MANIFEST_SYNTAX: Story(
        "manifest.json is no JSON as RFC 8259 has it, or has a name twice: it was cut off on its"
        " way, or is another file.",
        _REFUSED,
        _AGAIN,
        "A strict reading of the file's bytes.",
    ),
    Code.MANIFEST_CANONICAL: Story(
        "manifest.json is JSON, and not in the one form in which persistlib writes it: somebody"
        " edited it by hand, or a program read and wrote it again (a formatter, an editor that ends"
        " lines its own way, a checkout that turns line ends). Its digest holds for that form"
        " alone, so a changed manifest cannot pass for the one that was saved.",
        _REFUSED,
        _EDITED + " Where git turned line ends: mark *.json as -text in .gitattributes.",
        "The file's bytes, compared with its own content written in canonical form.",
    ),
    Code.MANIFEST_DIGEST: Story(
        "The content of manifest.json is not what its `digest` was taken of: a value was changed"
        " after the model was saved.",
        _REFUSED,
        _EDITED,
        "`digest` in the manifest, computed again.",
    ),
    Code.MANIFEST_MAJOR: Story(
        "The manifest is of another major version, whose fields mean something else to this"
        " release.",
        _REFUSED,
        "pip install --upgrade persistlib.",
        "`manifest_version` in the manifest.",
    ),
    Code.MANIFEST_FIELD: Story(
        "A field of the manifest is missing, has a value of another kind, or contradicts another"
        " one. The finding names the field.",
        _REFUSED,
        _AGAIN,
        "The manifest's schema, docs/manifest.schema.json, and the rules of docs/manifest.md.",
    ),
    Code.MANIFEST_IDENTITY: Story(
        "An identity of the manifest, such as `bundle_id`, is not the one that its own parts give:"
        " the parts of two manifests were mixed.",
        _REFUSED,
        _AGAIN,
        "The identities, computed again from the manifest.",
    ),
    Code.FILE_MISSING: Story(
        "The manifest lists a file that is not in the folder: the copy was not whole.",
        "refused where what is asked for needs the file",
        _VERIFY,
        "`files` in the manifest.",
    ),
    Code.FILE_SIZE: Story(
        "A file has another size than the one that was saved: a copy or a download ended early, or"
        " the file is a pointer to one elsewhere, as Git LFS leaves it.",
        "refused where what is asked for needs the file",
        _VERIFY,
        "The size of the file, and the one in the manifest.",
    ),
    Code.FILE_DIGEST: Story(
        "A file has its size and other bytes: it was changed, or the disk or the network gave them"
        " back wrong.",
        "refused where what is asked for needs the file",
        _VERIFY,
        "BLAKE3 of the file, and the one in the manifest.",
    ),
    Code.FORMAT_TRUNCATED: Story(
        "The file is shorter or longer than its own header says: a copy or a download ended early,"
        " or something was written behind its end.",
        "refused",
        "Fetch the file again from where it came.",
        "The file's header and its size.",
    ),
    Code.GRAPH_INVALID: Story(
        "The graph breaks the rules of ONNX files: it was cut off, or a program wrote it wrongly.",
        "refused",
        "Fetch the file again, or export the model again: persistlib convert BUNDLE OUT.onnx.",
        "A walk over the file, before any runtime sees it.",
    ),
    Code.EXPORT_MISMATCH: Story(
        "The graph was run beside the module, on the same inputs, and gave other outputs: the"
        " export changed what the model computes. The finding names the first operator that"
        " differs.",
        "an error of save and convert: a graph that computes something else is not kept",
        "Export with another opset (--opset), or write the layer that is named otherwise. The"
        " bundle itself needs no graph: it loads in torch.",
        "The outputs of both, relative to their spread.",
    ),
    Code.EXPORT_DEGENERATE: Story(
        "A graph is kept only with a proof: it must give the module's outputs on several inputs."
        " Here the module's outputs are the same for every input, all zero or not finite, so that a"
        " wrong graph would give them too. Weights that were never trained, or hardly, and"
        " BatchNorm statistics that were never measured do this.",
        "an error of save and convert: no graph is kept without a proof",
        "Train longer, or load trained weights; save without a graph meanwhile, and make it later:"
        " persistlib convert BUNDLE OUT.onnx.",
        "The spread of the module's outputs over the inputs of the proof.",
    ),
}
