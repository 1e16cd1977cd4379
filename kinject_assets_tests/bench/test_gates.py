"""What docs/exams.md says of the gates is what is measured, and it is good enough."""

from collections import Counter

import pytest

from kinject_assets_tests.bench import gates

pytestmark = pytest.mark.skipif(
    not (gates.DUMP.exists() and gates.MMLU.exists()),
    reason=f"{gates.DUMP} or {gates.MMLU} is absent (KINJECT_REALDATA names their folder)",
)


def test_the_page_shows_what_is_measured() -> None:
    assert gates.block() in gates.PAGE.read_text(encoding="utf-8"), (
        "run `python -m kinject_assets_tests.bench.gates`"
    )


def test_a_fifth_of_each_kind_is_planted_in_both_parts() -> None:
    counts = Counter((case.part, case.kind) for case in gates.cases())
    for part in gates.PARTS:
        assert counts[part, "good"] >= 80
        for kind in gates.KINDS:
            assert counts[part, kind] == round(counts[part, "good"] / 5)


def test_gates_find_most_bad_questions_and_few_good_ones() -> None:
    for figure in gates.measure(gates.cases()):
        assert figure.caught >= 0.75 * figure.planted, figure
        assert figure.alarms <= 0.03 * figure.good, figure


def test_gates_let_published_questions_pass() -> None:
    n, alarms = gates.published("test")
    assert n == 387
    # Published exams do have options that refer to others, and right options that stand out.
    assert all(
        count <= 0.01 * n for name, count in alarms.items() if name not in {"standing", "longest"}
    )
    assert alarms["standing"] <= 0.05 * n
    assert alarms["longest"] <= 0.03 * n
