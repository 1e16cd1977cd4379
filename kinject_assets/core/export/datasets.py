"""A corpus's exam and texts as a folder that `datasets.load_dataset(FOLDER, NAME)` reads."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kinject_assets import __version__
from kinject_assets.config import Profile
from kinject_assets.core.corpus.articles import permalink
from kinject_assets.core.corpus.releases import with_releases
from kinject_assets.core.errors import MissingArtefact
from kinject_assets.core.exams.review import Reviewable
from kinject_assets.core.export.cards import (
    as_read,
    attribution,
    code,
    escaped,
    front_matter,
    licence_fields,
    permanent_url,
    plain,
    sources,
    table,
)
from kinject_assets.core.export.folders import ExportError, new_folder
from kinject_assets.core.schema import Article, Chunk, Paraphrase, Question, Rejection, Triage
from kinject_assets.core.store import Cell, Store

SPLITS = ("test", "shots", "validation")
TEXTS = ("paraphrases", "validation_paraphrases")
MMLU_LICENCE = "MIT"
"""Licence of MMLU's questions (Hendrycks and others, 2021)."""


@dataclass(frozen=True)
class _Part:
    """What is loaded under one name.

    Attributes:
        splits: Split -> rows; those without rows are left out.
        says: What a row is.
    """

    splits: dict[str, list[dict[str, Any]]]
    says: str

    @classmethod
    def of(cls, says: str, **splits: list[dict[str, Any]]) -> "_Part":
        return cls({name: rows for name, rows in splits.items() if rows}, says)


@dataclass(frozen=True)
class _Corpus:
    """What the lake has of a corpus."""

    key: str
    profile: Profile
    store: Store
    articles: list[Article]
    chunks: list[Chunk]
    questions: list[Question]
    rejections: list[Rejection]
    strata: dict[str, str]
    texts: list[Paraphrase]

    @classmethod
    def read(cls, profile: Profile, store: Store, corpus: str) -> "_Corpus":
        at = (corpus,)

        def there(asset: str) -> bool:
            return store.manifest(Cell(asset, at)) is not None

        probed = store.rows(Cell("triage", at), "triage", Triage) if there("triage") else []
        return cls(
            corpus,
            profile,
            store,
            store.rows(Cell("articles", at), "articles", Article),
            store.rows(Cell("chunks", at), "chunks", Chunk),
            store.rows(Cell("questions", at), "questions", Question),
            store.rows(Cell("questions", at), "rejections", Rejection),
            {row.question_id: row.stratum for row in probed},
            [
                row
                for asset in TEXTS
                if there(asset)
                for row in store.rows(Cell(asset, at), "paraphrases", Paraphrase)
            ],
        )

    @property
    def generated(self) -> bool:
        return self.profile.corpora[self.key].exam.kind == "generated"

    def _origin(self, chunk: Chunk | None) -> dict[str, Any]:
        """Where a text comes from: its article, at the revision that was read."""
        article = self._article_of.get(chunk.article_id) if chunk else None
        return {
            "article_id": article.article_id if article else None,
            "revision_id": chunk.revision_id if chunk else None,
            "title": article.title if article else None,
            "url": permalink(article.source, article.url, chunk.revision_id)
            if article and chunk
            else None,
            "licence": article.licence if article else None,
        }

    @cached_property
    def as_read(self) -> list[Article]:
        """The articles at the revisions that the chunks were cut from."""
        return as_read(self.articles, self.chunks)

    @cached_property
    def behind(self) -> str:
        """Says that the corpus has moved on from these texts; empty where it has not."""
        known = {article.article_id: article.revision_id for article in self.articles}
        newer = sum(known[article.article_id] != article.revision_id for article in self.as_read)
        gone = len({chunk.article_id for chunk in self.chunks} - known.keys())
        if not newer and not gone:
            return ""
        said = [f"{newer} of its articles have other revisions now"] if newer else []
        said += [f"{gone} are not in it any more, and not named here"] if gone else []
        return (
            f"These texts are older than the corpus is now: {'; '.join(said)}. Links lead to the "
            "revisions that were read."
        )

    @cached_property
    def _article_of(self) -> dict[str, Article]:
        return {article.article_id: article for article in self.articles}

    def _questions(self) -> Iterator[tuple[str, dict[str, Any]]]:
        chunk_of = {chunk.chunk_id: chunk for chunk in self.chunks}
        for row in self.questions:
            if not row.retired:
                yield (
                    row.split,
                    {
                        "question_id": row.question_id,
                        "question": row.stem,
                        "choices": row.options,
                        "answer": row.gold,
                        "origin": row.origin,
                        "generator": row.generator,
                        "triage": self.strata.get(row.question_id, ""),
                        "chunk_id": row.chunk_id,
                        **self._origin(chunk_of.get(row.chunk_id or "")),
                    },
                )

    def parts(self) -> dict[str, _Part]:
        """What can be loaded, by name; questions first, for they are what is loaded unasked."""
        by_split: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for split, row in self._questions():
            by_split[split].append(row)
        texts: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self.texts:
            texts[row.purpose].append(asdict(row))
        found = {
            "questions": _Part.of(
                "A question with its options; `answer` is the index of the right one, from 0.",
                **{split: by_split[split] for split in SPLITS},
            ),
            "paraphrases": _Part.of(
                "A text on a chunk that a language model wrote, to train or to validate on.",
                **{purpose: texts[purpose] for purpose in ("train", "validation")},
            ),
            "chunks": _Part.of(
                "A passage of an article, as it was retrieved and asked about.",
                corpus=[
                    {
                        "chunk_id": chunk.chunk_id,
                        "section": chunk.section,
                        "text": chunk.text,
                        "n_tokens": chunk.n_tokens,
                        "small": chunk.small,
                        **self._origin(chunk),
                    }
                    for chunk in self.chunks
                ],
            ),
            "articles": _Part.of(
                "An article and the revision that was read; the texts are in `chunks`.",
                corpus=[
                    {
                        "article_id": article.article_id,
                        "revision_id": article.revision_id,
                        "title": article.title,
                        "revised_at": article.revised_at,
                        "url": permanent_url(article),
                        "licence": article.licence,
                    }
                    for article in self.as_read
                ],
            ),
        }
        return {name: part for name, part in found.items() if part.splits}

    def card(self, parts: Mapping[str, _Part]) -> str:
        """The dataset card."""
        corpus = self.profile.corpora[self.key]
        licences = [article.licence for article in self.articles]
        licences += [] if self.generated else [MMLU_LICENCE]
        head = front_matter(
            {
                **licence_fields(licences),
                "pretty_name": plain(corpus.title) or self.key,
                "task_categories": ["multiple-choice", "question-answering"],
                "tags": ["kinject", *(["synthetic"] if self.profile.lab else [])],
                "configs": [
                    {
                        "config_name": name,
                        "data_files": [
                            {"split": split, "path": _file(name, split)} for split in part.splits
                        ],
                        **({"default": True} if name == "questions" else {}),
                    }
                    for name, part in parts.items()
                ],
            }
        )
        return "\n\n".join((head + f"\n# {escaped(corpus.title or self.key)}", *self._body(parts)))

    def _body(self, parts: Mapping[str, _Part]) -> Iterator[str]:
        yield (
            f"The exam and the texts of the corpus `{self.key}` of the kinject profile "
            f"`{self.profile.name}`, written by kinject {__version__}."
        )
        if self.profile.lab:
            yield (
                "**All of it is synthetic**: an invented world, with articles written by a grammar "
                "and questions and paraphrases written by rule. It says nothing about real text."
            )
        rows = [
            (f"`{name}`", f"`{split}`", str(len(found)), part.says)
            for name, part in parts.items()
            for split, found in part.splits.items()
        ]
        yield "## What is in it"
        yield table(("name", "split", "rows", "a row"), rows)
        yield (
            "Ids are hashes of content: the same text has the same id in every export. Few-shot "
            "examples (`shots`) come from other articles than the questions of `test`. Questions "
            "whose text has left the corpus are not in it "
            f"({sum(row.retired for row in self.questions)})."
        )
        yield "## How it was made"
        yield self._made()
        yield "## Known limits"
        yield self._limits()
        yield "## Sources and licences"
        if self.behind:
            yield self.behind
        yield (
            f"{sources(self.as_read)}\n\n[ATTRIBUTION.md](ATTRIBUTION.md) names every article "
            "with a link to the revision that was read, and its licence. Questions and paraphrases "
            "are made from these texts, and their licence applies to what is derived from them."
            + (
                ""
                if self.generated
                else " The questions are MMLU's (Hendrycks and others, Measuring Massive Multitask "
                "Language Understanding, 2021, MIT licence)."
            )
        )

    def _made(self) -> str:
        cut = self._config("chunks")
        lines = [
            f"Articles were cut into {len(self.chunks)} chunks of at most {cut['max_tokens']} "
            f"tokens (tokenizer {code(str(cut['tokenizer']))})."
        ]
        if not self.generated:
            lines.append("The questions are those of MMLU, as published.")
        else:
            lines.append(self._written())
        if self.texts:
            writers = sorted({row.generator for row in self.texts})
            kinds = sorted({row.augmentation for row in self.texts})
            lines.append(
                f"{len(self.texts)} texts to train and validate on ({', '.join(kinds)}) were "
                f"written by {_names(writers)}; exact and near copies were turned away."
            )
        return "\n".join(f"- {line}" for line in lines)

    def _written(self) -> str:
        exams = self._config("questions")["exams"]
        turned_away = Counter(row.reason for row in self.rejections if row.kind == "question")
        generators = sorted({row.generator for row in self.questions})
        review = Reviewable.load(self.store, self.key).counts
        lines = [
            f"{_names(generators)} wrote {exams['per_chunk']} questions a chunk with "
            f"{exams['options']} options"
            + (f"; a second request kept {exams['keep']}" * (exams["keep"] < exams["per_chunk"]))
            + ".",
            f"{sum(turned_away.values())} questions were turned away, by gates or because others "
            f"were more specific: {_counted(turned_away) or 'none'}.",
            "A further request without the key verified them."
            if exams["verify"]
            else "No further request verified the key.",
            f"People looked at {sum(review.values()) - review['open']} of {sum(review.values())}: "
            f"{review['accepted']} accepted, {review['edited']} edited, {review['rejected']} "
            "rejected.",
        ]
        if self.strata:
            current = [self.strata.get(row.question_id, "") for row in self.questions]
            lines.append(
                "The models under study probed the questions (column `triage`): "
                f"{_counted(Counter(filter(None, current)))}."
            )
        return "\n- ".join(lines)

    def _limits(self) -> str:
        lines = ["Texts are as their authors wrote them at that revision: they may be wrong."]
        if self.generated:
            lines += [
                "Questions were written by a model from single passages. Gates and reviews find "
                "many bad ones and not all.",
                "A question is right by its passage; another passage may say otherwise.",
                "`triage` is the guess of the models under study, not a fact about a question.",
            ]
        if self.profile.lab:
            lines.append("It is invented, and meant to show how kinject works.")
        return "\n".join(f"- {line}" for line in lines)

    def _config(self, asset: str) -> dict[str, Any]:
        manifest = self.store.manifest(Cell(asset, (self.key,)))
        if manifest is None:
            raise MissingArtefact(f"{asset}/{self.key} has not been made yet; run `kinject run`.")
        return manifest.config


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(code, names)) or "nobody"


def _counted(counts: Mapping[str, int]) -> str:
    shown = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{number} {escaped(name)}" for name, number in shown)


def _file(name: str, split: str) -> str:
    return f"{name}/{split}.parquet"


def _write(folder: Path, name: str, part: _Part) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / name).mkdir()
    every = [row for rows in part.splits.values() for row in rows]
    schema = pa.Table.from_pylist(every).schema
    for split, rows in part.splits.items():
        # One schema for all: a column that is empty in one split has its type all the same.
        whole = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(whole, folder / _file(name, split), compression="zstd")


def export_dataset(profile: Profile, store: Store, corpus: str, out: Path) -> dict[str, int]:
    """Writes a corpus's questions, texts, chunks and articles with a dataset card.

    Args:
        profile: The experiment.
        store: Its lake.
        corpus: Key of the corpus; releases count.
        out: New folder.

    Returns:
        Rows by name.

    Raises:
        MissingArtefact: If the corpus has not been made.
        ExportError: If there is no such corpus, or something at `out` already.
    """
    known = with_releases(profile, store.lake)
    if corpus not in known.corpora:
        raise ExportError(
            f"{profile.path}: no corpus is called `{corpus}`; there are: {', '.join(known.corpora)}"
        )
    found = _Corpus.read(known, store, corpus)
    parts = found.parts()
    with new_folder(out) as folder:
        for name, part in parts.items():
            _write(folder, name, part)
        (folder / "README.md").write_text(found.card(parts) + "\n", encoding="utf-8")
        lines = [f"# Sources of `{corpus}`", found.behind, attribution(found.as_read)]
        (folder / "ATTRIBUTION.md").write_text(
            "\n\n".join(filter(None, lines)) + "\n", encoding="utf-8"
        )
    return {name: sum(map(len, part.splits.values())) for name, part in parts.items()}
