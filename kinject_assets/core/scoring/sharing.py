"""Which tokens a set of inputs has in common, so that each shared beginning is read once.

Sorted token by token, inputs stand in the order of a depth-first walk through the trie of their
prefixes: what an input shares with the one before it is all that it shares with any earlier one. So
the trie is never built. Each input adds a `Piece`, the tokens after the shared beginning, and the
keys and values of one path, from the root to the input read last, are all that has to be kept.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive new tokens of one input.

    Attributes:
        first: Place of the first one among all new tokens.
        start: Its place in the input: so many tokens come before it on the path.
        length: Number of tokens, at least 1.
    """

    first: int
    start: int
    length: int

    def part(self, begin: int, end: int) -> "Piece":
        """The part of it whose tokens stand in begin..end-1 among all new tokens."""
        first, last = max(begin, self.first), min(end, self.first + self.length)
        return Piece(first, self.start + first - self.first, last - first)


@dataclass(frozen=True)
class Arrangement:
    """The new tokens of all inputs, in the order in which they are read.

    Attributes:
        tokens: Token ids.
        pieces: Which input's path each stretch of them continues.
        rows: For each input, in the order given, the places among `tokens` of its last tokens, as
            many as were asked for: their logits predict what is scored.
        total: Tokens of all inputs, shared ones counted each time.
        longest: Tokens of the longest input.
    """

    tokens: list[int]
    pieces: list[Piece]
    rows: list[list[int]]
    total: int
    longest: int

    @cached_property
    def _wanted(self) -> list[int]:
        return sorted({row for found in self.rows for row in found})

    def batch(self, begin: int, tokens: int, rows: int) -> tuple[int, list[int]]:
        """The next range of new tokens to read at once, and the scored ones among them.

        A piece may be cut: its second part finds the first on the path.

        Args:
            begin: Where the range begins.
            tokens: At most so many tokens.
            rows: At most so many scored ones.

        Returns:
            Where the range ends, and the places of the scored tokens.
        """
        end = min(begin + tokens, len(self.tokens))
        first = bisect_left(self._wanted, begin)
        last = bisect_left(self._wanted, end)
        if last - first > rows:
            last = first + rows
            end = self._wanted[last]
        return end, self._wanted[first:last]

    def between(self, begin: int, end: int) -> list[Piece]:
        """The pieces of a range of new tokens, cut at its ends."""
        at = bisect_right(self.pieces, begin, key=lambda piece: piece.first) - 1
        found: list[Piece] = []
        while at < len(self.pieces) and self.pieces[at].first < end:
            found.append(self.pieces[at].part(begin, end))
            at += 1
        return found


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common beginning of two token sequences."""
    low, high = 0, min(len(first), len(second))
    # Slices are compared in C; halving needs few of them.
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def in_order(inputs: Sequence[Sequence[int]]) -> list[int]:
    """Places of the inputs, sorted token by token."""

    def key(tokens: Sequence[int]) -> bytes:
        # Big-endian bytes compare as the numbers do, at the speed of memcmp.
        return struct.pack(f">{len(tokens)}I", *tokens)

    return sorted(range(len(inputs)), key=lambda i: key(inputs[i]))


def common_beginning(inputs: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all inputs begin with."""
    if not inputs:
        return []
    order = in_order(inputs)
    first, last = inputs[order[0]], inputs[order[-1]]
    return list(first[: shared_length(first, last)])


def arrange(inputs: Sequence[Sequence[int]], scored: Sequence[int], held: int = 0) -> Arrangement:
    """Finds what the inputs share.

    Args:
        inputs: Token ids of each input, at least one.
        scored: For each input, how many of its last tokens' logits are needed.
        held: So many first tokens are the same in all inputs and have been read before; no logits
            of theirs may be asked for.
    """
    tokens: list[int] = []
    pieces: list[Piece] = []
    rows: list[list[int]] = [[] for _ in inputs]
    path: list[int] = [-1] * held
    before: Sequence[int] | None = None
    for i in in_order(inputs):
        mine = inputs[i]
        start = held if before is None else shared_length(before, mine)
        new = len(mine) - start
        if new:
            pieces.append(Piece(len(tokens), start, new))
            path[start:] = range(len(tokens), len(tokens) + new)
            tokens += mine[start:]
        rows[i] = path[len(mine) - scored[i] : len(mine)]
        before = mine
    return Arrangement(
        tokens, pieces, rows, sum(map(len, inputs)), max(map(len, inputs), default=0)
    )
