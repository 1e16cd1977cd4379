"""Articles and chunks: what the models do not know, in passages."""

import dagster as dg

from kinject_assets.core.corpus.chunking import chunk_articles, token_counter
from kinject_assets.core.corpus.kept import KeptTexts
from kinject_assets.core.corpus.sources import fetch_articles
from kinject_assets.core.plan import CODE_VERSIONS, now
from kinject_assets.core.report.plots import histogram
from kinject_assets.core.schema import Article, Chunk, Exclusion, logical_version
from kinject_assets.defs import checks
from kinject_assets.defs.io import image, making, preview
from kinject_assets.defs.launch import FetchSettings
from kinject_assets.defs.partitions import CORPUS
from kinject_assets.defs.policy import CORPUS_GROUP, OWNERS
from kinject_assets.defs.resources import Study


@dg.asset(
    partitions_def=CORPUS,
    group_name=CORPUS_GROUP,
    kinds={"python", "parquet"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["articles"],
    check_specs=checks.specs("articles"),
    pool="wiki",
)
def articles(
    context: dg.AssetExecutionContext, config: FetchSettings, study: Study
) -> dg.MaterializeResult:
    """The articles of a corpus at one revision each, as plain text by section.

    Read from a wiki (categories, titles, months of current events) or a folder of files. Pages that
    were listed and left out are kept with the reason. Materialise again to look for new revisions:
    only pages that changed are fetched.
    """
    with making(context, study) as step:
        profile = study.profile
        if config.fetch_all:
            KeptTexts.forget(step.work)
        fetched = fetch_articles(
            profile.corpora[step.cell.parts[0]],
            wikis=study.wikis(),
            cleaning=profile.cleaning,
            contact=profile.contact,
            now=now(profile),
            base_folder=profile.folder,
            previous=[]
            if config.fetch_all
            else step.previous_rows("articles", Article, decided_by="cleaning"),
            work=step.work,
            report=step.report,
        )
        rows = fetched.articles
        step.write("articles", rows, Article)
        step.write("exclusions", fetched.exclusions, Exclusion)
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
            checks=checks.articles(rows),
            libraries=("mwparserfromhell", "httpx"),
        )


@dg.asset(
    deps=[articles],
    partitions_def=CORPUS,
    group_name=CORPUS_GROUP,
    kinds={"python", "parquet"},
    owners=OWNERS,
    code_version=CODE_VERSIONS["chunks"],
    check_specs=checks.specs("chunks"),
)
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
        return step.finish(
            logical_version(rows),
            rows=rows,
            row_type=Chunk,
            counts={
                "chunks": len(rows),
                "small": sum(row.small for row in rows),
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
