from hypothesis import given
from hypothesis import strategies as st

from kinject_assets.core.scoring.sharing import (
    arrange,
    common_beginning,
    in_order,
    shared_length,
)

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=12)
INPUTS = st.lists(TOKENS, min_size=1, max_size=12)


@given(TOKENS, TOKENS)
def test_shared_length_is_the_longest_common_beginning(first: list[int], second: list[int]) -> None:
    n = shared_length(first, second)
    assert first[:n] == second[:n]
    assert first[n : n + 1] != second[n : n + 1] or n == min(len(first), len(second))


@given(st.lists(st.lists(st.integers(0, 2**31), max_size=4), max_size=8))
def test_inputs_are_sorted_token_by_token(inputs: list[list[int]]) -> None:
    assert [inputs[i] for i in in_order(inputs)] == sorted(inputs)


@given(INPUTS, st.data())
def test_each_prefix_is_read_once_and_every_path_is_whole(
    inputs: list[list[int]], data: st.DataObject
) -> None:
    scored = [data.draw(st.integers(0, len(tokens))) for tokens in inputs]
    arrangement = arrange(inputs, scored)
    prefixes = {tuple(tokens[: n + 1]) for tokens in inputs for n in range(len(tokens))}
    assert len(arrangement.tokens) == len(prefixes)
    # Walk the pieces as attention does: what is written behind a path replaces what stood there.
    path: list[int] = []
    prefix_at: list[tuple[int, ...]] = []
    for piece in arrangement.pieces:
        assert piece.start <= len(path)
        del path[piece.start :]
        for offset in range(piece.length):
            path.append(arrangement.tokens[piece.first + offset])
            prefix_at.append(tuple(path))
    assert len(set(prefix_at)) == len(prefix_at)
    for tokens, count, rows in zip(inputs, scored, arrangement.rows, strict=True):
        expected = [tuple(tokens[: n + 1]) for n in range(len(tokens) - count, len(tokens))]
        assert [prefix_at[row] for row in rows] == expected


@given(INPUTS, st.integers(1, 5), st.integers(1, 3))
def test_batches_hold_every_token_and_row_once(
    inputs: list[list[int]], tokens: int, rows: int
) -> None:
    arrangement = arrange(inputs, [1] * len(inputs))
    begin, seen = 0, []
    while begin < len(arrangement.tokens):
        end, scored = arrangement.batch(begin, tokens, rows)
        assert 0 < end - begin <= tokens
        assert len(scored) <= rows
        assert all(begin <= row < end for row in scored)
        pieces = arrangement.between(begin, end)
        assert [p.first + i for p in pieces for i in range(p.length)] == list(range(begin, end))
        seen += scored
        begin = end
    assert seen == sorted({row for found in arrangement.rows for row in found})


@given(INPUTS, TOKENS)
def test_a_held_beginning_is_not_read_again(inputs: list[list[int]], held: list[int]) -> None:
    whole = [held + tokens for tokens in inputs]
    arrangement = arrange(whole, [1] * len(whole), len(held))
    alone = arrange(inputs, [1] * len(inputs))
    assert arrangement.tokens == alone.tokens
    assert arrangement.rows == alone.rows
    assert [p.start for p in arrangement.pieces] == [p.start + len(held) for p in alone.pieces]


@given(INPUTS)
def test_the_common_beginning_of_all(inputs: list[list[int]]) -> None:
    shared = common_beginning(inputs)
    assert all(tokens[: len(shared)] == shared for tokens in inputs)
    longer = {tuple(tokens[: len(shared) + 1]) for tokens in inputs}
    assert len(longer) > 1 or len(shared) == min(map(len, inputs))
