"""Requests travel between machines that share nothing but the object store."""

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.core.errors import BrokenArtefact, KinjectError, MissingArtefact
from kinject_assets.core.lake.objects import Objects
from kinject_assets.core.lake.opening import open_lake
from kinject_assets.core.lake.travel import (
    bring,
    packed,
    receive_draft,
    send_draft,
    sync_work,
    unpacked,
)
from kinject_assets.core.manifest import Manifest
from kinject_assets.core.store import Cell, Store

CHUNKS = Cell("chunks", ("rivers",))
MODEL = Cell("checkpoint", ("rivers", "m.full.p00"))
FINGERPRINT = "0123456789abcdef" * 2

Machine = Callable[[str], Store]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Opens one lake as machines with disks of their own."""
    url = f"memory://lake-{uuid.uuid4().hex}/study"
    return lambda name: open_lake(tmp_path / name, url, 1)


def publish(store: Store, cell: Cell, draft: Path) -> Manifest:
    return store.publish(
        cell,
        draft,
        partition="rivers",
        logical_version="1",
        fingerprint="f",
        code_version="1",
        inputs={},
        config={},
        started_at=datetime.now(UTC),
    )


def put(store: Store, cell: Cell, **files: str) -> Manifest:
    with store.draft(cell) as draft:
        for name, text in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_text(text)
        return publish(store, cell, draft)


def test_a_request_is_made_elsewhere_and_its_draft_published(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    put(here, CHUNKS, chunks="text")
    work = here.work(MODEL, FINGERPRINT)
    (work / "general.txt").write_text("general")
    with here.draft(MODEL) as draft:
        request = {
            "chunks": here.reference(CHUNKS, "chunks"),
            "previous": [here.reference(CHUNKS, "."), "a/hub-id"],
            "general": str(work / "general.txt"),
            "deep": {"work": str(work), "number": 3},
            "out": str(draft),
        }
        sent = json.loads(json.dumps(packed(request, here)))
        assert sent["chunks"].startswith("lake:lake/chunks/rivers/v")
        assert sent["previous"][1] == "a/hub-id"
        assert sent["deep"]["work"] == f"lake:lake/.work/{MODEL}/{FINGERPRINT[:16]}"
        assert str(here.root) not in json.dumps(sent)

        got = unpacked(sent, there)
        assert Path(got["chunks"]).read_text() == "text"
        assert (Path(got["previous"][0]) / "chunks").read_text() == "text"
        assert Path(got["general"]).read_text() == "general"
        assert got["deep"]["number"] == 3
        assert there.root in Path(got["deep"]["work"]).parents
        out = Path(got["out"])
        assert list(out.iterdir()) == []
        (out / "model").mkdir()
        (out / "model" / "weights").write_text("w" * 1000)
        (out / "row").write_text("row")
        listing = json.loads(json.dumps(send_draft(there, out)))

        receive_draft(here, draft, listing, largest=100)
        assert (draft / "row").read_text() == "row"
        assert not (draft / "model").exists()
        manifest = publish(here, MODEL, draft)
    names = {name.split("/", 1)[1]: file["bytes"] for name, file in manifest.files.items()}
    assert names == {"model/weights": 1000, "row": 3}
    third = machine("third")
    assert (third.path(MODEL, "model") / "weights").read_text() == "w" * 1000
    # The large file never came to the machine that published it, until it is read there.
    assert not Path(here.reference(MODEL, "model")).exists()
    bring({"checkpoint": [here.reference(MODEL, "model")]}, here)
    assert (Path(here.reference(MODEL, "model")) / "weights").exists()
    assert here.remote is not None
    left = [key for key in here.remote.objects.listing() if key.startswith(".work/")]
    assert left == [], "what the unfinished step kept is gone"


def test_a_folder_in_a_draft_is_made_elsewhere_too(machine: Machine) -> None:
    """A probe of `damage` writes below the draft, and several of them come back."""
    here, there = machine("here"), machine("there")
    with here.draft(MODEL) as draft:
        for name in ("facts-a", "facts-b"):
            sent = packed({"out": str(draft / name)}, here)
            out = Path(unpacked(sent, there)["out"])
            (out / "answers").write_text(name * 100)
            receive_draft(here, draft / name, send_draft(there, out), largest=None)
        manifest = publish(here, MODEL, draft)
    names = sorted(name.split("/", 1)[1] for name in manifest.files)
    assert names == ["facts-a/answers", "facts-b/answers"]
    assert machine("third").path(MODEL, "facts-b/answers").read_text() == "facts-b" * 100


def test_work_of_this_machine_is_added_to_what_the_store_keeps(machine: Machine) -> None:
    """From the cluster to this machine and back: nothing of either is asked again."""
    here, there = machine("here"), machine("there")
    work = here.work(MODEL, FINGERPRINT)
    (work / "first.parquet").write_text("1")
    sent = packed({"work": str(work)}, here)
    node = Path(unpacked(sent, there)["work"])
    (node / "second.parquet").write_text("2")
    sync_work(there, node)
    (work / "third.parquet").write_text("3")
    back = Path(unpacked(packed({"work": str(work)}, here), there)["work"])
    assert {path.name for path in back.glob("*.parquet")} == {
        "first.parquet",
        "second.parquet",
        "third.parquet",
    }


def test_a_draft_that_lost_a_file_is_not_published(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    with here.draft(MODEL) as draft:
        out = Path(unpacked(packed({"out": str(draft)}, here), there)["out"])
        (out / "weights").write_text("w" * 1000)
        listing = send_draft(there, out)
        receive_draft(here, draft, listing, largest=10)
        assert there.remote is not None
        there.remote.objects.remove([f"{MODEL}/{out.name}/weights"])
        with pytest.raises(KinjectError, match="not there any more"):
            publish(here, MODEL, draft)
    assert here.manifest(MODEL) is None


def test_a_file_that_changed_on_its_way_is_refused(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    with here.draft(MODEL) as draft:
        out = Path(unpacked(packed({"out": str(draft)}, here), there)["out"])
        (out / "row").write_text("row")
        listing = send_draft(there, out)
        assert there.remote is not None
        there.remote.objects.write(f"{MODEL}/{out.name}/row", b"raw")
        with pytest.raises(BrokenArtefact, match="does not hold the bytes"):
            receive_draft(here, draft, listing)
        assert not (draft / "row").exists()


def test_what_was_replaced_meanwhile_is_said(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    put(here, CHUNKS, chunks="old")
    sent = packed({"chunks": here.reference(CHUNKS, "chunks")}, here)
    put(here, CHUNKS, chunks="new")
    with pytest.raises(MissingArtefact, match="was made anew after this was asked for"):
        unpacked(sent, there)


@pytest.mark.parametrize("path", ["lake:../secret", "lake:/etc/passwd", "lake:lake/../../x"])
def test_no_path_leads_out_of_the_lake(machine: Machine, path: str) -> None:
    with pytest.raises(KinjectError, match="leads out of the lake"):
        unpacked({"file": path}, machine("there"))


def resumed(machine: Machine, work: Path, sender: Store, name: str) -> Path:
    """The work folder as another machine gets it."""
    sync_work(sender, work)
    return Path(unpacked(packed({"work": str(work)}, sender), machine(name))["work"])


def test_unfinished_work_goes_on_elsewhere(machine: Machine) -> None:
    here = machine("here")
    work = here.work(MODEL, FINGERPRINT)
    for name in ("trial-0/checkpoint-4/state", "trial-0/checkpoint-8/state"):
        (work / name).parent.mkdir(parents=True)
        (work / name).write_text(name)
    for name in ("progress.json", ".partial", "a.parquet." + "0" * 32, "kept-1.partial"):
        (work / name).write_text("not whole")
    (work / "trial-0" / "saving").mkdir()
    (work / "trial-0" / "saving" / "state").write_text("not whole")
    got = resumed(machine, work, here, "there")
    assert sorted(p.relative_to(got).as_posix() for p in got.rglob("*") if p.is_file()) == [
        "trial-0/checkpoint-4/state",
        "trial-0/checkpoint-8/state",
    ]
    # The first saved state goes, the second one's file changes, and a stale one lies there.
    (work / "trial-0/checkpoint-4/state").unlink()
    (work / "trial-0/checkpoint-4").rmdir()
    (work / "trial-0/checkpoint-8/state").write_text("changed")
    again = resumed(machine, work, here, "there")
    assert again == got
    assert [p.name for p in (got / "trial-0").iterdir()] == ["checkpoint-8"]
    assert (got / "trial-0/checkpoint-8/state").read_text() == "changed"
    assert here.remote is not None
    blobs = [key for key in here.remote.objects.listing() if "/.kept/" in key]
    assert len(blobs) == 1


def test_a_machine_without_work_does_not_forget_that_of_another(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    work = here.work(MODEL, FINGERPRINT)
    request = {"work": str(work)}
    far = Path(unpacked(packed(request, here), there)["work"])
    (far / "part.parquet").write_text("done elsewhere")
    sync_work(there, far)
    # The orchestrator asks again: it never had that file.
    third = machine("third")
    got = Path(unpacked(packed(request, here), third)["work"])
    assert (got / "part.parquet").read_text() == "done elsewhere"


def test_parts_of_one_step_keep_folders_of_their_own(machine: Machine) -> None:
    here, nodes = machine("here"), [machine("one"), machine("two")]
    work = packed({"work": str(here.work(MODEL, FINGERPRINT))}, here)["work"]
    for number, node in enumerate(nodes):
        mine = Path(unpacked({"work": f"{work}/part-{number}-of-2"}, node)["work"])
        assert mine.is_dir()
        (mine / "rows.parquet").write_text(str(number))
        sync_work(node, mine)
    parts = [f"{work}/part-{number}-of-2" for number in range(2)]
    got = unpacked({"work": work, "parts": parts}, machine("third"))
    assert [(Path(p) / "rows.parquet").read_text() for p in got["parts"]] == ["0", "1"]


def test_a_torn_copy_of_work_is_never_taken(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine("here")
    work = here.work(MODEL, FINGERPRINT)
    (work / "vectors").write_text("old old old")
    (work / "kept.json").write_text("1")
    sync_work(here, work)
    (work / "vectors").write_text("new new new")
    (work / "kept.json").write_text("2")
    upload, done = Objects.upload, list[str]()

    def dies(self: Objects, path: Path, key: str) -> None:
        if done:
            raise KeyboardInterrupt
        done.append(key)
        upload(self, path, key)

    with monkeypatch.context() as patched:
        patched.setattr(Objects, "upload", dies)
        with pytest.raises(KeyboardInterrupt):
            sync_work(here, work)
    got = Path(unpacked(packed({"work": str(work)}, here), machine("there"))["work"])
    assert [(got / name).read_text() for name in ("vectors", "kept.json")] == ["old old old", "1"]


def test_a_file_that_grows_while_it_goes_up_is_whole(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine("here")
    work = here.work(MODEL, FINGERPRINT)
    (work / "vectors").write_text("1")
    upload = Objects.upload

    def grows(self: Objects, path: Path, key: str) -> None:
        if path == work / "vectors":
            path.write_text("1 and 2")
        upload(self, path, key)

    monkeypatch.setattr(Objects, "upload", grows)
    got = resumed(machine, work, here, "there")
    assert (got / "vectors").read_text() == "1 and 2"


def test_where_both_see_the_folder_nothing_travels(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, CHUNKS, chunks="text")
    work = tmp_path / "lake" / ".work" / "new"
    request: dict[str, Any] = {
        "chunks": store.reference(CHUNKS, "chunks"),
        "work": str(work),
        "out": str(tmp_path / "out"),
    }
    assert packed(request, store) == request
    assert unpacked(request, store) == request
    assert work.is_dir()
    assert send_draft(store, tmp_path / "out") == {}
    receive_draft(store, tmp_path / "out", {})
    sync_work(store, work)
    bring(request, store)
    assert list((tmp_path / "out").iterdir()) == []
