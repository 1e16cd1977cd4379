"""Several processes on this machine, by torchrun and gloo, against one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import psutil
import pytest
import torch
from safetensors.torch import load_file

from kinject_assets.core.errors import KinjectError
from kinject_assets.core.progress import silent
from kinject_assets.core.schema import Damage
from kinject_assets.core.store import Store, read_rows
from kinject_assets.core.training.packing import cut
from kinject_assets.core.training.ranks import Ranks
from kinject_assets.core.training.trainer import TrainRequest, train
from kinject_assets.core.training.trial import dealt
from kinject_assets.defs import compute
from kinject_assets_tests.core.training.launching import (
    STEPS,
    command,
    environment,
    finish,
    go_on,
    gone,
    many_steps,
    result_path,
    rows,
    saved_steps,
    stand_still_in_the_middle,
    start,
)

RequestOf = Callable[..., TrainRequest]


def assert_as_in_one_process(
    several: TrainRequest, one: TrainRequest, name: str = "model.safetensors"
) -> None:
    """Compares what two runs wrote; the second one runs here."""
    expected = train(one)
    checkpoint, trials, losses = rows(several)
    assert checkpoint.epochs == expected.checkpoint.epochs
    assert checkpoint.steps == expected.checkpoint.steps
    assert checkpoint.validation_loss == pytest.approx(
        expected.checkpoint.validation_loss, abs=1e-5
    )
    for mine, theirs in zip(trials, expected.trials, strict=True):
        assert (mine.trial, mine.epoch, mine.kept) == (theirs.trial, theirs.epoch, theirs.kept)
        assert mine.validation_loss == pytest.approx(theirs.validation_loss, abs=1e-5)
    assert [e["loss"] for e in losses] == pytest.approx(
        [e["loss"] for e in expected.losses], abs=1e-5
    )
    damage = read_rows(Path(several.out) / "damage.parquet", Damage)
    for mine, theirs in zip(damage, expected.damage, strict=True):
        assert (mine.before, mine.after) == pytest.approx((theirs.before, theirs.after), rel=1e-5)
    weights = load_file(Path(several.out) / "model" / name)
    for key, tensor in load_file(Path(one.out) / "model" / name).items():
        assert torch.allclose(weights[key], tensor, atol=1e-5), key


def pair(
    request_of: RequestOf, texts: Path, tmp_path: Path, processes: int = 2, **fields: Any
) -> tuple[TrainRequest, TrainRequest]:
    """The same training by several processes, and by one with as many times the accumulation."""
    training = {"epochs": 2, "micro_batch": 2, "lora_rank": 4} | fields.pop("training", {})
    alone = {k: v for k, v in training.items() if k != "sharding"} | {"micro_batch": 1}
    fields["general_text"] = str(texts / "general.txt")
    return (
        many_steps(
            request_of,
            texts,
            tmp_path / "several",
            training=training | {"processes": processes},
            **fields,
        ),
        many_steps(request_of, texts, tmp_path / "one", training=alone, **fields),
    )


def listening(pids: list[psutil.Process]) -> set[str]:
    """Addresses that processes listen on."""
    return {c.laddr.ip for p in pids for c in p.net_connections("inet") if c.status == "LISTEN"}


def test_each_piece_is_dealt_once_and_all_keep_step() -> None:
    import numpy as np

    pieces = cut(np.arange(16 * 7 + 5), 16)
    for count in (1, 2, 3, 9):
        turns = [dealt(pieces, 2, Ranks(number, count)) for number in range(count)]
        assert len({len(mine) for mine in turns}) == 1
        counted = [
            piece[0] for mine in turns for group, counts in mine if counts for piece in group
        ]
        assert sorted(counted) == [piece[0] for piece in pieces]
        assert all(group for mine in turns for group, _ in mine)
    assert dealt([], 2, Ranks(0, 2)) == []


def test_two_processes_are_one_with_double_accumulation(
    request_of: RequestOf, texts: Path, tmp_path: Path
) -> None:
    several, one = pair(request_of, texts, tmp_path, recipe="full.p04")
    finish(start(several))
    assert_as_in_one_process(several, one)
    speed = json.loads((Path(several.out) / "speed.json").read_text())
    assert (speed["processes"], speed["micro_batch"]) == (2, 2)
    assert speed["tokens_per_second"] > 0


@pytest.mark.slow
def test_all_processes_end_with_their_parent_and_training_goes_on(
    request_of: RequestOf, texts: Path, tmp_path: Path
) -> None:
    several, one = pair(request_of, texts, tmp_path, training={"epochs": 3})
    code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *command(several)], env=environment(several)
    )
    _, *started = stand_still_in_the_middle(parent.pid, several)
    training = [p for p in started if "kinject_assets.workers.train" in p.cmdline()]
    assert len(training) == 2
    assert listening(started) <= {"127.0.0.1"}
    parent.kill()
    go_on(started)
    parent.wait()
    assert gone(started) == []
    step = saved_steps(several)[-1]
    assert step % STEPS != 0
    finish(start(several))
    assert_as_in_one_process(several, one)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_that_is_spread_over_processes(
    request_of: RequestOf, texts: Path, tmp_path: Path, method: str
) -> None:
    several, one = pair(
        request_of,
        texts,
        tmp_path,
        training={"sharding": "fsdp", "epochs": 3},
        method=method,
        recipe=f"{method}.p04",
    )
    first = start(several)
    _, *started = stand_still_in_the_middle(first.pid, several, "sharded-checkpoint")
    first.kill()
    go_on(started)
    finish(first, -signal.SIGKILL)
    assert gone(started) == []
    (saved,) = (Path(several.work) / "trial-0").glob("sharded-checkpoint-*")
    shards = list((saved / "pytorch_model_fsdp_0").glob("*.distcp"))
    assert len(shards) == 2, "each process has saved its part"
    finish(start(several))
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    assert_as_in_one_process(several, one, name)


def step_of(folder: Path, context: Any) -> Any:
    """As much of a step as a worker needs."""
    return SimpleNamespace(
        context=context,
        work=folder,
        cell="checkpoint/events/lab-llama.full.p04",
        report=silent,
        worked=lambda seconds: None,
        study=SimpleNamespace(store=Store(folder)),
    )


def run_in_dagster(request: TrainRequest) -> str:
    """Trains as the asset does; what the run's log says."""
    Path(request.work).mkdir(parents=True, exist_ok=True)
    fields = json.loads(json.dumps(vars(request)))

    @dg.asset
    def checkpoint(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        compute.run_training(step_of(Path(request.work), context), fields)
        return dg.MaterializeResult()

    with dg.instance_for_test() as instance:
        result = dg.materialize([checkpoint], instance=instance)
        return "\n".join(event.user_message for event in instance.all_logs(result.run_id))


@pytest.mark.parametrize("mode", ["inline", pytest.param("local", marks=pytest.mark.slow)])
def test_the_log_says_each_epochs_end(
    request_of: RequestOf, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("KINJECT_COMPUTE", mode)
    said = run_in_dagster(request_of())
    for trial in (1, 2):
        for epoch in (1, 2):
            assert f"trial {trial}/2 epoch {epoch}/2 done: loss" in said


OUT_OF_MEMORY = """
import os, sys
if os.environ.get("RANK") == "1" and "LIMIT" in os.environ:
    import torch
    from kinject_assets.core.training import trial
    real = trial.summed_loss
    def tight(model, pieces):
        if model.training and len(pieces) > int(os.environ["LIMIT"]):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, pieces)
    trial.summed_loss = tight
"""


@pytest.mark.slow
def test_all_start_again_with_less_when_one_is_out_of_memory(
    request_of: RequestOf, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(OUT_OF_MEMORY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), *sys.path]))
    monkeypatch.setenv("KINJECT_COMPUTE", "inline")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    several, one = pair(
        request_of, texts, tmp_path, training={"epochs": 1, "gradient_checkpointing": False}
    )
    monkeypatch.setenv("LIMIT", "1")
    began = time.monotonic()
    said = run_in_dagster(several)
    assert time.monotonic() - began < 180, "nobody waited for the other one"
    assert "processes of their own, although compute is inline" in said
    assert "out of GPU memory, micro-batch is now 1" in said
    assert "epoch 1/1 done: loss" in said
    assert_as_in_one_process(several, one)
    speed = json.loads((Path(several.out) / "speed.json").read_text())
    assert speed["micro_batch"] == 1

    monkeypatch.setenv("LIMIT", "0")
    hopeless = many_steps(
        request_of,
        texts,
        tmp_path / "hopeless",
        training={"processes": 2, "micro_batch": 1, "gradient_checkpointing": False},
    )
    with pytest.raises(KinjectError, match=r"micro_batch: events lab-llama\.full\.p04 runs out of"):
        run_in_dagster(hopeless)


@pytest.mark.slow
def test_cancelling_the_run_ends_all_processes(
    request_of: RequestOf, texts: Path, tmp_path: Path
) -> None:
    """As the UI does: SIGINT to the run's process alone."""
    several = many_steps(
        request_of, texts, tmp_path, training={"processes": 2, "epochs": 900, "micro_batch": 1}
    )
    code = (
        "import json, sys\n"
        "from kinject_assets.core.training.trainer import TrainRequest\n"
        "from kinject_assets_tests.core.training.test_distributed import run_in_dagster\n"
        "run_in_dagster(TrainRequest(**json.loads(sys.argv[1])))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(vars(several))], stderr=subprocess.DEVNULL
    )
    _, *started = stand_still_in_the_middle(process.pid, several)
    assert sum("kinject_assets.workers.train" in p.cmdline() for p in started) == 2
    go_on([psutil.Process(process.pid), *started])
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    assert gone(started) == []
    assert saved_steps(several), "what was done is kept"


@pytest.mark.slow
def test_an_error_of_all_processes_comes_back_in_words(
    request_of: RequestOf, texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    several = many_steps(
        request_of, texts, tmp_path, training={"processes": 2}, base=str(tmp_path / "empty")
    )
    finish(start(several), 2)
    outcome = json.loads(result_path(several).read_text())
    assert outcome["error"]["type"] == "ModelError"


def test_several_processes_are_not_one(request_of: RequestOf) -> None:
    with pytest.raises(KinjectError, match=r"training\.processes: 2 are asked for, and 1 were"):
        train(request_of({"processes": 2}))
