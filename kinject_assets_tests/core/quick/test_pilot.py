"""A pilot on a handful of the lab's documents, with its server, its model and its encoder."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kinject_assets.cli import main
from kinject_assets.config import Profile, home, lab_data, load_profile
from kinject_assets.core.errors import BudgetExceeded, LLMError, ProfileError
from kinject_assets.core.exams.writing import Written, write_exam
from kinject_assets.core.llm.client import LLMClient
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.progress import silent
from kinject_assets.core.quick.pilot import Bench, Exam, Studied, spread
from kinject_assets.core.quick.preparing import Wanted, prepare
from kinject_assets.core.schema import Chunk, Question
from kinject_assets.core.store import read_rows
from kinject_assets.lab.grammar import tell
from kinject_assets.lab.things import draw_things
from kinject_assets_tests.e2e.conftest import command, environment

LAB = ("--model", "lab:lab-llama", "--base-url", "lab", "--encoder", "lab:encoder")


def write_documents(folder: Path, count: int, seed: int = 3) -> Path:
    """Articles of a world of the lab that its models have not read."""
    folder.mkdir()
    rng = random.Random(seed)
    for number, thing in enumerate(draw_things("comets", count, rng)):
        (folder / f"{number:02d}.txt").write_text(tell(list(thing.facts), rng))
    return folder


def quick(*words: object) -> Result:
    return CliRunner().invoke(main, ["quick", *map(str, words)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the module's studies lie; the current folder and KINJECT_HOME."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("quick")
        patch.setenv("KINJECT_HOME", str(path / "home"))
        patch.chdir(path)
        write_documents(path / "comets", 24)
        yield path


@pytest.fixture(scope="module")
def pilot(folder: Path) -> dict[str, Any]:
    """What the first pilot printed as JSON."""
    done = quick("comets", *LAB, "--questions", 40, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_it_ends_with_its_sentence(folder: Path, pilot: dict[str, Any]) -> None:
    assert 30 <= pilot["questions"] <= 40
    assert pilot["sentences"][0].startswith(("RAG", "Not decided"))
    accuracy, gain = pilot["accuracy"], pilot["gain"]
    # The lab's models can read, and have not read of these comets.
    assert accuracy["base"] < 0.6 < accuracy["oracle"]
    assert gain["difference"] == pytest.approx(accuracy["rag"] - accuracy["base"])
    assert gain["low"] > 0
    assert pilot["decision"] == "better"
    assert pilot["stopped"] == "decided"
    assert accuracy["rag"] <= accuracy["oracle"] + 0.1
    assert pilot["documents"] == 24
    assert pilot["spent_usd"] == 0
    assert [recipe["recipe"] for recipe in pilot["recipes"]] == ["lora.p00", "lora.p04"]
    assert pilot["recipes"][1]["requests"] > pilot["recipes"][0]["requests"] > 0
    kept = json.loads((folder / "home" / "quick-comets" / "quick.json").read_text())
    assert kept == pilot


def test_nothing_is_asked_twice(folder: Path, pilot: dict[str, Any]) -> None:
    profile = load_profile("quick-comets.yaml")
    ledger = home(profile) / "lake" / "llm_ledger"
    before = Ledger(ledger).generations({})
    again = quick("comets", "--model", "lab:lab-llama", "--questions", 40)
    assert again.exit_code == 0, again.output
    assert len(Ledger(ledger).generations({})) == len(before)
    for line in pilot["sentences"]:
        assert " ".join(line.split()) in " ".join(again.stdout.split())


def test_the_study_goes_on_with_what_was_paid(folder: Path, pilot: dict[str, Any]) -> None:
    profile = load_profile("quick-comets.yaml")
    (chunks,) = (home(profile) / "pilot").glob("*/chunks.parquet")
    asked = spread(read_rows(chunks, Chunk), profile.exams.seed)[: pilot["asked_passages"]]
    nowhere = LLMClient(
        profile.llm.model_copy(update={"attempts": 1}),
        base_url="http://127.0.0.1:9/v1",
        ledger=Ledger(home(profile) / "lake" / "llm_ledger"),
    )
    written = write_exam(asked, corpus="comets", client=nowhere, settings=profile.exams)
    assert len(written.questions) >= pilot["questions"]
    rest = [chunk for chunk in read_rows(chunks, Chunk) if chunk not in asked and not chunk.small]
    with pytest.raises(LLMError):
        write_exam(rest, corpus="comets", client=nowhere, settings=profile.exams)


def test_passages_are_taken_of_all_documents_in_turn() -> None:
    rows = [
        Chunk(
            chunk_id=f"{document}-{place}",
            article_id=document,
            revision_id="1",
            ordinal=place,
            title=document,
            section="",
            n_tokens=40,
            small=place == 4,
            text="text",
        )
        for document in "abcdef"
        for place in range(5)
    ]
    order = spread(rows, 0)
    assert {row.chunk_id for row in order} == {row.chunk_id for row in rows if not row.small}
    for turn in range(4):
        assert {row.article_id for row in order[6 * turn : 6 * turn + 6]} == set("abcdef")
    assert order == spread(rows[::-1], 0)
    assert order != spread(rows, 1)
    assert [row.ordinal for row in order] != sorted(row.ordinal for row in order)


QUESTION = Question(
    question_id="q1",
    origin="llm",
    stem="What is it?",
    options=["a", "b"],
    gold=0,
    chunk_id="c1",
    generator="writer",
    generation_id="g1",
    triage="",
    split="test",
    retired=False,
)


@pytest.fixture
def weighed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Profile, Path, Path]:
    """A profile, its model (its settings and a file of weights) and its encoder, a copy."""
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path / "home"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("The harbour was rebuilt in 1902.")
    model = tmp_path / "model"
    model.mkdir()
    settings = {"model_type": "llama", "max_position_embeddings": 8192}
    (model / "config.json").write_text(json.dumps(settings))
    (model / "model.safetensors").write_bytes(b"weights")
    encoder = Path(shutil.copytree(lab_data() / "encoder", tmp_path / "encoder"))
    profile, _ = prepare(
        Wanted(
            folder=tmp_path / "docs",
            model=str(model),
            base_url="lab",
            encoder=str(encoder),
            out=tmp_path / "p.yaml",
        )
    )
    return profile, model, encoder


def test_no_answer_passes_for_another_models(weighed: tuple[Profile, Path, Path]) -> None:
    profile, model, encoder = weighed

    def names(profile: Profile) -> tuple[str, str]:
        bench = Bench(Studied.of(profile, str(model)), Path("pilot"), [], silent)
        return bench.folder.name, bench.batch([QUESTION])

    def changed(part: str, **values: object) -> Profile:
        other = getattr(profile, part).model_copy(update=values)
        return profile.model_copy(update={part: other})

    vectors, answers = names(profile)
    assert names(changed("scoring", batch_size=3, device="cpu")) == (vectors, answers)
    for other in (
        changed("scoring", choice_format="letter"),
        changed("scoring", add_bos=True),
        changed("retrieval", query="question_and_options"),
        profile.model_copy(
            update={"models": {"model": profile.models["model"].model_copy(update={"dtype": "x"})}}
        ),
    ):
        assert names(other)[0] == vectors
        assert names(other)[1] != answers
    assert names(changed("retrieval", index="hnsw"))[0] != vectors
    (model / "model.safetensors").write_bytes(b"trained")
    assert names(profile)[0] == vectors
    assert names(profile)[1] != answers
    with (encoder / "model.safetensors").open("r+b") as weights:
        weights.seek(-4, os.SEEK_END)
        weights.write(b"\x00\x00\x80\x3f")
    assert names(profile)[0] != vectors


def test_the_model_that_is_named_is_asked(weighed: tuple[Profile, Path, Path]) -> None:
    profile, model, _ = weighed
    mine = profile.models["model"]
    first = mine.model_copy(update={"source": "org/first"})
    both = profile.model_copy(update={"models": {"first": first, "model": mine}})
    assert Studied.of(both, str(model)).model == "model"
    assert Studied.of(both, str(model)).setting.model == "model"
    assert Studied.of(both, "org/first").model == "first"
    with pytest.raises(ProfileError, match="none has the source org/other"):
        Studied.of(both, "org/other")


def test_a_budget_that_is_too_small_ends_with_a_sentence(folder: Path) -> None:
    write_documents(folder / "poor", 4, seed=8)
    done = quick("poor", *LAB, "--minutes", 1e-9)
    assert done.exit_code == 0, done.output
    assert "the time was up before one was written" in " ".join(done.stdout.split())
    # The lab costs nothing; a price makes the budget bite.
    path = folder / "quick-poor.yaml"
    path.write_text(path.read_text().replace("[0, 0]", "[9, 9]"))
    done = quick("poor", "--model", "lab:lab-llama", "--budget", 0)
    assert done.exit_code == 0, done.output
    assert "none was complete when the budget was reached" in " ".join(done.stdout.split())


def test_a_budget_that_reaches_for_fewer_passages_is_used(
    folder: Path, pilot: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the ledger is free: the passages that it holds are asked about."""
    profile = load_profile("quick-comets.yaml")
    (chunks,) = (home(profile) / "pilot").glob("*/chunks.parquet")
    order = spread(read_rows(chunks, Chunk), profile.exams.seed)
    client = LLMClient(
        profile.llm,
        base_url="http://127.0.0.1:9/v1",
        ledger=Ledger(home(profile) / "lake" / "llm_ledger"),
    )

    def write_paid(asked: Sequence[Chunk], **options: Any) -> Written:
        if len(asked) > 7:
            raise BudgetExceeded.before(0.1, 1.0, 1.0)
        return write_exam(asked, **options)

    monkeypatch.setattr("kinject_assets.core.quick.pilot.write_exam", write_paid)
    exam = Exam(Studied.of(profile, "lab:lab-llama"), order, client, silent)
    reached: list[int] = []
    for _ in range(3):
        exam.write()
        reached.append(exam.passages)
    assert reached == [5, 6, 7]
    with pytest.raises(BudgetExceeded):
        exam.write()
    assert exam.passages == 7


def test_documents_too_short_to_ask_about(folder: Path) -> None:
    (folder / "short").mkdir()
    (folder / "short" / "a.txt").write_text("The harbour.")
    done = quick("short", *LAB)
    assert done.exit_code == 0, done.output
    assert "no passage of the documents is long enough" in " ".join(done.stdout.split())


def test_what_cannot_be_done_ends_with_1_and_wrong_use_with_2(folder: Path) -> None:
    write_documents(folder / "alone", 3, seed=5)
    nowhere = (
        "--base-url",
        "http://127.0.0.1:9/v1",
        "--llm-model",
        "m",
        "--encoder",
        "lab:encoder",
    )
    written = quick("alone", "--model", "lab:lab-llama", *nowhere, "--minutes", 1e-9)
    assert written.exit_code == 0, "the time is up before anything is asked"
    path = folder / "quick-alone.yaml"
    path.write_text(path.read_text().replace("llm:\n", "llm:\n  attempts: 1\n"))
    failed = quick("alone", "--model", "lab:lab-llama")
    assert failed.exit_code == 1
    assert "did not answer" in failed.output
    assert quick("alone", "--model", "lab:lab-mistral").exit_code == 2
    missing = quick("nowhere", *LAB)
    assert missing.exit_code == 1
    assert "no such folder" in missing.output


@pytest.mark.slow
def test_ctrl_c_and_the_same_command_again(tmp_path: Path) -> None:
    write_documents(tmp_path / "docs", 30, seed=4)
    words = command("quick", "docs", *LAB)
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment(tmp_path / "home") | {"PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if (
            line.startswith("20 questions")
            or "questions asked 1" in line
            or "questions asked 2" in line
        ):
            break
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130, "".join(said) + rest
    assert "start the same command again" in rest
    assert "what was received is kept" in rest
    began = time.monotonic()
    done = subprocess.run(
        words, cwd=tmp_path, env=environment(tmp_path / "home"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "goes on with quick-docs.yaml" in done.stderr
    assert done.stdout.startswith(("RAG", "Not decided"))
    assert time.monotonic() - began < 300
