"""The figures of the study, from the database alone."""

import dagster as dg

from kinject_assets.config import REFERENCES
from kinject_assets.core.plan import CODE_VERSIONS
from kinject_assets.core.report.figures import FIGURES, Source, figure_version, write_figure
from kinject_assets.core.report.plots import draw_page
from kinject_assets.defs import checks
from kinject_assets.defs.io import image, making, one_maker
from kinject_assets.defs.policy import FIGURES_GROUP, OWNERS
from kinject_assets.defs.resources import Study
from kinject_assets.defs.results import results

SHOWN = 6
"""Pages that the metadata shows; the others are among the files."""


def _figure(name: str, description: str) -> dg.AssetsDefinition:
    """The asset of a figure: each page as PNG and SVG, its rows as Parquet and CSV."""

    @dg.asset(
        name=name,
        description=description,
        deps=[results],
        group_name=FIGURES_GROUP,
        kinds={"matplotlib", "parquet"},
        owners=OWNERS,
        code_version=CODE_VERSIONS[name],
        check_specs=checks.specs(name),
    )
    @one_maker
    def figure(context: dg.AssetExecutionContext, study: Study) -> dg.MaterializeResult:
        with making(context, study) as step:
            made = FIGURES[name](Source(study.database, study.profile, REFERENCES))
            write_figure(made, step.draft)
            row_type, rows = made.tables[name]
            return step.finish(
                figure_version(made),
                rows=rows,
                row_type=row_type,
                counts={"pages": len(made.pages)},
                metadata={
                    **{
                        page.name.removeprefix(f"{name}.") or name: image(
                            draw_page(page), page.caption
                        )
                        for page in made.pages[:SHOWN]
                    },
                    **(
                        {"missing": dg.MetadataValue.md("\n\n".join(map(str, made.missing)))}
                        if made.missing
                        else {}
                    ),
                },
                checks=checks.figure(made, step.draft),
                libraries=("matplotlib",),
            )

    return figure


figure_paraphrases = _figure(
    "figure_paraphrases",
    "Accuracy by number of texts a chunk (paraphrases, and the augmentation plug-ins), each curve "
    "beside its step-matched control, with base and RAG as lines: do more texts help beyond more "
    "steps?",
)
figure_training_loss = _figure(
    "figure_training_loss",
    "Training and validation loss by epoch of every learning-rate trial, the one that was kept in "
    "bold.",
)
figure_k = _figure(
    "figure_k",
    "Accuracy by K, the retrieved chunks in front of the question, with the K that cross-fitting "
    "chooses, the best one on the test score, and the gap between the two rules.",
)
figure_rag_errors = _figure(
    "figure_rag_errors",
    "Answers with retrieved text by whether the right chunk was retrieved: what retrieval did not "
    "find, and what the model did not use. Beside them, recall by K of each retriever.",
)
