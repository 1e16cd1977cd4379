"""What a user sees who got something wrong: one clear message, and an exit code."""

import socket
import subprocess
from pathlib import Path

import pytest

from kinject_assets_tests.e2e.conftest import command, environment, small_lab


def call(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_wrong_field_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = small_lab(tmp_path, trainig={"epochs": 3})
    done = call(tmp_path, "run", "--profile", str(path))
    assert done.returncode == 2
    assert f"{path}: trainig: unknown field; did you mean `training`?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "--profile", "labb"], "no profile named `labb`; did you mean `lab`?"),
        (["run", "--profile", "nowhere.yaml"], "no profile at nowhere.yaml"),
        (["run", "--model", "gpt-7"], "no model is called `gpt-7`; there are: lab-llama"),
        (["run", "--corpus", "lakes"], "no corpus is called `lakes`; there are: rivers"),
        (["run", "--select", "nothing_like_it"], "--select 'nothing_like_it'"),
        (["tables"], "kinject run"),
        (["audit", "--answer", "0"], "kinject run"),
        (["audit", "--answer", "0", "--all"], "exclude each other"),
        (["lab", "serve", "--profile", "paper"], "has no part `lab:`"),
    ],
)
def test_wrong_words(tmp_path: Path, words: list[str], expected: str) -> None:
    done = call(tmp_path, *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_not_there_is_refused_before_any_work(tmp_path: Path) -> None:
    models = {"lab-llama": {"source": "./no-such-folder"}}
    path = small_lab(tmp_path, models=models)
    done = call(tmp_path, "run", "--profile", str(path))
    assert done.returncode == 2
    assert "models.lab-llama.source: no model at" in done.stderr
    assert not (tmp_path / "home" / "small" / "lake").exists()


@pytest.mark.slow
def test_a_hub_model_out_of_reach_fails_its_own_cells_alone(tmp_path: Path) -> None:
    path = small_lab(
        tmp_path,
        models={"lab-llama": {"source": "no-such-team/no-such-model"}},
        grid=[{"corpora": ["comets"], "models": ["lab-llama"], "methods": ["base"]}],
    )
    done = call(tmp_path, "run", "--profile", str(path))
    assert done.returncode == 1
    assert "FAILED answers_base/comets/lab-llama" in done.stderr
    assert "no-such-team/no-such-model" in done.stderr
    assert "questions/comets" in done.stderr, "what does not need the model is made"


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = call(tmp_path, "ui", "--port", str(port))
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr
    assert f"--port {port + 1}" in done.stderr
