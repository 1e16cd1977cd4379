"""`kinject init`: a profile for a folder of documents that loads as it is."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kinject_assets.cli import main
from kinject_assets.config import Files, load_profile
from kinject_assets.core.corpus.files import list_files
from kinject_assets.core.starting import slug


@pytest.fixture(autouse=True)
def results_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path / "results"))


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
    assert profile.name == "study"
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


@pytest.mark.parametrize(
    "name", ["2024", "on", "null", "small", "0x1f", "a\x7fb", "handbook", "📚 docs"]
)
def test_folders_and_models_of_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.txt").write_text("The harbour was rebuilt in 1902.")
    out = tmp_path / "mine.yaml"
    done = init(tmp_path / name, "--model", f"org/{name}", "--out", out)
    assert done.exit_code == 0, done.output
    profile = load_profile(str(out))
    (corpus,) = profile.corpora.values()
    assert corpus.source.kind == "files"
    assert (profile.folder / corpus.source.folder).resolve() == tmp_path / name
    assert next(iter(profile.models.values())).source == f"org/{name}"


def test_two_studies_never_share_results(documents: Path, tmp_path: Path) -> None:
    taken = init(documents, "--model", "m", "--out", tmp_path / "lab.yaml")
    assert taken.exit_code == 2 and "a study of this name" in taken.output
    (tmp_path / "results" / "mine").mkdir(parents=True)
    taken = init(documents, "--model", "m", "--out", tmp_path / "mine.yaml")
    assert taken.exit_code == 2 and "a study of this name" in taken.output


def test_a_model_among_the_documents_is_refused(documents: Path, tmp_path: Path) -> None:
    (documents / "model").mkdir()
    done = init(documents, "--model", documents / "model", "--out", tmp_path / "p.yaml")
    assert done.exit_code == 2 and "among the documents" in done.output


def test_what_kinject_writes_is_no_document(
    documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = documents / "data" / "out"
    monkeypatch.setenv("KINJECT_HOME", str(own))
    (own / "mine").mkdir(parents=True)
    (own / "mine" / "report.html").write_text("<p>0.9</p>")
    found = list_files(Files(kind="files", folder=documents), Path())
    assert [path.name for path in found] == ["bad.txt", "one.md", "two.txt"]
    # A corpus may lie in there all the same.
    assert list_files(Files(kind="files", folder=own / "mine"), Path())


@pytest.mark.parametrize(("text", "expected"), [("Ärzte & Co", "rzte-co"), ("日本", "my-texts")])
def test_any_name_becomes_a_short_one(text: str, expected: str) -> None:
    assert slug(text) == expected
