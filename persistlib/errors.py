"""The one error family: every fault is a `Finding` with a code, a location, a reason and a remedy.

A validator collects findings and reports them; a loader raises the error that carries them. `Code`
is the only list of codes: an error's class, its title and the table in `docs/errors.md` derive
from it. Nobody needs to read English to tell faults apart.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING

from persistlib.families import (
    ArchitectureError,
    CompatibilityError,
    DurabilityError,
    ExportError,
    FormatError,
    IntegrityError,
    LockedError,
    LossError,
    ManifestError,
    MissingExtra,
    ModelError,
    PersistlibError,
    PersistlibWarning,
    SessionError,
    TargetError,
    TrainingError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


__all__ = [
    "ArchitectureError",
    "Code",
    "CompatibilityError",
    "DurabilityError",
    "ExportError",
    "Finding",
    "FormatError",
    "IntegrityError",
    "LockedError",
    "LossError",
    "ManifestError",
    "MissingExtra",
    "ModelError",
    "PersistlibError",
    "PersistlibWarning",
    "SessionError",
    "Severity",
    "TargetError",
    "TrainingError",
    "UsageError",
    "error",
    "error_of",
    "family_of",
    "finding",
    "missing_extra",
    "printable",
    "tell",
    "warn",
]


class Code(Enum):
    """Every code: its stable identifier, the error class that carries it, and its title.

    Identifiers are never reused. Ranges: 1 manifest and integrity, 2 compatibility, 3 architecture
    and model, 4 targets, 5 formats, 6 graphs, 7 sessions, 8 training and data, 9 calls.
    """

    MANIFEST_SYNTAX = ("PL101", ManifestError, "the manifest is not strict JSON")
    MANIFEST_CANONICAL = ("PL102", ManifestError, "the manifest is not in canonical form")
    MANIFEST_DIGEST = ("PL103", IntegrityError, "the manifest differs from its own digest")
    MANIFEST_MAJOR = ("PL104", ManifestError, "the manifest is of another major version")
    MANIFEST_UNKNOWN = ("PL105", ManifestError, "the manifest has a field that must be understood")
    MANIFEST_FIELD = ("PL106", ManifestError, "a manifest field is missing or malformed")
    MANIFEST_IDENTITY = ("PL107", IntegrityError, "a derived identity differs from its parts")
    MANIFEST_OLDER = ("PL108", ManifestError, "the manifest is of an older version")
    MANIFEST_NEWER = ("PL109", ManifestError, "the manifest is of a newer minor version")
    FILE_MISSING = ("PL110", IntegrityError, "a file of the bundle is missing")
    FILE_UNLISTED = ("PL111", IntegrityError, "a file that the manifest does not list")
    FILE_SIZE = ("PL112", IntegrityError, "a file has another size than recorded")
    FILE_KIND = ("PL113", IntegrityError, "not a regular file, or a link where none is followed")
    FILE_DIGEST = ("PL114", IntegrityError, "a file's bytes differ from their digest")
    HEADER_DIGEST = ("PL115", IntegrityError, "a weights header differs from its digest")
    HEADER_MISMATCH = ("PL116", IntegrityError, "header and manifest disagree about a tensor")
    TENSOR_DIGEST = ("PL117", IntegrityError, "a tensor's bytes differ from its digest")
    BEHAVIOUR = ("PL118", IntegrityError, "recomputed outputs differ from the stored ones")
    DOCUMENT_MISSING = ("PL119", IntegrityError, "a listed document is missing")
    BASE_MISSING = ("PL120", IntegrityError, "the bundle that a delta stands on is not there")
    BASE_WRONG = ("PL121", IntegrityError, "it is not the bundle that a delta stands on")

    PYTHON_VERSION = ("PL201", CompatibilityError, "this Python is outside the required range")
    PACKAGE_VERSION = ("PL202", CompatibilityError, "a package is outside the required range")
    PACKAGE_ABSENT = ("PL203", CompatibilityError, "a required package is not installed")
    PACKAGE_DRIFT = ("PL204", CompatibilityError, "another version than the one that saved")
    STRUCTURE_DRIFT = ("PL205", CompatibilityError, "the rebuilt structure differs from the saved")
    SOURCE_DRIFT = ("PL206", CompatibilityError, "the builder's source has changed since the save")
    GRAPH_VERSION = ("PL207", CompatibilityError, "the graph needs a newer runtime")
    STATUS = ("PL208", CompatibilityError, "the model was withdrawn or superseded")
    RUNTIME_OPERATOR = ("PL209", CompatibilityError, "the runtime does not know an operator")
    RUNTIME_KERNEL = ("PL210", CompatibilityError, "the runtime has no kernel for a node's types")
    RUNTIME_TYPES = ("PL211", CompatibilityError, "the graph breaks an operator's rules there")
    RUNTIME_UNKNOWN = ("PL212", CompatibilityError, "what the runtime can load is not known")
    TARGET_CHOICE = ("PL213", CompatibilityError, "the target leaves a choice of releases")
    TARGET_SILENT = ("PL214", CompatibilityError, "the target does not say what decides")
    BUILDER_ABSENT = ("PL215", CompatibilityError, "the recipe names what is not there")
    ARGUMENT_ABSENT = ("PL216", CompatibilityError, "a builder there takes other arguments")
    DEFAULT_DRIFT = ("PL217", CompatibilityError, "a default that the recipe leaves has changed")
    FRAMEWORK_UNKNOWN = ("PL218", CompatibilityError, "what that release offers is not known")
    PARTNERS = ("PL219", CompatibilityError, "packages there do not go together")
    NO_BUILD = ("PL220", CompatibilityError, "no build of a package for that Python or machine")
    DTYPE_ABSENT = ("PL221", CompatibilityError, "torch there lacks a dtype")
    DEVICE_DTYPE = ("PL222", CompatibilityError, "an accelerator there lacks a dtype")
    MEMORY = ("PL223", CompatibilityError, "the weights are more than the memory there")
    BYTE_ORDER = ("PL224", CompatibilityError, "the machine has the other order of bytes")
    TORCH_LOAD = ("PL225", CompatibilityError, "torch.load there does otherwise")
    LICENSE = ("PL226", CompatibilityError, "a licence is forbidden, or cannot be told")

    NO_ARCHITECTURE = ("PL301", ArchitectureError, "no recipe rebuilds this module")
    LOOKALIKE = ("PL302", ArchitectureError, "the module differs from what its recipe builds")
    UNTRUSTED = ("PL303", ArchitectureError, "the builder's module is not trusted")
    UNKNOWN_BUILDER = ("PL304", ArchitectureError, "the builder does not exist")
    BUILDER_FAILED = ("PL305", ArchitectureError, "the builder raised")
    BAD_RECIPE = ("PL306", ArchitectureError, "a recipe or edit cannot be carried out")
    BEHAVIOUR_UNTRIED = ("PL307", ArchitectureError, "the rebuilt module was not run")
    TENSOR_MISMATCH = ("PL308", ArchitectureError, "rebuilt module and weights disagree")
    LEFT_ON_META = ("PL309", ArchitectureError, "a tensor was left without values")
    BUILT_REALLY = ("PL310", ArchitectureError, "the module was built with values first")
    HOOKS_DROPPED = ("PL311", ArchitectureError, "hooks are not saved")
    TWINS = ("PL312", ArchitectureError, "names and shapes fit several builders")
    ADAPTATION = ("PL313", ArchitectureError, "the model cannot be adapted in that way")
    ADAPTATION_CHOICE = ("PL314", ArchitectureError, "several layers could be meant")
    PARTLY_LOADED = ("PL315", ArchitectureError, "some tensors did not fit and were not loaded")
    WEIGHTS_UNREACHABLE = ("PL316", ArchitectureError, "weights could not be fetched")
    MODEL_META = ("PL320", ModelError, "a tensor is on the meta device")
    MODEL_WRAPPED = ("PL321", ModelError, "the module is a wrapper around the model")
    MODEL_LAYOUT = ("PL322", ModelError, "a tensor is sparse")
    MODEL_QUANTISED = ("PL323", ModelError, "a tensor is quantised")
    MODEL_UNINITIALISED = ("PL324", ModelError, "a lazy module was never run")
    MODEL_EMPTY = ("PL325", ModelError, "the module has no tensors")
    MODEL_DTYPE = ("PL326", ModelError, "a tensor's dtype has no place in the file")
    MODEL_NAMES = ("PL327", ModelError, "tensor names that cannot stand side by side")
    MODEL_SUBCLASS = ("PL328", ModelError, "a tensor is of a special class")
    MODEL_STATE = ("PL329", ModelError, "the module keeps state that a file cannot hold")
    MODEL_OVERLAP = ("PL330", ModelError, "tensors share part of their memory")

    TARGET_EXISTS = ("PL401", TargetError, "something already stands there")
    TARGET_FOREIGN = ("PL402", TargetError, "what stands there is not all persistlib's")
    TARGET_KIND = ("PL403", TargetError, "the target is a link, or not a directory")
    TARGET_WRITE = ("PL404", TargetError, "writing failed; the old version is untouched")
    TARGET_PERMISSION = ("PL405", TargetError, "no permission to write there")
    TARGET_SPACE = ("PL406", TargetError, "no space left; the old version is untouched")
    LOCK_HELD = ("PL407", LockedError, "another writer is at work there")
    LOCK_STALE = ("PL408", LockedError, "a writer elsewhere left its lock")
    LOCK_TAKEN_OVER = ("PL409", LockedError, "the lock of a dead writer was removed")
    DURABILITY = ("PL410", DurabilityError, "the new version is in place; durability is unknown")
    NOT_A_BUNDLE = ("PL411", TargetError, "not a bundle")
    SOURCE_MISSING = ("PL412", TargetError, "nothing stands there")
    SOURCE_READ = ("PL413", TargetError, "reading failed")
    NAME_UNSAFE = ("PL414", TargetError, "a file name that does not stay in its folder")
    TARGET_NEEDED = ("PL415", TargetError, "another bundle stands on the one that would go")

    FORMAT_UNKNOWN = ("PL501", FormatError, "not a format that persistlib knows")
    FORMAT_HEADER = ("PL502", FormatError, "a header breaks its format's rules")
    FORMAT_TRUNCATED = ("PL503", FormatError, "the file is shorter or longer than it says")
    FORMAT_NAME = ("PL504", FormatError, "a tensor name that no format can carry")
    FORMAT_DTYPE = ("PL505", FormatError, "a dtype that the format or persistlib cannot hold")
    FORMAT_SHAPE = ("PL506", FormatError, "a shape that does not fit its bytes")
    FORMAT_LIMIT = ("PL507", FormatError, "larger than a well-meant file would be")
    FORMAT_UNSAFE = ("PL508", FormatError, "refers to code or to what lies outside the file")
    FORMAT_VALUE = ("PL509", FormatError, "bytes that are no value of their dtype")
    FORMAT_LAYOUT = ("PL510", FormatError, "a weight whose layout rule is not known")
    LOSS = ("PL520", LossError, "the conversion would lose something")
    READBACK = ("PL521", FormatError, "what was written does not read back the same")

    EXPORT_FAILED = ("PL601", ExportError, "the module could not be exported")
    EXPORT_MISMATCH = ("PL602", ExportError, "the graph computes something else than the module")
    EXPORT_DEGENERATE = ("PL603", ExportError, "the outputs prove nothing")
    EXPORT_INPUTS = ("PL604", ExportError, "neither example inputs nor an interface were given")
    GRAPH_INVALID = ("PL605", FormatError, "the graph breaks the rules of its format")
    GRAPH_UNSAFE = ("PL606", FormatError, "the graph refers to what is never used")
    GRAPH_ABSENT = ("PL607", SessionError, "the bundle has no graph")
    GRAPH_NOTES = ("PL608", FormatError, "what a graph notes of its model is not true of it")
    EXPORT_VERSION = ("PL609", ExportError, "the graph cannot be written in that version")
    GRAPH_UNPAIRED = ("PL610", ArchitectureError, "the graph is not the named architecture's")
    GRAPH_OPERATOR = ("PL620", FormatError, "an operator that torch has no form of")
    CALIBRATION = ("PL630", ExportError, "the data tells nothing of the values' ranges")
    QUANTIZATION = ("PL631", ExportError, "the graph could not be quantized")

    SESSION_FAILED = ("PL701", SessionError, "the runtime refused the graph")
    SESSION_INPUT = ("PL702", SessionError, "an input has the wrong name, dtype or shape")
    PROVIDER_UNKNOWN = ("PL703", SessionError, "no such execution provider")
    PROVIDER_ABSENT = ("PL704", SessionError, "this build lacks the execution provider")
    PROVIDER_UNUSED = ("PL705", SessionError, "the required provider was not used")
    RUN_FAILED = ("PL706", SessionError, "the runtime failed while running")
    IMAGE_UNREADABLE = ("PL707", SessionError, "an image cannot be read")
    PREPROCESSING = ("PL708", SessionError, "the bundle does not say how inputs are prepared")
    PROVIDER_CLASH = ("PL709", SessionError, "builds of ONNX Runtime lie over each other")
    PROVIDER_BROKEN = ("PL710", SessionError, "the provider's libraries or driver are missing")
    OPERATOR_UNSUPPORTED = ("PL711", SessionError, "the runtime cannot compute an operator")
    RUN_TIMEOUT = ("PL712", SessionError, "it took longer than it may")

    DATA_MISSING = ("PL801", TrainingError, "the data set is not there")
    DATA_INVALID = ("PL802", TrainingError, "the data set cannot be used")
    LOSS_NOT_FINITE = ("PL803", TrainingError, "the loss is not finite")
    PATTERN_UNMATCHED = ("PL804", TrainingError, "a pattern matches nothing")
    NOTHING_TO_TRAIN = ("PL805", TrainingError, "every parameter is frozen")
    HEAD_UNKNOWN = ("PL806", TrainingError, "the model's last layer cannot be told")
    WEIGHTS_MISMATCH = ("PL807", TrainingError, "the weights do not fit the model")
    DATA_CLASSES = ("PL808", TrainingError, "the data's classes are not the model's")
    DATA_SEEN = ("PL809", TrainingError, "the model was trained on this data")
    NO_SCORES = ("PL810", TrainingError, "the outputs are no scores of classes")
    CHECKPOINT_DAMAGED = ("PL811", TrainingError, "a checkpoint differs from what was written")
    DATA_CHANGED = ("PL812", TrainingError, "the data are not those that the run began with")
    RUN_CHANGED = ("PL813", TrainingError, "the run goes on otherwise than it began")
    FROZEN_CHANGED = ("PL814", TrainingError, "a frozen tensor is not what the run began with")
    CLASSIFIER = ("PL831", TrainingError, "the estimator has no exact layer")
    CLASSIFIER_DIFFERS = ("PL832", TrainingError, "a layer answers otherwise than its estimator")
    CLASSIFIER_ENDED = ("PL833", TrainingError, "fitting ended before it had converged")
    FOLDS = ("PL834", TrainingError, "the samples cannot be divided into folds in that way")

    USAGE = ("PL901", UsageError, "an argument is not understood")
    EXTRA_MISSING = ("PL902", MissingExtra, "an optional package is not installed")
    INTERRUPTED = ("PL903", PersistlibError, "interrupted")
    NO_MEMORY = ("PL904", PersistlibError, "not enough memory")
    INTERNAL = ("PL905", PersistlibError, "a fault of persistlib's own")
    TARGET_TEXT = ("PL906", UsageError, "the description of a target cannot be read")
    PROCESS_LOST = ("PL907", PersistlibError, "another process of the group failed or is gone")
    PROCESSES_DIFFER = ("PL908", UsageError, "the processes of a group are not given the same")

    def __init__(self, identifier: str, family: type[PersistlibError], title: str) -> None:
        self.identifier = identifier
        self.family = family
        self.title = title


# Characters of each text of a finding; paths of some hundred are common.
_SHOWN = 1_000


class Severity(str, Enum):
    """How much a finding matters; only an error stops the work."""

    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


def printable(text: str) -> str:
    r"""Return `text` with every control, format and unpaired character escaped, on one line.

    Names come from files: a terminal must never be driven by one.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _short(text: str) -> str:
    """Return a text without its middle where it is long: names in files have no length."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault as data.

    Attributes:
        code: stable identifier from `Code`.
        severity: "note", "warning" or "error".
        location: the path, tensor or field it is about.
        message: what was seen, what was expected; one printable line.
        remedy: what to do, a command where one helps; may be empty.
    """

    code: str
    severity: str
    location: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        tail = f" | {self.remedy}" if self.remedy else ""
        return f"{self.code} {self.location}: {self.message}{tail}"

    def to_dict(self) -> dict[str, str]:
        """Return the finding as the command line's JSON spells it."""
        return asdict(self)


def finding(
    code: Code,
    location: object,
    reason: str,
    remedy: str = "",
    severity: Severity = Severity.ERROR,
) -> Finding:
    """Return a finding whose texts are safe to print on one line, and short enough to be read."""
    return Finding(
        code.identifier,
        severity.value,
        _short(printable(str(location))),
        _short(printable(reason)),
        _short(printable(remedy)),
    )


def error(code: Code, location: object, reason: str, remedy: str = "") -> PersistlibError:
    """Return the error of the code's own class, ready to be raised."""
    return code.family((finding(code, location, reason, remedy),))


def error_of(findings: Iterable[Finding]) -> PersistlibError:
    """Return one error for all findings of severity "error", in the class of the first.

    Raises:
        ValueError: there is no such finding (a programming fault).
    """
    faults = tuple(f for f in findings if f.severity == Severity.ERROR.value)
    if not faults:
        raise ValueError("no finding of severity error")
    return family_of(faults[0].code)(faults)


def family_of(identifier: str) -> type[PersistlibError]:
    """Return the error class of a code's identifier."""
    return _FAMILY[identifier]


_FAMILY = {code.identifier: code.family for code in Code}


def warn(code: Code, location: object, reason: str, remedy: str = "") -> None:
    """Warn of a finding that does not stop the work."""
    tell((finding(code, location, reason, remedy, Severity.WARNING),))


def tell(findings: Iterable[Finding]) -> None:
    """Warn of every finding of severity "warning"."""
    for item in findings:
        if item.severity == Severity.WARNING.value:
            warnings.warn(PersistlibWarning(item), stacklevel=4)


def missing_extra(package: str, extra: str, purpose: str) -> PersistlibError:
    """Return the error that names the extra to install."""
    return error(
        Code.EXTRA_MISSING, package, f"{purpose} needs it", f"pip install 'persistlib[{extra}]'"
    )
