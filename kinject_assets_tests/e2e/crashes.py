"""`kill -9` of a run's process group at random moments, stage by stage: the crash matrix.

A script of its own, too: `python -m kinject_assets_tests.e2e.crashes FOLDER --kills 6`. It prints
what each kill met and compares what the lake holds in the end with an undisturbed run.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from kinject_assets.config import load_profile
from kinject_assets.core import journal
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import Store
from kinject_assets_tests.e2e.conftest import command, environment, small_lab

STAGES: dict[str, tuple[str, ...]] = {
    "fetching": ("articles",),
    "question writing": ("questions",),
    "paraphrasing": ("paraphrases", "validation_paraphrases"),
    "embedding": ("embeddings",),
    "training": ("checkpoint",),
    "scoring": ("answers_base", "answers_rag", "answers_ft", "answers_ft_rag"),
    "loading results": ("results",),
}
"""Stage -> assets in which its kills fall."""

BEFORE: dict[str, tuple[str, ...]] = {
    "question writing": ("chunks",),
    "training": ("faiss_index", "retrieved"),
}
"""What is made, undisturbed, before a stage."""

CONCURRENCY = 2
LATENCY = 0.12

TABLES = {
    "articles": "article_id, revision_id, title, url, text_sha256",
    "chunks": "chunk_id, article_id, section, text",
    "corpus_chunks": "*",
    "questions": "question_id, stem, options, gold, chunk_id, triage",
    "corpus_questions": "*",
    "rejections": "*",
    "paraphrases": "paraphrase_id, chunk_id, purpose, ordinal, seed, text",
    "retrieved": "corpus, question_id, retriever, rank, chunk_id, hit, round(score, 5)",
    "checkpoints": "* EXCLUDE (seconds, validation_loss)",
    "trials": "checkpoint_id, trial, epoch, learning_rate, kept",
    "damage": "checkpoint_id, probe, n, lost, won",
    "conditions": "*",
    "answers": "condition_id, question_id, answer_id, choice, gold, truncated_tokens, places",
    "triage": "question_id, stratum, models",
    "letter_bias": "*",
    "scores": "condition_id, k_rule, stratum, n, correct",
    "comparisons": "condition_a, condition_b, stratum, n, only_a, only_b, verdict",
    "claims": "claim, verdict",
    "lineage": "* EXCLUDE (parent_id), CASE WHEN parent_kind = 'generation' THEN '' "
    "ELSE parent_id END",
}
"""Table -> columns that an undisturbed run must share to the letter."""


@dataclass
class Kill:
    """One kill.

    Attributes:
        after: Seconds from the start of the stage's cell to the kill.
        cells: Cells that were being made when it came.
        in_flight: Requests to the service without an answer on disk.
        strays: Processes of the group that outlived it.
    """

    stage: str
    after: float
    cells: list[str]
    in_flight: int
    strays: list[int]


@dataclass
class Matrix:
    """What all kills came to.

    Attributes:
        differences: Table -> rows that only one of the two runs has.
        largest_loglik_difference: In nats.
        asked_again: Received answers that were asked again.
        unfinished_runs: Runs of Dagster's that are still under way.
        held_slots: Pool slots that are still taken.
        audit: Exit code of `kinject audit --all`.
    """

    kills: list[Kill] = field(default_factory=list)
    differences: dict[str, int] = field(default_factory=dict)
    largest_loglik_difference: float = 0.0
    asked_again: int = 0
    unfinished_runs: int = 0
    held_slots: int = 0
    audit: int = 0


@contextmanager
def lab_server(profile: Path) -> Iterator[str]:
    """The lab's server in a process of its own: it outlives the runs that are killed."""
    from kinject_assets.lab.server import Faults, build_app, serving

    settings = load_profile(str(profile)).lab
    assert settings is not None
    with serving(build_app(settings, faults=Faults(latency=LATENCY))) as address:
        yield address


def crash_profile(folder: Path) -> Path:
    """A small study whose stages last long enough to be met."""
    folder.mkdir(parents=True, exist_ok=True)
    return small_lab(
        folder,
        wikis={"lab": {"api_url": "lab", "licence": "invented text, CC0", "batch": 2}},
        llm={
            "model": "lab-writer-by-rule",
            "base_url": "lab",
            "concurrency": CONCURRENCY,
            "timeout": 20,
            "attempts": 10,
            "prices": {"lab-writer-by-rule": [0, 0]},
        },
    )


class Study:
    """A study in a folder of its own, run by real commands."""

    def __init__(self, folder: Path, address: str) -> None:
        self.profile = crash_profile(folder)
        self.home = folder / "home"
        self.root = self.home / "small"
        self.store = Store(self.root)
        self.environment = {**environment(self.home), "KINJECT_LAB_URL": address}

    def command(self, *words: str) -> list[str]:
        return command(words[0], "--profile", str(self.profile), *words[1:])

    def call(self, *words: str, timeout: float = 500) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run(self, *words: str) -> str:
        done = self.call("run", *words)
        assert done.returncode == 0, done.stderr
        return done.stderr

    @property
    def database(self) -> Path:
        return self.root / "results.duckdb"

    def drafts(self) -> list[str]:
        """Cells that are being made, by the records that the lake keeps of drafts."""
        found: list[str] = []
        for record in (self.root / "lake" / ".work" / ".drafts").glob("*.json"):
            try:
                found.append("/".join(json.loads(record.read_text())["cell"]))
            except (OSError, ValueError):
                continue
        return found

    def requests(self) -> "LedgerRows":
        """Rows of the ledger."""
        return ledger_rows(self.root / "lake" / "llm_ledger")

    def in_flight(self) -> Counter[str]:
        """Requests without an end, by file."""
        found: Counter[str] = Counter()
        for name, rows in self.requests():
            ended = {row["id"] for row in rows if row["row"] != "intent"}
            found[name] = sum(row["row"] == "intent" and row["id"] not in ended for row in rows)
        return found


LedgerRows = list[tuple[str, list[dict[str, Any]]]]
"""Rows of a ledger by file, one file a process."""


def ledger_rows(folder: Path) -> LedgerRows:
    """Reads a ledger."""
    return [(p.name, list(journal.read(p, ""))) for p in sorted(folder.glob("*.jsonl"))]


def asked_again(ledger: LedgerRows) -> int:
    """Requests that were sent although their answer had been received."""
    rows = sorted((row for _, rows in ledger for row in rows), key=lambda row: row["time"])
    keys: dict[str, str] = {}
    received: set[str] = set()
    again = 0
    for row in rows:
        if row["row"] == "intent":
            keys[row["id"]] = row["key"]
            again += row["key"] in received
        elif row["row"] == "received":
            received.add(keys[row["id"]])
    return again


def kill_in(study: Study, stage: str, rng: random.Random, seconds: float) -> Kill | None:
    """Starts a run of one stage and kills it; `None` if it ended first."""
    assets = STAGES[stage]
    before = study.in_flight()
    with (study.root / "killed.log").open("ab") as log:
        process = subprocess.Popen(
            study.command("run", "--select", ",".join(assets)),
            env=study.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    until = time.monotonic() + 120
    stale = set(study.drafts())
    while not any(d.split("/")[0] in assets for d in set(study.drafts()) - stale):
        if process.poll() is not None:
            return None
        if {d for d in stale if d not in study.drafts()}:
            stale = set()  # a record of the last kill was swept: what comes now is new
        assert time.monotonic() < until, f"{stage} never began"
        time.sleep(0.002)
    began = time.monotonic()
    time.sleep(rng.uniform(0, seconds))
    family = psutil.Process(process.pid).children(recursive=True)
    cells = study.drafts()
    if process.poll() is not None:
        return None
    os.killpg(process.pid, signal.SIGKILL)
    after = time.monotonic() - began
    process.wait(timeout=30)
    _, alive = psutil.wait_procs(family, timeout=5)
    strays = [p.pid for p in alive]
    lost = study.in_flight() - before
    return Kill(stage, round(after, 3), cells, sum(lost.values()), strays)


def compare(undisturbed: Study, killed: Study) -> tuple[dict[str, int], float]:
    """Rows that only one study has, by table, and the largest log-likelihood difference."""
    differences: dict[str, int] = {}
    for table, columns in TABLES.items():
        counts = [
            Counter(map(str, fetch(s.database, f"SELECT {columns} FROM {table}").rows))
            for s in (undisturbed, killed)
        ]
        differences[table] = sum(((counts[0] - counts[1]) + (counts[1] - counts[0])).values())
    statement = "SELECT condition_id, question_id, logliks FROM answers"
    values: defaultdict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for study in (undisturbed, killed):
        for row in fetch(study.database, statement).rows:
            values[row[0], row[1]].append(row[2])
    largest = max(
        (abs(a - b) for pair in values.values() for a, b in zip(pair[0], pair[-1], strict=True)),
        default=0.0,
    )
    return differences, largest


def dagster_left(study: Study) -> tuple[int, int]:
    """Unfinished runs and held pool slots in a study's Dagster instance."""
    code = (
        "import dagster as dg; from kinject_assets.defs.instance import UNFINISHED\n"
        "i = dg.DagsterInstance.get(); s = i.event_log_storage\n"
        "print(len(i.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED))), sum(\n"
        "    len(s.get_concurrency_info(k).claimed_slots) for k in s.get_concurrency_keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**study.environment, "DAGSTER_HOME": str(study.root / "dagster")},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    runs, slots = done.stdout.split()[-2:]
    return int(runs), int(slots)


def crash_matrix(folder: Path, kills: int = 6, seed: int = 1, say: Any = print) -> Matrix:
    """Runs a study undisturbed and another one under kills, and compares them.

    Args:
        folder: Where both lie.
        kills: Kills in each stage.
        seed: Draws the moments.
        say: Told what each kill met.
    """
    rng = random.Random(seed)
    matrix = Matrix()
    with lab_server(crash_profile(folder / "undisturbed")) as address:
        undisturbed = Study(folder / "undisturbed", address)
        undisturbed.run()
        lasted = _seconds(undisturbed)
        killed = Study(folder / "killed", address)
        killed.root.mkdir(parents=True)
        for stage, assets in STAGES.items():
            for asset in BEFORE.get(stage, ()):
                killed.run("--select", asset)
            done = 0
            while done < kills:
                kill = kill_in(killed, stage, rng, lasted[stage])
                if kill is None:
                    _reopen(killed, assets)
                    continue
                done += 1
                matrix.kills.append(kill)
                say(
                    f"{stage}: killed after {kill.after:.2f} s in "
                    f"{', '.join(kill.cells) or 'the pause between two cells'}; "
                    f"{kill.in_flight} requests in flight"
                )
            killed.run("--select", ",".join(assets))
        say(killed.run())
        matrix.differences, matrix.largest_loglik_difference = compare(undisturbed, killed)
        matrix.asked_again = asked_again(killed.requests())
        matrix.unfinished_runs, matrix.held_slots = dagster_left(killed)
        matrix.audit = killed.call("audit", "--all").returncode
    return matrix


def _seconds(study: Study) -> dict[str, float]:
    """Longest cell of each stage, from the manifests of an undisturbed run."""
    from datetime import datetime

    found: dict[str, float] = {}
    for stage, assets in STAGES.items():
        found[stage] = max(
            (datetime.fromisoformat(m.finished_at) - datetime.fromisoformat(m.started_at))
            / (datetime.resolution * 1_000_000)
            for cell, m in study.store.published()
            if cell.asset in assets
        )
    return found


def _reopen(study: Study, assets: tuple[str, ...]) -> None:
    """Takes away one finished artefact of a stage that ended before all of its kills."""
    import shutil

    for cell, _ in study.store.published():
        if cell.asset in assets:
            shutil.rmtree(study.store.folder(cell))
            if not any(c.asset in assets for c, _ in study.store.published()):
                return


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an empty folder to work in")
    parser.add_argument("--kills", type=int, default=6, help="kills in each stage")
    parser.add_argument("--seed", type=int, default=1, help="draws the moments")
    words = parser.parse_args()
    matrix = crash_matrix(words.folder, words.kills, words.seed)
    print(json.dumps(matrix, default=vars, indent=2))


if __name__ == "__main__":
    main()
