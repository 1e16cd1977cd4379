import json
import re

import duckdb
import pytest

from kinject_assets.core.errors import KinjectError
from kinject_assets.core.lineage.cells import trace_cell
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.core.results.tables import fetch
from kinject_assets.core.store import Store

RAG = "table2/events-2031-04/tiny/ft_par_rag"


def _names(store: Store) -> list[str]:
    with pytest.raises(KinjectError) as refused:
        trace_cell(store.root / DATABASE, "table3")
    return re.findall(r"^  (table\S+)$", str(refused.value), re.M)


def test_an_unknown_cell_lists_every_number_of_the_tables(built: Store) -> None:
    names = _names(built)
    filled = sum(
        value is not None
        for number in (1, 2)
        for row in fetch(built.root / DATABASE, f"SELECT * FROM table{number}").dicts()
        for column, value in row.items()
        if column not in {"task", "shots", "model", "n", "corpus"}
        and not column.endswith(("_low", "_high"))
    )
    assert len(names) == len(set(names)) == filled
    assert RAG in names
    assert "table1/rivers/5/tiny/base_rag" in names


def test_numbers_are_counted_again_from_their_answers(built: Store) -> None:
    for name in _names(built)[::4]:
        table, corpus, *rest = name.split("/")
        node = trace_cell(built.root / DATABASE, name)
        where, values = "corpus = ?", [corpus]
        if table == "table1":
            where, values = "task = ? AND shots = ?", [corpus, rest[0]]
        column = rest[-1]
        ((shown, n),) = fetch(
            built.root / DATABASE, f"SELECT {column}, n FROM {table} WHERE {where}", values
        ).rows
        counted = re.match(r"([\d,]+) right of ([\d,]+) answers", node.details[0])
        assert counted
        assert int(counted[2]) == n
        assert int(counted[1]) / n == pytest.approx(shown)
        assert node.label.startswith(f"{shown:.3f} [")


def test_each_fold_is_under_the_k_that_was_chosen_for_it(built: Store) -> None:
    node = trace_cell(built.root / DATABASE, RAG)
    conditions = [p for p in node.parents if p.kind == "condition"]
    chosen = dict(
        fetch(
            built.root / DATABASE,
            "SELECT k_choices.k, list(fold ORDER BY fold) FROM k_choices JOIN conditions "
            "USING (condition_id) WHERE corpus = 'events-2031-04' AND recipe = 'full.p04' "
            "AND shots = 0 GROUP BY k_choices.k",
        ).rows
    )
    assert len(conditions) == len(chosen)
    for condition, (k, folds) in zip(conditions, sorted(chosen.items()), strict=True):
        assert f"K={k} by dense" in condition.label
        assert condition.details[0].endswith(
            f"for which K={k} was chosen: {', '.join(map(str, folds))}"
        )


def test_it_says_what_it_rests_on_with_the_newest_and_the_oldest_revision(built: Store) -> None:
    node = trace_cell(built.root / DATABASE, RAG)
    assert "60 questions, 1 checkpoint, 12 chunks" in node.details[1]
    articles = [p for p in node.parents if p.kind == "article"]
    assert [a.note for a in articles] == ["newest", "oldest"]
    assert node.left_out == {"article": 10}
    (artefact,) = [p for p in node.parents if p.kind == "artefact"]
    assert artefact.id == "answers_ft_rag/events-2031-04/tiny.full.p04"
    assert max(map(len, node.text(80).splitlines())) <= 80


@pytest.mark.parametrize(
    ("read_before", "said"),
    [
        ([], ""),
        (
            [("answers_ft_rag/events-2031-04/tiny.full.p04", "retrieved/events-2031-04")],
            "; 1 input has changed since it was read: retrieved/events-2031-04",
        ),
        (
            # One of them further up; what other numbers rest on is not told.
            [
                ("answers_ft_rag/events-2031-04/tiny.full.p04", "retrieved/events-2031-04"),
                ("questions/events-2031-04", "chunks/events-2031-04"),
                ("answers_rag/events-2031-04/tiny", "questions/events-2031-04"),
            ],
            "; 2 inputs have changed since they were read: chunks/events-2031-04, "
            "retrieved/events-2031-04",
        ),
    ],
)
def test_the_summary_says_which_inputs_have_changed_since(
    lake: Store, read_before: list[tuple[str, str]], said: str
) -> None:
    database = lake.root / DATABASE
    with duckdb.connect(str(database)) as connection:
        for artefact, key in read_before:
            connection.execute(
                "UPDATE artefacts SET inputs = json_merge_patch(inputs, ?) WHERE artefact = ?",
                [json.dumps({key: "as it was then"}), artefact],
            )
    summary = trace_cell(database, RAG).details[1]
    assert summary.startswith("they rest on 60 questions, ")
    assert summary.partition(" article revisions")[2] == said
