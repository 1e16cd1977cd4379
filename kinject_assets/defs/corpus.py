"""Articles and chunks: what the models do not know, in passages."""

from collections.abc import Collection

import dagster as dg

from kinject_assets.config import WikiEvents
from kinject_assets.core.corpus.chunking import chunk_articles, token_counter
from kinject_assets.core.corpus.kept import KeptTexts
from kinject_assets.core.corpus.releases import Release, freeze_closed, is_rolling, verify
from kinject_assets.core.corpus.sources import Before, fetch_articles, month_of
from kinject_assets.core.exams.novelty import novelty
from kinject_assets.core.plan import CODE_VERSIONS, now
from kinject_assets.core.report.plots import histogram
from kinject_assets.core.schema import Article, Chunk, Exclusion, Listed, logical_version
from kinject_assets.defs import checks
from kinject_assets.defs.io import Step, image, making, one_maker, preview
from kinject_assets.defs.launch import FetchSettings
from kinject_assets.defs.partitions import CORPUS, PROFILE, add_corpus_keys
from kinject_assets.defs.policy import CORPUS_GROUP, OWNERS
from kinject_assets.defs.resources import Study

READ_IN = "read_in"
"""Count of an articles manifest: the month, by the profile's clock, in which it was read."""


@dg.asset(
    partitions_def=CORPUS,
    group_name=CORPUS_GROUP,
    kinds={"python", "parquet"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["articles"],
    check_specs=checks.specs("articles"),
    pool="wiki",
)
@one_maker
def articles(
    context: dg.AssetExecutionContext, config: FetchSettings, study: Study
) -> dg.MaterializeResult:
    """The articles of a corpus at one revision each, as plain text by section.

    Read from a wiki (categories, titles, months of current events) or a folder of files. Pages that
    were listed and left out are kept with the reason. Materialise again to look for new revisions:
    only pages that changed are fetched. A rolling window of current events looks at its last months
    alone, and freezes a month that has closed as a release: a corpus of its own.
    """
    with making(context, study) as step:
        profile = study.profile
        corpus = step.cell.parts[0]
        source = profile.corpora[corpus].source
        clock = now(profile)
        if config.fetch_all:
            KeptTexts.forget(step.work)
        verify(study.store.lake, corpus)
        before = _before(step)
        if config.fetch_all:
            # Which month was open is no text: a month that has closed is frozen all the same.
            before = Before(month=before.month)
        fetched = fetch_articles(
            profile.corpora[corpus],
            wikis=study.wikis(),
            cleaning=profile.cleaning,
            contact=profile.contact,
            now=clock,
            base_folder=profile.folder,
            before=before,
            work=step.work,
            report=step.report,
        )
        rows = fetched.articles
        step.write("articles", rows, Article)
        step.write("exclusions", fetched.exclusions, Exclusion)
        step.write("listed", fetched.listed, Listed)
        step.write("left", fetched.left, Article)
        releases: list[Release] = []
        if isinstance(source, WikiEvents) and is_rolling(profile.corpora[corpus]):
            # Before the new version is published: a crash in between freezes nothing twice.
            releases = freeze_closed(
                study.store.lake,
                corpus,
                source,
                fetched.listed,
                open_before=before.month,
                now=clock,
                taken=PROFILE.corpora,
            )
            add_corpus_keys(context.instance)
        return step.finish(
            logical_version(rows),
            rows=rows,
            row_type=Article,
            counts={
                "articles": len(rows),
                "characters": sum(row.n_chars for row in rows),
                "excluded": len(fetched.exclusions),
                "requests": fetched.requests,
                "bodies_fetched": fetched.bodies,
                READ_IN: month_of(clock),
                **({"months_visited": ", ".join(fetched.visited)} if fetched.listed else {}),
                **({"frozen": ", ".join(r.key for r in releases)} if releases else {}),
            },
            metadata={
                "lengths": image(
                    histogram(
                        [row.n_chars for row in rows],
                        x_label="characters",
                        y_label="articles",
                        title="Length of the articles",
                    ),
                    "lengths of the articles",
                ),
                **({"excluded_pages": preview(fetched.exclusions)} if fetched.exclusions else {}),
            },
            checks=checks.articles(
                rows, novelty(profile, corpus, study.plan.models(corpus), clock)
            ),
            libraries=("mwparserfromhell", "httpx"),
        )


def _before(step: Step) -> Before:
    """What is known of a corpus from its last version, and from corpora that share its pages."""
    known = step.previous_manifest()
    own = [
        row
        for name in ("articles", "left")
        for row in step.previous_rows(name, Article, "cleaning")
    ]
    listed = step.previous_rows("listed", Listed, "source", "api_url", "lab")
    shared = [
        row
        for cell in ([] if own else step.family())
        for name in ("articles", "left")
        for row in step.previous_rows(name, Article, "cleaning", of=cell)
    ]
    return Before(
        articles=own or shared,
        listed=listed,
        month=str(known.counts.get(READ_IN, "")) if known else "",
    )


def _retired(step: Step, there: Collection[str]) -> list[Chunk]:
    """Earlier chunks that are not there any more: retired questions were written from them.

    However they were cut: they are a record, and nothing is made from them again.
    """
    rows = [row for name in ("chunks", "retired") for row in step.rows_before(name, Chunk)]
    return [row for row in rows if row.chunk_id not in there]


@dg.asset(
    deps=[articles],
    partitions_def=CORPUS,
    group_name=CORPUS_GROUP,
    kinds={"python", "parquet"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["chunks"],
    check_specs=checks.specs("chunks"),
)
@one_maker
def chunks(context: dg.AssetExecutionContext, study: Study) -> dg.MaterializeResult:
    """Passages of the articles: the unit of retrieval, of question writing and of paraphrasing.

    Cut by section and sentence up to a token budget. Ids come from content, so that unchanged text
    keeps its questions, paraphrases and vectors when the corpus changes.
    """
    with making(context, study) as step:
        settings = study.profile.chunking
        rows = chunk_articles(
            step.rows("articles", Article),
            settings,
            token_counter(study.located(settings.tokenizer)),
        )
        step.write("chunks", rows, Chunk)
        there = {row.chunk_id for row in rows}
        known = {row.chunk_id for row in step.rows_before("chunks", Chunk)}
        step.write("retired", _retired(step, there), Chunk)
        return step.finish(
            logical_version(rows),
            rows=rows,
            row_type=Chunk,
            counts={
                "chunks": len(rows),
                "small": sum(row.small for row in rows),
                "new": len(there - known),
                "gone": len(known - there),
                "tokens": sum(row.n_tokens for row in rows),
            },
            metadata={
                "lengths": image(
                    histogram(
                        [row.n_tokens for row in rows],
                        x_label="tokens",
                        y_label="chunks",
                        title="Length of the chunks",
                        limit=settings.max_tokens,
                    ),
                    "lengths of the chunks",
                )
            },
            checks=checks.chunks(rows, settings),
            libraries=("transformers", "tokenizers"),
        )
