"""Training and saving by several processes, as torchrun and accelerate launch start them."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import persistlib
import several_processes
from persistlib.errors import Code
from persistlib.training import run_folder
from several_processes import CASES, DIVISIONS, bits, built, layered

SCRIPT = Path(several_processes.__file__)
LIMIT = 150.0  # seconds for one launch, after which everything that it started is killed
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
# With --cpu it starts one process (1.15); this needs no accelerator.
ACCELERATE = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1"),
    *("--num_processes=2", "--main_process_port=PORT", "--mixed_precision=no"),
    *("--dynamo_backend=no", "--num_cpu_threads_per_process=1"),
)


def launched(
    out: Path, kind: str, *arguments: object, by: tuple[str, ...] = TORCHRUN
) -> tuple[list[dict[str, Any]], str]:
    """Run a kind of work in two processes; return what each said, and all that was printed.

    A process that said nothing, because it was killed, has an empty answer.
    """
    out.mkdir(exist_ok=True)
    for rank in range(2):
        (out / f"{rank}.json").unlink(missing_ok=True)
    root = str(SCRIPT.parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    started = [item.replace("PORT", str(free_port())) for item in by]
    command = [*started, str(SCRIPT), str(out), kind, *map(str, arguments)]
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=LIMIT)
        finally:
            for pid in [*_family(process.pid), process.pid]:
                killed(pid)
    answers = [out / f"{rank}.json" for rank in range(2)]
    return [json.loads(a.read_text("utf-8")) if a.exists() else {} for a in answers], printed


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port: int = place.getsockname()[1]
    return port


def _family(pid: int) -> list[int]:
    """Return the processes that a process started and that are alive, theirs too."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8")
    except OSError:
        return []
    own = [int(item) for item in text.split()]
    return [*(one for child in own for one in _family(child)), *own]


def killed(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    answers, printed = launched(tmp_path_factory.mktemp("train"), "train")
    assert all("result" in answer for answer in answers), printed
    pairs = zip(*(answer["result"] for answer in answers), strict=True)
    return {pair[0]["case"]: list(pair) for pair in pairs}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_come_to_the_weights_of_one(
    name: str, trained: dict[str, list[dict[str, Any]]]
) -> None:
    # In half precision the parts of a sum are rounded before it: no order gives another's bits.
    limit = 2e-2 if name == "bf16" else 1e-4
    for seen in trained[name]:
        assert seen["moved"] > 0.05
        assert seen["off"] < limit
        assert seen["history"] < limit
    first, second = trained[name]
    assert first["bits"] == second["bits"]


def test_what_the_cases_are_for_happened(trained: dict[str, list[dict[str, Any]]]) -> None:
    assert trained["features once"][0]["stage"] == "6"
    assert trained["features once, a rest that trains"][0]["stage"] == "1"
    assert trained["frozen base"][0]["stage"] is None
    assert trained["plateau and patience"][0]["epochs"] < 8


@pytest.mark.parametrize("how", ["stop", pytest.param("kill", marks=pytest.mark.slow)])
def test_a_run_is_written_once_and_goes_on_to_the_same_bits(how: str, tmp_path: Path) -> None:
    whole, printed = launched(tmp_path / "whole", "settled", tmp_path / "whole")
    assert all("result" in answer for answer in whole), printed
    first, second = (answer["result"] for answer in whole)
    assert first == second
    assert persistlib.verify(tmp_path / "whole" / "bundle").ok
    history = json.loads((tmp_path / "whole" / "run" / "history.json").read_text("utf-8"))
    assert history["history"] == first["history"]

    out = tmp_path / "parted"
    answers, printed = launched(out, "stopped", out, 0 if how == "kill" else 1, how)
    if how == "stop":
        assert all(answer.get("interrupted") for answer in answers), printed
    else:
        assert answers[1].get("error") == Code.PROCESS_LOST.identifier, printed
        assert answers[1]["location"] == "process 0"
    assert run_folder.epochs_done(out / "run") >= 1
    answers, printed = launched(out, "resumed", out)
    assert all("result" in answer for answer in answers), printed
    for answer in answers:
        assert answer["result"]["bits"] == first["bits"]
        assert answer["result"]["history"] == first["history"]
        assert answer["result"]["resumed"]
        assert not any(Code.RUN_CHANGED.identifier in said for said in answer["warnings"])


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(tmp_path: Path) -> None:
    out = tmp_path / "parted"
    answers, printed = launched(out, "stopped", out, 1, "stop")
    assert all(answer.get("interrupted") for answer in answers), printed
    whole, printed = launched(tmp_path / "whole", "settled", tmp_path / "whole")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one = several_processes.settled(str(out), resume=True)
    assert any("processes" in str(item.message) for item in caught)
    for row, wanted in zip(one["history"], whole[0]["result"]["history"], strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)


def test_accelerate_launches_them_too(tmp_path: Path) -> None:
    answers, printed = launched(tmp_path, "train", "batch norm", by=ACCELERATE)
    assert all("result" in answer for answer in answers), printed
    (first,), (second,) = (answer["result"] for answer in answers)
    assert first["off"] < 1e-4
    assert first["bits"] == second["bits"]


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("refused")
    answers, printed = launched(out, "refused", out)
    assert all("result" in answer for answer in answers), printed
    return out, answers


def test_what_the_processes_are_not_given_alike_is_said(
    refused: tuple[Path, list[dict[str, Any]]],
) -> None:
    _, answers = refused
    first, second = (answer["result"] for answer in answers)
    for said in (first, second):
        for what, where in (
            ("shape", "model 1.weight"),
            ("settings", "lr"),
            ("samples", "train"),
            ("batches", "train"),
        ):
            assert said[what][0] == Code.PROCESSES_DIFFER.identifier
            assert said[what][1].startswith(where)
        assert said["sparse"][0] == Code.USAGE.identifier
        assert said["divided"][:2] == [Code.USAGE.identifier, "model"]
    assert first["values"] == second["values"]
    assert sum("hold other values" in text for text in answers[0]["warnings"]) == 1
    assert not any("hold other values" in text for text in answers[1]["warnings"])


def test_the_others_name_the_process_that_failed(
    refused: tuple[Path, list[dict[str, Any]]],
) -> None:
    first, second = (answer["result"]["failing"] for answer in refused[1])
    assert first[:2] == [Code.PROCESS_LOST.identifier, "process 1"]
    assert "a fault of this process alone" in first[2]
    assert second[0] == Code.DATA_INVALID.identifier


def test_dropout_differs_between_processes_and_not_between_runs(
    refused: tuple[Path, list[dict[str, Any]]],
) -> None:
    first, second = (answer["result"]["dropped"] for answer in refused[1])
    assert first == second
    assert first[0] == first[1]


def leftovers(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.name.startswith("."))


def require_pieces(folder: Path, bundle: Path) -> None:
    """Require that what torch saved of a divided model is the model's tensors, bit for bit."""
    assert len([*folder.glob("*.distcp")]) == 2
    report = persistlib.convert(folder, folder / "whole.pt", allow_loss=["value"])
    assert report.losses == ("value epoch, which is no tensor",)
    wanted = persistlib.load(bundle).state_dict()
    read = torch.load(folder / "whole.pt", weights_only=True)
    assert {*read} == {*wanted}
    assert all(torch.equal(read[name], wanted[name]) for name in wanted)


def test_divided_models_become_the_bundle_that_one_process_saves(tmp_path: Path) -> None:
    alone = persistlib.save(built(layered), tmp_path / "alone", example_inputs=torch.ones(3, 7))
    out = tmp_path / "out"
    answers, printed = launched(out, "kept", out)
    assert all("result" in answer for answer in answers), printed
    rows = {row.name: row for row in alone.weights.tensors}
    for how in DIVISIONS:
        assert persistlib.verify(out / how).ok
        manifest = persistlib.inspect(out / how).manifest
        weights = manifest.weights
        assert [answer["result"][how] for answer in answers] == [weights.identity] * 2
        assert manifest.architecture == alone.architecture
        assert manifest.state.training == alone.state.training
        # Torch divides tied tensors of layers one by one: they are tied no more, and equal still.
        assert weights.aliases == ({} if how == "tensor parallel" else alone.weights.aliases)
        assert len(weights.files) > 2 if how == "hsdp" else len(weights.files) == 2
        if how != "buffers":
            assert weights.identity == alone.weights.identity
            for row in weights.tensors:
                known = rows[alone.weights.aliases.get(row.name, row.name)]
                assert row.blake3 == known.blake3
                assert (row.role, row.frozen) == (known.role, known.frozen)
            assert bits(persistlib.load(out / how)) == bits(built(layered))
            require_pieces(out / f"{how} in pieces", out / how)
        held = [entry.size for entry in weights.files]
        assert how == "hsdp" or max(held) < 0.75 * sum(held)
    assert persistlib.verify(out / "fsdp", behaviour=True).ok
    assert not leftovers(out)
    said = [message for answer in answers for message in answer["warnings"]]
    assert sum("1.running_mean" in message for message in said) == 1


def test_what_cannot_be_saved_together_is_refused_and_nothing_is_left(
    refused: tuple[Path, list[dict[str, Any]]],
) -> None:
    out, answers = refused
    first, second = (answer["result"] for answer in answers)
    for said in (first, second):
        assert said["parameters"] == [Code.PROCESSES_DIFFER.identifier, "0.weight"]
        assert said["shapes"][0] == Code.PROCESSES_DIFFER.identifier
        assert said["unseen"] == [Code.TARGET_WRITE.identifier, "process 1"]
    assert first["absent"] == [Code.PROCESS_LOST.identifier, "process 1"]
    assert not any(value for name, value in first.items() if name.endswith("stands"))
    left = sorted(item.name for item in out.iterdir())
    assert left == ["0.json", "1.json", "own0", "own1"]


def cut_at(folder: Path, rank: int, point: int) -> list[dict[str, Any]]:
    """Save over an old version while a process dies; require that a whole version stands."""
    shown = torch.ones(3, 7)
    old = persistlib.save(built(layered), folder / "bundle", example_inputs=shown, overwrite=True)
    answers, printed = launched(folder, "cut", folder, rank, point)
    assert persistlib.verify(folder / "bundle").ok, printed
    stands = persistlib.inspect(folder / "bundle").manifest
    survivor = answers[1 - rank]
    if stands.bundle_id == old.bundle_id:
        assert survivor.get("error") == Code.PROCESS_LOST.identifier, printed
        assert survivor["location"] == f"process {rank}"
    else:
        assert stands.weights.identity != old.weights.identity
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the lock of the dead is taken over
        persistlib.save(built(layered), folder / "bundle", overwrite=True)
    assert not leftovers(folder)
    return answers


def test_a_process_that_dies_in_a_save_leaves_the_old_version_whole(tmp_path: Path) -> None:
    answers = cut_at(tmp_path, 1, 24)
    assert not answers[1]
    assert answers[0]["error"] == Code.PROCESS_LOST.identifier


@pytest.mark.slow
def test_a_process_that_dies_anywhere_in_a_save_leaves_a_whole_version(tmp_path: Path) -> None:
    free, printed = launched(tmp_path / "free", "cut", tmp_path / "free", 0, 0)
    assert all("result" in answer for answer in free), printed
    draw = random.Random(7)
    for number in range(20):
        rank = number % 2
        cut_at(tmp_path / f"{number}", rank, draw.randint(1, free[rank]["result"]))


@pytest.mark.slow
def test_of_one_command_in_two_processes_one_speaks(tmp_path: Path) -> None:
    command = "finetune squeezenet1_1 --data sklearn:digits --resize 32 --epochs 1 --out m --json"
    done = subprocess.run(
        [*TORCHRUN, "-m", "persistlib", *command.split()],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True  # one envelope, and nothing else
    assert persistlib.verify(tmp_path / "m").ok
