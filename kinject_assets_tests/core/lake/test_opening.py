"""A lake is opened where the profile has it, and never mixed up with another one."""

import os
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.config import load_profile
from kinject_assets.core.errors import KinjectError, ProfileError
from kinject_assets.core.lake.objects import LakeError, Objects, transient
from kinject_assets.core.lake.opening import open_lake, open_store
from kinject_assets.core.store import Cell, Store

CELL = Cell("chunks", ("rivers",))


def test_without_a_url_the_lake_is_a_folder_of_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path))
    store = open_store(load_profile("lab"))
    assert (store.lake, store.remote) == (tmp_path / "lab" / "lake", None)
    assert store.where(CELL) == str(store.folder(CELL))


def test_a_shared_folder_is_the_lake_of_every_machine(tmp_path: Path) -> None:
    shared = tmp_path / "shared folder"
    url = f"file://{str(shared).replace(' ', '%20')}"
    first, second = (open_lake(tmp_path / name, url, 1) for name in ("first", "second"))
    assert first.lake == second.lake == shared
    assert Store(tmp_path / "first").lake.resolve() == shared
    assert open_lake(tmp_path / "first", url, 1).lake == shared
    (first.root / "report.html").write_text("text")
    first.keep_output("report.html")
    second.refresh()
    assert (second.root / "report.html").read_text() == "text"
    (second.root / "report.html").write_text("its own, newer")
    os.utime(second.root / "report.html", (2e9, 2e9))
    second.refresh()
    assert (second.root / "report.html").read_text() == "its own, newer"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:secret@bucket/prefix", "the URL holds a name or password"),
        ("s3://bucket/prefix?key=1", r"take out \? and #"),
        ("s3:///prefix", "names no bucket"),
        ("file://host/folder", "is no folder"),
        ("nothing://bucket", "fsspec knows no `nothing://`"),
    ],
)
def test_a_url_that_is_no_place_for_a_lake_is_refused(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(ProfileError, match=said) as error:
        open_lake(tmp_path, url, 1)
    assert "secret" not in str(error.value)


def test_a_store_whose_library_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    def missing(protocol: str, **_: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(LakeError, match=r"pip install 'kinject\[s3\]'"):
        open_lake(tmp_path, "s3://bucket/prefix", 1)


@pytest.mark.parametrize("url", ["memory://other/lake", "file:///tmp/other"])
def test_a_lake_of_this_machine_is_not_taken_for_a_mirror(tmp_path: Path, url: str) -> None:
    manifest = tmp_path / "lake" / "chunks" / "rivers" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    url = url.replace("/tmp", str(tmp_path))
    with pytest.raises(KinjectError, match=r"holds a lake of this machine.*move"):
        open_lake(tmp_path, url, 1)
    assert manifest.exists()


def test_a_mirror_is_of_one_lake(tmp_path: Path) -> None:
    open_lake(tmp_path, "memory://one/lake", 1)
    with pytest.raises(LakeError, match="mirrors memory://one/lake, and the profile's `lake` is"):
        open_lake(tmp_path, "memory://two/lake", 1)


def test_a_mirror_is_not_taken_for_a_lake(tmp_path: Path) -> None:
    open_lake(tmp_path / "a", "memory://mirrored/lake", 1)
    for url in (None, f"file://{tmp_path}/shared"):
        with pytest.raises(LakeError, match="is a mirror of memory://mirrored/lake") as error:
            open_lake(tmp_path / "a", url, 1)
        assert "Set `lake: memory://mirrored/lake` again; or bring all of it" in str(error.value)
    assert not (tmp_path / "shared").exists()
    (tmp_path / "a" / "mirror.json").unlink()
    assert open_lake(tmp_path / "a", None, 1).lake == tmp_path / "a" / "lake"


def test_a_folder_that_may_not_be_written_is_not_blamed_on_the_keys(tmp_path: Path) -> None:
    objects = Objects("memory://denied", patience=0.1)

    class Denying:
        def get_file(self, path: str, target: str) -> None:
            raise PermissionError(13, "Permission denied", target)

        def cat_file(self, path: str) -> None:
            raise PermissionError(13, "Access Denied")

    objects._files = Denying()
    with pytest.raises(LakeError, match="on this machine, may not be read or written") as error:
        objects.fetch("a", tmp_path / "here")
    assert str(tmp_path / "here") in str(error.value)
    assert "keys" not in str(error.value)
    with pytest.raises(LakeError, match=r"refused.*The keys"):
        objects.read("a")


def test_what_a_store_keeps_though_it_was_removed_is_noticed() -> None:
    objects = Objects("memory://kept/lake", patience=30)
    asked: list[int] = []
    answers: list[dict[str, list[dict[str, str]]]] = []

    class S3:
        def split_path(self, path: str) -> tuple[str, str, None]:
            bucket, _, key = path.strip("/").partition("/")
            return bucket, key, None

        def call_s3(self, method: str, **how: Any) -> dict[str, list[dict[str, str]]]:
            asked.append(len(how["Delete"]["Objects"]))
            return answers.pop() if answers else {}

    objects._files, objects._s3 = S3(), True
    objects.remove(f"k{n}" for n in range(1500))
    assert asked == [1000, 500]
    answers[:] = [{}, {"Errors": [{"Key": "lake/a", "Code": "SlowDown"}]}]
    objects.remove(["a"])
    assert asked[2:] == [1, 1], "it is asked again"
    answers[:] = [{"Errors": [{"Key": "lake/a", "Code": "AccessDenied", "Message": "locked"}]}]
    with pytest.raises(LakeError, match=r"lake/a was not removed \(AccessDenied: locked\)"):
        objects.remove(["a"])


def test_a_store_that_does_not_answer_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    objects = Objects("memory://patient", patience=30)
    objects.write("a", b"1")
    files, answers = objects._files, [ConnectionResetError("reset"), TimeoutError("late")]

    class Flaky:
        def cat_file(self, path: str) -> bytes:
            if answers:
                raise answers.pop()
            return files.cat_file(path)

    objects._files = Flaky()
    assert objects.read("a") == b"1"
    assert caplog.text.count("trying again") == 1, "once is enough"


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = Objects("memory://gone", patience=0.3)

    class Down:
        def find(self, path: str, detail: bool) -> None:
            raise ConnectionRefusedError("refused")

    objects._files = Down()
    with pytest.raises(LakeError, match=r"list memory://gone/: no answer in .* Then run again"):
        objects.listing()


def test_what_may_do_better_later() -> None:
    def answer(status: int, code: str) -> OSError:
        cause = Exception("of the library")
        cause.response = {  # pyright: ignore[reportAttributeAccessIssue] (as botocore's have)
            "ResponseMetadata": {"HTTPStatusCode": status},
            "Error": {"Code": code},
        }
        error = OSError("translated")
        error.__cause__ = cause
        return error

    assert transient(answer(503, "SlowDown"))
    assert transient(answer(400, "RequestTimeout"))
    assert transient(ConnectionResetError())
    assert not transient(answer(400, "InvalidArgument"))
    assert not transient(OSError(28, "No space left on device"))
