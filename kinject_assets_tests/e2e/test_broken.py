"""Full disks and damaged files: an error that names artefact and mend, and nothing else lost."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import Cell, Store
from kinject_assets_tests.e2e.conftest import command, environment, small_lab
from kinject_assets_tests.e2e.crashes import TABLES

pytestmark = pytest.mark.slow


class Copy:
    """A finished study's copy, to be damaged."""

    def __init__(self, profile: Path, home: Path) -> None:
        self.profile = profile
        self.home = home
        self.root = home / "small"
        self.store = Store(self.root)

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command("run", "--profile", str(self.profile)),
            env=environment(self.home),
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    def file(self, cell: Cell, pattern: str) -> Path:
        (found,) = self.store.folder(cell).glob(f"v*/{pattern}")
        return found

    def forget(self, *cells: Cell) -> None:
        """Takes artefacts away, so that they have to be made from what is there."""
        for cell in cells:
            shutil.rmtree(self.store.folder(cell))

    def rows(self) -> dict[str, list[str]]:
        database = self.root / "results.duckdb"
        return {
            table: sorted(map(str, fetch(database, f"SELECT {columns} FROM {table}").rows))
            for table, columns in TABLES.items()
        }


@pytest.fixture
def copy(study: tuple[Path, Path, str], tmp_path: Path) -> Copy:
    profile, home, _ = study
    shutil.copytree(home, tmp_path / "home")
    return Copy(profile, tmp_path / "home")


def made(said: str) -> set[str]:
    return set(re.findall(r"^\[\d+/\d+\] (\S+)", said, re.M))


RAG = Cell("answers_rag", ("events", "lab-llama"))
FT = Cell("answers_ft", ("events", "lab-llama.full.p01"))
CHECKPOINT = Cell("checkpoint", ("events", "lab-llama.full.p01"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    sound = path.read_bytes()
    path.write_bytes(sound[:-9] + bytes([sound[-9] ^ 255]) + sound[-8:])


@pytest.mark.parametrize(
    ("broken", "pattern", "how", "forgotten"),
    [
        (Cell("chunks", ("events",)), "chunks.parquet", cut, RAG),
        (Cell("chunks", ("events",)), "chunks.parquet", flip, RAG),
        (CHECKPOINT, "model/model.safetensors", cut, FT),
        (CHECKPOINT, "model/model.safetensors", flip, FT),
        (Cell("faiss_index", ("events",)), "index.faiss", cut, Cell("retrieved", ("events",))),
        (Cell("faiss_index", ("events",)), "index.faiss", flip, Cell("retrieved", ("events",))),
        (Cell("embeddings", ("events",)), "vectors.safetensors", flip, None),
    ],
)
def test_a_damaged_file_met_on_resume(
    copy: Copy, broken: Cell, pattern: str, how: Callable[[Path], None], forgotten: Cell | None
) -> None:
    before = copy.rows()
    how(copy.file(broken, pattern))
    copy.forget(forgotten or Cell("faiss_index", broken.parts))
    done = copy.run()
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    folder = copy.store.folder(broken)
    assert f"{broken}: {folder}" in done.stderr
    assert f"Delete the folder {folder} and run again" in done.stderr
    assert copy.rows() == before, "the last results stay"

    shutil.rmtree(folder)
    again = copy.run()
    assert again.returncode == 0, again.stderr
    assert str(broken) in made(again.stderr)
    corpora = {name.split("/")[1] for name in made(again.stderr) if "/" in name}
    assert corpora == {"events"}, "nothing of the other corpus is made again"
    assert copy.rows() == before


def leave(disk: Path, free: int) -> Path:
    """Fills a disk up to some free bytes; gives the file that fills it."""
    ballast = disk / "ballast"
    there = shutil.disk_usage(disk).free
    with ballast.open("wb") as handle:
        os.posix_fallocate(handle.fileno(), 0, there - free)
    return ballast


@pytest.mark.parametrize(
    ("asset", "free"),
    [
        pytest.param("checkpoint", 4_000_000, id="checkpoint writing"),
        pytest.param("checkpoint", 1_000_000, id="the kept weights of a trial"),
        pytest.param("paraphrases", 60_000, id="Parquet and ledger writing"),
    ],
)
def test_a_full_disk(
    study: tuple[Path, Path, str], tmp_path: Path, small_disk: Path, asset: str, free: int
) -> None:
    shutil.copytree(study[1], small_disk / "home")
    copy = Copy(study[0], small_disk / "home")
    before = copy.rows()
    cells = [cell for cell, _ in copy.store.published() if cell.asset == asset]
    ledger = copy.root / "lake" / "llm_ledger"
    copy.forget(*cells)
    if asset == "paraphrases":
        shutil.rmtree(ledger)
    kept = {cell: m.logical_version for cell, m in copy.store.published()}
    ballast = leave(small_disk, free)
    done = copy.run()
    assert done.returncode in {1, 2}, done.stderr
    assert "Traceback" not in done.stderr
    assert "is full" in done.stderr
    assert "KINJECT_HOME" in done.stderr
    assert {c: m.logical_version for c, m in copy.store.published()}.items() >= kept.items()
    assert not [p for cell in cells for p in copy.store.folder(cell).glob("v*")], "no torn part"

    ballast.unlink()
    again = copy.run()
    assert again.returncode == 0, again.stderr
    assert copy.rows() == before
    audit = subprocess.run(
        command("audit", "--profile", str(copy.profile), "--all"),
        env=environment(copy.home),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert audit.returncode == 0, audit.stdout


def test_a_full_disk_while_parquet_is_written(tmp_path: Path, small_disk: Path) -> None:
    """Dagster's own files lie elsewhere, so that it is the rows that meet the full disk."""
    profile = small_lab(tmp_path)
    home = small_disk / "home"
    lake = home / "small" / "lake"
    where = {**environment(home), "DAGSTER_HOME": str(tmp_path / "dagster")}
    (tmp_path / "dagster").mkdir()
    words = command("run", "--profile", str(profile), "--select", "articles,chunks")
    ballast = leave(small_disk, 30_000)
    done = subprocess.run(
        words, env=where, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1, done.stderr
    assert re.search(r"FAILED (articles|chunks)/\w+: \1/\w+: the disk of \S+ is full", done.stderr)
    assert "Traceback" not in done.stderr
    assert not list(lake.glob("*/*/v*")) or list(lake.glob("*/*/manifest.json"))
    ballast.unlink()
    again = subprocess.run(
        words, env=where, capture_output=True, text=True, timeout=200, check=False
    )
    assert again.returncode == 0, again.stderr
