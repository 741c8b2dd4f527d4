"""The long story of each code that a verdict may hold: `persistlib check --explain CODE`.

One row a code; docs/compatibility.md has the same rows. Every code of a rule in `table.RULES`, and
every other code of `CompatibilityError`, has one: a test holds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from persistlib.errors import Code

if TYPE_CHECKING:
    from collections.abc import Mapping


class Story(NamedTuple):
    """What there is to know of a code.

    Attributes:
        means: what was seen, and why it matters.
        grade: what it does to the verdict, and when.
        mends: what to do.
        known: where the fact comes from.
    """

    means: str
    grade: str
    mends: str
    known: str


STORIES: Mapping[Code, Story] = {
    Code.PYTHON_VERSION: Story(
        "The bundle says which versions of Python it was made for, and the target's is none.",
        "refused",
        "Install a Python within the range. Where only the weights are wanted, any Python that"
        " persistlib runs on reads them: persistlib convert BUNDLE OUT.safetensors.",
        "`requires` in the manifest, compared by PEP 440.",
    ),
    Code.PACKAGE_VERSION: Story(
        "A package that rebuilds or runs the model is there in a version outside the range that"
        " the bundle requires.",
        "refused",
        "Install a version within the range. A bundle with a graph also runs without torch, in ONNX"
        " Runtime alone.",
        "`requires` in the manifest, compared by PEP 440.",
    ),
    Code.PACKAGE_ABSENT: Story(
        "A package that the bundle requires is not installed, or a target that names all it has"
        " does not name it. An .onnx file requires ONNX Runtime.",
        "refused; a note where the bundle holds a graph, which ONNX Runtime runs without it",
        "Install it, or run the graph: persistlib.load(BUNDLE, runtime='onnxruntime').",
        "`requires` in the manifest; metadata of what is installed, without importing it. Lock"
        " files, `persistlib environment --json` and `pip list --format json` name all there is, a"
        " requirements.txt does not.",
    ),
    Code.PACKAGE_DRIFT: Story(
        "The model was saved with another release of a package. Nothing is known to be wrong; the"
        " same weights may give outputs that differ in their last bits, and a builder's defaults"
        " may have changed.",
        "a note: the verdict stays as it is",
        "Compare: persistlib verify --behaviour BUNDLE computes the stored examples again.",
        "`environment` in the manifest.",
    ),
    Code.STRUCTURE_DRIFT: Story(
        "What the recipe builds here is configured otherwise than what was saved: another eps,"
        " another activation, a buffer with other values. The tensors fit; the outputs may not.",
        "an error of `load` under the very versions that saved it, for then it is another model; a"
        " warning under others, whose modules may hold attributes that older ones lacked",
        "Load it with the versions it was saved with, or compare the outputs: persistlib verify"
        " --behaviour BUNDLE. load(..., strict=False) takes it as it is.",
        "The structure digest: path, class, plain configuration and tensors of every submodule.",
    ),
    Code.SOURCE_DRIFT: Story(
        "The source of the builder, a class of your own or of a package, is not what it was when"
        " the model was saved. It may build the same module, or one of the same shapes that"
        " computes something else.",
        "degraded for your own; a note for torchvision's, whose changes are mostly of form",
        "Take the source of then, or compare the outputs: persistlib verify --behaviour BUNDLE."
        " Saving the model again records the new source.",
        "`architecture.source` in the manifest: a digest of the class's source, which is found and"
        " read here without being imported. Of torchvision: a digest, in each release, of the"
        " builder's code and of all that it uses.",
    ),
    Code.GRAPH_VERSION: Story(
        "The graph says that it is of a newer file format (IR) or operator set than the target's"
        " ONNX Runtime reads. It refuses such a file before it looks at a single node.",
        "refused; degraded where the target has torch, which runs the bundle instead, and for every"
        " graph of a bundle but the first",
        "Install a newer ONNX Runtime, or write the graph for this one: persistlib convert BUNDLE"
        " OUT.onnx --target onnxruntime==VERSION, which is proved to compute the same.",
        "Sessions made in every release since 1.15, at every version (`make runtimes`).",
    ),
    Code.MANIFEST_OLDER: Story(
        "The manifest was written by an older release, in an older version of its schema. It is"
        " read by the steps that lead from there to this release's version; the model is the same.",
        "ok-after-upgrade",
        "Nothing needs to be done. persistlib upgrade BUNDLE writes the manifest in this version,"
        " and keeps the old one beside it.",
        "`manifest_version` in the manifest.",
    ),
    Code.MANIFEST_NEWER: Story(
        "The manifest was written by a newer release, in a later minor version of its schema. What"
        " this release does not know in it says of itself that it need not be understood: what the"
        " model computes does not hang on it. A field that does is refused by its name (PL105).",
        "a note; the verdict is ok",
        "Nothing needs to be done. A newer persistlib shows those fields too; this one keeps them.",
        "`manifest_version` in the manifest.",
    ),
    Code.STATUS: Story(
        "Whoever published the model has withdrawn it, or has named a successor.",
        "refused when withdrawn, degraded when superseded; verify notes it and compares as ever",
        "Use the successor, or ask who published it. A withdrawn model is used all the same by"
        " persistlib run --allow-withdrawn and by load(allow_withdrawn=True); convert converts it,"
        " with a warning. persistlib status shows and sets it.",
        "`status` in the manifest.",
    ),
    Code.LICENSE: Story(
        "A licence that was forbidden (--forbid-license) is that of the model, or of what it was"
        " made from; or none is recorded, or one by a name that SPDX does not list, so that it"
        " cannot be told. Of A OR B one may be chosen; of A AND B both count; A WITH an exception"
        " counts as A.",
        "refused when forbidden, degraded when it cannot be told, a note where a choice is left",
        "Use a model under another licence, or have the licence recorded: save(license=...). No law"
        " is interpreted: names are compared.",
        "`license` and `lineage` in the manifest; the list of SPDX that comes with packaging.",
    ),
    Code.RUNTIME_OPERATOR: Story(
        "A node's operator is none that the target's ONNX Runtime knows: it came with a later"
        " operator set, or its domain is another vendor's.",
        "refused; degraded where the target has torch, and for every graph but the first",
        "Install the release that the finding names, or write the graph anew for this one. An"
        " operator of a domain that no release knows needs its library: export without it.",
        "The operators' schemas of each release, as its wheel lists them.",
    ),
    Code.RUNTIME_KERNEL: Story(
        "The operator exists, and the CPU provider cannot compute it for these element types, in"
        " this version, or with these attributes. Such a graph passes onnx's checker, and fails"
        " where the session is made.",
        "refused; degraded where the target has torch, and for every graph but the first",
        "Install the release that the finding names, or write the graph anew, perhaps in other"
        " types: persistlib convert BUNDLE OUT.onnx --target onnxruntime==VERSION.",
        "The kernel table of each release's wheel from 1.16 on; of 1.15, every row tried. The"
        " running release is asked for its own. Casts of half precision and definitions put in a"
        " node's place are followed.",
    ),
    Code.RUNTIME_TYPES: Story(
        "The graph breaks the rules of an operator as that release has them: a type that its schema"
        " does not allow, shapes at odds, an element type that the release does not know.",
        "refused; degraded where the target has torch, and for every graph but the first",
        "Write the graph anew for that release, or look at the node that is named.",
        "Schemas of each release, and ONNX's own inference of types, node by node.",
    ),
    Code.RUNTIME_UNKNOWN: Story(
        "The release of ONNX Runtime is not in the table, so it was judged as the nearest older"
        " one; or the machine is none of those whose kernels the table holds.",
        "degraded: not proved; a note where only the machine differs",
        "Take a newer persistlib, or add the release: make runtimes.",
        "`compat/runtimes.xz`, which `make runtimes` extends from the release's own wheel.",
    ),
    Code.TARGET_CHOICE: Story(
        "The target says a range and no release, such as onnxruntime>=1.17, or a lock file has"
        " several versions of a package. It is read as the newest known release that it admits, as"
        " pip would install it; of Python, as the one that runs here. The oldest is judged too.",
        "a note how it was read; degraded where the newest takes the model and the oldest does not",
        "Pin the release that is deployed, or raise the range's lower end to the one named.",
        "The releases that the tables know; versions are compared by PEP 440.",
    ),
    Code.TARGET_SILENT: Story(
        "The target names neither torch nor ONNX Runtime, or for an .onnx file no ONNX Runtime, and"
        " does not claim to be complete: what would run the model there was not judged.",
        "degraded",
        "Add what runs it: --target requirements.txt onnxruntime==1.17.3; or describe the machine"
        " whole: persistlib environment --json > machine.json, run there.",
        "The description of the target.",
    ),
    Code.BUILDER_ABSENT: Story(
        "The recipe names a builder, a layer of one of its edits, or a function in an argument that"
        " the target's torch or torchvision does not have; or the module of your own builder is"
        " not to be found here.",
        "refused; degraded where a graph of the bundle runs in ONNX Runtime there, and where the"
        " target is newer than the table",
        "Install the release that the finding names; put your own code on PYTHONPATH; or run the"
        " graph, which needs no builder.",
        "Every release's wheel since torch 2.0 and torchvision 0.15, its sources read without"
        " importing them (`make frameworks`).",
    ),
    Code.ARGUMENT_ABSENT: Story(
        "A builder or layer there does not take an argument of the recipe, or needs one that the"
        " recipe does not give. An argument that only has the default of the release that saved it"
        " is left out when the model is loaded.",
        "refused; a note where the argument is left out, degraded where it would be ignored",
        "Install the release that the finding names.",
        "Parameters of each callable in each release's sources, `**kwargs` followed to where they"
        " end.",
    ),
    Code.DEFAULT_DRIFT: Story(
        "The recipe leaves an argument to its default, which is another there than in the release"
        " that saved the model: the module may compute something else.",
        "degraded",
        "Install the release that saved it, or compare the outputs: persistlib verify --behaviour"
        " BUNDLE. Models saved with the argument itself have no such question.",
        "The defaults in each release's sources.",
    ),
    Code.FRAMEWORK_UNKNOWN: Story(
        "The release of torch or torchvision is not in the table; it was judged as the nearest"
        " older one, or the oldest.",
        "degraded: not proved; a note where the recipe is built with it here (check --build). What"
        " is missing from a newer one is then only degraded",
        "Take a newer persistlib, or add the release: make frameworks.",
        "`compat/frameworks.xz`, which `make frameworks` extends from the release's own wheel.",
    ),
    Code.PARTNERS: Story(
        "The target's torchvision is built for another torch, and fails when it is imported; or its"
        " torch is built for numpy 1 and numpy 2 is there, so that no array becomes a tensor.",
        "refused for torchvision, degraded for numpy, for torchvision of the running environment,"
        " which may be another build than the index has, and for one of a minor version that is not"
        " in the table, which is judged as the nearest",
        "Install the partner that the finding names.",
        "What each wheel of torchvision says that it needs; torch's notes on its release 2.3.",
    ),
    Code.NO_BUILD: Story(
        "The target's torch or torchvision is not for its Python, or the package index has no build"
        " of it for that Python, system and machine.",
        "refused where the package excludes that Python; degraded where only no build is listed,"
        " since another index may have one",
        "Install the release that the finding names, or another Python.",
        "`Requires-Python` of each wheel, and the index's own list of wheels.",
    ),
    Code.DTYPE_ABSENT: Story(
        "The weights, or the recipe, have a dtype that torch there does not have, such as a float8"
        " kind or uint16.",
        "refused; degraded where a graph of the bundle runs in ONNX Runtime there",
        "Install the release that the finding names, or convert: persistlib convert MODEL"
        " OUT.safetensors --dtype f32.",
        "The stubs in each release's wheel.",
    ),
    Code.DEVICE_DTYPE: Story(
        "An accelerator of the target has no numbers of a dtype of the weights: Apple's has no"
        " float64, for one. The model loads, on the CPU.",
        "degraded",
        "Convert: persistlib convert MODEL OUT.safetensors --dtype f32; or leave it on the CPU.",
        "What torch refuses when a tensor is moved there (its sources).",
    ),
    Code.MEMORY: Story(
        "The weights are larger than the memory that processes may use there. They are mapped and"
        " not read, so the model loads; while it runs they are read from the disk again and again.",
        "degraded",
        "Convert to a narrower dtype: persistlib convert MODEL OUT --dtype bf16; or take a larger"
        " machine.",
        "Sizes in the manifest or header; physical memory, less what a control group allows.",
    ),
    Code.BYTE_ORDER: Story(
        "The machine is big-endian. Weights are stored little-endian and used as they lie, so every"
        " number would be wrong.",
        "refused",
        "Use a little-endian machine.",
        "`sys.byteorder` there.",
    ),
    Code.TORCH_LOAD: Story(
        "The file is one of torch's own, and torch.load of that release treats it otherwise than"
        " today's: without weights_only it runs what the pickle says, weights_only can be got"
        " around by a hostile file or refuses a dtype, or a file cannot be mapped. persistlib reads"
        " the file itself, and never unpickles.",
        "degraded where weights_only refuses the file, otherwise a note",
        "Convert it: persistlib convert FILE.pt OUT.safetensors.",
        "`torch/serialization.py` and `torch/_weights_only_unpickler.py` of each wheel; the named"
        " advisories.",
    ),
    Code.GRAPH_ABSENT: Story(
        "The target has ONNX Runtime and no torch, and the model has no graph for it to run.",
        "refused",
        "Make the graph: persistlib convert BUNDLE OUT.onnx --target onnxruntime==VERSION; or name"
        " the torch that is there too.",
        "`graphs` in the manifest.",
    ),
}


def code_of(word: str) -> Code | None:
    """Return the code that a word names, by its identifier or its name, in any case; or None."""
    wanted = word.strip().upper().replace("-", "_")
    return next((code for code in Code if wanted in {code.identifier, code.name}), None)
