"""Which cells are made anew by themselves when what they are made from has changed.

From chunks down to the answers of base and RAG, and to tables and report. Training waits for a
person, or for a rule in the profile. What a person has changed in the profile is not carried: it
may cost a lot, and `kinject run` does it when it is asked to.
"""

from collections.abc import Iterable

from kinject_assets.config import Profile
from kinject_assets.core.corpus.releases import is_rolling, read_releases
from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.manifest import content_hash
from kinject_assets.core.plan import CODE_VERSIONS, METHODS, TABLES, Plan
from kinject_assets.core.store import Cell

PREPARED = ("articles", "chunks", "questions", "embeddings", "faiss_index", "retrieved")
"""What a refresh makes of a corpus, in order, before models are asked."""

TRAINED = ("paraphrases", "validation_paraphrases", "checkpoint", "answers_ft", "answers_ft_rag")
"""What follows changes only by the rule `refresh.train`; so does `damage`, which measures it."""

ASKED = ("answers_base", "answers_rag", "triage")

CARRIED = (*PREPARED, *ASKED, *TRAINED, "damage", *TABLES)
"""Every asset that may be made by itself."""


def rolling_corpora(profile: Profile) -> list[str]:
    """Keys of the corpora that are windows of current events, and asked for."""
    asked = {corpus for cells in profile.grid for corpus in cells.corpora}
    return [key for key, corpus in profile.corpora.items() if key in asked and is_rolling(corpus)]


def followers(plan: Plan, corpora: Iterable[str]) -> list[Cell]:
    """Cells that a refresh of corpora makes anew, inputs first: out of date, or not there yet.

    The corpora's own and their releases', training only where the profile's rule says so; and the
    tables.
    """
    chosen = set(corpora)
    chosen |= {r.key for r in read_releases(plan.store.lake) if r.corpus in chosen}
    waiting = out_of_date(plan, chosen)
    return [cell for cell in waiting if not cell.parts or cell.parts[0] in chosen]


def out_of_date(plan: Plan, corpora: Iterable[str] = ()) -> dict[Cell, str]:
    """Cells that changes of data have made out of date, inputs first.

    A cell is out of date when its inputs are others than those it was made from, or will be,
    its configuration and code being the same; or when it is missing and belongs to a window of
    current events, a release of one, or one of `corpora`. Cells whose inputs are not there, nor
    going to be, are none; nor those whose inputs wait for a person.

    Args:
        plan: What each cell is made from.
        corpora: Corpora whose missing cells are made, whatever they are.

    Returns:
        Cell -> hash of what it would be made from now: while it is the same, trying again would
        bring the same.
    """
    releases = read_releases(plan.store.lake)
    rolling = set(rolling_corpora(plan.profile))
    current = rolling | {r.key for r in releases if r.corpus in rolling} | set(corpora)
    trained = _trained(plan, {r.key for r in releases})
    answered = any(
        plan.state(cell) != "missing" for cell in plan.cells if cell.asset in METHODS.values()
    )
    found: dict[Cell, str] = {}
    blocked: set[Cell] = set()
    for cell in plan.cells:
        upstream = [above for above, _ in plan.inputs(cell)]
        state = plan.state(cell)
        held = cell.parts and not blocked.isdisjoint(upstream)
        waits = (
            (cell.asset in (*TRAINED, "damage") and cell.parts[0] not in trained)
            or (state == "missing" and not _expected(plan, cell, current, answered))
            or (state == "stale" and not only_inputs_differ(plan, cell))
        )
        if state == "broken" or held or (waits and state != "complete"):
            # What is made from it cannot be made either.
            blocked.add(cell)
        elif not waits and (state != "complete" or any(above in found for above in upstream)):
            found[cell] = content_hash(
                plan.fingerprint(cell), [found[above] for above in upstream if above in found]
            )
            answered = answered or cell.asset in METHODS.values()
    return found


def ready(plan: Plan, waiting: Iterable[Cell]) -> list[Cell]:
    """Of cells that are out of date, those that can be made now.

    Cells of one corpus's preparation go together, in one run; answers when all that they are made
    from is there; tables when nothing else is waiting that could be made.
    """
    waiting = list(waiting)
    among = set(waiting)
    found = [
        cell
        for cell in waiting
        if cell.parts
        and all(
            above not in among or (cell.asset in PREPARED and above.asset in PREPARED)
            for above, _ in plan.inputs(cell)
        )
    ]
    return found or [cell for cell in waiting if not cell.parts]


def _trained(plan: Plan, releases: set[str]) -> set[str]:
    """Corpora on which models are trained by themselves."""
    match plan.profile.refresh.train:
        case "always":
            return set(plan.profile.corpora)
        case "releases":
            return releases
    return set()


def _expected(plan: Plan, cell: Cell, current: set[str], answered: bool) -> bool:
    """Whether a missing cell is made by itself; tables are once there are answers."""
    if not cell.parts:
        return answered
    if cell.parts[0] not in current:
        return False
    # The first look at a window is a person's, or the schedule's; a release follows from it.
    return cell.asset != "articles" or not is_rolling(plan.profile.corpora[cell.parts[0]])


def only_inputs_differ(plan: Plan, cell: Cell) -> bool:
    """Whether a stale cell has the code and configuration that it was made with."""
    try:
        manifest = plan.store.manifest(cell)
    except BrokenArtefact:
        return False
    return (
        manifest is not None
        and manifest.code_version == CODE_VERSIONS[cell.asset]
        and plan.same_config(cell, manifest)
    )
