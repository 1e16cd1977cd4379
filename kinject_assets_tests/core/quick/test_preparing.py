"""The profile that a pilot writes, or goes on with."""

import json
from pathlib import Path

import pytest

from kinject_assets.core.errors import ModelError, ProfileError
from kinject_assets.core.llm.service import Service
from kinject_assets.core.quick.preparing import LONGEST, RESERVED, K, Wanted, prepare
from kinject_assets.core.retrieval.steps import located


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "Our papers"
    folder.mkdir()
    (folder / "one.txt").write_text("The harbour was rebuilt in 1902.")
    return folder


def model(folder: Path, **settings: object) -> Path:
    """A model as far as its settings go."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | settings))
    return folder


def test_the_lab_without_network_or_key(documents: Path) -> None:
    profile, said = prepare(
        Wanted(folder=documents, model="lab:lab-llama", base_url="lab", encoder="lab:encoder")
    )
    assert profile.name == "quick-our-papers"
    assert profile.path == Path("quick-our-papers.yaml").absolute()
    assert profile.chunking.tokenizer == profile.models["lab-llama"].source == "lab:lab-llama"
    assert K * profile.chunking.max_tokens + RESERVED <= 512
    assert any("512 tokens" in line for line in said)
    assert profile.lab is not None
    assert profile.llm.base_url == "lab"
    assert profile.llm.model == "lab-writer-by-rule"
    Service(profile.llm, "http://127.0.0.1:1/v1")  # budget and price go together
    assert Path(located(profile)["encoder"]["model"]).is_dir()
    text = Path("quick-our-papers.yaml").read_text()
    assert "# <-" in text
    assert "works by rule" in text


def test_the_window_decides_how_long_passages_are(documents: Path, tmp_path: Path) -> None:
    long = model(tmp_path / "long", max_position_embeddings=8192)
    profile, _ = prepare(Wanted(folder=documents, model=str(long)))
    assert profile.chunking.max_tokens == LONGEST
    assert profile.models["long"].source == "long"
    assert profile.chunking.tokenizer == "long"
    short = model(tmp_path / "short", max_position_embeddings=128)
    with pytest.raises(ModelError, match="reads 128 tokens"):
        prepare(Wanted(folder=documents, model=str(short), out=tmp_path / "other.yaml"))
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        prepare(Wanted(folder=documents, model=str(tmp_path), out=tmp_path / "other.yaml"))
    assert not (tmp_path / "other.yaml").exists()


@pytest.mark.parametrize(
    ("budget", "llm_model", "base_url", "expected"),
    [
        (None, None, None, 1.0),
        (0.25, None, None, 0.25),
        (None, "gpt-4.1-mini", None, 1.0),
        (None, "mine", "http://127.0.0.1:9/v1", None),
        (0.5, "gpt-4o", "http://127.0.0.1:9/v1", 0.5),
    ],
)
def test_budgets(
    documents: Path,
    tmp_path: Path,
    budget: float | None,
    llm_model: str | None,
    base_url: str | None,
    expected: float | None,
) -> None:
    long = model(tmp_path / "long", max_position_embeddings=8192)
    wanted = Wanted(
        folder=documents,
        model=str(long),
        budget_usd=budget,
        llm_model=llm_model,
        base_url=base_url,
    )
    profile, _ = prepare(wanted)
    assert profile.llm.budget_usd == expected
    assert profile.llm.base_url == base_url
    assert profile.llm.model == llm_model or llm_model is None
    assert profile.lab is None


def test_it_goes_on_with_what_is_there(documents: Path) -> None:
    wanted = Wanted(folder=documents, model="lab:lab-llama", base_url="lab", encoder="lab:encoder")
    first, _ = prepare(wanted)
    assert first.path is not None
    first.path.write_text(first.path.read_text().replace("keep: 2", "keep: 1") + "# mine\n")
    again, said = prepare(Wanted(folder=documents, model="lab:lab-llama", budget_usd=3.0))
    assert said == ["goes on with quick-our-papers.yaml"]
    assert again.llm.budget_usd == 3.0
    assert again.model_copy(update={"llm": first.llm}) == first
    assert "# mine" in first.path.read_text()


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("--model", {"model": "lab:lab-mistral"}),
        ("--llm-model", {"llm_model": "gpt-4o"}),
        ("--base-url", {"base_url": "http://127.0.0.1:9/v1"}),
        ("--encoder", {"encoder": "lab:encoder-coarse"}),
        ("not of", {"folder": Path("elsewhere")}),
    ],
)
def test_another_study_is_not_mixed_in(
    documents: Path, tmp_path: Path, option: str, change: dict[str, object]
) -> None:
    given: dict[str, object] = {
        "folder": documents,
        "model": "lab:lab-llama",
        "base_url": "lab",
        "encoder": "lab:encoder",
        "out": tmp_path / "p.yaml",
    }
    prepare(Wanted(**given))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ProfileError, match=option) as error:
        prepare(Wanted(**(given | change)))  # pyright: ignore[reportArgumentType]
    assert "--out" in str(error.value)
