import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.config import Profile
from kinject_assets.core.corpus.releases import Release
from kinject_assets.core.lake import inventory
from kinject_assets.core.lineage.audit import Audit, Logged, audit
from kinject_assets.core.lineage.findings import Finding
from kinject_assets.core.manifest import Manifest, file_sha256
from kinject_assets.core.plan import CODE_VERSIONS, Plan
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.schema import Article
from kinject_assets.core.store import MANIFEST, Cell, Store
from kinject_assets_tests.core.results import synthetic

ARTICLES = Cell("articles", ("rivers",))
CHUNKS = Cell("chunks", ("rivers",))
EVENTS = "events-2031-04"
CHECKPOINT = Cell("checkpoint", (EVENTS, f"{synthetic.MODEL}.full.p04"))

Rewrite = Callable[..., None]


def _found(verdict: Audit) -> set[tuple[str, str]]:
    return {(f.artefact, f.kind) for f in verdict.findings}


def _only(verdict: Audit) -> Finding:
    (finding,) = verdict.findings
    return finding


def _events(store: Store) -> dict[str, Logged]:
    now = datetime.now(UTC).timestamp()
    return {str(cell): Logged(m.logical_version, m.seal, now) for cell, m in store.published()}


def _logs(store: Store) -> Callable[[object], dict[str, Logged]]:
    """A log that has the last event of all that is there now."""
    events = _events(store)
    return lambda _: events


def _edit(store: Store, cell: Cell, **changes: Any) -> None:
    """Edits a manifest by hand."""
    path = store.folder(cell) / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_lake_is_sound(finished: Store) -> None:
    verdict = audit(finished, events=_logs(finished))
    assert verdict.ok, str(verdict)
    assert verdict.checked == len(finished.published())
    assert verdict.rows > verdict.answers == verdict.whole > 3000
    read = json.loads(verdict.to_json())
    assert (read["ok"], read["verdict"], read["whole"]) == (True, "sound", verdict.whole)
    assert str(verdict).startswith("sound\n")
    assert f"{verdict.checked} artefacts" in str(verdict)


def test_changed_bytes(study: Store) -> None:
    path = study.path(CHUNKS, "chunks.parquet")
    path.write_bytes(path.read_bytes() + b"x")
    found = _only(audit(study))
    assert (found.artefact, found.kind, found.area) == ("chunks/rivers", "changed", "lake")
    assert found.file.endswith("chunks.parquet")
    assert str(study.folder(CHUNKS)) in found.mend
    rests = dict(found.rests)
    assert rests["questions"] == rests["checkpoint"] == rests["results"] == 1
    assert "articles" not in rests
    answers = "SELECT count(*) FROM answers JOIN conditions USING (condition_id) WHERE corpus = ?"
    assert found.answers == fetch(study.root / DATABASE, answers, ["rivers"]).rows[0][0]


def test_what_rests_on_a_checkpoint_is_counted(study: Store) -> None:
    path = study.path(CHECKPOINT, "model/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    found = _only(audit(study))
    assert (found.artefact, found.kind) == (str(CHECKPOINT), "changed")
    assert dict(found.rests) == {"answers_ft": 1, "answers_ft_rag": 1, "results": 1}
    # Two conditions without and six with retrieved text, a question each of 62.
    assert found.answers == (2 + 6) * (synthetic.QUESTIONS + 2)
    assert f"{found.answers} answers rest on it" in str(audit(study))


def test_a_missing_file_and_a_missing_artefact(study: Store) -> None:
    study.path(CHUNKS, "chunks.parquet").unlink()
    shutil.rmtree(study.folder(CHECKPOINT))
    verdict = audit(study, events=_logs(study))
    assert _found(verdict) == {("chunks/rivers", "missing"), (str(CHECKPOINT), "missing")}
    gone = next(f for f in verdict.findings if f.artefact == str(CHECKPOINT))
    for reader in ("answers_ft/", "answers_ft_rag/", "results"):
        assert reader in gone.detail


def test_an_artefact_that_only_the_log_knows(study: Store) -> None:
    events = _events(study)
    events["claims"] = Logged("v")
    found = _only(audit(study, events=lambda _: events))
    assert (found.artefact, found.kind) == ("claims", "missing")
    assert "Dagster's log" in found.detail


def test_orphaned_version_file_and_draft(study: Store) -> None:
    (study.folder(CHUNKS) / "v0123456789ab").mkdir()
    study.path(CHUNKS, "chunks.parquet").with_name("extra.bin").write_bytes(b"x")
    abandoned = study.lake / "embeddings" / "rivers" / "vba9876543210"
    abandoned.mkdir(parents=True)
    verdict = audit(study)
    assert _found(verdict) == {("chunks/rivers", "orphaned"), ("embeddings/rivers", "orphaned")}
    assert {Path(f.file).name for f in verdict.findings} == {
        "v0123456789ab",
        "extra.bin",
        "vba9876543210",
    }


def test_a_draft_is_an_orphan_when_its_process_is_gone(study: Store) -> None:
    with study.draft(CHUNKS), study.draft(Cell("claims")):
        assert audit(study).ok, "they are being made"
        for record in study.lake.glob(".work/.drafts/*.json"):
            said = json.loads(record.read_text())
            said["owner"]["born"] -= 86_400
            record.write_text(json.dumps(said))
        assert _found(audit(study)) == {("chunks/rivers", "orphaned"), ("claims", "orphaned")}


def test_what_is_made_while_the_audit_runs_is_not_judged(study: Store) -> None:
    old = study.manifest(CHUNKS)
    assert old is not None

    def remade(message: str, done: int | None = None, total: int | None = None) -> None:
        if done != 1:
            return
        with study.draft(CHUNKS) as draft:
            shutil.copytree(study.path(CHUNKS, "."), draft, dirs_exist_ok=True)
            study.publish(
                CHUNKS,
                draft,
                partition=old.partition,
                logical_version="newer",
                fingerprint=old.fingerprint,
                code_version=old.code_version,
                inputs=old.inputs,
                config=old.config,
                started_at=synthetic.NOW,
            )

    assert audit(study, report=remade).ok
    after = _found(audit(study))
    assert ("questions/rivers", "stale") in after
    assert {kind for _, kind in after} == {"stale"}


def test_an_event_may_come_a_moment_after_its_manifest(study: Store) -> None:
    whole = _events(study)
    late = {name: event for name, event in whole.items() if name != str(CHUNKS)}
    logs = iter([late, whole])
    assert audit(study, events=lambda _: next(logs)).ok
    assert _found(audit(study, events=lambda _: late)) == {("chunks/rivers", "orphaned")}


def test_unfinished_work_is_no_orphan(study: Store) -> None:
    (study.work(CHUNKS, "f" * 32) / "half").write_text("done")
    assert audit(study).ok


def test_a_changed_article_makes_exactly_its_descendants_stale(study: Store) -> None:
    synthetic.publish(
        study,
        ARTICLES,
        {"articles": (Article, [synthetic.article(0, "2")]), "exclusions": (Article, [])},
    )
    verdict = audit(study)
    children = {
        str(cell)
        for cell, _ in study.published()
        if cell.asset != "articles" and (not cell.parts or cell.parts[0] == "rivers")
    }
    assert _found(verdict) == {(name, "stale") for name in children}
    assert not verdict.broken
    direct = {f.artefact for f in verdict.findings if not f.made_from}
    assert direct == {"chunks/rivers", "results"}, "results has read the articles, too"
    assert "made from these" in str(verdict)
    assert str(verdict).startswith(f"{len(children)} stale\n")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logical_version", "another"),
        ("inputs", {"articles/rivers": "another"}),
        ("seeds", {"training": 7}),
        pytest.param("libraries", {"torch": "0"}, marks=pytest.mark.slow),
        pytest.param("config", {"max_tokens": 1}, marks=pytest.mark.slow),
        pytest.param("counts", {"rows": 1}, marks=pytest.mark.slow),
        pytest.param("run_id", "another", marks=pytest.mark.slow),
    ],
)
def test_an_edited_manifest_is_named_with_the_field(
    study: Store, field: str, value: object
) -> None:
    _edit(study, CHUNKS, **{field: value})
    found = _only(audit(study))
    assert (found.artefact, found.kind, found.file) == ("chunks/rivers", "changed", MANIFEST)
    assert f"({field})" in found.detail


def test_an_edit_that_no_witness_knows_the_field_of(study: Store) -> None:
    _edit(study, CHUNKS, finished_at="2031-01-01T00:00:00+00:00")
    found = _only(audit(study))
    assert found.detail.endswith("it was edited")


def test_an_edit_under_a_new_seal_contradicts_the_log(study: Store) -> None:
    events = _events(study)
    path = study.folder(CHUNKS) / MANIFEST
    edited = dataclasses.replace(Manifest.read(path), seeds={"training": 7}).sealed()
    path.write_text(edited.to_json())
    assert audit(study).ok, "no other witness than the log"
    found = _only(audit(study, events=lambda _: events))
    assert (found.artefact, found.kind, found.file) == ("chunks/rivers", "changed", MANIFEST)
    assert "(seeds)" in found.detail


def test_a_manifest_without_its_seal_contradicts_the_log(study: Store) -> None:
    events = _events(study)
    _edit(study, CHUNKS, seal="")
    assert _found(audit(study, events=lambda _: events)) == {("chunks/rivers", "changed")}


def test_manifests_and_events_of_old_have_no_seal(study: Store) -> None:
    for cell, _ in study.published():
        _edit(study, cell, seal="")
    events = {name: Logged(e.version) for name, e in _events(study).items()}
    assert audit(study, events=lambda _: events).ok


def test_an_eleventh_paraphrase_makes_no_shorter_recipe_stale(
    study: Store, rewrite: Rewrite
) -> None:
    paraphrases = Cell("paraphrases", ("rivers",))
    checkpoint = Cell("checkpoint", ("rivers", f"{synthetic.MODEL}.full.p00"))
    results = study.folder(Cell("results")) / MANIFEST
    shutil.rmtree(results.parent)
    rewrite(study, paraphrases, counts={"prefixes": {"p02": "two", "p04": "four"}})
    rewrite(study, checkpoint, inputs={"paraphrases/rivers#p02": "two"})
    rewrite(study, paraphrases, logical_version="more paraphrases")
    assert audit(study).ok
    rewrite(study, paraphrases, counts={"prefixes": {"p02": "other"}})
    assert (str(checkpoint), "stale") in _found(audit(study))


def test_a_torn_manifest_accuses_nothing_else(study: Store) -> None:
    events = _events(study)
    (study.folder(CHUNKS) / MANIFEST).write_text("{")
    found = _only(audit(study, events=lambda _: events))
    assert (found.artefact, found.kind, found.file) == ("chunks/rivers", "changed", MANIFEST)


def test_a_manifest_of_another_shape_is_named(study: Store) -> None:
    _edit(study, CHUNKS, files=[])
    _edit(study, ARTICLES, inputs=None)
    verdict = audit(study)
    assert {(f.artefact, f.kind, f.file) for f in verdict.findings} == {
        (str(cell), "changed", MANIFEST) for cell in (CHUNKS, ARTICLES)
    }


def test_a_file_that_cannot_be_read_is_named(study: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = study.path(CHUNKS, "chunks.parquet")
    sha256 = inventory.file_sha256

    def fails(file: Path) -> str:
        if file == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return sha256(file)

    monkeypatch.setattr(inventory, "file_sha256", fails)
    found = _only(audit(study))
    assert (found.artefact, found.kind) == ("chunks/rivers", "changed")
    assert found.detail.endswith("chunks.parquet cannot be read: Input/output error")


@pytest.fixture
def release(study: Store, rewrite: Rewrite) -> Profile:
    """A profile of which one corpus is a frozen release, and the lake as made by it."""
    folder = study.lake / "releases" / EVENTS
    folder.mkdir(parents=True)
    frozen = folder / "frozen.jsonl"
    frozen.write_text('{"article_id": "article1"}\n')
    record = Release(
        corpus="events-current",
        month="2031-04",
        number=1,
        key=EVENTS,
        first_month="2031-04",
        version="v",
        revisions="r",
        frozen_sha256=file_sha256(frozen),
        pages=1,
        frozen_at="2031-05-01",
    )
    (folder / "release.json").write_text(json.dumps(dataclasses.asdict(record)))
    said = synthetic.profile().model_dump(mode="json")
    said["contact"] = "someone@example.org"
    said["wikis"] = {"w": {"api_url": "https://example.org/w/api.php"}}
    said["corpora"][EVENTS]["source"] = {"kind": "wiki", "wiki": "w", "frozen": str(frozen)}
    profile = Profile.model_validate(said)
    plan = Plan(profile, study)
    for cell, _ in study.published():
        config = json.loads(json.dumps(plan.config(cell)))
        rewrite(study, cell, code_version=CODE_VERSIONS[cell.asset], config=config)
    return profile


def test_a_damaged_release_accuses_no_setting(study: Store, release: Profile) -> None:
    before = _found(audit(study, release))
    frozen = study.lake / "releases" / EVENTS / "frozen.jsonl"
    frozen.write_text(frozen.read_text().replace("1", "2"))
    verdict = audit(study, release)
    assert _found(verdict) - before == {(f"articles/{EVENTS}", "changed")}
    (found,) = [f for f in verdict.findings if f.kind == "changed"]
    assert str(frozen) in found.detail
    assert "backup" in found.mend
    assert dict(found.rests)["chunks"] == 1
    frozen.unlink()
    assert _found(audit(study, release)) - before == {(f"articles/{EVENTS}", "missing")}


def test_torn_records_of_releases_and_reviews_are_named(study: Store, release: Profile) -> None:
    before = _found(audit(study, release))
    journal = study.lake / "reviews" / "rivers.jsonl"
    journal.parent.mkdir()
    journal.write_text("{\n{}\n")
    verdict = audit(study, release)
    assert _found(verdict) - before == {("questions/rivers", "changed")}
    (found,) = [f for f in verdict.findings if f.kind == "changed"]
    assert str(journal) in found.detail
    assert "take that line out" in found.mend
    (study.lake / "releases" / EVENTS / "release.json").write_text("{")
    (found,) = [f for f in audit(study, release).findings if f.kind == "changed"]
    assert (found.artefact, found.file) == (f"articles/{EVENTS}", "release.json")
    assert "not the record of a release" in found.detail


def test_events_are_compared(study: Store) -> None:
    events = _events(study)
    events["chunks/rivers"] = Logged("another")
    del events["retrieved/rivers"]
    events["embeddings/rivers"] = Logged("gone")
    assert _found(audit(study, events=lambda _: events)) == {
        ("chunks/rivers", "changed"),
        ("retrieved/rivers", "orphaned"),
        ("embeddings/rivers", "missing"),
    }


def test_after_a_crash_the_log_is_behind_and_the_manifest_is_not_accused(study: Store) -> None:
    events = _events(study)
    events["chunks/rivers"] = Logged(events["chunks/rivers"].version, "an older seal", at=0.0)
    found = _only(audit(study, events=lambda _: events))
    assert (found.artefact, found.file) == ("chunks/rivers", "")
    assert "reports it again" in found.mend


def test_the_audits_own_artefact_does_not_accuse_itself(study: Store, rewrite: Rewrite) -> None:
    cell = Cell("lineage_audit")
    synthetic.publish(study, cell, {"rows": (Article, [])}, [CHUNKS])
    rewrite(study, cell, inputs={str(CHUNKS): "older"})
    with study.draft(cell):
        assert audit(study, events=_logs(study)).ok


def test_the_profile_makes_old_settings_stale(study: Store) -> None:
    # The synthetic lake was made by no code version that a profile would use.
    verdict = audit(study, synthetic.profile())
    assert {kind for _, kind in _found(verdict)} == {"stale"}
    assert "code version 1; now it is" in str(verdict)


def test_changed_settings_are_named(study: Store, rewrite: Rewrite) -> None:
    profile = synthetic.profile()
    plan = Plan(profile, study)
    for cell, _ in study.published():
        config = json.loads(json.dumps(plan.config(cell)))
        rewrite(study, cell, code_version=CODE_VERSIONS[cell.asset], config=config)
    config = json.loads(json.dumps(plan.config(CHUNKS))) | {"max_tokens": 7}
    rewrite(study, CHUNKS, config=config)
    stale = {f.artefact: f.detail for f in audit(study, profile).findings}
    assert "settings in the profile have changed: max_tokens" in stale["chunks/rivers"]


def test_a_manifest_that_points_outside_is_not_followed(
    study: Store, rewrite: Rewrite, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("x")
    files = Manifest.read(study.folder(CHUNKS) / MANIFEST).files
    outside = {"../../../../secret": {"sha256": "0", "bytes": 1}}
    rewrite(study, CHUNKS, files={**files, **outside})
    found = _only(audit(study))
    assert (found.artefact, found.kind) == ("chunks/rivers", "changed")
    assert "outside" in found.detail


@pytest.mark.parametrize("where", ["empty", "absent"])
def test_nothing_published_is_sound(tmp_path: Path, where: str) -> None:
    if where == "empty":
        (tmp_path / "lake").mkdir()
    assert audit(Store(tmp_path)) == Audit(0, 0)


def test_narrow_terminals_get_short_lines(study: Store) -> None:
    path = study.path(CHUNKS, "chunks.parquet")
    path.write_bytes(b"x")
    verdict = audit(study)
    long = [w for w in verdict.text().split() if len(w) > 60]
    for line in verdict.text(80).splitlines():
        assert len(line) <= 80 or any(word in line for word in long)
    assert max(map(len, verdict.text().splitlines())) > 100, "never cut when piped"
