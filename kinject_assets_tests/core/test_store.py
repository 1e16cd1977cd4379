"""The lake: artefacts appear whole or not at all, and broken ones are named."""

import dataclasses
import json
import random
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kinject_assets.core.errors import BrokenArtefact, MissingArtefact
from kinject_assets.core.manifest import Manifest, content_hash
from kinject_assets.core.schema import Exclusion, Paraphrase, Trial, arrow_schema, logical_version
from kinject_assets.core.store import MANIFEST, Cell, Store, keep_rows, read_rows, write_rows

CELL = Cell("articles", ("rivers",))


def publish(store: Store, titles: list[str], version: str = "1") -> Manifest:
    with store.draft(CELL) as draft:
        rows = [Exclusion(title=title, reason="blank") for title in titles]
        write_rows(draft / "exclusions.parquet", rows, Exclusion)
        return store.publish(
            CELL,
            draft,
            partition="rivers",
            logical_version=version,
            fingerprint="f",
            code_version="1",
            inputs={},
            config={},
            started_at=datetime.now(UTC),
        )


def test_publish_and_read_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, ["a", "b"])
    assert [row.title for row in store.rows(CELL, "exclusions", Exclusion)] == ["a", "b"]
    assert [cell for cell, _ in store.published()] == [CELL]
    assert store.input_version("articles/rivers") == "1"


def test_a_new_version_replaces_the_old_one_whole(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, ["a"])
    publish(store, ["b"], version="2")
    assert [row.title for row in store.rows(CELL, "exclusions", Exclusion)] == ["b"]
    assert len(list(store.folder(CELL).glob("v*"))) == 1


def test_a_draft_that_is_not_published_leaves_the_old_version(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, ["a"])
    with pytest.raises(FileExistsError), store.draft(CELL) as draft:
        draft.mkdir()
    assert [row.title for row in store.rows(CELL, "exclusions", Exclusion)] == ["a"]
    assert len(list(store.folder(CELL).glob("v*"))) == 1


def test_a_torn_draft_of_a_killed_process_is_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, ["a"])
    (store.folder(CELL) / "v0123456789ab").mkdir()
    store.sweep(CELL)
    assert len(list(store.folder(CELL).glob("v*"))) == 1


def test_missing_and_broken_artefacts_say_what_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(MissingArtefact, match="articles/rivers has not been made yet"):
        store.rows(CELL, "exclusions", Exclusion)
    publish(store, ["a"])
    path = store.path(CELL, "exclusions.parquet")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BrokenArtefact, match=r"has 40 bytes.*cut off.*Delete the folder"):
        store.rows(CELL, "exclusions", Exclusion)
    with pytest.raises(BrokenArtefact, match=r"not a readable Parquet file.*Delete the folder"):
        read_rows(path, Exclusion)
    path.unlink()
    with pytest.raises(BrokenArtefact, match="is gone"):
        store.path(CELL, "exclusions.parquet")


def test_a_flipped_byte_is_named_before_it_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    manifest = publish(store, ["a"])
    path = store.path(CELL, "exclusions.parquet")
    sound = path.read_bytes()
    path.write_bytes(sound[:-20] + bytes([sound[-20] ^ 1]) + sound[-19:])
    assert store.problem(CELL, manifest) == "", "sizes alone do not show it"
    with pytest.raises(BrokenArtefact, match=r"articles/rivers: .*does not hold the bytes"):
        store.path(CELL, ".")


def test_drafts_of_dead_processes_are_swept_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, ["a"])
    code = (
        "import os, sys; from pathlib import Path; from kinject_assets.core.store import *\n"
        "with Store(Path(sys.argv[1])).draft(Cell('articles', ('rivers',))) as draft:\n"
        "    (draft / 'half.parquet').write_text('half'); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == 9
    assert len(list(store.folder(CELL).glob("v*"))) == 2
    with store.draft(CELL) as mine:
        assert store.sweep_dead() == ["articles/rivers"]
        assert mine.is_dir()
    assert store.sweep_dead() == []
    assert store.path(CELL, "exclusions.parquet").is_file(), "the current version stays"
    assert len(list(store.folder(CELL).glob("v*"))) == 1


def test_a_draft_without_files_is_not_published(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.draft(CELL) as draft:
        draft.rmdir()
        with pytest.raises(BrokenArtefact, match="what was made for it is gone"):
            store.publish(
                CELL,
                draft,
                partition="rivers",
                logical_version="1",
                fingerprint="f",
                code_version="1",
                inputs={},
                config={},
                started_at=datetime.now(UTC),
            )
    assert store.manifest(CELL) is None


def test_a_path_costs_one_look_at_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    publish(store, ["a"])
    read, reads = Manifest.read, list[Path]()

    def counted(path: Path) -> Manifest:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(Manifest, "read", counted)
    store.path(CELL, "exclusions.parquet")
    assert len(reads) == 1


def test_a_torn_manifest_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, ["a"])
    (store.folder(CELL) / "manifest.json").write_text("{")
    with pytest.raises(BrokenArtefact, match=r"manifest\.json: not a manifest"):
        store.manifest(CELL)


def test_rows_of_another_class_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", [Exclusion(title="a", reason="b")], Exclusion)
    with pytest.raises(BrokenArtefact, match="columns are"):
        read_rows(tmp_path / "rows.parquet", Trial)


def test_a_flipped_bit_never_gives_other_rows(tmp_path: Path) -> None:
    """Parts kept for a restart have no manifest: their pages carry checksums."""
    path = tmp_path / "rows.parquet"
    rows = [Exclusion(title=f"title {i}", reason="blank") for i in range(50)]
    keep_rows(path, rows, Exclusion)
    assert read_rows(path, Exclusion) == rows
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]
    whole = path.read_bytes()
    draw = random.Random(0)
    broken = 0
    for _ in range(300):
        at = draw.randrange(len(whole))
        flipped = whole[at] ^ (1 << draw.randrange(8))
        path.write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
        try:
            assert read_rows(path, Exclusion) == rows
        except BrokenArtefact:
            broken += 1
    assert broken > 100


def test_optional_columns_are_nullable() -> None:
    schema = arrow_schema(Trial)
    assert schema.field("validation_loss").nullable
    assert not schema.field("training_loss").nullable


def test_content_hash_ignores_key_order_but_not_values() -> None:
    assert content_hash({"a": 1, "b": 2.0}) == content_hash({"b": 2, "a": 1.0})
    assert content_hash({"a": 1}) != content_hash({"a": "1"})


def test_logical_version_covers_meaning_alone() -> None:
    def row(**changes: object) -> Paraphrase:
        fields = {
            "paraphrase_id": "p",
            "chunk_id": "c",
            "augmentation": "paraphrase",
            "purpose": "train",
            "ordinal": 0,
            "seed": 1,
            "generator": "g",
            "generation_id": "1",
            "text": "t",
        }
        return Paraphrase(**{**fields, **changes})  # pyright: ignore[reportArgumentType]

    first, second = row(), row(paraphrase_id="q", ordinal=1)
    assert logical_version([first, second]) == logical_version([second, first])
    assert logical_version([first]) == logical_version([row(generation_id="2")])
    assert logical_version([first]) != logical_version([row(ordinal=2)])


def test_a_manifest_is_sealed_and_an_edit_of_any_field_breaks_the_seal(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, ["A"])
    manifest = store.manifest(CELL)
    assert manifest is not None
    assert len(manifest.seal) == 64
    assert manifest.intact
    for field in dataclasses.fields(manifest):
        value = getattr(manifest, field.name)
        other = {**value, "x": 1} if isinstance(value, dict) else f"{value}x"
        if field.name == "checks":
            other = [*value, {"name": "another"}]
        assert not dataclasses.replace(manifest, **{field.name: other}).intact, field.name
    assert dataclasses.replace(manifest, seal="").intact, "those of old have none"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("files", [], "`files` is no object"),
        ("files", {"v/rows.parquet": "sha256"}, "`files`: what `v/rows.parquet` has is no object"),
        ("inputs", None, "`inputs` is no object"),
        ("config", "x", "`config` is no object"),
        ("counts", [1], "`counts` is no object"),
        ("checks", {}, "`checks` is no list"),
        ("finished_at", 7, "`finished_at` is no text"),
    ],
)
def test_a_manifest_with_fields_of_another_kind_is_broken(
    tmp_path: Path, field: str, value: object, said: str
) -> None:
    plain = dict.fromkeys(("asset", "partition", "logical_version", "fingerprint"), "x")
    fields = {**plain, "code_version": "1", "files": {}, "inputs": {}, "config": {}}
    path = tmp_path / MANIFEST
    path.write_text(json.dumps(fields))
    assert Manifest.read(path).asset == "x"
    path.write_text(json.dumps({**fields, field: value}))
    with pytest.raises(BrokenArtefact, match=re.escape(said)):
        Manifest.read(path)


def test_a_manifest_that_cannot_be_read_is_broken(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(BrokenArtefact, match="cannot be read"):
        Manifest.read(tmp_path / MANIFEST)


def test_drafts_are_those_of_living_processes(tmp_path: Path) -> None:
    store, cell = Store(tmp_path), Cell("chunks", ("rivers",))
    with store.draft(cell) as draft:
        assert store.drafts() == {draft.name: cell}
        (record,) = store.lake.glob(".work/.drafts/*.json")
        said = json.loads(record.read_text())
        said["owner"]["born"] -= 86_400
        record.write_text(json.dumps(said))
        assert store.drafts() == {}
        said["owner"]["host"] += "-other"
        record.write_text(json.dumps(said))
        assert store.drafts() == {draft.name: cell}, "it cannot be told"
        assert store.drafts(here=True) == {}
        record.write_text("torn")
        assert store.drafts() == {}
    assert store.drafts() == {}
