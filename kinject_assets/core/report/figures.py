"""The figures of the study: their rows, their pages, and what a study lacks for them.

Each is a pure function of the results database, read-only; the profile says what was asked for, so
that a figure that lacks something can name the lines that would add it. Assets, report and command
line draw the same pages.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from kinject_assets.config import Profile, RecipeSpec
from kinject_assets.core.augmentation.registry import PARAPHRASE, PLUGINS
from kinject_assets.core.errors import KinjectError
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.plan import CODE_VERSIONS, SPEED_ALONE
from kinject_assets.core.report.plots import (
    Curve,
    CurvePanel,
    LossPanel,
    Page,
    Panel,
    Point,
    StackPanel,
    draw_page,
)
from kinject_assets.core.results.tables import Result, fetch, render
from kinject_assets.core.statistics.published import published
from kinject_assets.core.store import Cell, Store, write_rows

Row = TypeVar("Row")

PANELS = 6
"""Panels of one page; more go to a next page."""

STACKS = 4
"""The same for bars, which are as wide as the page."""

CURVES = 6
"""Curves of one panel; more go to a next panel."""

SYSTEMS = 4
"""The same where each curve, or group of bars, is a method of its own."""

_CHOSEN = """
    WITH asked AS (
        SELECT DISTINCT choice_format, rotation, chat_template FROM scores WHERE main
        UNION ALL SELECT ?, ?, ? WHERE NOT EXISTS (FROM scores WHERE main)
    ), queries AS (
        SELECT DISTINCT query FROM scores WHERE main AND k > 0
        UNION ALL SELECT ? WHERE NOT EXISTS (FROM scores WHERE main AND k > 0)
    ), chosen AS (
        SELECT s.*, regexp_replace(s.recipe, '[.]s[0-9]+$', '') AS seedless
        FROM scores s JOIN asked USING (choice_format, rotation, chat_template)
        WHERE s.stratum = 'all' AND (s.k = 0 OR s.query IN (FROM queries))
    )"""
"""Scores as the profile asks for them, of every recipe, seed and retriever.

A study without any `main` row, e.g. of other seeds than 0 alone, is read by the profile itself.
"""

_LOWEST_SEED = (
    "recipe = arg_min(recipe, (seed, recipe)) OVER (PARTITION BY corpus, model, shots, seedless)"
)
"""The lowest seed that there is of a recipe, among the rows that are asked."""

_VARIANT = "regexp_matches(seedless, '^[a-z]+[.][pr][0-9]+[.]')"
"""The recipe is a variant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParaphrasePoint:
    """Accuracy of a fine-tuned model, without retrieval, by what it was trained on.

    Attributes:
        recipe: Without its seed.
        augmentation: Who wrote the texts that were trained on; for a control those of its recipe.
        n: Texts a chunk beside the original; for a control those of its recipe.
        control: The original alone was repeated to the same steps and tokens.
        questions: How many were answered.
        accuracy: Mean over seeds where there are several.
        ci_low: Lower end of the 95 % interval.
        ci_high: Upper end.
        by_seed: Accuracy of each seed; empty for one seed.
        chance: Accuracy of guessing.
    """

    corpus: str
    model: str
    shots: int
    recipe: str
    augmentation: str
    n: int
    control: bool
    questions: int
    accuracy: float
    ci_low: float
    ci_high: float
    by_seed: list[float]
    chance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """An epoch of a learning-rate trial.

    Attributes:
        training_loss: Mean nats per token over the epoch.
        validation_loss: Mean nats per token on validation paraphrases, after the epoch.
        kept: The checkpoint holds the weights of this epoch.
        best_trial: The epoch that was kept is of this trial.
    """

    corpus: str
    model: str
    recipe: str
    trial: int
    learning_rate: float
    epoch: int
    training_loss: float
    validation_loss: float | None
    kept: bool
    best_trial: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KPoint:
    """Accuracy with K retrieved chunks in front of the question.

    Attributes:
        method: `rag`, `ft_rag`, or `published`: what the study printed for RAG.
        k: 0 is the same model without retrieval.
        questions: How many were answered; `None` where it was published without.
        ci_low: Lower end of the 95 % interval; `None` likewise.
        ci_high: Upper end.
        cross_fitted: The K that most folds chose on the questions of all others.
        test_best: The K that is best on the very questions that are scored.
        gap: What the rule of the best K on the test score adds over cross-fitting, in accuracy.
        chance: Accuracy of guessing.
    """

    corpus: str
    model: str
    shots: int
    method: str
    recipe: str
    retriever: str
    k: int
    questions: int | None
    accuracy: float
    ci_low: float | None
    ci_high: float | None
    cross_fitted: bool
    test_best: bool
    gap: float | None
    chance: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCounts:
    """Questions by whether the chunk they were written from was retrieved, and answered right.

    Attributes:
        n: Questions that name the chunk that they were written from.
        hit_right: Retrieved, and right.
        miss_right: Not retrieved, and right all the same.
        hit_wrong: Retrieved, and wrong: the model did not use it.
        miss_wrong: Not retrieved, and wrong.
    """

    corpus: str
    model: str
    shots: int
    method: str
    recipe: str
    retriever: str
    k: int
    n: int
    hit_right: int
    miss_right: int
    hit_wrong: int
    miss_wrong: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallPoint:
    """How often the chunk that a question was written from is among the first K.

    Attributes:
        recall: Share of the questions.
        ci_low: Lower end of its 95 % interval.
        ci_high: Upper end.
        mrr: Mean of 1 / rank, 0 where it is not among the first K.
    """

    corpus: str
    retriever: str
    k: int
    n: int
    recall: float
    ci_low: float
    ci_high: float
    mrr: float


@dataclass(frozen=True)
class Missing:
    """What a study lacks for a figure.

    Attributes:
        what: In a sentence.
        lines: Of the profile, which would add it; none where they are there or would not help.
    """

    what: str
    lines: tuple[str, ...] = ()

    def note(self) -> tuple[str, ...]:
        """For the foot of a page."""
        return (self.what, *(f"    {line}" for line in self.lines))

    def __str__(self) -> str:
        return self.what + ("\n\n```yaml\n" + "\n".join(self.lines) + "\n```" if self.lines else "")


@dataclass(frozen=True)
class StudyFigure:
    """A figure of the study.

    Attributes:
        name: Of its asset.
        title: What it shows.
        tables: Name of a file -> class of its rows and the rows.
        pages: At least one: without any row, one that says what is missing.
        missing: What the study lacks.
    """

    name: str
    title: str
    tables: Mapping[str, tuple[type, Sequence[Any]]]
    pages: tuple[Page, ...]
    missing: tuple[Missing, ...]

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(len(rows) for _, rows in self.tables.values())


@dataclass(frozen=True)
class Source:
    """What figures are made from.

    Attributes:
        database: `results.duckdb`.
        profile: What was asked for.
        references: Folder of the published tables; `None` leaves them out.
    """

    database: Path
    profile: Profile
    references: Path | None = None

    def rows(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        """Rows of one statement."""
        return fetch(self.database, sql, parameters).dicts()

    def chosen(self, sql: str) -> list[dict[str, Any]]:
        """Rows of one statement that reads `chosen`; it begins as what follows `WITH ...` does."""
        scoring = self.profile.scoring
        return self.rows(
            _CHOSEN + sql,
            scoring.choice_format,
            scoring.rotation,
            scoring.chat_template,
            self.profile.retrieval.query,
        )


def study_figures(
    database: Path, profile: Profile, references: Path | None = None
) -> Iterator[StudyFigure]:
    """Every figure of the study.

    Args:
        database: `results.duckdb`.
        profile: What was asked for.
        references: Folder of the published tables, for the curves beside one's own.

    Raises:
        MissingArtefact: If there is no database.
    """
    source = Source(database, profile, references)
    for make in FIGURES.values():
        yield make(source)


def write_figure(figure: StudyFigure, folder: Path) -> list[Path]:
    """Writes each page as PNG and SVG, and each table as Parquet and CSV.

    Files of the same figure that an earlier call left are removed, e.g. pages that are gone.

    Returns:
        What was written; names begin with the figure's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for page in figure.pages:
        for ending in ("png", "svg"):
            path = folder / f"{page.name}.{ending}"
            path.write_bytes(draw_page(page, ending))
            written.append(path)
    for name, (row_type, rows) in figure.tables.items():
        path = folder / f"{name}.parquet"
        write_rows(path, rows, row_type)
        columns = tuple(field.name for field in fields(row_type))
        found = Result(columns, [tuple(asdict(row).values()) for row in rows])
        text = path.with_suffix(".csv")
        text.write_text(render(found, "csv") + "\n", encoding="utf-8")
        written += [path, text]
    # Afterwards, so that a figure that cannot be drawn leaves the earlier one whole.
    for path in set(folder.glob(f"{figure.name}.*")) - set(written):
        if path.suffix in {".png", ".svg", ".parquet", ".csv"} and path.is_file():
            path.unlink()
    return written


def figure_version(figure: StudyFigure) -> str:
    """Hash of what a figure shows: its rows and its pages."""
    return content_hash(
        [asdict(row) for _, table in figure.tables.values() for row in table],
        [asdict(page) for page in figure.pages],
    )


def drawn_before(figure: StudyFigure, store: Store) -> dict[str, bytes]:
    """Page -> PNG, as the figure's asset drew it; empty unless it shows the very same."""
    cell = Cell(figure.name)
    try:
        made = store.manifest(cell)
        if (
            made is None
            or made.code_version != CODE_VERSIONS.get(figure.name)
            or made.logical_version != figure_version(figure)
        ):
            return {}
        return {
            page.name: store.path(cell, f"{page.name}.png").read_bytes() for page in figure.pages
        }
    except (KinjectError, OSError):
        # What is gone or damaged is drawn again here; the audit names it.
        return {}


# --- what a figure lacks


def _asked(profile: Profile, wanted: Callable[[str], bool]) -> bool:
    """Whether the grid asks for a recipe like this."""
    return any(wanted(recipe) for cells in profile.grid for recipe in cells.recipes)


_SCORED = " SELECT DISTINCT corpus, model, method, recipe FROM chosen"


def _to_come(
    source: Source, methods: Collection[str], wanted: Callable[[str], bool] = lambda _: True
) -> bool:
    """Whether the grid asks for a score that is not there yet, so that a run would make it.

    Args:
        source: The scores, and the grid.
        methods: Any of these.
        wanted: Of a recipe like this; for methods that train.
    """
    scored = {tuple(row.values()) for row in source.chosen(_SCORED)}
    return any(
        (corpus, model, method, recipe) not in scored
        for cells in source.profile.grid
        for corpus, model, method in product(cells.corpora, cells.models, cells.methods)
        if method in methods
        for recipe in (cells.recipes if method in {"ft", "ft_rag"} else ("",))
        if not recipe or wanted(recipe)
    )


def _lines(profile: Profile, recipes: Mapping[str, str], methods: str) -> tuple[str, ...]:
    """Lines that ask for recipes, each with its settings, or for methods.

    They name the corpus of new facts and the first model: where the study asks the question.
    """
    corpora = sorted(profile.corpora, key=lambda key: -profile.corpora[key].table)
    new = {name: settings for name, settings in recipes.items() if name not in profile.recipes}
    each = ", ".join(f"{name}: {settings}".rstrip() for name, settings in new.items())
    cells = [f"corpora: [{corpora[0]}]", f"models: [{next(iter(profile.models))}]"]
    if methods:
        cells.append(f"methods: [{methods}]")
    if recipes:
        cells.append(f"recipes: [{', '.join(recipes)}]")
    found = ("grid:", f"  - {{{', '.join(cells)}}}")
    return (f"recipes: {{{each}}}", *found) if new else found


def _lack(
    profile: Profile, what: str, asked: bool, recipes: Mapping[str, str], methods: str = ""
) -> Missing:
    """Something that is not there: not asked for, or asked for and not made yet.

    Args:
        profile: What was asked for.
        what: In a sentence.
        asked: Whether the profile asks for it, and it is not made yet.
        recipes: Recipes that would add it, with the settings of each.
        methods: Methods that would add it.
    """
    if asked:
        return Missing(f"{what} The profile asks for it: `kinject run` makes it.")
    return Missing(f"{what} In the profile it needs:", _lines(profile, recipes, methods))


def _empty(name: str, title: str, missing: Sequence[Missing]) -> Page:
    """A page that says why there is nothing to draw."""
    return Page(
        name=name,
        title=f"{title}: nothing to draw yet",
        caption=f"{title}: " + " ".join(m.what for m in missing),
        notes=tuple(line for m in missing for line in m.note()),
    )


def _pages(
    name: str,
    title: str,
    caption: str,
    panels: Mapping[str, Sequence[Panel]],
    missing: Sequence[Missing],
    *,
    size: int = PANELS,
    columns: int = 2,
) -> tuple[Page, ...]:
    """A page for each corpus, or more; the first one has the notes.

    Args:
        name: Of the figure.
        title: Of the figure.
        caption: What a page shows, with `{corpus}` in it.
        panels: Corpus -> its panels.
        missing: What is said at the foot of the first page.
        size: Panels of a page.
        columns: Panels side by side.
    """
    found: list[Page] = []
    for corpus, mine in panels.items():
        for number, start in enumerate(range(0, len(mine), size), 1):
            more = f" ({number})" if number > 1 else ""
            found.append(
                Page(
                    name=f"{name}.{corpus}" + (f".{number}" if number > 1 else ""),
                    title=f"{title}: {corpus}{more}",
                    caption=caption.format(corpus=corpus) + more,
                    panels=tuple(mine[start : start + size]),
                    columns=columns,
                )
            )
    if not found:
        return (_empty(name, title, missing),)
    notes = tuple(line for m in missing for line in m.note())
    return (replace(found[0], notes=notes), *found[1:])


def _split(items: Sequence[Row], most: int) -> list[Sequence[Row]]:
    """Items in parts of about the same length, none longer than `most`."""
    size = math.ceil(len(items) / math.ceil(len(items) / most)) if items else most
    return [items[start : start + size] for start in range(0, len(items), size)]


def _grouped(rows: Iterable[Any], *names: str) -> dict[tuple[Any, ...], list[Any]]:
    """Rows by the values of some columns, in the order in which they come."""
    found: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for row in rows:
        found[tuple(getattr(row, name) for name in names)].append(row)
    return found


def _chance(values: Iterable[float | None]) -> float | None:
    """The accuracy of guessing, where it is one."""
    found = {value for value in values if value is not None}
    return found.pop() if len(found) == 1 else None


# --- accuracy by number of paraphrases

_PARAPHRASES = f"""
    , written AS (
        SELECT DISTINCT corpus, model, recipe, augmentation FROM checkpoints
    ), closed AS (
        SELECT * FROM chosen
        WHERE method = 'ft' AND k_rule = 'fixed' AND accuracy IS NOT NULL
        QUALIFY {_LOWEST_SEED}
    )
    SELECT c.corpus, c.model, c.shots, c.recipe, c.seedless, c.n, c.accuracy, c.ci_low, c.ci_high,
        c.chance, w.augmentation, p.accuracy AS mean, p.ci_low AS mean_low,
        p.ci_high AS mean_high, p.accuracies
    FROM closed c LEFT JOIN written w USING (corpus, model, recipe)
        LEFT JOIN pooled p ON p.k_rule = c.k_rule AND p.stratum = c.stratum
            AND p.method = c.method AND p.recipe = c.seedless AND p.corpus = c.corpus
            AND p.model = c.model AND p.shots = c.shots AND p.choice_format = c.choice_format
            AND p.rotation = c.rotation AND p.engine = c.engine AND p.bos = c.bos
            AND p.chat_template = c.chat_template
    ORDER BY c.corpus, c.model, c.shots, c.seedless
"""

_LEVELS = """
    SELECT corpus, model, shots, method, k, accuracy FROM scores
    WHERE main AND stratum = 'all' AND k_rule = 'cross_fitted' AND method IN ('base', 'rag')
        AND accuracy IS NOT NULL
    ORDER BY corpus, model, shots, method
"""

_BEYOND_STEPS = f"""
    , compared AS (
        SELECT a.corpus, a.model, a.shots, a.recipe, a.seedless, a.seed, b.seedless AS control,
            c.difference, c.ci_low, c.ci_high, c.verdict
        FROM comparisons c
            JOIN (SELECT * FROM chosen WHERE method = 'ft' AND k_rule = 'fixed') a
                ON a.condition_id = c.condition_a
            JOIN (SELECT * FROM chosen WHERE method = 'ft' AND k_rule = 'fixed') b
                ON b.condition_id = c.condition_b
        WHERE c.stratum = 'all' AND c.family IN ('par_vs_control', 'aug_vs_control')
    )
    SELECT * FROM compared QUALIFY {_LOWEST_SEED}
    ORDER BY corpus, model, shots, seedless
"""

PARAPHRASES = "figure_paraphrases"


def paraphrases(source: Source) -> StudyFigure:
    """Accuracy by number of texts a chunk, each curve beside its step-matched control."""
    title = "More texts, or only more steps? Accuracy by texts a chunk"
    scored = source.chosen(_PARAPHRASES)
    rows = [_paraphrase_point(row) for row in scored]
    trained = {row["seedless"]: row["recipe"] for row in scored}
    levels = defaultdict(list)
    for row in source.rows(_LEVELS):
        name = "base" if row["method"] == "base" else "base + RAG, K cross-fitted"
        levels[row["corpus"], row["model"], row["shots"]].append((name, row["accuracy"]))
    verdicts = defaultdict(list)
    pooled = {(r.corpus, r.model, r.shots, r.recipe) for r in rows if r.by_seed}
    for row in source.chosen(_BEYOND_STEPS):
        key = row["corpus"], row["model"], row["shots"]
        # The curves are means over seeds; what is compared is one seed with the same one.
        mean = {(*key, row["seedless"]), (*key, row["control"])} & pooled
        verdicts[key].append(
            f"{row['seedless']} - {row['control']}"
            + (f" (seed {row['seed']} alone)" if mean else "")
            + f": {row['difference']:+.3f} "
            f"[{row['ci_low']:+.3f}, {row['ci_high']:+.3f}], {row['verdict']}"
        )
    names = _families(rows)
    panels: dict[str, list[Panel]] = defaultdict(list)
    drawn: set[str] = set()
    for (corpus, model, shots), mine in _grouped(rows, "corpus", "model", "shots").items():
        curves = _paraphrase_curves(source.profile, mine, names, trained)
        if all(len(curve.points) < 2 for curve in curves):
            continue
        drawn |= {point.recipe for point in mine}
        for number, shown in enumerate(_split(curves, CURVES)):
            panels[corpus].append(
                CurvePanel(
                    title=f"{model}, {shots}-shot, {mine[0].questions} questions",
                    x_label="texts a chunk beside the original",
                    curves=tuple(shown),
                    levels=tuple(levels[corpus, model, shots]),
                    chance=_chance(point.chance for point in mine),
                    lines=() if number else tuple(verdicts[corpus, model, shots]),
                    shaded=True,
                )
            )
    missing = _paraphrases_missing(source, rows, bool(panels), levels)
    caption = (
        "Accuracy on {corpus} by texts a chunk. The control (dashed) repeats the same text for as "
        "many steps and tokens: the tinted area is what the texts bring beyond more steps. Below "
        "each panel: recipe minus control with Tango's 95 % interval and the verdict of McNemar's "
        "test after Holm's adjustment. Of several seeds a curve is the mean; a line compares one "
        "alone, seed 0 where there is one, with the control of the same seed."
    )
    return StudyFigure(
        PARAPHRASES,
        title,
        {PARAPHRASES: (ParaphrasePoint, rows)},
        _pages(PARAPHRASES, title, caption, panels, missing),
        missing,
    )


def _paraphrase_point(row: Mapping[str, Any]) -> ParaphrasePoint:
    spec = RecipeSpec.parse(row["seedless"])
    several = row["mean"] is not None
    return ParaphrasePoint(
        corpus=row["corpus"],
        model=row["model"],
        shots=row["shots"],
        recipe=row["seedless"],
        augmentation=row["augmentation"] or "",
        n=spec.n_paraphrases,
        control=spec.control_of is not None,
        questions=row["n"],
        accuracy=row["mean"] if several else row["accuracy"],
        ci_low=row["mean_low"] if several else row["ci_low"],
        ci_high=row["mean_high"] if several else row["ci_high"],
        by_seed=row["accuracies"] if several else [],
        chance=row["chance"],
    )


def _families(rows: Sequence[ParaphrasePoint]) -> dict[tuple[str, str], str]:
    """Method of training and variant -> what its texts are, for every curve of the figure."""
    methods = {RecipeSpec.parse(row.recipe).method for row in rows if row.n}
    texts: dict[tuple[str, str], str] = {}
    for row in rows:
        spec = RecipeSpec.parse(row.recipe)
        if row.n and not spec.control_of:
            written = "" if row.augmentation == PARAPHRASE else row.augmentation
            texts[spec.method, spec.variant] = written or "paraphrases"
    times = Counter((method, name) for (method, _), name in texts.items())
    found: dict[tuple[str, str], str] = {}
    for (method, variant), name in sorted(texts.items(), key=lambda item: item[0][::-1]):
        # A variant's name says nothing that the augmentation does not, unless it has settings.
        own = name == "paraphrases" or times[method, name] > 1
        parts = [name, variant if own else "", method if len(methods) > 1 else ""]
        found[method, variant] = ", ".join(part for part in parts if part)
    return found


def _paraphrase_curves(
    profile: Profile,
    rows: Sequence[ParaphrasePoint],
    names: Mapping[tuple[str, str], str],
    trained: Mapping[str, str],
) -> list[Curve]:
    """A curve of each family, and one of its controls; both begin at the text alone.

    Args:
        profile: The recipes' settings.
        rows: Of one panel.
        names: Of the families.
        trained: Recipe without its seed -> the profile's, with the seed.
    """
    by_kind: dict[tuple[str, str, bool], list[ParaphrasePoint]] = defaultdict(list)
    for row in rows:
        spec = RecipeSpec.parse(row.recipe)
        by_kind[spec.method, spec.variant, row.control].append(row)
    found: list[Curve] = []
    for style, ((method, variant), name) in enumerate(names.items()):
        texts = by_kind.get((method, variant, False), [])
        start = [row for row in texts if not row.n]
        if not start and _differs_in_texts_alone(profile, [trained[t.recipe] for t in texts]):
            start = [row for row in by_kind.get((method, "", False), []) if not row.n]
        for control in (False, True):
            mine = [row for row in by_kind.get((method, variant, control), []) if row.n]
            if mine:
                mine = sorted([*start, *mine], key=lambda row: row.n)
                found.append(
                    Curve(
                        name=f"as many steps, no texts: control of {name}" if control else name,
                        points=tuple(
                            (row.n, Point(row.accuracy, row.ci_low, row.ci_high)) for row in mine
                        ),
                        style=style,
                        twin=control,
                        faint=tuple((row.n, value) for row in mine for value in row.by_seed),
                    )
                )
    return found


def _differs_in_texts_alone(profile: Profile, recipes: Iterable[str]) -> bool:
    """Whether recipes of a variant are trained as the plain ones are, but for what they read."""
    plain = profile.training.model_dump(exclude={*SPEED_ALONE})
    return all(
        recipe in profile.recipes
        and profile.recipe_training(recipe).model_dump(exclude={*SPEED_ALONE}) == plain
        for recipe in recipes
    )


def _paraphrases_missing(
    source: Source, rows: Sequence[ParaphrasePoint], drawn: bool, levels: Mapping[Any, Any]
) -> tuple[Missing, ...]:
    profile = source.profile
    found: list[Missing] = []
    specs = {row.recipe: RecipeSpec.parse(row.recipe) for row in rows}
    most = max((s.n_paraphrases for s in specs.values()), default=0) or 4
    method = min((s.method for s in specs.values()), default="full")
    texts, control = f"{method}.p{most:02d}", f"{method}.r{most:02d}"
    if not drawn:
        texts_asked = _asked(profile, lambda name: RecipeSpec.parse(name).n_paraphrases > 0)
        asked = texts_asked and _to_come(source, {"ft"})
        recipes = {f"{method}.p00": "", texts: "", control: ""}
        found.append(
            _lack(
                profile,
                "No model was scored that was trained with two numbers of texts a chunk.",
                asked,
                recipes,
            )
        )
    if drawn and not any(row.control for row in rows):
        asked = _to_come(source, {"ft"}, lambda r: RecipeSpec.parse(r).control_of is not None)
        found.append(
            _lack(
                profile,
                "No control: whether texts help beyond more steps cannot be seen.",
                asked,
                # A control is asked for together with its recipe.
                {texts: "", control: ""},
            )
        )
    there = {row.augmentation for row in rows}
    others = [name for name in PLUGINS if name != PARAPHRASE and name not in there]
    if drawn and others:
        variants = {
            f"{texts}.{name.replace('_', '-')}": f"{{augmentation: {name}}}" for name in others
        }
        asked = _to_come(source, {"ft"}, lambda r: profile.recipe_augmentation(r) in others)
        what = f"No curve for the texts of {' and '.join(others)}."
        found.append(_lack(profile, what, asked, variants))
    there = {name for found_levels in levels.values() for name, _ in found_levels}
    absent = [
        m for m, n in (("base", "base"), ("rag", "base + RAG, K cross-fitted")) if n not in there
    ]
    if drawn and absent:
        asked = all(_to_come(source, {m}) for m in absent)
        what = f"No line for {' and '.join(absent)}."
        found.append(_lack(profile, what, asked, {}, ", ".join(absent)))
    return tuple(found)


# --- loss by epoch

_LOSSES = """
    SELECT c.corpus, c.model, c.recipe, t.trial, t.learning_rate, t.epoch, t.training_loss,
        t.validation_loss, t.kept,
        bool_or(t.kept) OVER (PARTITION BY t.checkpoint_id, t.trial) AS best_trial
    FROM trials t JOIN checkpoints c USING (checkpoint_id)
    ORDER BY c.corpus, c.model, c.recipe, t.trial, t.epoch
"""

TRAINING_LOSS = "figure_training_loss"


def training_loss(source: Source) -> StudyFigure:
    """Training and validation loss by epoch of every trial, the kept one bold."""
    title = "Loss by epoch"
    rows = [LossPoint(**row) for row in source.rows(_LOSSES)]
    panels: dict[str, list[Panel]] = defaultdict(list)
    for (corpus, model, recipe), mine in _grouped(rows, "corpus", "model", "recipe").items():
        trials = list(_grouped(mine, "trial").values())
        kept = next((row for row in mine if row.kept), None)
        panels[corpus].append(
            LossPanel(
                title=f"{model}, {recipe}",
                training=tuple(
                    tuple((row.epoch, row.training_loss) for row in trial) for trial in trials
                ),
                validation=tuple(
                    tuple(
                        (row.epoch, row.validation_loss)
                        for row in trial
                        if row.validation_loss is not None
                    )
                    for trial in trials
                ),
                kept=next((i for i, trial in enumerate(trials) if trial[0].best_trial), None),
                epoch=kept.epoch if kept else None,
                lines=_kept_lines(kept, trials),
            )
        )
    missing: tuple[Missing, ...] = ()
    if not rows:
        asked = _asked(source.profile, bool)
        recipes = {"full.p00": ""}
        missing = (_lack(source.profile, "No model was trained.", asked, recipes),)
    caption = (
        "Loss by epoch on {corpus}: on the pieces trained on, and on validation paraphrases that "
        "are used for nothing else. The trial that was kept is bold, the others are thin; "
        "one that ran away leaves the panel."
    )
    return StudyFigure(
        TRAINING_LOSS,
        title,
        {TRAINING_LOSS: (LossPoint, rows)},
        _pages(TRAINING_LOSS, title, caption, panels, missing),
        missing,
    )


def _kept_lines(kept: LossPoint | None, trials: Sequence[Sequence[LossPoint]]) -> tuple[str, ...]:
    if kept is None:
        return ()
    tried = ", ".join(sorted({f"{trial[0].learning_rate:g}" for trial in trials}, key=float))
    return (f"kept: learning rate {kept.learning_rate:g} (tried: {tried}), epoch {kept.epoch}",)


# --- accuracy by K

_BY_K = f"""
    , answered AS (
        SELECT DISTINCT corpus, model, shots, recipe FROM chosen
        WHERE k > 0 AND accuracy IS NOT NULL AND NOT {_VARIANT}
        QUALIFY {_LOWEST_SEED}
    ), plain AS (
        SELECT * REPLACE (seedless AS recipe)
        FROM chosen SEMI JOIN answered USING (corpus, model, shots, recipe)
    ), ruled AS (
        SELECT f.corpus, f.model, f.shots, f.method, f.recipe, f.retriever, f.k AS fitted,
            t.k AS best, t.accuracy - f.accuracy AS gap
        FROM plain f JOIN plain t USING (corpus, model, shots, method, recipe, retriever, query,
            choice_format, rotation, engine, chat_template, bos)
        WHERE f.k_rule = 'cross_fitted' AND t.k_rule = 'test_best' AND f.k > 0
    ), closed AS (
        SELECT * REPLACE (CASE method WHEN 'base' THEN 'rag' ELSE 'ft_rag' END AS method)
        FROM plain WHERE k_rule = 'fixed' AND k = 0
    ), points AS (
        SELECT c.corpus, c.model, c.shots, c.method, c.recipe, r.retriever, c.k, c.n, c.accuracy,
            c.ci_low, c.ci_high, c.chance, r.fitted, r.best, r.gap
        FROM closed c JOIN ruled r USING (corpus, model, shots, method, recipe)
        UNION ALL
        SELECT o.corpus, o.model, o.shots, o.method, o.recipe, o.retriever, o.k, o.n, o.accuracy,
            o.ci_low, o.ci_high, o.chance, r.fitted, r.best, r.gap
        FROM plain o LEFT JOIN ruled r
            USING (corpus, model, shots, method, recipe, retriever)
        WHERE o.k_rule = 'fixed' AND o.k > 0
    )
    SELECT DISTINCT * FROM points WHERE accuracy IS NOT NULL
    ORDER BY corpus, model, shots, retriever, method DESC, recipe, k
"""

_VARIANTS = f"""
    SELECT DISTINCT seedless FROM chosen WHERE k > 0 AND {_VARIANT} ORDER BY seedless
"""

K = "figure_k"


def by_k(source: Source) -> StudyFigure:
    """Accuracy by K, with the K that cross-fitting chooses and the one the study's rule would."""
    title = "Accuracy by K, the chunks in front of the question"
    rows = [
        KPoint(
            **{name: row[name] for name in ("corpus", "model", "shots", "method", "recipe")},
            retriever=row["retriever"],
            k=row["k"],
            questions=row["n"],
            accuracy=row["accuracy"],
            ci_low=row["ci_low"],
            ci_high=row["ci_high"],
            cross_fitted=row["k"] == row["fitted"],
            test_best=row["k"] == row["best"],
            gap=row["gap"],
            chance=row["chance"],
        )
        for row in source.chosen(_BY_K)
    ]
    # Conditions that differ in nothing that is drawn, e.g. by engine, are one point.
    rows = list(
        {
            (r.corpus, r.model, r.shots, r.method, r.recipe, r.retriever, r.k): r for r in rows
        }.values()
    )
    printed = _published(source, rows)
    names = list(dict.fromkeys((row.method, row.recipe) for row in rows))
    several = len({row.retriever for row in rows}) > 1
    panels: dict[str, list[Panel]] = defaultdict(list)
    by_panel = _grouped(rows, "corpus", "model", "shots", "retriever")
    for (corpus, model, shots, retriever), mine in by_panel.items():
        curves = [
            _k_curve(points, names.index(key))
            for key, points in _grouped(mine, "method", "recipe").items()
        ]
        theirs = [r for r in printed if (r.corpus, r.model, r.shots) == (corpus, model, shots)]
        beside = [_k_curve(theirs, 0)] if theirs else []
        for number, shown in enumerate(_split(curves, SYSTEMS)):
            panels[corpus].append(
                CurvePanel(
                    title=f"{model}, {shots}-shot, {mine[0].questions} questions"
                    + (f", {retriever}" if several else ""),
                    x_label="K, chunks in front of the question",
                    curves=(*shown, *([] if number else beside)),
                    chance=_chance(row.chance for row in mine),
                    lines=tuple(_k_lines(mine, {curve.name for curve in shown})),
                )
            )
    missing = _k_missing(source, rows)
    caption = (
        "Accuracy on {corpus} by K with 95 % Wilson intervals; K = 0 is the base model, or the "
        "fine-tuned model alone. The ring is the K that cross-fitting chooses, the star the best "
        "on the test score; the gap is what choosing by the test score adds. Of several seeds the "
        "lowest is shown."
    )
    return StudyFigure(
        K,
        title,
        {K: (KPoint, [*rows, *printed])},
        _pages(K, title, caption, panels, missing),
        missing,
    )


def _k_missing(source: Source, rows: Sequence[KPoint]) -> tuple[Missing, ...]:
    found = _variants_left_out(source)
    if not rows and not found:
        found = (_nothing_retrieved(source),)
    elif rows and not any(row.k == 0 for row in rows):
        what = "No point at K = 0: the models were not asked without retrieved text."
        alone = {"rag": "base", "ft_rag": "ft"}
        methods = sorted({alone[row.method] for row in rows})
        recipes = {row.recipe: "" for row in rows if row.recipe}
        asked = _to_come(source, methods)
        found += (_lack(source.profile, what, asked, recipes, ", ".join(methods)),)
    return found


def _variants_left_out(source: Source) -> tuple[Missing, ...]:
    """That variants are not drawn, where there are answers of some with retrieved text."""
    names = [row["seedless"] for row in source.chosen(_VARIANTS)]
    if not names:
        return ()
    what = (
        f"Left out: {', '.join(names)}. Variants of a recipe are not drawn here; `scores` has them."
    )
    return (Missing(what),)


def _nothing_retrieved(source: Source) -> Missing:
    asked = _to_come(source, {"rag", "ft_rag"})
    what = "Nothing was answered with retrieved text."
    return _lack(source.profile, what, asked, {}, "base, rag")


def _published(source: Source, rows: Sequence[KPoint]) -> list[KPoint]:
    """The study's own curves, for tasks and models that are here, too."""
    if source.references is None:
        return []
    curves = published(source.references).by_k
    return [
        KPoint(
            corpus=corpus,
            model=model,
            shots=shots,
            method="published",
            recipe="",
            retriever="",
            k=k,
            questions=None,
            accuracy=accuracy,
            ci_low=None,
            ci_high=None,
            cross_fitted=False,
            test_best=False,
            gap=None,
            chance=None,
        )
        for corpus, model, shots in _grouped(rows, "corpus", "model", "shots")
        for k, accuracy in sorted(curves.get(f"{corpus}, {model}, {shots}-shot", {}).items())
    ]


def _system(method: str, recipe: str) -> str:
    """A way to answer with retrieved text, for a legend."""
    if method == "published":
        return "base + RAG as published"
    return f"{recipe} + RAG" if recipe else "base + RAG"


def _k_curve(points: Sequence[KPoint], style: int) -> Curve:
    first = points[0]
    return Curve(
        name=_system(first.method, first.recipe),
        points=tuple(
            (
                p.k,
                Point(
                    p.accuracy,
                    p.accuracy if p.ci_low is None else p.ci_low,
                    p.accuracy if p.ci_high is None else p.ci_high,
                ),
            )
            for p in points
        ),
        style=style,
        ringed=next((p.k for p in points if p.cross_fitted), None),
        starred=next((p.k for p in points if p.test_best), None),
        plain=first.method == "published",
    )


def _k_lines(rows: Sequence[KPoint], names: set[str]) -> Iterator[str]:
    for (method, recipe), points in _grouped(rows, "method", "recipe").items():
        name = _system(method, recipe)
        fitted = next((p.k for p in points if p.cross_fitted), None)
        best = next((p.k for p in points if p.test_best), None)
        gap = points[-1].gap
        if name in names and gap is not None:
            yield f"{name}: cross-fitted K {fitted}, best K {best}, gap {gap:+.3f}"


# --- what retrieval missed, and what the model did not use

_ERRORS = f"""
    , counted AS (
        SELECT e.*, c.seed, c.seedless FROM rag_errors e JOIN chosen c USING (condition_id)
        WHERE c.k_rule = 'fixed' AND e.n > 0 AND NOT {_VARIANT}
    ), lowest AS (
        SELECT * REPLACE (seedless AS recipe) FROM counted QUALIFY {_LOWEST_SEED}
    )
    SELECT DISTINCT corpus, model, shots, method, recipe, retriever, k, n, hit_right, miss_right,
        hit_wrong, miss_wrong
    FROM lowest ORDER BY corpus, model, shots, retriever, method DESC, recipe, k
"""

_RECALL = """
    SELECT corpus, retriever, k, n, recall, ci_low, ci_high, mrr FROM retrieval_quality
    WHERE n > 0 ORDER BY corpus, retriever, k
"""

_WITHOUT_CHUNKS = """
    SELECT DISTINCT s.corpus FROM scores s LEFT JOIN rag_errors e USING (condition_id)
    WHERE s.k > 0 AND s.k_rule = 'fixed' AND e.condition_id IS NULL ORDER BY s.corpus
"""

RAG_ERRORS = "figure_rag_errors"

PARTS = (
    "right, retrieved",
    "right, not retrieved",
    "wrong though retrieved: did not use",
    "wrong, not retrieved: did not retrieve",
)


def rag_errors(source: Source) -> StudyFigure:
    """Right and wrong answers with retrieved text, by whether the right chunk was retrieved."""
    title = "Did not retrieve, or did not use"
    rows = [ErrorCounts(**row) for row in source.chosen(_ERRORS)]
    recall = [RecallPoint(**row) for row in source.rows(_RECALL)]
    panels: dict[str, list[Panel]] = defaultdict(list)
    for (corpus,), mine in _grouped(recall, "corpus").items():
        panels[corpus].append(_recall_panel(mine))
    several = len({row.retriever for row in rows}) > 1
    by_panel = _grouped(rows, "corpus", "model", "shots", "retriever")
    for (corpus, model, shots, retriever), mine in by_panel.items():
        groups = [
            (
                _system(method, recipe),
                tuple(
                    (
                        row.k,
                        tuple(
                            count / row.n
                            for count in (
                                row.hit_right,
                                row.miss_right,
                                row.hit_wrong,
                                row.miss_wrong,
                            )
                        ),
                    )
                    for row in counts
                ),
            )
            for (method, recipe), counts in _grouped(mine, "method", "recipe").items()
        ]
        for shown in _split(groups, SYSTEMS):
            panels[corpus].append(
                StackPanel(
                    title=f"{model}, {shots}-shot, {max(row.n for row in mine)} questions"
                    + (f", {retriever}" if several else ""),
                    x_label="K, and which model answered",
                    parts=PARTS,
                    groups=tuple(shown),
                )
            )
    missing = _errors_missing(source, rows)
    caption = (
        "Answers on {corpus} with retrieved text: was the chunk that the question was written from "
        "among the first K, and was the answer right? Above: how often it is, by retriever. Of "
        "several seeds the lowest is shown."
    )
    return StudyFigure(
        RAG_ERRORS,
        title,
        {RAG_ERRORS: (ErrorCounts, rows), f"{RAG_ERRORS}.recall": (RecallPoint, recall)},
        _pages(RAG_ERRORS, title, caption, panels, missing, size=STACKS + 1, columns=1),
        missing,
    )


def _recall_panel(rows: Sequence[RecallPoint]) -> CurvePanel:
    by_retriever = _grouped(rows, "retriever")
    return CurvePanel(
        title=f"How often the right chunk is among the first K, {rows[0].n} questions",
        x_label="K",
        y_label="recall",
        whole=True,
        curves=tuple(
            Curve(
                name=f"recall of {retriever}",
                points=tuple((r.k, Point(r.recall, r.ci_low, r.ci_high)) for r in points),
                style=style,
            )
            for style, ((retriever,), points) in enumerate(by_retriever.items())
        ),
        lines=(
            "mean reciprocal rank: "
            + ", ".join(f"{r} {points[-1].mrr:.3f}" for (r,), points in by_retriever.items()),
        ),
    )


def _errors_missing(source: Source, rows: Sequence[ErrorCounts]) -> tuple[Missing, ...]:
    left_out = [row["corpus"] for row in source.rows(_WITHOUT_CHUNKS)]
    found = list(_variants_left_out(source))
    if not rows and not left_out and not found:
        found.append(_nothing_retrieved(source))
    if left_out:
        found.append(
            Missing(
                f"Left out: {', '.join(left_out)}. No chunk is named as the one that holds the "
                "answer (questions of MMLU were not written from the corpus)."
            )
        )
    return tuple(found)


FIGURES: Mapping[str, Callable[[Source], StudyFigure]] = {
    PARAPHRASES: paraphrases,
    TRAINING_LOSS: training_loss,
    K: by_k,
    RAG_ERRORS: rag_errors,
}
"""Figure -> the function that makes it."""
