import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from dagster_pipes import encode_param

from kinject_assets.core.errors import KinjectError
from kinject_assets.core.retrieval.encoder import load_embeddings
from kinject_assets.core.retrieval.index import build_index, save_index
from kinject_assets.core.schema import Checkpoint, Chunk, Question, Retrieved
from kinject_assets.core.store import read_rows, write_rows
from kinject_assets.core.training.trainer import TrainRequest
from kinject_assets.lab.encoder import build_encoder
from kinject_assets.lab.pretrain import build_model, build_tokenizer
from kinject_assets.workers import embed, score, train
from kinject_assets.workers.entry import DISK_FULL, INTERRUPTED, read_request


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an encoder, four chunks and a question on each."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = build_tokenizer()
    build_model("lab-llama", tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    build_encoder(folder / "encoder")
    names = ["Balan Accord", "Corath Storm", "Eldost Fair", "Fenune Race"]
    chunks = [
        Chunk(
            chunk_id=f"c{number}",
            article_id="a",
            revision_id="r",
            ordinal=number,
            title=name,
            section="",
            n_tokens=20,
            small=False,
            text=f"The {name} was led by Abric. The {name} drew 40 guests.",
        )
        for number, name in enumerate(names)
    ]
    questions = [
        Question(
            question_id=f"q{number}",
            origin="llm",
            stem=f"Who led the {name}?",
            options=["Abric", "Breton", "Delwen", "Faltmir"],
            gold=0,
            chunk_id=f"c{number}",
            generator="",
            generation_id="",
            triage="",
            split="test",
            retired=False,
        )
        for number, name in enumerate(names)
    ]
    write_rows(folder / "chunks.parquet", chunks, Chunk)
    write_rows(folder / "questions.parquet", questions, Question)
    return folder


def train_request(world: Path, out: Path, epochs: int = 1) -> dict[str, Any]:
    request = TrainRequest(
        checkpoint_id="id",
        corpus="events",
        model="lab-llama",
        recipe="full.p00",
        seed=0,
        method="full",
        base=str(world / "base"),
        chunks=str(world / "chunks.parquet"),
        training={
            "piece_tokens": 16,
            "epochs": epochs,
            "batch_pieces": 4,
            "learning_rates": [1e-3],
        },
        work=str(out / "work"),
        out=str(out / "out"),
        device="cpu",
        resume_seconds=0.0,
    )
    return json.loads(json.dumps(asdict(request)))


def test_from_chunks_to_answers_in_one_process(world: Path, tmp_path: Path) -> None:
    encoder = {"model": str(world / "encoder")}
    embedded = embed.run(
        {
            "task": "embed",
            "chunks": str(world / "chunks.parquet"),
            "encoder": encoder,
            "out": str(tmp_path / "embeddings"),
        }
    )
    assert (embedded["chunks"], embedded["reused"]) == (4, 0)
    save_index(tmp_path / "index", build_index(load_embeddings(tmp_path / "embeddings")))
    found = embed.run(
        {
            "task": "retrieve",
            "corpus": "events",
            "questions": str(world / "questions.parquet"),
            "chunks": str(world / "chunks.parquet"),
            "index": str(tmp_path / "index"),
            "retrieval": {"encoder": encoder, "depth": 2},
            "retrievers": ["dense"],
            "out": str(tmp_path / "retrieved"),
        }
    )
    assert found == {"questions": 4, "rows": 8}
    rows = read_rows(tmp_path / "retrieved" / "retrieved.parquet", Retrieved)
    assert [row.hit for row in rows if row.rank == 1] == [True] * 4

    trained = train.run(train_request(world, tmp_path))
    assert Checkpoint(**trained["checkpoint"]).steps > 0
    request = {
        "corpus": "events",
        "model": "lab-llama",
        "recipe": "full.p00",
        "method": "ft_rag",
        "base": str(world / "base"),
        "checkpoint": str(tmp_path / "out" / "model"),
        "checkpoint_id": "id",
        "questions": str(world / "questions.parquet"),
        "chunks": str(world / "chunks.parquet"),
        "retrieved": str(tmp_path / "retrieved" / "retrieved.parquet"),
        "retrievers": ["dense"],
        "query": "question",
        "shots": [0],
        "k": [1, 2],
        "choice_format": "text",
        "work": str(tmp_path / "scoring"),
        "out": str(tmp_path / "answers"),
        "device": "cpu",
    }
    scored = score.run(request)
    assert (scored["conditions"], scored["answers"]) == (2, 8)
    assert all(0 <= accuracy <= 1 for accuracy in scored["accuracy"].values())


def worker(name: str) -> list[str]:
    return [sys.executable, "-m", f"kinject_assets.workers.{name}"]


def pipes_environment(request: dict[str, Any], messages: Path) -> dict[str, str]:
    """The environment that a parent gives a worker, without Dagster in between."""
    context = {
        "asset_keys": ["checkpoint"],
        "code_version_by_asset_key": {"checkpoint": None},
        "provenance_by_asset_key": {"checkpoint": None},
        "partition_key": None,
        "partition_key_range": None,
        "partition_time_window": None,
        "run_id": "run",
        "job_name": "job",
        "retry_number": 0,
        "extras": {"request": request},
    }
    return {
        **os.environ,
        "DAGSTER_PIPES_CONTEXT": encode_param({"data": context}),
        "DAGSTER_PIPES_MESSAGES": encode_param({"path": str(messages)}),
    }


def test_a_worker_process_reports_to_dagster(world: Path, tmp_path: Path) -> None:
    request = {**train_request(world, tmp_path), "result_path": str(tmp_path / "result.json")}

    @dg.asset
    def checkpoint(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        pipes = dg.PipesSubprocessClient()
        command = worker("train")
        return pipes.run(
            context=context, command=command, extras={"request": request}
        ).get_materialize_result()

    with dg.instance_for_test() as instance:
        result = dg.materialize([checkpoint], instance=instance)
        lines = [event.user_message for event in instance.all_logs(result.run_id)]
    outcome = json.loads((tmp_path / "result.json").read_text())
    assert outcome["result"]["checkpoint"]["checkpoint_id"] == "id"
    assert any("events lab-llama.full.p00 trial 1/1 epoch 1/1" in line for line in lines)


def test_a_users_error_comes_back_with_its_type(tmp_path: Path) -> None:
    request = {
        "corpus": "events",
        "model": "lab-llama",
        "method": "base",
        "base": str(tmp_path),
        "questions": "",
        "shots": [0],
        "k": [1],
        "choice_format": "text",
        "work": str(tmp_path),
        "out": str(tmp_path),
        "result_path": str(tmp_path / "result.json"),
    }
    environment = pipes_environment(request, tmp_path / "messages")
    ended = subprocess.run(worker("score"), env=environment, check=False, timeout=60)
    assert ended.returncode == 2
    outcome = json.loads((tmp_path / "result.json").read_text())
    assert outcome["error"]["type"] == "KinjectError"
    assert outcome["error"]["message"].startswith("scoring.k: [1] does not go with `base`")


def test_an_interrupted_worker_ends_cleanly_and_keeps_its_work(world: Path, tmp_path: Path) -> None:
    request = {
        **train_request(world, tmp_path, epochs=1000),
        "result_path": str(tmp_path / "result.json"),
    }
    process = subprocess.Popen(
        worker("train"),
        env=pipes_environment(request, tmp_path / "messages"),
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = Path(request["work"]) / "trial-0"
    deadline = time.monotonic() + 60
    while not list(folder.glob("checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in errors
    assert list(folder.glob("checkpoint-*"))
    assert not (folder / "trial.json").exists()
    assert not (tmp_path / "result.json").exists()


def test_a_worker_ends_with_its_parent(world: Path, tmp_path: Path) -> None:
    request = {
        **train_request(world, tmp_path, epochs=1000),
        "result_path": str(tmp_path / "result.json"),
    }
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen(sys.argv[1:])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *worker("train")],
        env=pipes_environment(request, tmp_path / "messages"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    deadline = time.monotonic() + 60
    while not (Path(request["work"]) / "trial-0").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait(timeout=10)
    _, alive = psutil.wait_procs([child], timeout=10)
    assert alive == [], "an orphan would train on beside the next run"


def test_a_full_disk_is_told_by_the_exit_code(
    world: Path, tmp_path: Path, small_disk: Path
) -> None:
    request = {
        **train_request(world, small_disk),
        "result_path": str(tmp_path / "result.json"),
    }
    ballast = small_disk / "ballast"
    with ballast.open("wb") as handle:
        os.posix_fallocate(handle.fileno(), 0, shutil.disk_usage(small_disk).free - 1_000_000)
    environment = pipes_environment(request, tmp_path / "messages")
    ended = subprocess.run(worker("train"), env=environment, check=False, timeout=120)
    assert ended.returncode == DISK_FULL
    assert not (tmp_path / "result.json").exists()


def test_requests_of_another_version_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        read_request(TrainRequest, {"colour": "red"})
    with pytest.raises(KinjectError, match="embed and retrieve"):
        embed.run({"task": "sing"})
