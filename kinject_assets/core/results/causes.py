"""Why an answer is another one than before: found from what both databases record.

A cause is what the answer itself rests on: an article that was edited is named for an answer only
where a passage of it stood, or stands now, in its prompt or in the text that its checkpoint was
trained on. Settings, code and libraries are named where they decide that part of the answer.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kinject_assets.core.results.ancestry import CHANGED
from kinject_assets.core.results.tables import QueryError, Result

if TYPE_CHECKING:
    import duckdb

Kind = Literal[
    "article edited",
    "article added",
    "article removed",
    "passages cut otherwise",
    "index or encoder",
    "ranked otherwise",
    "passages not known",
    "paraphrases",
    "training text",
    "training settings",
    "training code or libraries",
    "trained again",
    "examples",
    "model or prompt",
    "code or libraries",
    "review or exam settings",
    "same inputs",
]

RETRIEVAL = ("embeddings", "faiss_index", "retrieved")
"""Assets that decide which passages stand in front of a question."""

TEXTS = ("chunks", "paraphrases", "validation_paraphrases")
"""Assets that a checkpoint reads texts of."""

BY_MEANING = ("dense", "fused")
"""Retrievers that ask the index; `reranked` does where it reads what one of them found."""

OWN_SETTINGS = {"lexical": ("lexical",), "reranked": ("rerank", "lexical")}
"""Retriever that asks no index -> parts of the settings that decide its ranks."""

BY_WORDS = ("lexical", "fused", "reranked")
"""Retrievers that weigh words by how many passages hold them."""

UNDECIDING = {"also_ranked", "retrievers", "depth", "encoder.batch_size", "rerank.batch_size"}
"""Settings in which artefacts may differ while each answer stays what it is."""

SHOWN_SETTINGS = 3
"""Settings that differ that are named; of more, how many there are."""

REVISION_CHARACTERS = 10
"""Of a revision's id that are shown: those of files are hashes."""


@dataclass(frozen=True, order=True)
class Cause:
    """Why something is not as it was.

    Attributes:
        subject: The article's title, or what else it is about.
        detail: E.g. its revisions before and after.
    """

    kind: Kind
    subject: str = ""
    detail: str = ""

    def __str__(self) -> str:
        said = f"{self.kind}: {self.subject}" if self.subject else str(self.kind)
        return f"{said} ({self.detail})" if self.detail else said


class Given(NamedTuple):
    """An answer as far as it matters here."""

    choice: int
    correct: bool
    checkpoint_id: str
    prompt_id: str


class Recorded:
    """What one database says, read as it is asked for.

    Args:
        connection: From `opened`.
    """

    def __init__(self, connection: "duckdb.DuckDBPyConnection") -> None:
        self._connection = connection

    def _fetch(self, sql: str, *parameters: Any) -> Result:
        import duckdb

        try:
            cursor = self._connection.execute(sql, list(parameters))
            columns = tuple(column[0] for column in cursor.description or ())
            return Result(columns, cursor.fetchall())
        except duckdb.Error as error:
            raise QueryError(
                f"these results cannot be compared ({error}): they were made by an older version. "
                "`kinject run` makes them anew."
            ) from error

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of a query.

        Raises:
            QueryError: If the database lacks a table or column.
        """
        return self._fetch(sql, *parameters).rows

    @cached_property
    def conditions(self) -> list[dict[str, Any]]:
        """Rows of the table."""
        return self._fetch("SELECT * FROM conditions").dicts()

    @cached_property
    def artefacts(self) -> dict[str, dict[str, Any]]:
        """Artefact -> its row; columns that are JSON are read."""
        found = self._fetch("SELECT * FROM artefacts").dicts()
        for row in found:
            for name in ("config", "libraries", "counts", "inputs"):
                row[name] = json.loads(row.get(name) or "{}")
        return {row["artefact"]: row for row in found}

    @cached_property
    def _passages(self) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
        chunks: defaultdict[str, dict[str, str]] = defaultdict(dict)
        revisions: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for corpus, chunk, article, revision in self.rows(
            "SELECT corpus, chunk_id, article_id, revision_id FROM corpus_chunks "
            "JOIN chunks USING (chunk_id)"
        ):
            chunks[corpus][chunk] = article
            revisions[corpus][article] = revision
        return dict(chunks), dict(revisions)

    def chunks(self, corpus: str) -> Mapping[str, str]:
        """Chunk -> article, of those that a corpus holds."""
        return self._passages[0].get(corpus, {})

    def revision(self, corpus: str, article: str) -> str | None:
        """Revision in which a corpus has an article."""
        return self._passages[1].get(corpus, {}).get(article)

    @cached_property
    def titles(self) -> dict[str, str]:
        """Article -> title."""
        return dict(self.rows("SELECT article_id, title FROM articles"))

    @cached_property
    def questions(self) -> dict[str, tuple[str, str | None]]:
        """Question -> stem and chunk."""
        found = self.rows("SELECT question_id, stem, chunk_id FROM questions")
        return {question: (stem, chunk) for question, stem, chunk in found}

    @cached_property
    def _exams(self) -> dict[tuple[str, str], list[str]]:
        found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for corpus, question, split in self.rows(
            "SELECT e.corpus, e.question_id, e.split FROM corpus_questions e "
            "JOIN questions q USING (question_id) LEFT JOIN corpus_chunks c "
            "ON c.corpus = e.corpus AND c.chunk_id = q.chunk_id "
            "WHERE NOT e.retired ORDER BY c.ordinal, e.question_id"
        ):
            found[corpus, split].append(question)
        return dict(found)

    def exam(self, corpus: str, split: str = "test") -> Sequence[str]:
        """Questions of a split that are not retired, in the order of their passages."""
        return self._exams.get((corpus, split), ())

    def first_shots(self, corpus: str, n: int) -> set[str]:
        """The examples that stand in front of a question, and all others on their last passage."""
        found: set[str] = set()
        last: str | None = None
        for question in self.exam(corpus, "shots"):
            chunk = self.questions[question][1]
            # Which question of a passage comes first is not recorded; those of MMLU have none.
            if len(found) >= n and chunk is not None and chunk != last:
                break
            found.add(question)
            last = chunk
        return found

    @cached_property
    def behind(self) -> dict[str, set[str]]:
        """Artefact -> assets that have changed since it read them."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for artefact, key in self.rows(CHANGED):
            found[artefact].add(key.split("/", 1)[0])
        return dict(found)

    def answers(self, corpus: str) -> dict[str, dict[str, Given]]:
        """Condition -> question -> answer, of a corpus."""
        found: defaultdict[str, dict[str, Given]] = defaultdict(dict)
        for condition, question, *rest in self.rows(
            "SELECT condition_id, question_id, choice, correct, a.checkpoint_id, prompt_id "
            "FROM answers a JOIN conditions USING (condition_id) WHERE corpus = ?",
            corpus,
        ):
            found[condition][question] = Given(*rest)
        return dict(found)

    def retrieved(
        self, corpus: str, questions: Iterable[str], most: int
    ) -> dict[tuple[str, str], list[str]]:
        """Retriever and question -> chunks, best first."""
        found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for retriever, question, chunk in self.rows(
            "SELECT retriever, question_id, chunk_id FROM retrieved WHERE corpus = ? "
            "AND rank <= ? AND question_id IN (SELECT unnest(?::VARCHAR[])) "
            "ORDER BY retriever, question_id, rank",
            corpus,
            most,
            list(questions),
        ):
            found[retriever, question].append(chunk)
        return dict(found)

    def trained_on(self, checkpoint: str) -> tuple[set[str], dict[str, str]]:
        """Chunks of a checkpoint's text, and its paraphrases, each with its chunk."""
        chunks: set[str] = set()
        paraphrases: dict[str, str] = {}
        for kind, parent, chunk in self.rows(
            "SELECT parent_kind, parent_id, p.chunk_id FROM lineage l LEFT JOIN paraphrases p "
            "ON l.parent_kind = 'paraphrase' AND p.paraphrase_id = l.parent_id "
            "WHERE l.child_kind = 'checkpoint' AND l.child_id = ? "
            "AND l.parent_kind IN ('chunk', 'paraphrase')",
            checkpoint,
        ):
            if kind == "chunk":
                chunks.add(parent)
            else:
                paraphrases[parent] = chunk or ""
        return chunks, paraphrases


class Investigation:
    """Two databases, and one corpus of each, side by side."""

    def __init__(
        self, before: Recorded, after: Recorded, corpus_before: str, corpus_after: str
    ) -> None:
        self.before = before
        self.after = after
        self.corpora = (corpus_before, corpus_after)
        self._checkpoint = cache(self._why_trained)

    def of_answer(
        self,
        condition: Mapping[str, Any],
        question: str,
        answers: tuple[Given, Given],
        retrieved: tuple[Sequence[str], Sequence[str]],
    ) -> tuple[Cause, ...]:
        """Why an answer differs.

        Args:
            condition: Under which it was given.
            question: Its id.
            answers: Before and after.
            retrieved: The chunks in front of it, before and after; none without retrieval.
        """
        then, now = answers
        found: list[Cause] = []
        if then.checkpoint_id != now.checkpoint_id:
            name = f"{condition['model']}.{condition['recipe']}"
            found += self._checkpoint(name, then.checkpoint_id, now.checkpoint_id)
        asked_alike = then.prompt_id == now.prompt_id
        # Answers of old versions have no id of their prompt.
        if not asked_alike or not now.prompt_id:
            found += self._why_asked(condition, retrieved)
        if not found:
            found.append(self._why_alike(condition, asked_alike))
        return tuple(sorted(set(found)))

    def of_question(self, question: str, gone: bool) -> Cause:
        """Why a question is not in the exam any more (`gone`), or is new."""
        has, lacks = (self.before, self.after) if gone else (self.after, self.before)
        of, other = self.corpora if gone else self.corpora[::-1]
        chunk = has.questions[question][1] or ""
        if chunk in has.chunks(of) and chunk not in lacks.chunks(other):
            return self._edit(has.chunks(of)[chunk])
        return Cause("review or exam settings", "", self._settings("questions"))

    # -- passages ----------------------------------------------------------------------------

    def edits(self, gone: Iterable[str], new: Iterable[str]) -> list[Cause]:
        """What happened to the articles of passages that a corpus lost, and of those it got."""
        then, now = self.before.chunks(self.corpora[0]), self.after.chunks(self.corpora[1])
        articles = [then[c] for c in gone if c in then and c not in now]
        articles += [now[c] for c in new if c in now and c not in then]
        return [self._edit(article) for article in dict.fromkeys(articles)]

    def _edit(self, article: str) -> Cause:
        then = self.before.revision(self.corpora[0], article)
        now = self.after.revision(self.corpora[1], article)
        title = self.after.titles.get(article) or self.before.titles.get(article, article)
        if then is None:
            return Cause("article added", title, f"revision {_short(now)}")
        if now is None:
            return Cause("article removed", title, f"revision {_short(then)}")
        if then != now:
            return Cause("article edited", title, f"revision {_short(then)} → {_short(now)}")
        settings = self._settings("chunks") or self._settings("articles")
        return Cause("passages cut otherwise", "", settings)

    # -- prompts -----------------------------------------------------------------------------

    def _why_asked(
        self, condition: Mapping[str, Any], retrieved: tuple[Sequence[str], Sequence[str]]
    ) -> list[Cause]:
        found: list[Cause] = []
        then, now = retrieved
        artefact = self._answers(condition)
        if condition["k"] and self._behind(artefact, "retrieved"):
            # What has been retrieved since is not what stood in the prompt.
            if versions := self._read_otherwise(artefact, "retrieved"):
                found.append(Cause("passages not known", "", versions))
        elif list(then) != list(now):
            found += self.edits(then, now)
            if self._asks_index(condition["retriever"]):
                found += self._index
            if not found:
                found.append(Cause("ranked otherwise", "", self._why_ranked(condition)))
        shots = condition["shots"]
        if shots:
            old = self.before.first_shots(self.corpora[0], shots)
            if old != self.after.first_shots(self.corpora[1], shots):
                found.append(Cause("examples", "", "other solved examples in front"))
        return found

    def _asks_index(self, retriever: str) -> bool:
        if retriever != "reranked":
            return retriever in BY_MEANING
        return any(
            ((row.get("config") or {}).get("rerank") or {}).get("over") != "lexical"
            for row in self._rows("retrieved/{}")
        )

    @cached_property
    def _index(self) -> list[Cause]:
        """What else decides which passages come first: encoder, index and how they are ranked."""
        then, now = (
            side.artefacts.get(f"embeddings/{corpus}", {}).get("counts", {}).get("encoder")
            for side, corpus in self._sides
        )
        said = (
            self._settings("embeddings"),
            "other weights of the encoder" if then and now and then != now else "",
            self._settings("faiss_index"),
            self._settings("retrieved"),
        )
        # The encoder's name stands in several of them.
        return [Cause("index or encoder", "", text) for text in filter(None, said)][:1]

    def _why_ranked(self, condition: Mapping[str, Any]) -> str:
        """Why the same passages of the same corpus come in another order, or others of them."""
        if condition["retriever"] in BY_WORDS and self.before.chunks(
            self.corpora[0]
        ) != self.after.chunks(self.corpora[1]):
            return "how rare words are changed with other passages"
        if not self._asks_index(condition["retriever"]):
            parts = OWN_SETTINGS.get(condition["retriever"], ())
            own = [
                *(self._differences("retrieved/{}", "config", part) for part in parts),
                self._code("retrieved/{}"),
                self._differences("retrieved/{}"),
            ]
            return ", ".join(filter(None, own))
        found = [self._differences(f"{asset}/{{}}") for asset in RETRIEVAL]
        return ", ".join(dict.fromkeys(filter(None, found)))

    # -- checkpoints -------------------------------------------------------------------------

    def _why_trained(self, name: str, then: str, now: str) -> list[Cause]:
        artefact = f"checkpoint/{{}}/{name}"
        # Of a text that has changed since it was read, the passages are not known.
        found = [] if self._behind(artefact, *TEXTS) else self._why_read(then, now)
        if not found and (texts := self._read_otherwise(artefact, *TEXTS)):
            found.append(Cause("training text", name, texts))
        if settings := self._differences(artefact, "config"):
            found.append(Cause("training settings", name, settings))
        code = ", ".join(filter(None, (self._code(artefact), self._differences(artefact))))
        if code and (not found or self._code(artefact)):
            found.append(Cause("training code or libraries", name, code))
        return found or [Cause("trained again", name, "on the same text, by the same settings")]

    def _behind(self, artefact: str, *assets: str) -> bool:
        return any(
            side.behind.get(artefact.format(corpus), set()).intersection(assets)
            for side, corpus in self._sides
        )

    def _read_otherwise(self, artefact: str, *assets: str) -> str:
        """Assets that an artefact read in another version before than after, in words."""
        then, now = (
            {
                key.replace(f"/{corpus}", "", 1): version
                for key, version in (row.get("inputs") or {}).items()
                if key.split("/", 1)[0] in assets
            }
            for row, (_, corpus) in zip(self._rows(artefact), self._sides, strict=True)
        )
        return ", ".join(
            f"{key} {_short(then.get(key)) or 'none'} → {_short(now.get(key)) or 'none'}"
            for key in sorted({*then, *now})
            if then.get(key) != now.get(key)
        )

    def _why_read(self, then: str, now: str) -> list[Cause]:
        """Articles and paraphrases that only one of two checkpoints was trained or chosen on."""
        old_chunks, old_texts = self.before.trained_on(then)
        new_chunks, new_texts = self.after.trained_on(now)
        found = self.edits(old_chunks - new_chunks, new_chunks - old_chunks)
        kept = old_chunks & new_chunks
        differ = {
            text
            for text in old_texts.keys() ^ new_texts.keys()
            if (old_texts.get(text) or new_texts.get(text)) in kept
        }
        if differ:
            found.append(Cause("paraphrases", "", f"{len(differ)} on unchanged text differ"))
        return found

    # -- the same prompt ---------------------------------------------------------------------

    def _why_alike(self, condition: Mapping[str, Any], asked_alike: bool) -> Cause:
        artefact = self._answers(condition)
        settings = self._differences(artefact, "config", "model")
        if not asked_alike:
            return Cause("model or prompt", condition["model"], settings)
        code = ", ".join(filter(None, (self._code(artefact), self._differences(artefact))))
        if code:
            return Cause("code or libraries", "", code)
        return Cause("same inputs", "", "another answer: numbers that nearly tie")

    # -- artefacts ---------------------------------------------------------------------------

    @staticmethod
    def _answers(condition: Mapping[str, Any]) -> str:
        """Artefact of a condition's answers, `{}` for the corpus."""
        recipe = f".{condition['recipe']}" if condition["recipe"] else ""
        return f"answers_{condition['method']}/{{}}/{condition['model']}{recipe}"

    @property
    def _sides(self) -> tuple[tuple[Recorded, str], tuple[Recorded, str]]:
        return (self.before, self.corpora[0]), (self.after, self.corpora[1])

    def _settings(self, asset: str) -> str:
        """Settings and code of a corpus's artefact that differ; empty for none."""
        artefact = f"{asset}/{{}}"
        parts = (self._differences(artefact, "config"), self._code(artefact))
        return ", ".join(filter(None, parts))

    def _code(self, artefact: str) -> str:
        """Version of the code of an artefact before and after, where it differs."""
        then, now = self._rows(artefact)
        if not then or not now or then["code_version"] == now["code_version"]:
            return ""
        return f"code {then['code_version']} → {now['code_version']}"

    def _differences(self, artefact: str, column: str = "libraries", part: str = "") -> str:
        """What differs in a JSON column of an artefact, in words; empty for nothing.

        Args:
            artefact: Its name, `{}` for the corpus.
            column: `config` or `libraries`.
            part: A part of the column; empty for all of it.
        """
        then, now = (row.get(column) or {} for row in self._rows(artefact))
        if not then or not now:
            return ""
        old, new = _flat(then.get(part) if part else then), _flat(now.get(part) if part else now)
        names = sorted(n for n in {*old, *new} - UNDECIDING if old.get(n) != new.get(n))
        said = [f"{n} {_word(old.get(n))} → {_word(new.get(n))}" for n in names]
        more = [f"{len(said) - SHOWN_SETTINGS} more"] if len(said) > SHOWN_SETTINGS else []
        return ", ".join([*said[:SHOWN_SETTINGS], *more])

    def _rows(self, artefact: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        then, now = (
            side.artefacts.get(artefact.format(corpus), {}) for side, corpus in self._sides
        )
        return then, now


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, names joined by dots."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        inner: found
        for key, part in value.items()
        for inner, found in _flat(part, f"{name}.{key}" if name else str(key)).items()
    }


def _word(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _short(revision: str | None) -> str:
    return (revision or "")[:REVISION_CHARACTERS]
