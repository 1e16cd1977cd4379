"""`kinject init`: a profile for a folder of documents that loads as it is."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kinject_assets.cli import main
from kinject_assets.config import load_profile
from kinject_assets.core.starting import slug


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / 'Our "Hand: book" #2'
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "one.md").write_text("# Ashwick\n\nThe harbour was rebuilt in 1902.\n")
    (folder / "two.txt").write_text("The museum has a collection.\n")
    (folder / "bad.txt").write_bytes(b"\xff\xfe\x00")
    return folder


def init(*words: object) -> Result:
    return CliRunner().invoke(main, ["init", *map(str, words)])


def test_the_profile_loads_and_names_folder_and_model(documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "study.yaml"
    done = init(documents, "--model", "Some-Org/Small.Model-1B", "--out", out)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    assert "2 articles" in done.stderr and "not UTF-8" in done.stderr
    profile = load_profile(str(out))
    assert profile.name == "our-hand-book-2"
    corpus = profile.corpora["our-hand-book-2"]
    assert corpus.source.kind == "files"
    assert (profile.folder / corpus.source.folder).resolve() == documents.resolve()
    assert profile.models["small-model-1b"].source == "Some-Org/Small.Model-1B"
    assert "handbook" not in out.read_text(), "nothing is left of the example"
    assert "# <-" in out.read_text()


def test_a_model_in_a_folder_is_named_by_its_path(documents: Path, tmp_path: Path) -> None:
    model = tmp_path / "models" / "tiny"
    model.mkdir(parents=True)
    out = tmp_path / "study.yaml"
    assert init(documents, "--model", model, "--out", out).exit_code == 0
    assert load_profile(str(out)).models["tiny"].source == "models/tiny"


def test_nothing_is_overwritten(documents: Path, tmp_path: Path) -> None:
    out = tmp_path / "study.yaml"
    out.write_text("mine")
    done = init(documents, "--model", "m", "--out", out)
    assert done.exit_code == 2 and "--out" in done.output
    assert out.read_text() == "mine"


def test_a_folder_without_text_is_named(tmp_path: Path) -> None:
    done = init(tmp_path / "nowhere", "--model", "m", "--out", tmp_path / "p.yaml")
    assert done.exit_code == 2 and "no such folder" in done.output
    (tmp_path / "empty").mkdir()
    done = init(tmp_path / "empty", "--model", "m", "--out", tmp_path / "p.yaml")
    assert done.exit_code == 2 and "no text found" in done.output
    assert not (tmp_path / "p.yaml").exists()


@pytest.mark.parametrize(("text", "expected"), [("Ärzte & Co", "rzte-co"), ("日本", "my-texts")])
def test_any_name_becomes_a_short_one(text: str, expected: str) -> None:
    assert slug(text) == expected
