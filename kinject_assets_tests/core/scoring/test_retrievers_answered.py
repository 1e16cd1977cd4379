"""Answers with the chunks of several retrievers, in one call."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.core.errors import KinjectError, MissingArtefact
from kinject_assets.core.schema import Retrieved
from kinject_assets.core.scoring import answers as module
from kinject_assets.core.scoring.answers import ScoreRequest, score
from kinject_assets.core.store import read_rows, write_rows

RequestOf = Callable[..., ScoreRequest]


@pytest.fixture
def two(exam: Path, tmp_path: Path) -> Path:
    """Rows of `dense`, and of `lexical`, whose first chunk is dense's second and so on."""
    dense = read_rows(exam / "retrieved.parquet", Retrieved)
    deepest = max(row.rank for row in dense)
    lexical = [replace(r, retriever="lexical", rank=r.rank - 1 or deepest) for r in dense]
    write_rows(tmp_path / "two.parquet", [*lexical, *dense], Retrieved)
    return tmp_path / "two.parquet"


def fields(retrieved: Path, *retrievers: str, **changes: Any) -> dict[str, Any]:
    return {
        "method": "rag",
        "k": (1, 2),
        "shots": (0, 2),
        "retrieved": str(retrieved),
        "retrievers": retrievers,
        **changes,
    }


def test_several_retrievers_are_answered_as_each_alone(
    request_of: RequestOf, two: Path, tmp_path: Path
) -> None:
    conditions, answers, _, counts, _ = score(request_of(**fields(two, "lexical", "dense")))
    assert [(c.shots, c.retriever, c.k) for c in conditions] == [
        (shots, name, k) for shots in (0, 2) for name in ("lexical", "dense") for k in (1, 2)
    ]
    assert len({c.condition_id for c in conditions}) == 8
    read = 0
    for name in ("lexical", "dense"):
        work = str(tmp_path / f"work-{name}")
        alone = score(request_of(**fields(two, name), work=work))
        read += alone.counts["read"]
        wanted = {c.condition_id for c in conditions if c.retriever == name}
        assert {c.condition_id for c in alone.conditions} == wanted
        mine = [answer for answer in answers if answer.condition_id in wanted]
        for one, other in zip(alone.answers, mine, strict=True):
            assert (one.answer_id, one.prompt_id) == (other.answer_id, other.prompt_id)
            assert one.logliks == pytest.approx(other.logliks, abs=1e-4)
    # What prompts of both begin with was read once.
    assert counts["read"] < read


def test_what_another_retriever_put_into_the_same_prompt_is_not_asked_again(
    request_of: RequestOf, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = str(tmp_path / "earlier")
    first = score(request_of(**fields(two, "dense"), out=earlier))
    rows = read_rows(two, Retrieved)
    same = [replace(r, retriever="fused") for r in rows if r.retriever == "dense"]
    write_rows(tmp_path / "three.parquet", [*rows, *same], Retrieved)
    asked: list[int] = []
    real = module.option_logliks

    def counting(lm: Any, exams: Any) -> Any:
        asked.append(sum(map(len, exams)))
        return real(lm, exams)

    monkeypatch.setattr(module, "option_logliks", counting)
    request = request_of(
        **fields(tmp_path / "three.parquet", "dense", "fused"),
        previous=(earlier,),
        work=str(tmp_path / "again"),
    )
    found = score(request)
    assert asked == [] and found.reused == 2 * len(first.answers)
    by_id = {c.condition_id: c for c in found.conditions}
    for name in ("dense", "fused"):
        mine = [a for a in found.answers if by_id[a.condition_id].retriever == name]
        assert [a.logliks for a in mine] == [a.logliks for a in first.answers]


def test_what_another_retriever_brings_anew_is_all_that_is_asked(
    request_of: RequestOf, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = str(tmp_path / "earlier")
    first = score(request_of(**fields(two, "dense"), out=earlier))
    rows = read_rows(two, Retrieved)
    deepest = max(row.rank for row in rows)
    # The same first chunk, and the others from the last: new prompts for k = 2 alone.
    fused = [
        replace(r, retriever="fused", rank=1 if r.rank == 1 else deepest + 2 - r.rank)
        for r in rows
        if r.retriever == "dense"
    ]
    write_rows(tmp_path / "three.parquet", [*rows, *fused], Retrieved)
    asked: list[int] = []
    real = module.option_logliks

    def counting(lm: Any, exams: Any) -> Any:
        asked.append(sum(map(len, exams)))
        return real(lm, exams)

    monkeypatch.setattr(module, "option_logliks", counting)
    request = request_of(
        **fields(tmp_path / "three.parquet", "dense", "fused"),
        previous=(earlier,),
        work=str(tmp_path / "again"),
    )
    found = score(request)
    before = {a.prompt_id for a in first.answers}
    new = [a for a in found.answers if a.prompt_id not in before]
    by_id = {c.condition_id: c for c in found.conditions}
    assert {(by_id[a.condition_id].retriever, by_id[a.condition_id].k) for a in new} == {
        ("fused", 2)
    }
    assert sum(asked) == len(new)
    assert found.reused == len(found.answers) - len(new)
    dense = [a for a in found.answers if by_id[a.condition_id].retriever == "dense"]
    assert dense == first.answers


def test_units_are_cut_by_the_text_of_all_retrievers(
    request_of: RequestOf, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(request_of(**fields(two, "dense", "lexical", shots=(0,))))
    monkeypatch.setattr(module, "UNIT_CHARACTERS", 1500)
    request = request_of(**fields(two, "dense", "lexical", shots=(0,)), work=str(tmp_path / "cut"))
    cut = score(request)
    assert len(list(Path(request.work).glob("*.parquet"))) > 3
    for one, other in zip(whole.answers, cut.answers, strict=True):
        assert one.answer_id == other.answer_id
        assert one.logliks == pytest.approx(other.logliks, abs=1e-4)


def test_a_retriever_that_did_not_rank_is_named(request_of: RequestOf, two: Path) -> None:
    with pytest.raises(MissingArtefact, match=r"`fused` has 0 chunks[\s\S]*`retrieved` again"):
        score(request_of(**fields(two, "dense", "fused")))
    with pytest.raises(KinjectError, match=r"retrieval\.retrievers"):
        score(request_of(**fields(two)))
