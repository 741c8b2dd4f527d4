"""A session of ONNX Runtime over verified bytes: named arrays in, named arrays out, without torch.

Laws: the runtime opens no file; a provider that was asked for by name is used, or it is an error;
no exception of the runtime's own leaves this module; what takes longer than it may is ended.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Literal, overload

from persistlib.dtypes import DType
from persistlib.errors import Code, error
from persistlib.runtime import batching, placement, predictions, torch_tensors
from persistlib.runtime.outside import handed
from persistlib.runtime.predictions import Prediction
from persistlib.runtime.providers import CPU, Provider, resolve_all, short
from persistlib.runtime.refusals import LOCATION, message, refused
from persistlib.runtime.settings import require_harmless_environment, session_options
from persistlib.runtime.structure import check_graph
from persistlib.runtime.tensors import conform, from_runtime, to_runtime
from persistlib.runtime.watch import deadline

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from numpy.typing import NDArray
    from pydantic import JsonValue

    from persistlib.manifest.schema import Interface
    from persistlib.runtime.outside import Handed
    from persistlib.runtime.structure import GraphFacts

__all__ = ["Prediction", "Session", "open_session"]

_FASTER = "give it longer (timeout=SECONDS), or fewer samples at once"


class Session:
    """An open session.

    Attributes:
        inputs: what `run` takes, in order.
        outputs: what it gives, in order.
        providers: those that the session really has, by short name.
        assigned: the operators that each provider was given, with how many of each; None where
            the runtime does not tell.
        facts: what the graph says about itself.
        interface: preprocessing and class names, for `predict`.
        task: what the outputs are for, as a manifest's `training.strategy.task` says; None where
            nothing does.
        timeout: seconds that a run may take; None for as long as it likes.
    """

    def __init__(self, opened: Any, facts: GraphFacts, interface: Interface | None) -> None:
        self._opened = opened
        self.inputs = facts.inputs
        self.outputs = facts.outputs
        self.providers = tuple(short(name) for name in opened.get_providers())
        self.assigned = placement.assigned(opened)
        self.facts = facts
        self.interface = interface
        self.task: JsonValue = None
        self.timeout: float | None = None
        self._is_plain = not any(
            DType[spec.dtype].value.extension for spec in (*self.inputs, *self.outputs)
        )

    @property
    def placement(self) -> dict[str, int] | None:
        """How many operators each provider was given, where the runtime tells."""
        if self.assigned is None:
            return None
        return {name: sum(counts.values()) for name, counts in self.assigned.items()}

    @overload
    def run(
        self, inputs: object, *, tensors: Literal["numpy"] = ..., timeout: float | None = ...
    ) -> dict[str, NDArray[Any]]: ...

    @overload
    def run(
        self, inputs: object, *, tensors: Literal["torch"], timeout: float | None = ...
    ) -> dict[str, torch.Tensor]: ...

    def run(
        self, inputs: object, *, tensors: str = "numpy", timeout: float | None = None
    ) -> dict[str, NDArray[Any]] | dict[str, torch.Tensor]:
        """Return the outputs by name.

        Args:
            inputs: arrays or tensors of torch by name; or in order, in a list or tuple; or the
                only one.
            tensors: "numpy" for arrays, or "torch" for tensors, which stay on the inputs' device.
            timeout: seconds that it may take, told between two operators; None for the session's
                own, infinity for as long as it likes.

        Raises:
            SessionError: an input has the wrong name, dtype or shape, the runtime failed, or the
                time is over.
            MissingExtra: tensors are wanted and torch is not installed.
        """
        if tensors not in ("numpy", "torch"):
            reason = "is no kind of tensor"
            raise error(Code.USAGE, f"tensors={tensors!r}", reason, 'use "numpy" or "torch"')
        given = conform(inputs, self.inputs, self.facts.shapeless)
        device = next((a.device for a in given.values() if torch_tensors.is_on_device(a)), None)
        if device is not None and device.type not in self.providers:
            given = {name: _on_host(array) for name, array in given.items()}
            device = None
        if tensors == "torch" and device is not None:
            return self._run_on(given, (device.type, device.index or 0), timeout)
        found = self._run(given, timeout)
        return torch_tensors.as_tensors(found, self.outputs) if tensors == "torch" else found

    def batches(
        self, inputs: object, *, batch_size: int | None = None, timeout: float | None = None
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the outputs of some samples after the other, in order.

        Inputs are cut along the first axis as they are needed, so that a mapped file larger than
        the memory will do. A graph of a fixed number of samples gets that many, the last ones
        filled up with copies whose outputs are dropped.

        Args:
            inputs: as `run`, of any number of samples.
            batch_size: samples at once; by default 32, or what the graph is fixed to.
            timeout: seconds that one piece may take, as `run`.

        Raises:
            SessionError: as `run`; or an output has no row for each sample.
            UsageError: the size cannot be.
        """
        pieces = batching.pieces(inputs, self.inputs, batch_size)
        for part, rows in pieces.parts():
            yield batching.cut(self._run(part, timeout), rows, pieces, self.outputs)

    def run_batched(
        self, inputs: object, *, batch_size: int | None = None, timeout: float | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return the outputs of all samples by name, computed some at a time; see `batches`."""
        return batching.joined([*self.batches(inputs, batch_size=batch_size, timeout=timeout)])

    def warm_up(self, inputs: object = None, *, runs: int = 1) -> float:
        """Run without looking at the outputs, and return the seconds that the last run took.

        The first run of a session reserves memory, and on devices chooses kernels or builds
        engines for the shapes that it sees: later ones are faster.

        Args:
            inputs: as `run`, of the shapes to come; by default zeros, with one sample and the
                preprocessing's image size where the graph leaves them free, else 1.
            runs: how often.

        Raises:
            SessionError: as `run`.
        """
        given = batching.zeros(self.inputs, self.interface) if inputs is None else inputs
        seconds = 0.0
        for _ in range(runs):
            start = time.perf_counter()
            self.run(given)
            seconds = time.perf_counter() - start
        return seconds

    def predict(self, images: Any, *, top: int = 5) -> list[Any]:
        """Return what each image is taken for, or what a model tells of it.

        Args:
            images: paths, Pillow images or arrays, or rows of a table (`table_rows`), or one of
                them; prepared as the interface says.
            top: how many classes or labels to name for each.

        Returns:
            Of each a `Prediction`; `Numbers` of a regression, `Labels` where a sample may have
            several (`runtime.predictions`); of a model with named heads a mapping of these.

        Raises:
            SessionError: nothing says how inputs are prepared, the graph does not give what its
                task needs, it tells a class of each pixel, an image cannot be read, or the runtime
                failed.
        """
        return [one for outputs in self.outputs_of(images) for one in self.told(outputs, top=top)]

    def told(self, outputs: Mapping[str, NDArray[Any]], *, top: int = 5) -> Sequence[Any]:
        """Return what outputs of some samples say, as `predict` returns it.

        Raises:
            SessionError: as `predict`.
        """
        labels = None if self.interface is None else self.interface.labels
        heads = predictions.heads_for(self.task, next(iter(outputs.values())).shape)
        parts = predictions.of_heads(outputs, heads, "outputs")
        return predictions.told(parts, heads, labels, top=top)

    def outputs_of(self, images: Any) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the outputs for some images after the other, prepared as the interface says.

        Raises:
            SessionError: as `predict`.
        """
        from persistlib import preparing

        interface = self.interface
        if interface is None or interface.preprocessing is None:
            remedy = "prepare arrays yourself and use run(), or --input on the command line"
            raise error(Code.PREPROCESSING, "interface.preprocessing", "not recorded", remedy)
        record = preparing.parse(interface.preprocessing)
        step, items = batching.samples_at_once(self.inputs), preparing.items_of(images)
        for start in range(0, len(items), step):
            yield self.run_batched([preparing.apply(items[start : start + step], record)])

    def end_profile(self) -> str:
        """End profiling and return the path of the profile that the runtime wrote."""
        return str(self._opened.end_profiling())

    def _run(self, given: Mapping[str, Any], timeout: float | None) -> dict[str, NDArray[Any]]:
        names = [spec.name for spec in self.outputs]

        def work(options: Any) -> dict[str, NDArray[Any]]:
            # Ten times faster for a small graph: no value is wrapped.
            if self._is_plain and not any(map(torch_tensors.is_tensor, given.values())):
                values = self._opened.run(names, dict(given), options)
                return dict(zip(names, values, strict=True))
            feeds = {s.name: to_runtime(given[s.name], DType[s.dtype]) for s in self.inputs}
            values = self._opened.run_with_ort_values(names, feeds, options)
            pairs = zip(values, self.outputs, strict=True)
            return {spec.name: from_runtime(value, spec) for value, spec in pairs}

        found: dict[str, NDArray[Any]] = self._timed(work, timeout)
        return found

    def _run_on(
        self, given: Mapping[str, Any], device: tuple[str, int], timeout: float | None
    ) -> dict[str, torch.Tensor]:
        def work(options: Any) -> dict[str, torch.Tensor]:
            feeds = {s.name: to_runtime(given[s.name], DType[s.dtype]) for s in self.inputs}
            found = torch_tensors.run_bound(self._opened, feeds, self.outputs, device, options)
            return {spec.name: tensor for spec, tensor in zip(self.outputs, found, strict=True)}

        tensors: dict[str, torch.Tensor] = self._timed(work, timeout)
        return tensors

    def _timed(self, work: Any, timeout: float | None) -> Any:
        """Return what a run gives, ended when its time is over."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        seconds = seconds_of(self.timeout if timeout is None else timeout)

        def stop() -> None:
            options.terminate = True

        with deadline(seconds, stop) as watched:
            try:
                return work(options)
            except Exception as fault:
                if watched.is_over:
                    reason = f"still running after {seconds:g} s, and ended"
                    raise error(Code.RUN_TIMEOUT, LOCATION, reason, _FASTER) from fault
                reason, remedy = message(fault), "see whether the inputs' values fit the model"
                raise error(Code.RUN_FAILED, LOCATION, reason, remedy) from fault


def _on_host(array: Any) -> Any:
    return torch_tensors.to_array(array) if torch_tensors.is_tensor(array) else array


def seconds_of(timeout: object) -> float | None:
    """Return a timeout in seconds; None for infinity.

    Raises:
        UsageError: it is no length of time.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        remedy = "give seconds above 0, or infinity for as long as it likes"
        raise error(Code.USAGE, "timeout", f"{timeout!r} is no length of time", remedy)
    return None if timeout == math.inf else float(timeout)


def open_session(
    model: bytes | memoryview,
    *,
    external: Mapping[str, memoryview] | None = None,
    providers: object = None,
    require: str | None = None,
    min_share: float | None = None,
    threads: int | None = None,
    interface: Interface | None = None,
    task: JsonValue = None,
    timeout: float | None = None,
    profile: str | None = None,
    location: object = LOCATION,
) -> Session:
    """Return a session over a graph's bytes.

    Args:
        model: the bytes of the ONNX file.
        external: its external data files by name.
        providers: by short or full name, the preferred first, each alone or as a pair with its
            options; by default the CPU. Operators that a provider lacks run on the CPU only where
            that is named too.
        require: a provider that must be given operators.
        min_share: the part of all operators that the required provider must be given, 0 to 1.
        threads: that one operator may use; by default the runtime's choice.
        interface: preprocessing and class names, for `Session.predict`.
        task: what the outputs are for, as a manifest's `training.strategy.task` says it.
        timeout: seconds that opening may take, and each run; by default as long as they like.
        profile: the beginning of the path of a profile that the runtime writes; None for none.
        location: what to name in an error.

    Raises:
        FormatError: the graph is not one that any runtime should see.
        CompatibilityError: the graph is newer than this runtime.
        SessionError: the runtime refuses it, or a provider is unknown, absent or not used.
        UsageError: an argument cannot mean anything.
    """
    require_harmless_environment()
    placement.require_runtime()
    placement.require_share(min_share, require)
    wanted = resolve_all(providers, require)
    seconds = seconds_of(timeout)
    facts = check_graph(model, external=external or {}, location=location)
    placement.require_loadable(wanted)
    used = {name: (external or {})[name] for name in facts.external}
    graph = handed(bytes(model), used)
    options = session_options(wanted, threads=threads, graph=graph, profile=profile)
    opened = _opened(graph.model, options, wanted, seconds, location)
    if isinstance(opened, Exception):
        raise _refused(opened, graph, wanted, location) from opened
    placement.require_placed(opened, wanted, require, min_share, graph.model)
    session = Session(opened, facts, interface)
    session.task, session.timeout = task, seconds
    return session


def _opened(
    data: bytes,
    options: Any,
    providers: Sequence[Provider],
    seconds: float | None,
    location: object,
) -> Any:
    """Return ONNX Runtime's session, or what it raised."""
    import onnxruntime

    def stop() -> None:
        if hasattr(options, "set_load_cancellation_flag"):
            options.set_load_cancellation_flag(True)

    with deadline(seconds, stop) as watched:
        try:
            return onnxruntime.InferenceSession(
                data,
                options,
                providers=[(provider.name, dict(provider.options)) for provider in providers],
                enable_fallback=0,
                read_config_from_model=0,
            )
        except Exception as fault:
            if watched.is_over:
                reason = f"still not open after {seconds:g} s, and given up"
                remedy = "give it longer (timeout=SECONDS)"
                raise error(Code.RUN_TIMEOUT, location, reason, remedy) from fault
            return fault


def _refused(
    fault: Exception, graph: Handed, wanted: Sequence[Provider], location: object
) -> Exception:
    """Return the error for a session that could not be opened: the graph's fault or a provider's.

    Which of them it is the runtime does not say; what the graph does elsewhere does.
    """
    others = [provider for provider in wanted if provider.name != CPU]
    cpu = Provider(CPU)

    def again(*providers: Provider) -> Any:
        options = session_options(providers, graph=graph)
        return _opened(graph.model, options, providers, None, location)

    if not others:
        return refused(fault, graph.model, wanted, location)
    if cpu not in wanted:
        both = again(*wanted, cpu)
        if not isinstance(both, Exception):
            placement.require_placed(both, (*wanted, cpu))
            return placement.not_alone(others, placement.assigned(both), graph.model)
    alone = again(cpu)
    if isinstance(alone, Exception):
        return refused(alone, graph.model, (cpu,), location)
    return placement.at_fault(others, message(fault))
