"""The options that every session of ONNX Runtime is opened with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from persistlib.errors import Code, error
from persistlib.runtime.providers import CPU

if TYPE_CHECKING:
    from collections.abc import Sequence

    from persistlib.runtime.outside import Handed
    from persistlib.runtime.providers import Provider

_FATAL = 4  # ONNX Runtime's highest log level; what fails is raised as well
_CONFIG = "ORT_LOAD_CONFIG_FROM_MODEL"
# What folding constants may add at once while a session opens: a constant of a few bytes can say
# that it is as large as the machine. A weight that is only turned round is smaller.
_THREADS = 1 << 12  # more than a machine has; the runtime reserves memory for each
_FOLDED_BYTES = 1 << 30


def require_harmless_environment() -> None:
    """Refuse to open a session whose options the file itself would set.

    Raises:
        SessionError: an environment variable says so.
    """
    if os.environ.get(_CONFIG) == "1":
        reason = "with this variable set the runtime takes its options from the file"
        raise error(Code.SESSION_FAILED, _CONFIG, reason, f"unset {_CONFIG}")


def session_options(
    providers: Sequence[Provider],
    *,
    threads: int | None = None,
    graph: Handed | None = None,
    profile: str | None = None,
) -> Any:
    """Return ONNX Runtime's options for a session.

    Args:
        providers: those that it will have.
        threads: that one operator may use; None for the runtime's choice.
        graph: what is handed over in memory; None for nothing.
        profile: the beginning of the path of a profile to write; None for none.

    Raises:
        UsageError: the threads are no count.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    entries = {
        # Without it the runtime tells formats apart by four bytes that a hostile file can hold.
        "session.load_model_format": "ONNX",
        "session.record_ep_graph_assignment_info": "1",
        "optimization.constant_folding_max_output_size_in_bytes": str(_FOLDED_BYTES),
    }
    if CPU not in {provider.name for provider in providers}:
        entries["session.disable_cpu_ep_fallback"] = "1"
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    if threads is not None:
        if type(threads) is not int or threads < 1:
            raise error(Code.USAGE, "threads", f"{threads!r} is no count", "give 1 or more")
        if threads > _THREADS:
            remedy = "give as many as the machine has cores"
            raise error(Code.USAGE, "threads", f"{threads} is more than {_THREADS}", remedy)
        options.intra_op_num_threads = threads
    if graph is not None and graph.values:
        options.add_external_initializers(list(graph.values), list(graph.values.values()))
    if graph is not None and (files := graph.files):
        options.add_external_initializers_from_files_in_memory(
            list(files), list(files.values()), [view.nbytes for view in files.values()]
        )
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return options
