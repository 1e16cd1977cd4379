"""What will be asked of the language model: requests, tokens and USD by purpose."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinject_assets.core.augmentation.plugin import Task
from kinject_assets.core.augmentation.registry import PARAPHRASE, PLUGINS
from kinject_assets.core.estimate.assumptions import Assumed
from kinject_assets.core.estimate.corpora import Material
from kinject_assets.core.estimate.spent import Bill
from kinject_assets.core.exams import prompts
from kinject_assets.core.exams.writing import CheckedQuestions, KeptQuestions, WrittenQuestions
from kinject_assets.core.llm.asking import Ask, Asking
from kinject_assets.core.llm.prices import cost
from kinject_assets.core.plan import Plan
from kinject_assets.core.schema import Chunk
from kinject_assets.core.store import Cell

VALIDATION = f"validation_{PARAPHRASE}"


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What one artefact asks of the language model for one purpose.

    Attributes:
        count: Requests, each counted once. What another corpus asks before is not asked again.
        again: Requests on top, for answers that are of no use.
        input_tokens: Of all of them.
        output_tokens: Of all of them.
        usd: `None` when the price is not known.
    """

    cell: str
    purpose: str
    count: int
    again: int
    input_tokens: int
    output_tokens: int
    usd: float | None


@dataclass(frozen=True)
class _Wanted:
    """What a cell asks: so many texts on each of its chunks."""

    purpose: str
    per_chunk: int = 1
    small_too: bool = False


@dataclass(frozen=True)
class Requester:
    """Reckons what the cells of a plan ask of the language model.

    Args:
        plan: The cells.
        materials: Corpus -> what is known of it.
        bills: Purpose -> what was measured so far.
        assume: Gives what is not known.
    """

    plan: Plan
    materials: Mapping[str, Material]
    bills: Mapping[str, Bill]
    assume: Assumed

    def requests(self) -> list[Requests]:
        """What every cell asks; cells of corpora of unknown size are left out."""
        found: list[Requests] = []
        before: defaultdict[_Wanted, list[Material]] = defaultdict(list)
        for cell in self.plan.cells:
            for wanted in self._wanted(cell):
                material = self.materials[cell.parts[0]]
                size = material.size
                chunks = size.chunks.value if wanted.small_too else size.askable.value
                if chunks is None:
                    continue
                if wanted.purpose == VALIDATION:
                    chunks = min(chunks, self.plan.profile.augmentation.validation_chunks)
                fresh = _fresh(material, before[wanted], wanted.small_too)
                before[wanted].append(material)
                found.append(self._line(cell, wanted, chunks * fresh))
        return found

    def _wanted(self, cell: Cell) -> Iterator[_Wanted]:
        profile = self.plan.profile
        match cell.asset:
            case "questions" if profile.corpora[cell.parts[0]].exam.kind == "generated":
                yield _Wanted("question")
                if profile.exams.verify:
                    yield _Wanted("question_verification")
                if profile.exams.per_chunk > profile.exams.keep:
                    yield _Wanted("question_selection")
            case "paraphrases":
                for name, n in self.plan.paraphrases_per_chunk(cell.parts[0]).items():
                    yield _Wanted(name, n, small_too=True)
            case "validation_paraphrases":
                yield _Wanted(VALIDATION, profile.augmentation.validation_per_chunk)

    def _line(self, cell: Cell, wanted: _Wanted, chunks: float) -> Requests:
        llm, purpose = self.plan.profile.llm, wanted.purpose
        count = round(chunks) * wanted.per_chunk
        if purpose == "question_selection":
            count = round(count * self._contested())
        again = round(count * self._again(purpose))
        sample = [
            chunk
            for chunk in self.materials[cell.parts[0]].sample
            if wanted.small_too or not chunk.small
        ]
        asks = [self._ask(purpose, chunk, cell.parts[0]) for chunk in sample]
        prompt = sum(self._characters(ask) for ask in asks) / max(1, len(asks))
        length = sum(len(chunk.text) for chunk in sample) / max(1, len(sample))
        tokens = (
            round((count + again) * prompt / self.assume("characters_per_token")),
            round((count + again) * self._output(purpose, length)),
        )
        usd = cost(llm.model, *tokens, llm.prices)
        if usd is not None and llm.batch:
            usd *= 1 - llm.batch_discount
        return Requests(
            cell=str(cell),
            purpose=purpose,
            count=count,
            again=again,
            input_tokens=tokens[0],
            output_tokens=tokens[1],
            usd=usd,
        )

    @property
    def _by_rule(self) -> bool:
        """Whether the lab writes: at once as it should, and counting messages alone."""
        return self.plan.profile.llm.base_url == "lab"

    def _contested(self) -> float:
        """Part of the chunks with more good questions than are kept; all, until it is measured."""
        written, selected = self.bills.get("question"), self.bills.get("question_selection")
        if written is None or written.output_mean is None:
            return 1.0
        return min(1.0, (selected.first if selected else 0) / max(1, written.first))

    def _again(self, purpose: str) -> float:
        bill = self.bills.get(purpose)
        if bill is not None and bill.again is not None:
            return bill.again
        if self._by_rule:
            return 0.0
        written = purpose.startswith("question") and purpose not in PLUGINS
        return self.assume("again_question" if written else "again_paraphrase")

    def _ask(self, purpose: str, chunk: Chunk, corpus: str) -> Ask[Any]:
        """A request as the code sends it."""
        exams, augmentation = self.plan.profile.exams, self.plan.profile.augmentation
        if purpose == "question":
            messages = prompts.writing(chunk, questions=exams.per_chunk, options=exams.options)
            return Ask(purpose, messages, WrittenQuestions, 0)
        material = self.materials[corpus]
        stems = ["x" * round(material.stem)] * exams.per_chunk
        if purpose == "question_verification":
            options = ["x" * round(material.option)] * exams.options
            messages = prompts.verification(chunk, [(stem, options) for stem in stems])
            return Ask(purpose, messages, CheckedQuestions, 0)
        if purpose == "question_selection":
            messages = prompts.selection(chunk, stems, keep=exams.keep)
            return Ask(purpose, messages, KeptQuestions, 0)
        plugin = PLUGINS[purpose.removeprefix("validation_")]
        return Ask(purpose, plugin.prompt(Task(chunk, 0, augmentation)), plugin.answer, 0)

    def _characters(self, ask: Ask[Any]) -> float:
        """Characters of a request that count as input: messages, and the schema with them."""
        body = Asking(ask, self.plan.profile.llm).request.body
        count = float(sum(len(message["content"]) for message in body["messages"]))
        schema = body.get("response_format", {}).get("json_schema")
        if schema and not self._by_rule:
            count += len(json.dumps(schema, ensure_ascii=False)) * self.assume("schema_share")
        return count

    def _output(self, purpose: str, length: float) -> float:
        """Output tokens of an answer on a chunk of so many characters."""
        bill = self.bills.get(purpose)
        if bill is not None and bill.output_mean is not None:
            return bill.output_mean
        exams = self.plan.profile.exams
        if purpose == "question":
            options = exams.options * self.assume("option_output_tokens")
            return exams.per_chunk * (self.assume("question_output_tokens") + options)
        if purpose == "question_verification":
            return exams.per_chunk * self.assume("verification_output_tokens")
        if purpose == "question_selection":
            return self.assume("selection_output_tokens")
        text = length / self.assume("characters_per_token")
        written = text * self.assume.text_length(purpose.removeprefix("validation_"))
        return written + self.assume("json_output_tokens")


def _fresh(material: Material, before: Sequence[Material], small_too: bool) -> float:
    """Part of a corpus's chunks that no corpus before it asks the same of.

    By the chunks themselves where all are there, else by the months of windows of events.
    """

    def ids(found: Material) -> frozenset[str] | None:
        return found.ids if small_too else found.askable_ids

    mine = ids(material)
    others = [ids(other) for other in before]
    if mine and None not in others:
        known = frozenset().union(*(other for other in others if other))
        return len(mine - known) / len(mine)
    months = frozenset().union(*(other.months for other in before))
    return len(material.months - months) / len(material.months) if material.months else 1.0
