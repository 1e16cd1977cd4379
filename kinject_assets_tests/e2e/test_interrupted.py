"""Stopped with Ctrl-C or killed, a run goes on where it was, and ends with the same rows."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kinject_assets_tests.e2e.conftest import Kinject, command, environment, small_lab

ANSWERS = (
    "SELECT condition_id, question_id, choice, logliks FROM answers "
    "ORDER BY condition_id, question_id"
)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while not list(path.parent.glob(path.name)):
        assert process.poll() is None, "ended before it could be interrupted"
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "sent", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_an_interrupted_run_goes_on(tmp_path: Path, kinject: Kinject, sent: signal.Signals) -> None:
    profile = small_lab(tmp_path)
    home = tmp_path / "home"
    lake = home / "small" / "lake"
    process = subprocess.Popen(
        command("run", "--profile", str(profile)),
        env=environment(home),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # In the middle of the first training, with articles, exams and answers of base behind it.
    wait_for(lake / ".work" / "checkpoint", process)
    if sent == signal.SIGINT:
        process.send_signal(sent)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "start the same command again" in said
    else:
        os.killpg(process.pid, sent)
        process.wait(timeout=30)
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(profile) in (p.info["cmdline"] or [])
    ]
    asked = sum(1 for f in (lake / "llm_ledger").glob("*.jsonl") for _ in f.open())

    again = subprocess.run(
        command("run", "--profile", str(profile)),
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert again.returncode == 0, again.stderr
    if sent == signal.SIGKILL:
        assert "marked as failed" in again.stderr
    assert asked == sum(1 for f in (lake / "llm_ledger").glob("*.jsonl") for _ in f.open())

    def answers(*words: str) -> list[dict]:
        done = subprocess.run(
            command("sql", "--profile", str(profile), ANSWERS, "--format", "json"),
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=120,
        )
        return json.loads(done.stdout)

    undisturbed = json.loads(kinject("sql", ANSWERS, "--format", "json").stdout)
    mine = answers()
    assert [(a["condition_id"], a["question_id"], a["choice"]) for a in mine] == [
        (a["condition_id"], a["question_id"], a["choice"]) for a in undisturbed
    ]
    for a, b in zip(mine, undisturbed, strict=True):
        assert a["logliks"] == pytest.approx(b["logliks"], abs=1e-4)


@pytest.mark.slow
def test_cancelling_the_job_full_study_stops_what_it_started(tmp_path: Path) -> None:
    """As the UI cancels a run: SIGINT to its process alone, not to those that it started."""
    profile = small_lab(tmp_path)
    home = tmp_path / "home"
    code = (
        "from kinject_assets.config import load_profile\n"
        "from kinject_assets.definitions import defs\n"
        "from kinject_assets.defs.instance import open_instance\n"
        "with open_instance(load_profile()) as instance:\n"
        "    defs.resolve_job_def('full_study').execute_in_process(instance=instance)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**environment(home), "KINJECT_PROFILE": str(profile)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(home / "small" / "lake" / ".work" / "checkpoint", process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("run" in child.cmdline() for child in children)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=90)
    assert process.returncode != 0, said
    _, alive = psutil.wait_procs(children, timeout=10)
    assert [p.cmdline() for p in alive] == []
    assert "start the same command again" in said
