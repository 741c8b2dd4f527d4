"""Training and saving by several processes, as torchrun and accelerate launch start them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import persistlib
import several_processes
from persistlib.errors import Code
from persistlib.training import run_folder
from several_processes import CASES

SCRIPT = Path(several_processes.__file__)
LIMIT = 150.0  # seconds for one launch, after which everything that it started is killed
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
ACCELERATE = (
    *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines=1"),
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
    # Launchers stop the others at once; what they would have said is what is looked at here.
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
                with_suppressed_kill(pid)
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


def with_suppressed_kill(pid: int) -> None:
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
    assert trained["frozen base"][0]["stage"] is None
    assert trained["plateau and patience"][0]["epochs"] < 8


def test_a_run_is_written_once_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, printed = launched(tmp_path / "whole", "settled", tmp_path / "whole")
    assert all("result" in answer for answer in whole), printed
    first, second = (answer["result"] for answer in whole)
    assert first == second
    assert persistlib.verify(tmp_path / "whole" / "bundle").ok
    history = json.loads((tmp_path / "whole" / "run" / "history.json").read_text("utf-8"))
    assert history["history"] == first["history"]

    out = tmp_path / "parted"
    for rank, reason in ((1, "stop"), (0, "stop"), (1, "kill")):
        answers, printed = launched(out, "stopped", out, rank, reason)
        if reason == "stop":
            assert all(answer.get("interrupted") for answer in answers), printed
    assert run_folder.epochs_done(out / "run") >= 1
    answers, printed = launched(out, "resumed", out)
    assert all("result" in answer for answer in answers), printed
    for answer in answers:
        assert answer["result"]["bits"] == first["bits"]
        assert answer["result"]["history"] == first["history"]
        assert answer["result"]["resumed"]
        assert not answer["warnings"]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["raise", "kill"])
def test_the_others_name_the_process_that_failed(how: str, rank: int, tmp_path: Path) -> None:
    began = time.monotonic()
    answers, printed = launched(tmp_path, "stopped", tmp_path, rank, how)
    other = answers[1 - rank]
    assert other.get("error") == Code.PROCESS_LOST.identifier, printed
    assert other["location"] == f"process {rank}"
    if how == "raise":
        assert "a fault of this process alone" in other["reason"]
    assert time.monotonic() - began < 60
