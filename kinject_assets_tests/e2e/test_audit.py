"""The audit of a finished study: chains that resolve, and faults that are named exactly."""

import json
import os
import pty
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kinject_assets.core.lineage.ancestry import trace
from kinject_assets.core.lineage.tree import Node
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import MANIFEST, Cell, Store
from kinject_assets_tests.e2e.conftest import Kinject, command, environment

Study = tuple[Path, Path, str]

CHECKPOINT = "checkpoint/events/lab-llama.full.p01"
DATABASE = "results.duckdb"


def _walk(node: Node) -> list[Node]:
    return [node, *(n for parent in node.parents for n in _walk(parent))]


class Copy:
    """A copy of the finished study, to be damaged."""

    def __init__(self, profile: Path, home: Path) -> None:
        self.profile = profile
        self.home = home
        self.root = home / "small"
        self.store = Store(self.root)

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(words[0], "--profile", str(self.profile), *words[1:]),
            env=environment(self.home),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def audit(self) -> dict[str, Any]:
        done = self.call("audit", "--all", "--json")
        assert done.returncode in {0, 1}, done.stderr
        found = json.loads(done.stdout)
        assert found["ok"] == (done.returncode == 0)
        return found

    def file(self, artefact: str, pattern: str) -> Path:
        (found,) = (self.root / "lake" / artefact).glob(f"v*/{pattern}")
        return found

    def change(self, *statements: str) -> None:
        with duckdb.connect(str(self.root / DATABASE)) as connection:
            for statement in statements:
                connection.execute(statement)

    def one(self, sql: str) -> str:
        return fetch(self.root / DATABASE, sql).rows[0][0]

    def below(self, artefact: str) -> set[str]:
        """What is made from an artefact, by the manifests."""
        inputs = {
            str(cell): {key.partition("#")[0] for key in manifest.inputs}
            for cell, manifest in self.store.published()
            if cell.asset != "lineage_audit"
        }
        found: set[str] = set()
        while new := {c for c, ups in inputs.items() if ups & {artefact, *found}} - found:
            found |= new
        return found


@pytest.fixture
def copy(study: Study, tmp_path: Path) -> Copy:
    shutil.copytree(study[1], tmp_path / "home")
    return Copy(study[0], tmp_path / "home")


def test_a_sound_study_says_how_much_was_verified(kinject: Kinject) -> None:
    done = kinject("audit")
    assert done.returncode == 0, done.stdout
    first, second = done.stdout.splitlines()
    assert first == "sound"
    numbers = re.findall(r"([\d,]+) (artefacts|files|rows|answers|of them)", second)
    counts = {what: int(n.replace(",", "")) for n, what in numbers}
    assert counts["answers"] == counts["of them"] > 100
    assert counts["rows"] > counts["answers"]
    assert counts["files"] > counts["artefacts"] > 20


@pytest.mark.parametrize("count", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_every_link_of_random_answers_resolves(study: Study, count: int) -> None:
    database = study[1] / "small" / DATABASE
    rows = fetch(
        database,
        "SELECT answer_id, method, chunk_id IS NOT NULL, k FROM answers "
        "JOIN conditions USING (condition_id) JOIN questions USING (question_id) ORDER BY ALL",
    ).rows
    for answer, method, written, k in random.Random(7).sample(rows, count):
        root = trace(database, answer)
        assert root.whole, answer
        nodes = _walk(root)
        kinds = [parent.kind for parent in root.parents]
        assert kinds.count("question") == kinds.count("artefact") == 1
        assert kinds.count("chunk") == k
        assert kinds.count("checkpoint") == (method in {"ft", "ft_rag"})
        assert all(
            any(n.kind == "article" for n in _walk(c)) or c.above
            for c in nodes
            if c.kind == "chunk"
        )
        articles = [n for n in nodes if n.kind == "article" and not n.above]
        assert articles or not written
        for article in articles:
            revision = article.id.partition("@")[2]
            assert article.details[1].endswith(f"/w/index.php?oldid={revision}")
        artefacts = {n.id.split("/")[0] for n in nodes if n.kind == "artefact"}
        assert "questions" in artefacts
        if k:
            assert {"retrieved", "faiss_index", "embeddings", "chunks", "articles"} <= artefacts
            assert any("identity" in d for n in nodes for d in n.details)


def test_the_address_of_a_revision_opens_that_revision(study: Study) -> None:
    from kinject_assets.config import load_profile
    from kinject_assets.lab.server import running

    profile = load_profile(str(study[0]))
    assert profile.lab
    (row,) = fetch(
        study[1] / "small" / DATABASE,
        "SELECT title, revision_id, permalink FROM articles ORDER BY article_id LIMIT 1",
    ).dicts()
    import httpx

    with running(profile.lab) as address:
        # Articles name the wiki's own address, whatever port it is served on here.
        page = httpx.get(address + row["permalink"].partition(":8471")[2])
    assert page.status_code == 200
    assert f"revision {row['revision_id']} of" in page.text
    assert row["title"].partition("&")[0] in page.text


@pytest.mark.slow
def test_a_chain_is_readable_in_a_narrow_terminal(study: Study) -> None:
    answer = fetch(
        study[1] / "small" / DATABASE,
        "SELECT answer_id FROM answers JOIN conditions USING (condition_id) "
        "WHERE method = 'ft_rag' AND recipe = 'full.p01' ORDER BY answer_id LIMIT 1",
    ).rows[0][0]
    leader, follower = pty.openpty()
    with subprocess.Popen(
        command("audit", "--profile", str(study[0]), "--answer", answer[:10]),
        env={**environment(study[1]), "COLUMNS": "80", "LINES": "24"},
        stdout=follower,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(follower)
        read = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:
                break
            if not part:
                break
            read += part
        assert process.wait(timeout=60) == 0
    os.close(leader)
    shown = read.decode().replace("\r\n", "\n")
    assert max(map(len, shown.splitlines())) <= 80
    assert "/w/index.php?oldid=" in shown
    assert "encoder lab:encoder" in shown


@pytest.mark.slow
def test_a_cell_of_a_table_says_what_it_rests_on(kinject: Kinject) -> None:
    done = kinject("audit", "--cell", "table2/events/lab-llama/ft_par_rag")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ right of \d+ answers = [01]\.\d{3}, counted again now", done.stdout)
    assert f"artefact {CHECKPOINT}" in done.stdout


def _flip(path: Path) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def _edit_manifest(copy: Copy) -> None:
    path = copy.store.folder(Cell("chunks", ("events",))) / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"logical_version": "another"}))


FAULTS: dict[str, tuple[Callable[[Copy], object], str, str, str]] = {
    "a byte of a Parquet file": (
        lambda c: _flip(c.file("questions/comets", "questions.parquet")),
        "questions/comets",
        "changed",
        "questions.parquet",
    ),
    "a byte of safetensors": (
        lambda c: _flip(c.file(CHECKPOINT, "model/model.safetensors")),
        CHECKPOINT,
        "changed",
        "model/model.safetensors",
    ),
    "a byte of the FAISS file": (
        lambda c: _flip(c.file("faiss_index/events", "index.faiss")),
        "faiss_index/events",
        "changed",
        "index.faiss",
    ),
    "an edited manifest": (_edit_manifest, "chunks/events", "changed", MANIFEST),
    "a deleted checkpoint": (
        lambda c: shutil.rmtree(c.root / "lake" / CHECKPOINT),
        CHECKPOINT,
        "missing",
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_lake_is_named_exactly(copy: Copy, fault: str) -> None:
    damage, artefact, kind, file = FAULTS[fault]
    below = copy.below(artefact)
    damage(copy)
    verdict = copy.audit()
    (found,) = verdict["findings"]
    assert (found["artefact"], found["kind"], found["area"]) == (artefact, kind, "lake")
    assert found["file"].endswith(file)
    assert (verdict["broken"], verdict["stale"]) == (1, 0)
    assert sum(found["rests"].values()) == len(below)
    resting = "SELECT count(*) FROM lineage WHERE child_kind = 'answer' AND parent_id IN ("
    names = ", ".join(f"'{name}'" for name in below)
    assert found["answers"] == copy.one(f"{resting}{names})")
    text = copy.call("audit").stdout
    assert text.startswith("1 broken\n")
    assert artefact in text


ROWS = {
    "answers": "condition_id || ', question_id=' || question_id",
    "questions": "question_id",
    "scores": "condition_id || ', k_rule=' || k_rule || ', stratum=' || stratum",
    "lineage": "child_kind || ', child_id=' || child_id || ', parent_kind=' || parent_kind "
    "|| ', parent_id=' || parent_id",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "how"),
    [
        *((table, "dropped") for table in ROWS),
        # A link is its own key: changed, it is one dropped and one added.
        *((table, "changed") for table in ROWS if table != "lineage"),
    ],
)
def test_a_row_of_the_database_is_named_exactly(copy: Copy, table: str, how: str) -> None:
    column = {"lineage": "child_kind", "scores": "condition_id"}.get(table, "question_id")
    column = "condition_id" if table == "answers" else column
    rowid = copy.one(f"SELECT min(rowid) FROM {table}")
    key = copy.one(f"SELECT {ROWS[table]} FROM {table} WHERE rowid = {rowid}")
    if how == "dropped":
        copy.change(f"DELETE FROM {table} WHERE rowid = {rowid}")
    else:
        value = {"answers": "run_id = 'x'", "questions": "stem = 'x'", "scores": "n = n + 1"}
        copy.change(f"UPDATE {table} SET {value[table]} WHERE rowid = {rowid}")
    verdict = copy.audit()
    (found,) = [f for f in verdict["findings"] if f["area"] == "rows"]
    kind = "missing" if how == "dropped" else "changed"
    assert (found["artefact"], found["table"], found["kind"]) == (DATABASE, table, kind)
    assert (found["keys"], found["count"]) == ([f"{column}={key}"], 1)
    chains = [f for f in verdict["findings"] if f["area"] == "chains"]
    # Only what a chain leads through can break one.
    assert bool(chains) == (how == "dropped" and table in {"questions", "lineage"})
    assert verdict["answers"] - verdict["whole"] == sum(f["answers"] for f in chains)
    assert {f["artefact"] for f in verdict["findings"]} == {DATABASE}
    assert verdict["stale"] == 0


@pytest.mark.slow
def test_an_added_row_is_named(copy: Copy) -> None:
    copy.change("INSERT INTO claims (claim, verdict) VALUES ('magic', 'replicated')")
    (found,) = copy.audit()["findings"]
    assert (found["kind"], found["table"], found["keys"]) == ("orphaned", "claims", ["claim=magic"])


@pytest.mark.slow
def test_a_changed_article_makes_exactly_its_descendants_stale(copy: Copy) -> None:
    """One article of the window has another revision and text, as a new look at the wiki finds."""
    import dataclasses

    from kinject_assets.core.manifest import content_hash
    from kinject_assets.core.schema import Article, logical_version
    from kinject_assets.core.store import write_rows

    cell = Cell("articles", ("events",))
    old = copy.store.manifest(cell)
    assert old is not None
    rows = copy.store.rows(cell, "articles", Article)
    edited = dataclasses.replace(
        rows[0],
        revision_id=f"{rows[0].revision_id}9",
        text_sha256=content_hash("another text"),
        bodies=[*rows[0].bodies[:-1], f"{rows[0].bodies[-1]} It was edited."],
    )
    rest = {p.name: p for p in copy.store.path(cell, ".").iterdir() if p.name != "articles.parquet"}
    with copy.store.draft(cell) as draft:
        for name, path in rest.items():
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, draft / name)
        write_rows(draft / "articles.parquet", [edited, *rows[1:]], Article)
        from datetime import UTC, datetime

        copy.store.publish(
            cell,
            draft,
            partition=old.partition,
            logical_version=logical_version([edited, *rows[1:]]),
            fingerprint=old.fingerprint,
            code_version=old.code_version,
            inputs=old.inputs,
            config=old.config,
            started_at=datetime.now(UTC),
            counts=old.counts,
            checks=old.checks,
        )
    below = copy.below("articles/events")
    verdict = copy.audit()
    stale = {f["artefact"] for f in verdict["findings"] if f["kind"] == "stale"}
    assert stale == below
    assert "questions/comets" not in stale
    # The log does not know of it yet; a run reports it.
    (other,) = [f for f in verdict["findings"] if f["kind"] != "stale"]
    assert (other["artefact"], other["kind"]) == ("articles/events", "changed")
    assert "reports it again" in other["mend"]


@pytest.mark.slow
def test_the_asset_goes_red_with_the_message_and_the_mend(copy: Copy) -> None:
    _flip(copy.file("faiss_index/events", "index.faiss"))
    copy.change(
        "DELETE FROM questions WHERE question_id = (SELECT min(question_id) FROM questions)"
    )
    shutil.rmtree(copy.root / "lake" / "lineage_audit")
    made = copy.call("run", "--select", "lineage_audit")
    assert "1 made" in made.stderr, made.stderr
    manifest = copy.store.manifest(Cell("lineage_audit"))
    assert manifest is not None
    checks = {check["name"]: check for check in manifest.checks}
    red = {name for name, check in checks.items() if not check["passed"]}
    assert red == {"nothing_changed", "rows_agree", "chains_resolve"}
    assert "faiss_index/events" in checks["nothing_changed"]["message"]
    assert "Mend: delete" in checks["nothing_changed"]["message"]
    assert "table questions: 1 row is gone" in checks["rows_agree"]["message"]
    assert checks["nothing_stale"]["warn"]
    assert not checks["rows_agree"]["warn"]
