"""A lake in an object store: two machines see the same, and nothing torn is ever current."""

import dataclasses
import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.core import journal
from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.lake import remote as module
from kinject_assets.core.lake.objects import SMALL, LakeError, Objects, TornUpload
from kinject_assets.core.lake.opening import open_lake
from kinject_assets.core.lineage.audit import audit
from kinject_assets.core.manifest import Manifest
from kinject_assets.core.process import Owner, this_process
from kinject_assets.core.schema import Exclusion
from kinject_assets.core.store import MANIFEST, Cell, Store, write_rows

CELL = Cell("articles", ("rivers",))
OTHER = Cell("articles", ("comets",))

Machine = Callable[..., Store]


@pytest.fixture
def url() -> str:
    return f"memory://lake-{uuid.uuid4().hex}/study"


@pytest.fixture
def machine(tmp_path: Path, url: str) -> Machine:
    """Opens the lake as a machine with a disk of its own."""

    def opened(name: str, cache_gb: float = 1) -> Store:
        return open_lake(tmp_path / name, url, cache_gb, outputs=True)

    return opened


def publish(store: Store, titles: list[str], version: str = "1", cell: Cell = CELL) -> Manifest:
    with store.draft(cell) as draft:
        rows = [Exclusion(title=title, reason="blank") for title in titles]
        write_rows(draft / "exclusions.parquet", rows, Exclusion)
        return store.publish(
            cell,
            draft,
            partition=cell.parts[0],
            logical_version=version,
            fingerprint="f",
            code_version="2",
            inputs={},
            config={},
            started_at=datetime.now(UTC),
        )


def titles(store: Store, cell: Cell = CELL) -> list[str]:
    return [row.title for row in store.rows(cell, "exclusions", Exclusion)]


def objects_of(store: Store) -> Objects:
    assert store.remote is not None
    return store.remote.objects


def test_what_one_machine_publishes_another_reads(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    made = publish(first, ["a", "b"])
    assert second.manifest(CELL) is None
    second.refresh(force=True)
    assert second.manifest(CELL) == made
    assert second.problem(CELL, made) == ""
    reference = Path(second.reference(CELL, "exclusions.parquet"))
    assert not reference.exists()
    assert titles(second) == ["a", "b"]
    assert second.path(CELL, "exclusions.parquet") == reference
    assert reference.exists()


def test_a_new_version_replaces_the_old_one_everywhere(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    publish(first, ["a"])
    second.refresh(force=True)
    assert titles(second) == ["a"]
    publish(first, ["b"], version="2")
    # It has not looked: the version that it knows is gone, and it takes the new one.
    old = second.folder(CELL) / second.current(CELL)
    (old / "exclusions.parquet").unlink()
    assert titles(second) == ["b"]
    assert not old.exists()
    versions = {key.split("/")[2] for key in objects_of(first).listing("articles/rivers")}
    assert len(versions - {MANIFEST}) == 1


def test_a_crash_before_the_manifest_leaves_the_old_version(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machine("first"), machine("second")
    publish(first, ["a"])

    def dies(self: Objects, key: str, data: bytes) -> Any:
        uploaded = [k for k in self.listing("articles/rivers") if k.endswith(".parquet")]
        assert len(uploaded) == 2, "its files are there before its manifest"
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Objects, "write", dies)
        patched.setattr(Store, "_drop", lambda *_: False)  # a dead process removes nothing
        with pytest.raises(KeyboardInterrupt):
            publish(first, ["b"], version="2")
    second.refresh(force=True)
    assert titles(second) == ["a"]
    orphans = [f for f in audit(second).findings if f.kind == "orphaned"]
    assert [(f.artefact, f.mend.startswith("delete memory://")) for f in orphans] == [
        ("articles/rivers", True)
    ]
    publish(second, ["c"], version="3")
    second.refresh(force=True)
    still = [f for f in audit(second).findings if f.kind == "orphaned"]
    assert len(still) == 1, "another machine might just be about to publish it"
    monkeypatch.setattr(module, "REPLACED_SECONDS", 0)
    publish(second, ["d"], version="4")
    second.refresh(force=True)
    assert [f for f in audit(second).findings if f.kind == "orphaned"] == []


def test_a_torn_upload_is_found_and_removed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machine("first"), machine("second")
    publish(first, ["a"])

    def short(self: Objects, path: Path, key: str) -> None:
        self.write(key, path.read_bytes()[:-1])

    def other(self: Objects, path: Path, key: str) -> None:
        self.write(key, bytes(path.stat().st_size))

    for torn, said in ((short, "bytes of"), (other, "does not give back")):
        monkeypatch.setattr(Objects, "upload", torn)
        with pytest.raises(TornUpload, match=said):
            publish(first, ["b"], version="2")
    second.refresh(force=True)
    assert titles(second) == ["a"] == titles(first)
    assert len([k for k in objects_of(first).listing("articles") if "/v" in k]) == 1


def test_a_manifest_that_came_and_whose_answer_did_not_stays(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine("first")
    publish(first, ["a"])
    write = Objects.write

    def lost(self: Objects, key: str, data: bytes) -> Any:
        write(self, key, data)
        raise LakeError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(Objects, "write", lost)
        with pytest.raises(LakeError):
            publish(first, ["b"], version="2")
    assert titles(first) == ["b"]
    assert titles(machine("second")) == ["b"]


def test_copies_that_were_not_used_for_longest_make_room(machine: Machine) -> None:
    first = machine("first")
    cells = [Cell("articles", (name,)) for name in ("a", "b", "c")]
    for cell in cells:
        publish(first, [cell.parts[0]], cell=cell)
    size = first.path(cells[0], "exclusions.parquet").stat().st_size
    second = machine("second", cache_gb=2.5 * size / 1e9)
    assert second.remote is not None
    paths = [Path(second.reference(cell, "exclusions.parquet")) for cell in cells]
    for cell, path in zip(cells[:2], paths[:2], strict=True):
        second.path(cell, "exclusions.parquet")
        # Used some time ago, the second before the first.
        age = 100 if cell == cells[0] else 200
        os.utime(path, (time.time() - age, path.stat().st_mtime))
    assert titles(second, cells[2]) == ["c"]
    assert [path.exists() for path in paths] == [True, False, True]
    # What was used since a living process began is not taken from it.
    second.remote.begin()
    for cell in cells:
        assert titles(second, cell) == [cell.parts[0]]
    assert [path.exists() for path in paths] == [True, True, True]


def test_bytes_that_changed_are_named_or_mended(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    publish(first, ["a"])
    second.refresh(force=True)
    copy = second.path(CELL, "exclusions.parquet")
    data = copy.read_bytes()
    copy.write_bytes(bytes(len(data)))
    assert titles(second) == ["a"], "a copy that was damaged is brought again"
    key = copy.relative_to(second.lake).as_posix()
    objects_of(first).write(key, data[:-1] + b"!")
    copy.unlink()
    with pytest.raises(BrokenArtefact, match=r"memory://.*does not hold the bytes") as error:
        second.path(CELL, "exclusions.parquet")
    assert key in str(error.value)
    found = {(f.artefact, f.kind, f.file) for f in audit(second).findings}
    assert ("articles/rivers", "changed", key.removeprefix("articles/rivers/")) in found
    objects_of(first).remove([key])
    second.refresh(force=True)
    made = second.manifest(CELL)
    assert made is not None
    assert "is gone or has another size" in second.problem(CELL, made)
    first.refresh(force=True)
    assert "is gone" in first.problem(CELL, made), "a copy here does not hide it"
    assert ("articles/rivers", "missing") in {(f.artefact, f.kind) for f in audit(second).findings}


def test_the_audit_reads_manifests_in_the_store(machine: Machine) -> None:
    first = machine("first")
    publish(first, ["a"])
    assert [f.kind for f in audit(first).findings if f.kind != "orphaned"] == []
    key = f"{CELL}/{MANIFEST}"
    text = objects_of(first).read(key).replace(b'"partition": "rivers"', b'"partition": "riverS"')
    objects_of(first).write(key, text)
    (finding,) = [f for f in audit(first).findings if f.file == MANIFEST]
    assert "was edited" in finding.detail
    assert "memory://" in finding.mend


def test_journals_of_two_machines_come_together(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    path = Path("reviews") / "rivers.jsonl"
    for store in (first, second):
        (store.lake / "reviews").mkdir(parents=True)
    journal.append(first.lake / path, {"n": 1})
    first.push()
    journal.append(second.lake / path, {"n": 2})
    second.push()
    first.refresh(force=True)
    for store in (first, second):
        assert [row["n"] for row in journal.read(store.lake / path, "")] == [1, 2]
    journal.append(first.lake / path, {"n": 3})
    first.push()
    second.refresh(force=True)
    assert [row["n"] for row in journal.read(second.lake / path, "")] == [1, 2, 3]
    writes = objects_of(first).counts["write"]
    first.push()
    assert objects_of(first).counts["write"] == writes, "what has not changed stays"


def test_what_is_gone_there_is_removed_here(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    publish(first, ["a"])
    (first.lake / "releases" / "r").mkdir(parents=True)
    (first.lake / "releases" / "r" / "release.json").write_text("{}")
    first.push()
    second.refresh(force=True)
    titles(second)
    assert (second.lake / "releases" / "r" / "release.json").exists()
    objects_of(first).remove(objects_of(first).listing())
    second.refresh(force=True)
    assert second.published() == []
    assert not (second.lake / "releases" / "r" / "release.json").exists()
    assert list(second.folder(CELL).glob("v*")) == []


def test_what_lies_beside_the_lake_comes_along(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    (first.root / "report.html").write_text("one")
    first.keep_output("report.html")
    second.refresh(force=True)
    assert (second.root / "report.html").read_text() == "one"
    (first.root / "report.html").write_text("three")
    first.keep_output("report.html")
    second.refresh(force=True)
    assert (second.root / "report.html").read_text() == "three"


def test_a_worker_leaves_what_is_for_people(machine: Machine, tmp_path: Path, url: str) -> None:
    first = machine("first")
    (first.root / "report.html").write_text("one")
    first.keep_output("report.html")
    node = open_lake(tmp_path / "node", url, 1)
    assert not (node.root / "report.html").exists()
    # Beside an orchestrator on one machine, it takes nothing away either.
    open_lake(first.root, url, 1).refresh(force=True)
    assert (first.root / "report.html").exists()


def test_keys_that_lead_elsewhere_are_left_alone(machine: Machine, tmp_path: Path) -> None:
    first = machine("first")
    made = publish(first, ["a"])
    objects_of(first).write("reviews/../../../escaped.jsonl", b"{}")
    second = machine("second")
    assert list(tmp_path.rglob("escaped*")) == []
    name, recorded = next(iter(made.files.items()))
    outside = dataclasses.replace(made, files={f"{name.split('/')[0]}/../../../x": recorded})
    objects_of(first).write(f"{CELL}/{MANIFEST}", outside.sealed().to_json().encode())
    second.refresh(force=True)
    with pytest.raises(BrokenArtefact, match=r"outside its folder|is gone"):
        second.path(CELL, ".")


def test_a_lost_answer_to_a_lease_is_no_others_lease(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine("first")
    create = Objects.create

    def lost(self: Objects, key: str, data: bytes) -> Any:
        create(self, key, data)

    monkeypatch.setattr(Objects, "create", lost)
    began = time.monotonic()
    with store.lock(CELL, lambda: pytest.fail("it waits for itself")):
        pass
    assert time.monotonic() - began < 5


def test_one_listing_serves_many_looks(machine: Machine) -> None:
    store = machine("first")
    publish(store, ["a"])
    objects = objects_of(store)
    before = objects.counts["list"]
    for _ in range(50):
        store.refresh()
        made = store.manifest(CELL)
        assert made is not None
        assert store.problem(CELL, made) == ""
        titles(store)
    assert objects.counts["list"] - before <= 1


def test_another_machine_waits_for_a_lease(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    first, second = machine("first"), machine("second")
    waited, order = threading.Event(), list[str]()

    def make() -> None:
        with second.lock(CELL, waited.set):
            order.append("second")
            assert titles(second) == ["a"], "it sees what was published meanwhile"

    with first.lock(CELL, lambda: order.append("never")):
        thread = threading.Thread(target=make)
        thread.start()
        assert waited.wait(10)
        assert {str(c) for c in first.drafts().values()} <= {"articles/rivers"}
        publish(first, ["a"])
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert [k for k in objects_of(first).listing() if "leases" in k] == []


def test_the_lease_of_a_dead_process_is_taken_over(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module, "EXPIRY_SECONDS", 0.3)
    store = machine("first")
    me = this_process()
    told: list[str] = []
    for owner, waits in (
        (Owner(me.pid, me.born - 10_000, me.host), False),
        (Owner(1, 1, "a-machine-that-was-lost"), True),
    ):
        note = json.dumps({"owner": asdict(owner)}).encode()
        objects_of(store).write(f"{module.LEASES}/{CELL}.json", note)
        told.clear()
        with store.lock(CELL, lambda: told.append("waits")):
            assert bool(told) is waits


def test_side_files_go_up_while_a_step_works(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    store = machine("first")
    with store.lock(CELL, lambda: None):
        (store.lake / "llm_ledger").mkdir()
        journal.append(store.lake / "llm_ledger" / "1-a.jsonl", {"n": 1})
        until = time.monotonic() + 10
        while "llm_ledger/1-a.jsonl" not in objects_of(store).listing():
            assert time.monotonic() < until
            time.sleep(0.02)


def test_a_dead_machines_upload_is_swept_by_its_next_start(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine("first")
    publish(store, ["a"])
    with monkeypatch.context() as patched:
        patched.setattr(Objects, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patched.setattr(Store, "_drop", lambda *_: False)
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            publish(store, ["b"], version="2")
    for record in (store.lake / ".work" / ".drafts").glob("*.json"):
        note = json.loads(record.read_text())
        note["owner"]["born"] -= 10_000
        record.write_text(json.dumps(note))
    assert "articles/rivers" in store.sweep_dead()
    assert titles(store) == ["a"]
    assert len([k for k in objects_of(store).listing("articles") if "/v" in k]) == 1


def rows_of(path: Path) -> list[int]:
    return [row["n"] for row in journal.read(path, "")]


def journal_of(store: Store, numbers: range) -> Path:
    """Rows that are too many to be read together with others."""
    path = store.lake / "reviews" / "rivers.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    journal.append(path, *({"n": n, "text": "x" * 1000} for n in numbers))
    return path


def test_rows_written_here_survive_what_comes_however_large(machine: Machine) -> None:
    first, second = machine("first"), machine("second")
    ours = journal_of(first, range(1100))
    assert ours.stat().st_size > SMALL
    first.push()
    second.refresh(force=True)
    theirs = journal_of(second, range(1100, 1101))
    journal_of(first, range(1101, 1102))
    second.push()
    first.refresh(force=True)
    assert rows_of(ours) == list(range(1102))
    first.push()
    second.refresh(force=True)
    assert rows_of(theirs) == list(range(1102))


def test_a_crash_between_two_side_files_loses_no_row(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine("first")
    path = journal_of(store, range(1100))
    (path.parent / "seas.jsonl").write_text('{"n": 1}\n')
    push = module.Remote._push

    def dies(self: module.Remote, key: str, *more: Any) -> None:
        if self.objects.look("reviews/rivers.jsonl") or self.objects.look("reviews/seas.jsonl"):
            monkeypatch.setattr(module.Remote, "_write_index", lambda *_: None)
            raise KeyboardInterrupt
        push(self, key, *more)

    with monkeypatch.context() as patched:
        patched.setattr(module.Remote, "_push", dies)
        with pytest.raises(KeyboardInterrupt):
            store.push()
    monkeypatch.undo()
    assert store.remote is not None
    (known,) = store.remote._read_index()
    assert store.remote.objects.look(known), "what went up is noted before the next"
    journal_of(store, range(1100, 1110))
    store.refresh(force=True)
    assert rows_of(path) == list(range(1110))


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lakes of this process count as two machines, which look often."""
    monkeypatch.setattr(module, "_abandoned", lambda _: False)
    for name, seconds in (("BEAT", 0.05), ("EXPIRY", 0.4), ("LOOK", 0.02)):
        monkeypatch.setattr(module, f"{name}_SECONDS", seconds)


@pytest.mark.usefixtures("strangers")
def test_a_lease_lives_while_a_large_file_goes_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machine("first"), machine("second")
    up, taken = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        up.set()
        taken.wait(1.2)  # thrice the expiry

    monkeypatch.setattr(module.Remote, "_push", slow)

    def take() -> None:
        with second.lock(CELL, lambda: None):
            taken.set()

    with first.lock(CELL, lambda: None):
        path = first.lake / "reviews" / "a.jsonl"
        path.parent.mkdir()
        path.write_text("{}\n")
        thread = threading.Thread(target=take)
        thread.start()
        assert up.wait(5)
        assert not taken.wait(1)
    thread.join(10)
    assert taken.is_set()


@pytest.mark.usefixtures("strangers")
def test_who_lost_his_lease_publishes_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machine("first"), machine("second")
    monkeypatch.setattr(module._Lease, "renew", lambda _: None)  # asleep
    with first.lock(CELL, lambda: None):
        with second.lock(CELL, lambda: None):
            publish(second, ["theirs"])
            with pytest.raises(LakeError, match="another machine makes it now"):
                publish(first, ["ours"], version="2")
        first.refresh(force=True)
        assert titles(first) == ["theirs"]
    assert len([k for k in objects_of(first).listing("articles") if "/v" in k]) == 1


def test_time_without_an_answer_does_not_end_a_lease(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("BEAT", 0.1), ("EXPIRY", 0.3), ("LOOK", 0.01)):
        monkeypatch.setattr(module, f"{name}_SECONDS", seconds)
    objects, look = objects_of(machine("first")), Objects.look
    other = {"owner": asdict(Owner(1, 1, "another-machine")), "beat": 1}
    objects.write("lease.json", json.dumps(other).encode())
    looks: list[float] = []

    def slow(self: Objects, key: str) -> Any:
        looks.append(time.monotonic())
        if len(looks) == 2:
            time.sleep(0.4)
        return look(self, key)

    monkeypatch.setattr(Objects, "look", slow)
    module._Lease(objects, "lease.json").take(lambda: None)
    assert time.monotonic() - looks[2] > 0.2, "it was watched anew once the store answered"


def test_two_publishers_at_once_leave_a_whole_version(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machine("first"), machine("second")
    publish(first, ["before"], version="0")
    write, others = Objects.write, [first]

    def meanwhile(self: Objects, key: str, data: bytes) -> Any:
        if others:
            publish(others.pop(), ["first"], version="1")
        return write(self, key, data)

    monkeypatch.setattr(Objects, "write", meanwhile)
    publish(second, ["second"], version="2")
    assert titles(machine("third")) == ["second"]


@pytest.mark.parametrize("before", [True, False])
def test_a_version_that_was_removed_meanwhile_is_not_published(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    store = machine("first")
    if before:
        publish(store, ["a"])
    there = set(objects_of(store).listing())
    write = Objects.write

    def removed(self: Objects, key: str, data: bytes) -> Any:
        self.remove(set(self.listing()) - there)
        return write(self, key, data)

    with monkeypatch.context() as patched:
        patched.setattr(Objects, "write", removed)
        with pytest.raises(LakeError, match="removed while its manifest was written"):
            publish(store, ["b"], version="2")
    assert set(objects_of(store).listing()) == there
    again = machine("second")
    assert (titles(again) if before else again.manifest(CELL)) == (["a"] if before else None)


def readers(store: Store) -> dict[str, float]:
    found = (store.root / ".readers").glob("*.json")
    return {path.name: json.loads(path.read_text())["at"] for path in found}


def test_a_session_begins_anew_with_each_opening(
    machine: Machine, tmp_path: Path, url: str
) -> None:
    open_lake(tmp_path / "first", url, 1, refresh=False, outputs=True)
    assert not (tmp_path / "first" / ".readers").exists(), "who only looks on keeps nothing"
    store = machine("first")
    assert store.remote is not None
    (name,) = readers(store)
    assert name.startswith(f"{this_process().host}-{os.getpid()}-")
    me, hours = this_process(), 7 * 3600
    for path, owner, age, works in (
        ("gone", Owner(7, 1, "pod"), hours, True),
        ("there", Owner(7, 1, "pod"), 60, True),
        ("dead", Owner(me.pid, 1, me.host), 60, True),
        ("idle", me, hours, False),
        ("busy", me, hours, True),
    ):
        note = {"owner": asdict(owner), "at": time.time() - age, "works": works}
        (store.root / ".readers" / f"{path}.json").write_text(json.dumps(note))
    before = readers(store)[name]
    machine("first")
    after = readers(store)
    assert after[name] > before
    assert sorted(after) == sorted([name, "busy.json", "there.json"])
    note = store.root / ".readers" / name
    with store.lock(CELL, lambda: None):
        held = readers(store)[name]
        assert json.loads(note.read_text())["works"]
        machine("first")
        assert readers(store)[name] == held, "what a step uses stays while it works"
    assert not json.loads(note.read_text())["works"]


def test_room_is_made_among_files_that_vanish(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine("first")
    cells = [Cell("articles", (name,)) for name in ("a", "b", "c")]
    for cell in cells:
        publish(first, [cell.parts[0]], cell=cell)
    second = machine("second", cache_gb=1e-9)
    assert second.remote is not None
    paths = [second.path(cell, "exclusions.parquet") for cell in cells[:2]]
    work = second.lake / ".work" / "articles" / "a" / "vaaaaaaaaaaaa"
    work.mkdir(parents=True)
    (work / "state").write_text("x")
    for path in paths:
        os.utime(path, (1, 1))
    second.remote.begin()
    holds, walks = module.Remote.holds, list[str]()

    def vanishes(self: module.Remote, key: str, size: int) -> bool:
        walks.append(key)
        held = holds(self, key, size)
        if "/a/" in key:
            paths[0].unlink(missing_ok=True)  # another process evicts it
        return held

    monkeypatch.setattr(module.Remote, "holds", vanishes)
    second.remote._make_room(10)
    assert not paths[1].exists()
    assert not any(key.startswith(".work") for key in walks)
    monkeypatch.undo()
    # All that is left is in use: this is not looked at for each file anew.
    second.path(cells[1], "exclusions.parquet")
    monkeypatch.setattr(module.Remote, "_copies", lambda _: pytest.fail("walks again"))
    second.path(cells[2], "exclusions.parquet")


def test_the_listing_never_changes_under_a_reader(machine: Machine) -> None:
    store = machine("first")
    publish(store, ["a"])
    assert store.remote is not None
    seen = store.remote.listing
    before = dict(seen)
    path = store.lake / "reviews" / "a.jsonl"
    path.parent.mkdir()
    path.write_text("{}\n")
    store.push()
    (store.root / "report.html").write_text("one")
    store.keep_output("report.html")
    store.remote.discard(str(CELL))
    assert seen == before
    assert {"reviews/a.jsonl", "outputs/report.html"} <= set(store.remote.listing)


def test_what_a_dead_process_was_bringing_is_removed(machine: Machine) -> None:
    store = machine("first")
    assert store.remote is not None
    me = this_process()
    folder = store.lake / ".work" / ".fetching"
    names = {
        f"{me.host}-{me.pid}-{me.born}-a": True,
        f"{me.host}-{me.pid}-{me.born - 10_000}-b": False,
        "a-pod-7-1-c": True,
        "a-pod-that-is-gone-7-1-d": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("half")
    os.utime(folder / "a-pod-that-is-gone-7-1-d", (1, 1))
    store.remote.begin()
    assert {path.name for path in folder.iterdir()} == {n for n, kept in names.items() if kept}


def test_a_draft_stays_on_record_while_the_store_is_down(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine("first")
    place = "articles/rivers/vaaaaaaaaaaaa"
    (store.lake / place).mkdir(parents=True)
    objects_of(store).write(f"{place}/f", b"x")
    record = store.lake / ".work" / ".drafts" / "vaaaaaaaaaaaa.json"
    record.parent.mkdir(parents=True)
    owner = asdict(Owner(os.getpid(), 1, this_process().host))
    record.write_text(json.dumps({"cell": ["articles", "rivers"], "owner": owner}))

    def down(*_: object) -> None:
        raise LakeError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(Objects, "listing", down)
        assert store.sweep_dead() == []
    assert store.sweep_dead() == ["articles/rivers"]
    assert objects_of(store).listing() == {}
    assert not record.exists()
