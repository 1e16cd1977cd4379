"""Exports are new, and whole or not at all."""

from pathlib import Path

import pytest

from kinject_assets.core.errors import DiskFull
from kinject_assets.core.export.folders import ExportError, new_folder, refuse_existing


def test_a_folder_appears_with_all_that_is_in_it(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out) as folder:
        (folder / "a").write_text("a")
        assert not out.exists()
    assert (out / "a").read_text() == "a"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "out" / "a").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("mine")
    loose = tmp_path / "loose"
    loose.symlink_to(tmp_path / "nowhere")
    for taken in (full, full / "mine", loose):
        with pytest.raises(ExportError, match=r"overwrites nothing.*--out"), new_folder(taken):
            pytest.fail("it was given a folder")
    assert (full / "mine").read_text() == "mine"
    refuse_existing(tmp_path / "free")


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"), new_folder(tmp_path / "file" / "x"):
        pytest.fail("it was given a folder")


def test_a_full_disk_is_said(small_disk: Path) -> None:
    with pytest.raises(DiskFull, match="export to"), new_folder(small_disk / "out") as folder:
        (folder / "large").write_bytes(bytes(64 * 2**20))
    assert list(small_disk.iterdir()) == []
