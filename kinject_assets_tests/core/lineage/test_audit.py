import json
import shutil
from pathlib import Path

import pytest

from kinject_assets.core.lineage.audit import Audit, audit
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.schema import Article
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.core.results import synthetic

CHUNKS = Cell("chunks", ("rivers",))


def _found(verdict: Audit) -> set[tuple[str, str]]:
    return {(f.artefact, f.kind) for f in verdict.findings}


def _events(store: Store) -> dict[str, str]:
    return {str(cell): manifest.logical_version for cell, manifest in store.published()}


def test_a_whole_lake_is_sound(built: Store) -> None:
    verdict = audit(built, events=_events(built))
    assert verdict.ok, str(verdict)
    assert verdict.checked == len(built.published())
    assert json.loads(verdict.to_json())["ok"] is True
    assert "sound" in str(verdict)


def test_changed_bytes(lake: Store) -> None:
    path = lake.path(CHUNKS, "chunks.parquet")
    path.write_bytes(path.read_bytes() + b"x")
    verdict = audit(lake)
    assert _found(verdict) == {("chunks/rivers", "changed")}
    assert "chunks.parquet" in verdict.findings[0].detail
    assert not verdict.ok
    assert json.loads(verdict.to_json())["findings"][0]["kind"] == "changed"


def test_missing_file(lake: Store) -> None:
    lake.path(CHUNKS, "chunks.parquet").unlink()
    assert _found(audit(lake)) == {("chunks/rivers", "missing")}


def test_missing_input(lake: Store) -> None:
    shutil.rmtree(lake.folder(Cell("articles", ("rivers",))))
    assert _found(audit(lake)) == {("chunks/rivers", "missing")}


def test_orphaned_version_file_and_draft(lake: Store) -> None:
    (lake.folder(CHUNKS) / "v0123456789ab").mkdir()
    lake.path(CHUNKS, "chunks.parquet").with_name("extra.bin").write_bytes(b"x")
    abandoned = lake.lake / "embeddings" / "rivers" / "vba9876543210"
    abandoned.mkdir(parents=True)
    verdict = audit(lake)
    assert _found(verdict) == {("chunks/rivers", "orphaned"), ("embeddings/rivers", "orphaned")}
    assert len(verdict.findings) == 3


def test_unfinished_work_is_no_orphan(lake: Store) -> None:
    (lake.work(CHUNKS, "f" * 32) / "half").write_text("done")
    assert audit(lake).ok


def test_a_changed_article_makes_exactly_its_descendants_stale(lake: Store) -> None:
    synthetic.publish(
        lake,
        Cell("articles", ("rivers",)),
        {"articles": (Article, [synthetic.article(0, "2")]), "exclusions": (Article, [])},
    )
    verdict = audit(lake)
    children = {
        str(cell)
        for cell, _ in lake.published()
        if cell.parts[0] == "rivers" and cell.asset != "articles"
    }
    assert _found(verdict) == {(name, "stale") for name in children}
    direct = [f for f in verdict.findings if "has changed since" in f.detail]
    assert [f.artefact for f in direct] == ["chunks/rivers"]


def test_an_eleventh_paraphrase_makes_no_shorter_recipe_stale(lake: Store) -> None:
    paraphrases = Cell("paraphrases", ("rivers",))
    path = lake.folder(paraphrases) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["counts"] = {"prefixes": {"p02": "two", "p04": "four"}}
    path.write_text(json.dumps(manifest))
    checkpoint = Cell("checkpoint", ("rivers", f"{synthetic.MODEL}.full.p00"))
    path_of_checkpoint = lake.folder(checkpoint) / "manifest.json"
    trained = json.loads(path_of_checkpoint.read_text())
    trained["inputs"] = {"paraphrases/rivers#p02": "two"}
    path_of_checkpoint.write_text(json.dumps(trained))
    manifest["logical_version"] = "more paraphrases"
    path.write_text(json.dumps(manifest))
    assert audit(lake).ok
    manifest["counts"]["prefixes"]["p02"] = "other"
    path.write_text(json.dumps(manifest))
    assert (str(checkpoint), "stale") in _found(audit(lake))


def test_torn_manifest(lake: Store) -> None:
    (lake.folder(CHUNKS) / "manifest.json").write_text("{")
    assert ("chunks/rivers", "changed") in _found(audit(lake))


def test_events_are_compared(lake: Store) -> None:
    events = _events(lake)
    events["chunks/rivers"] = "another"
    del events["retrieved/rivers"]
    events["embeddings/rivers"] = "gone"
    assert _found(audit(lake, events=events)) == {
        ("chunks/rivers", "changed"),
        ("retrieved/rivers", "orphaned"),
        ("embeddings/rivers", "missing"),
    }


def test_the_audits_own_artefact_does_not_accuse_itself(lake: Store) -> None:
    cell = Cell("lineage_audit")
    synthetic.publish(lake, cell, {"rows": (Article, [])}, [CHUNKS])
    manifest = lake.folder(cell) / "manifest.json"
    text = json.loads(manifest.read_text())
    text["inputs"][str(CHUNKS)] = "older"
    manifest.write_text(json.dumps(text))
    with lake.draft(cell):
        assert audit(lake, events={str(c): m.logical_version for c, m in lake.published()}).ok


def test_the_profile_makes_old_settings_stale(lake: Store) -> None:
    # The synthetic lake's fingerprints are none that a profile would give.
    assert {kind for _, kind in _found(audit(lake, synthetic.profile()))} == {"stale"}


def test_database_lacks_answers_or_has_too_many(lake: Store) -> None:
    cell = Cell("answers_base", ("rivers", synthetic.MODEL))
    shutil.rmtree(lake.folder(cell))
    assert _found(audit(lake)) == {(DATABASE, "orphaned")}
    (lake.root / DATABASE).unlink()
    shutil.rmtree(lake.lake / "answers_rag")
    from kinject_assets.core.results.loader import build_database

    build_database(lake, synthetic.profile())
    synthetic.write_lake(lake.root)
    verdict = audit(lake)
    assert {(f.artefact, f.kind) for f in verdict.findings} == {(DATABASE, "missing")}
    assert any("answers_base/rivers" in f.detail for f in verdict.findings)


def test_a_manifest_that_points_outside_is_not_followed(lake: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    path = lake.folder(CHUNKS) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../../../secret"] = {"sha256": "0", "bytes": 1}
    path.write_text(json.dumps(manifest))
    (finding,) = [f for f in audit(lake).findings if "outside" in f.detail]
    assert (finding.artefact, finding.kind) == ("chunks/rivers", "changed")


@pytest.mark.parametrize("where", ["empty", "absent"])
def test_nothing_published_is_sound(tmp_path: Path, where: str) -> None:
    if where == "empty":
        (tmp_path / "lake").mkdir()
    assert audit(Store(tmp_path)) == Audit(0, 0, ())
