"""The explorer's data are the database's, and fit into the page."""

import base64
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

from kinject_assets.core.report import explorer, html
from kinject_assets.core.report.evidence import read_evidence
from kinject_assets.core.report.memo import judge_all
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import Store
from kinject_assets_tests.core.results import synthetic


def payload_of(database: Path) -> explorer.Payload:
    evidence = read_evidence(database)
    judged = judge_all(evidence, fetch(database, "SELECT * FROM corpora").dicts(), [])
    return explorer.build(database, "synthetic", evidence, judged)


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


@pytest.fixture(scope="module")
def payload(rich: Store) -> explorer.Payload:
    return payload_of(rich.root / DATABASE)


def test_every_scored_question_is_there_once_a_corpus(
    rich: Store, payload: explorer.Payload
) -> None:
    wanted = fetch(
        rich.root / DATABASE,
        "SELECT corpus, question_id FROM corpus_questions WHERE split = 'test' AND NOT retired",
    ).rows
    questions = payload["questions"]
    names = [c["name"] for c in payload["corpora"]]
    found = [(names[c], q) for c, q in zip(questions["corpus"], questions["id"], strict=True)]
    assert sorted(found) == sorted(wanted)
    assert questions["corpus"] == sorted(questions["corpus"]), "corpora in one piece each"
    assert len({len(column) for column in questions.values()}) == 1


def test_answers_are_those_of_the_database(rich: Store, payload: explorer.Payload) -> None:
    answers = {
        (row["condition_id"], row["question_id"]): row
        for row in fetch(rich.root / DATABASE, "SELECT * FROM answers").dicts()
    }
    questions = payload["questions"]
    for condition in payload["conditions"]:
        mine = [i for i, c in enumerate(questions["corpus"]) if c == condition["corpus"]]
        ids = condition["answers"].split(",")
        assert len(condition["choices"]) == len(ids) == len(mine)
        offset = 0
        for at, place in enumerate(mine):
            row = answers[condition["id"], questions["id"][place]]
            assert condition["choices"][at] == str(row["choice"])
            assert ids[at] == row["answer_id"]
            shown = condition["logliks"][offset : offset + len(row["logliks"])]
            assert shown == [round(100 * x) for x in row["logliks"]]
            offset += len(row["logliks"])


def test_systems_stand_for_the_scores(rich: Store, payload: explorer.Payload) -> None:
    questions = payload["questions"]
    for system, scored in zip(
        payload["systems"], read_evidence(rich.root / DATABASE).systems, strict=True
    ):
        right = 0
        mine = [i for i, c in enumerate(questions["corpus"]) if c == system["corpus"]]
        for at, place in enumerate(mine):
            stands = system["standing"]
            condition = payload["conditions"][
                stands[0] if len(stands) == 1 else stands[questions["fold"][place]]
            ]
            right += condition["choices"][at] == str(questions["gold"][place])
        assert right / len(mine) == pytest.approx(scored.accuracy)


def test_passages_have_their_sources(payload: explorer.Payload) -> None:
    chunks = payload["chunks"]
    own = payload["questions"]["chunk"][0]
    article = chunks["article"][own]
    assert chunks["articles"]["title"][article].endswith("<script>")
    assert chunks["articles"]["licence"][article] == "CC0"
    assert chunks["articles"]["url"][article].startswith("https://example.org/")
    assert all(len(found) == 3 for found in payload["retrieved"]["dense"]["chunks"]), "largest K"


def _read_before(database: Path, *artefacts: str) -> None:
    """As if these answers had been made from an earlier `retrieved`."""
    with duckdb.connect(str(database)) as connection:
        for artefact in artefacts:
            read = json.dumps({f"retrieved/{artefact.split('/')[1]}": "as it was then"})
            connection.execute(
                "UPDATE artefacts SET inputs = json_merge_patch(inputs, ?) WHERE artefact = ?",
                [read, artefact],
            )


def test_passages_that_were_never_in_front_are_not_shown(built: Store, tmp_path: Path) -> None:
    database = Path(shutil.copyfile(built.root / DATABASE, tmp_path / DATABASE))
    before = payload_of(database)
    assert before["overtaken"] == []
    names = [c["name"] for c in before["corpora"]]
    rivers = names.index("rivers")
    _read_before(database, "answers_rag/rivers/tiny")
    found = payload_of(database)
    assert found["overtaken"] == [{"corpus": rivers, "retriever": "dense", "ways": ["RAG of tiny"]}]
    assert found["retrieved"] == before["retrieved"], "FT + RAG did read them"

    _read_before(database, "answers_ft_rag/rivers/tiny.full.p00")
    found = payload_of(database)
    (said,) = found["overtaken"]
    assert said["ways"] == ["FT full.p00 + RAG of tiny", "RAG of tiny"]
    shown = found["retrieved"]["dense"]["chunks"]
    assert {len(shown[i]) for i, c in enumerate(found["questions"]["corpus"]) if c == rivers} == {0}
    assert {len(shown[i]) for i, c in enumerate(found["questions"]["corpus"]) if c != rivers} == {3}
    assert len(explorer.packed(found)) < len(explorer.packed(before)), "nothing a question"


def test_a_missing_answer_keeps_the_others_in_place(built: Store, tmp_path: Path) -> None:
    database = Path(shutil.copyfile(built.root / DATABASE, tmp_path / DATABASE))
    question = "q-rivers-30"
    with duckdb.connect(str(database)) as connection:
        connection.execute("DELETE FROM answers WHERE question_id = ?", [question])
    found = payload_of(database)
    questions = found["questions"]
    rivers = [c["name"] for c in found["corpora"]].index("rivers")
    mine = [i for i, c in enumerate(questions["corpus"]) if c == rivers]
    at = [questions["id"][i] for i in mine].index(question)
    for condition in found["conditions"]:
        if condition["corpus"] == rivers:
            assert condition["choices"].index(".") == at and condition["choices"].count(".") == 1
            assert condition["logliks"][4 * at : 4 * at + 4] == [None] * 4
            assert len(condition["logliks"]) == 4 * len(mine)


def test_what_is_too_large_is_left_out_and_said(
    built: Store, payload: explorer.Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "FIGURES", {})
    whole, nothing = explorer.fitted(payload)
    assert nothing == [] and unpacked(whole)["left_out"] == []
    sizes = [len(whole)]
    for count in range(1, len(explorer.STEPS) + 1):
        text, left_out = explorer.fitted(payload, limit=sizes[-1] - 1)
        assert left_out == [what for what, _ in explorer.STEPS[: len(left_out)]] and left_out
        assert unpacked(text)["left_out"] == left_out
        assert len(text) < sizes[-1]
        sizes.append(len(text))
        if len(left_out) == len(explorer.STEPS):
            break
        assert count < len(explorer.STEPS)
    page = html.render_report(built.root / DATABASE, synthetic.profile(), limit=1000)
    assert "Left out to keep this page below" in page and "all single questions" in page
    assert "<strong>retrieve</strong>" in page, "the memo stays"


def test_marks_belong_to_one_state_of_the_data(built: Store, rich: Store) -> None:
    one, other = (explorer.version_of(s.root / DATABASE) for s in (built, rich))
    assert one == explorer.version_of(built.root / DATABASE) != other
