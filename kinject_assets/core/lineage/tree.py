"""A chain of provenance as a tree that people and programs read."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from kinject_assets.core.lineage.findings import wrapped


@dataclass(frozen=True)
class Node:
    """Something that an answer or a number rests on.

    Attributes:
        kind: `answer`, `cell`, `condition`, `question`, `checkpoint`, `chunk`, `paraphrase`,
            `generation`, `article`, `artefact`.
        id: Its id in the database.
        label: What it is, for people.
        details: More about it, a line each.
        note: Why its child rests on it, e.g. the rank at which it was retrieved.
        parents: What it was made from, those first that the question was written from.
        left_out: Parents that are not shown: kind -> how many.
        above: It is shown, with its parents, further up.
        found: It is in the database.
    """

    kind: str
    id: str
    label: str = ""
    details: tuple[str, ...] = ()
    note: str = ""
    parents: tuple["Node", ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    above: bool = False
    found: bool = True

    @property
    def whole(self) -> bool:
        """Whether everything in the tree is in the database."""
        return self.found and all(parent.whole for parent in self.parents)

    def to_json(self) -> str:
        """The tree as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def text(self, width: int | None = None) -> str:
        """The tree for people.

        Args:
            width: Columns of the terminal; by default lines are as long as they come.
        """
        return "\n".join(self._lines(width))

    def __str__(self) -> str:
        return self.text()

    def _lines(self, width: int | None) -> list[str]:
        inner = None if width is None else width - 3
        rest = [
            wrapped(f"… and {n:,} more of kind {kind}", inner, "")
            for kind, n in self.left_out.items()
        ]
        blocks = [*(parent._lines(inner) for parent in self.parents), *rest]
        bar = "│  " if blocks else "   "
        # Details stand under the name, beside the line that leads to what is below.
        lines = list(self._own(width, bar))
        for index, block in enumerate(blocks):
            last = index == len(blocks) - 1
            head, tail = ("└─ ", "   ") if last else ("├─ ", "│  ")
            lines += [head + block[0], *(tail + line for line in block[1:])]
        return lines

    def _own(self, width: int | None, bar: str) -> Iterator[str]:
        name = f"{self.kind} {self.id}"
        if not self.found:
            yield from wrapped(f"{name}  NOT IN THE DATABASE", width, "", bar)
            return
        said = "; ".join(plain(part) for part in (self.note, self.label) if part)
        if self.above:
            said = "; ".join(part for part in (plain(self.note), "see above") if part)
        head = f"{name}  {said}" if said else name
        if width is not None and len(head) > width:
            yield name
            yield from wrapped(said, width, bar)
        else:
            yield head
        for detail in () if self.above else self.details:
            yield from wrapped(plain(detail), width, bar, f"{bar}  ")


def plain(text: str) -> str:
    """Text from outside on one line, without characters that would move a terminal."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))


def shorten(
    parents: Sequence[tuple[str, str]], limit: int | None
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """The first parents of each kind, and how many more there are."""
    kept: list[tuple[str, str]] = []
    left_out: dict[str, int] = {}
    for kind, group in groupby(parents, key=lambda parent: parent[0]):
        members = list(group)
        kept += members[:limit]
        if limit is not None and len(members) > limit:
            left_out[kind] = len(members) - limit
    return kept, left_out
