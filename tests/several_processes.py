"""What each of several processes does, for the tests of them; torchrun starts it.

    several_processes.py OUT KIND [ARGUMENT ...]

Every process writes what it saw to OUT/RANK.json. `train` goes through `CASES`: each is trained by
all processes together, and by each of them alone, which is what it is compared with.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
import types
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

import persistlib
from persistlib import processes, publish, saving_together
from persistlib.digests import digest_all
from persistlib.errors import PersistlibError, PersistlibWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SETTINGS: dict[str, Any] = {"epochs": 3, "lr": 0.05, "batch_size": 8, "seed": 5}


def images(count: int = 45, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return learnable images of three classes of uneven size; each has another brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 0, 1, 2, 0, 1] * count)[:count]
    noise = torch.randn(count, 2, 6, 6, generator=generator)
    return noise * (1 + labels.view(-1, 1, 1, 1)) + labels.view(-1, 1, 1, 1) * 0.7, labels


def plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 16), nn.Tanh(), nn.Linear(16, 3))


def normalized() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 8, bias=False),
        nn.BatchNorm1d(8, momentum=None),
        nn.Linear(8, 3),
    )


class Functional(nn.Module):
    """Batch norms without a module of theirs, and one that never has statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(72, 6, bias=False)
        self.norm = nn.BatchNorm1d(6, affine=False, track_running_stats=False)
        self.last = nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.first(inputs.flatten(1)))
        again = torch.batch_norm(hidden.tanh(), None, None, None, None, True, 0.1, 1e-5, False)
        scores: torch.Tensor = self.last(again)
        return scores


class Heads(nn.Module):
    """Two heads by name: a class, and two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(72, 8)
        self.kind = nn.Linear(8, 3)
        self.size = nn.Linear(8, 2)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.trunk(image.flatten(1)).relu()
        return {"kind": self.kind(hidden), "size": self.size(hidden)}


def two_targets(count: int = 45, seed: int = 1) -> Any:
    inputs, labels = images(count, seed)
    sizes = torch.stack([inputs.flatten(1).mean(1), inputs.flatten(1).std(1)], 1)
    return {"image": inputs}, {"kind": labels, "size": sizes}


class Several(nn.Module):
    """Outputs of several kinds: scores, a state whose second dimension is samples, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(12, 8, batch_first=True)
        self.last = nn.Linear(8, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, inputs: torch.Tensor) -> dict[str, Any]:
        out, (hidden, _) = self.recurrent(inputs.flatten(2).reshape(len(inputs), 6, 12))
        scores = self.last(out[:, -1])
        return {"logits": scores, "hidden": hidden, "penalty": scores.square().mean(), "note": "x"}


def several_loss(outputs: Any, batch: Any) -> torch.Tensor:
    scores, hidden = outputs["logits"], outputs["hidden"]
    assert hidden.shape[1] == len(scores) == len(batch.targets)
    entropy = functional.cross_entropy(scores, batch.targets)
    loss: torch.Tensor = entropy + 0.1 * outputs["penalty"] + 0.01 * hidden.norm()
    return loss


class Regularized:
    """A loss that looks at the parameters themselves, and at pairs of samples."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        decay = sum((item.square().sum() for item in self._model.parameters()), torch.zeros(()))
        spread = torch.cdist(outputs, outputs).mean()
        bright = batch.inputs.flatten(1).mean(1)
        entropy = functional.cross_entropy(outputs, batch.targets, reduction="none")
        weighed: torch.Tensor = (entropy * bright.sigmoid()).mean()
        return weighed + 0.01 * decay - 0.05 * spread


class Augmented(Dataset[Any]):
    """Images that are another draw in each epoch."""

    def __init__(self) -> None:
        self._images, self._labels = images()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Any:
        return self._images[index] + 0.3 * torch.randn(2, 6, 6), int(self._labels[index])


def own_batches() -> Any:
    """Batches that are drawn with torch's global generator."""
    return DataLoader(TensorDataset(*images()), batch_size=7, shuffle=True)


class Case(NamedTuple):
    """What is trained, on what, how."""

    model: Callable[[], nn.Module]
    settings: Mapping[str, Any] = {}
    train: Callable[[], Any] = images
    loss: Callable[[nn.Module], Any] | None = None
    valid: Callable[[], Any] = lambda: images(21, seed=2)


ADAM: dict[str, Any] = {"optimizer": "adamw", "lr": 0.01}
SGD: dict[str, Any] = {"optimizer": "sgd"}
CASES: dict[str, Case] = {
    "sgd": Case(plain, SGD),
    "adamw": Case(plain, ADAM),
    "batch norm": Case(normalized, SGD),
    "batch norm, adamw": Case(normalized, ADAM),
    "functional batch norm": Case(Functional, SGD),
    "frozen base": Case(
        normalized, {**SGD, "freeze": ["*", "!4.*", "!5.*", "!6.*"], "cache": False}
    ),
    "features once": Case(normalized, {**SGD, "freeze": ["*", "!6.*"]}),
    "features once, a rest that trains": Case(normalized, {**SGD, "freeze": ["0.*"]}),
    "gradual": Case(plain, {**SGD, "strategy": "gradual"}),
    "class weights": Case(plain, {**SGD, "class_weights": "balanced", "label_smoothing": 0.2}),
    "accumulate and clip": Case(plain, {**ADAM, "accumulate": 2, "clip": 0.05}),
    "one sample a batch": Case(plain, {**SGD, "batch_size": 1, "lr": 0.01, "epochs": 1}),
    "one sample a batch, batch norm": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(),
                              nn.Linear(64, 3)),
        {**SGD, "batch_size": 1, "lr": 0.01, "epochs": 1},
    ),
    "augmented, with workers": Case(plain, {**SGD, "workers": 1, "epochs": 2}, Augmented),
    "batches of one's own": Case(plain, SGD, own_batches),
    "several outputs": Case(Several, {**SGD, "clip": 1.0}, loss=lambda _: several_loss),
    "a loss of the whole batch": Case(plain, SGD, loss=Regularized),
    "two heads": Case(
        Heads,
        {**SGD, "task": {"kind": "classification", "size": "regression"}, "lr": 0.02},
        two_targets,
        valid=lambda: two_targets(21, 2),
    ),
    "bf16": Case(plain, {**SGD, "precision": "bf16"}),
    "plateau and patience": Case(
        plain, {**SGD, "schedule": "reducelronplateau", "schedule_options": {"patience": 0},
                "patience": 2, "epochs": 8, "lr": 0.5},
    ),
}  # fmt: skip


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return make()


def values(model: nn.Module) -> list[torch.Tensor]:
    state: list[torch.Tensor] = [*model.state_dict().values()]
    return [item.detach().double() for item in state if item.is_floating_point()]


def apart(ones: list[torch.Tensor], others: list[torch.Tensor]) -> list[float]:
    """Return how far tensors are from others, relative to these."""
    return [
        float((one - other).norm() / other.norm().clamp(min=1e-3))
        for one, other in zip(ones, others, strict=True)
    ]


def bits(model: nn.Module) -> str:
    state = model.state_dict().values()
    return "".join(digest_all([item.numpy().tobytes() for item in state]))


def trained(case: Case, *, alone: bool) -> tuple[nn.Module, Any]:
    model = built(case.model)
    settings = {**SETTINGS, **case.settings}
    loss = None if case.loss is None else case.loss(model)
    metrics = None if loss or "task" in settings else {"right": right}
    result = persistlib.finetune(
        model, case.train(), case.valid(), loss=loss, metrics=metrics, alone=alone, **settings
    )
    return model, result


def right(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    assert len(outputs) == len(targets) == 21
    return float((outputs.argmax(1) == targets).double().mean())


def compare(name: str) -> dict[str, Any]:
    """Return how a case that is trained together differs from one that is trained alone."""
    case = CASES[name]
    before = values(built(case.model))
    model, result = trained(case, alone=False)
    own, expected = trained(case, alone=True)
    pairs = [
        (row[key], wanted[key])
        for row, wanted in zip(result.history, expected.history, strict=True)
        for key in row.keys() | wanted.keys()
    ]
    return {
        "case": name,
        "off": max(apart(values(model), values(own))),
        "moved": max(apart(values(own), before)),
        "history": max(abs(a - b) / max(abs(b), 1e-3) for a, b in pairs),
        "bits": bits(model),
        "stage": result.training.strategy["cached_before"],
        "epochs": len(result.history),
    }


def train(*names: str) -> Any:
    return [compare(name) for name in names or CASES]


def settled(out: str, **more: Any) -> dict[str, Any]:
    """Train with a run folder; return what came of it."""
    model = built(normalized)
    where: dict[str, Any] = {"run": os.path.join(out, "run"), "out": os.path.join(out, "bundle")}
    how: dict[str, Any] = {**SETTINGS, **SGD, "seed": 4, **where, **more}
    result = persistlib.finetune(model, images(), images(21, seed=2), **how)
    history = [{**row} for row in result.history]
    return {"bits": bits(model), "history": history, "resumed": result.resumed}


def stopped(out: str, rank: str, how: str) -> None:
    """Train until a batch in which one process is asked to stop, fails, hangs or dies."""
    seen = 0

    def hook(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 9 and os.environ["RANK"] == rank:
            act(how)

    model = built(normalized)
    model.register_forward_pre_hook(lambda module, _: hook() if module.training else None)
    how_long: dict[str, Any] = {**SETTINGS, **SGD, "seed": 4, "run": os.path.join(out, "run")}
    persistlib.finetune(model, images(), images(21, seed=2), resume=True, **how_long)


def act(how: str) -> None:
    if how == "raise":
        raise RuntimeError("a fault of this process alone")
    os.kill(os.getpid(), signal.SIGINT if how == "stop" else signal.SIGKILL)


def unlike(what: str) -> str:
    """Train with something that is not the same in every process; return the weights' digests."""
    rank = int(os.environ["RANK"])
    model, more = built(plain), dict(SETTINGS)
    train: Any = images()
    if what == "values":
        torch.manual_seed(rank)
        model = plain()
    elif what == "shape" and rank:
        model = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))
    elif what == "settings":
        more["lr"] = 0.01 * (rank + 1)
    elif what == "samples":
        train = images(seed=rank)
    elif what == "batches":
        train = DataLoader(TensorDataset(*images(seed=rank)), batch_size=5)
    elif what == "sparse":
        model = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 3))
        train = (torch.arange(90).reshape(45, 2) % 9, train[1])
    persistlib.finetune(model, train, **{**more, **SGD})
    return bits(model)


def failing() -> None:
    """Train until the second process alone fails, and lives on."""
    model = built(plain)
    if os.environ["RANK"] == "1":
        model.register_forward_hook(lambda *_: act("raise"))
    persistlib.finetune(model, images(), **{**SETTINGS, **SGD})


def dropped() -> list[str]:
    """Train with dropout, twice together."""
    made: list[str] = []
    for _ in range(2):
        model = built(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(72, 3)))
        before = torch.get_rng_state()
        persistlib.finetune(model, images(), **{**SETTINGS, **SGD})
        assert torch.get_rng_state().equal(before)
        made.append(bits(model))
    return made


def layered() -> nn.Module:
    """A model with tied tensors, a buffer, a frozen layer, and extents that do not divide."""
    model: Any = nn.Sequential(
        nn.Linear(7, 13), nn.BatchNorm1d(13), nn.ReLU(), nn.Linear(13, 13), nn.Linear(13, 13),
        nn.Linear(13, 5),
    )  # fmt: skip
    model[4].weight = model[3].weight
    model[0].bias.requires_grad_(requires_grad=False)
    made: nn.Module = model.eval()
    return made


def divided(how: str) -> Any:
    """Return the model of `layered`, divided among the processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    model: Any = built(layered)
    if how in {"fsdp", "hsdp"}:
        shape = (2,) if how == "fsdp" else (2, 1)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
        for layer in (model[0], model[5]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif how == "tensor parallel":
        mesh = init_device_mesh("cpu", (2,))
        plan: Any = {"3": ColwiseParallel(), "5": RowwiseParallel()}
        parallelize_module(model, mesh, plan)
    elif how == "buffers":
        model[1].running_mean.fill_(distributed.get_rank())
    return model


def saved(out: str, how: str) -> Any:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    model = divided(how)
    shown = torch.ones(3, 7) if how == "fsdp" else None
    place = os.path.join(out, how)
    manifest = persistlib.save(
        model,
        place,
        example_inputs=shown,
        overwrite=True,
        sha256=how == "fsdp",
        shard_bytes=400 if how == "hsdp" else 1 << 30,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, which warns of names of its own
        save({"model": get_model_state_dict(model), "epoch": 3}, checkpoint_id=f"{place} in pieces")
    return manifest.weights.identity


def kept(out: str) -> Any:
    """Save one model, divided in every way."""
    return {how: saved(out, how) for how in DIVISIONS}


def strangers(out: str) -> Any:
    """Save what is not the same in every process; return the code of each refusal."""
    rank = int(os.environ["RANK"])
    codes: dict[str, Any] = {}
    module: Any = saving_together
    for what in ("parameters", "shapes", "absent", "unseen"):
        model = divided("plain")
        if what == "parameters":
            model[0].weight.data += rank
        if what == "shapes" and rank:
            model[5] = nn.Linear(13, 6)
        processes.MEETING = 2.0
        if what == "unseen" and rank:
            module.os = types.SimpleNamespace(**{**vars(os), "open": refuse})
        try:
            if what != "absent" or not rank:
                persistlib.save(model, os.path.join(out, what))
            else:
                time.sleep(3.0)
        except PersistlibError as fault:
            codes[what] = [fault.code, str(fault.location)]
        module.os = os
        codes[f"{what} stands"] = os.path.exists(os.path.join(out, what))
    persistlib.save(divided("plain"), os.path.join(out, f"own{rank}"), together=False)
    return codes


def refuse(*_: Any, **__: Any) -> int:
    raise FileNotFoundError


def cut(out: str, rank: str, point: str) -> int:
    """Save until a process dies at a point of its work; return how many points it came by."""
    # What launches processes asks the others to leave when one is gone; they leave by themselves.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    model = divided("fsdp")
    model[5].bias.data.mul_(2)
    seen = 0

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **how: Any) -> Any:
            nonlocal seen
            seen += 1
            if os.environ["RANK"] == rank and seen == int(point):
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*args, **how)

        return call

    for owner, name in POINTS:
        setattr(owner, name, counted(getattr(owner, name)))
    persistlib.save(model, os.path.join(out, "bundle"), overwrite=True)
    return seen


POINTS: tuple[tuple[Any, str], ...] = (
    (processes.Group, "_wait"),
    (publish.OutFile, "write"),
    (publish, "sync"),
    (publish, "sync_folder"),
    (saving_together, "whole"),
)
DIVISIONS = ("plain", "fsdp", "hsdp", "tensor parallel", "buffers")


def refused(out: str) -> dict[str, Any]:
    """Return what came of each thing that is not the same in every process, or fails in one."""
    said: dict[str, Any] = {"dropped": dropped()}
    work: dict[str, Callable[[], Any]] = {
        **{what: functools.partial(unlike, what) for what in UNLIKE},
        "failing": failing,
        "divided": lambda: persistlib.finetune(divided("fsdp"), images(), **SETTINGS),
    }
    said |= {name: outcome(do) for name, do in work.items()}
    return {**said, **strangers(out)}


def outcome(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except PersistlibError as fault:
        return [fault.code, str(fault.location), fault.reason]


UNLIKE = ("values", "shape", "settings", "samples", "batches", "sparse")
KINDS: dict[str, Callable[..., Any]] = {
    "train": train,
    "settled": settled,
    "resumed": lambda out: settled(out, resume=True),
    "stopped": stopped,
    "refused": refused,
    "kept": kept,
    "cut": cut,
}


def main(out: str, kind: str, *arguments: str) -> None:
    torch.set_num_threads(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            said: dict[str, Any] = {"result": KINDS[kind](*arguments)}
        except KeyboardInterrupt:
            said = {"interrupted": True}
        except PersistlibError as fault:
            said = {"error": fault.code, "location": str(fault.location), "reason": fault.reason}
    said["warnings"] = [str(w.message) for w in caught if isinstance(w.message, PersistlibWarning)]
    rank = os.environ.get("RANK", "0")
    with open(os.path.join(out, f"{rank}.json"), "w", encoding="utf-8") as file:
        json.dump(said, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
