"""Frozen releases of a rolling corpus of current events.

When a month closes, the window of months that ends with it becomes a corpus of its own, pinned by
revision ids: `events-2031-04` for the rolling corpus `events-current`. A release never changes; an
edit that comes later makes another one, `events-2031-04-r2`.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path

from kinject_assets.config import Corpus, Profile, WikiEvents, WikiPages
from kinject_assets.core.corpus.sources import month_of, window_months, write_frozen
from kinject_assets.core.errors import BrokenArtefact
from kinject_assets.core.manifest import content_hash, file_sha256, write_atomically
from kinject_assets.core.schema import Listed

FOLDER = "releases"
"""Folder of the lake that holds them."""

FROZEN, RECORD = "frozen.jsonl", "release.json"

SUFFIX = "-current"
"""Ending of a rolling corpus's key, which its releases put their month in the place of."""


@dataclass(frozen=True, kw_only=True, order=True)
class Release:
    """A window of months as it was when its last month had closed.

    Attributes:
        corpus: Rolling corpus that it was frozen from.
        month: Last month of its window, `YYYY-MM`.
        number: 1, and one more for each later edit of a release's text.
        key: Corpus key, e.g. `events-2031-04` or `events-2031-04-r2`.
        first_month: First month of its window.
        version: Hash of its articles' ids and texts.
        revisions: Hash of its articles' revisions.
        frozen_sha256: Hash of its list, `frozen.jsonl`.
        pages: Number of its articles.
        frozen_at: When that was, by the profile's clock (ISO 8601).
    """

    corpus: str
    month: str
    number: int
    key: str
    first_month: str
    version: str
    revisions: str
    frozen_sha256: str
    pages: int
    frozen_at: str


def is_rolling(corpus: Corpus) -> bool:
    """Whether a corpus is a window of current events that ends now."""
    return isinstance(corpus.source, WikiEvents) and corpus.source.until == "now"


def read_releases(lake: Path) -> list[Release]:
    """Every release of a lake, in order.

    Raises:
        BrokenArtefact: If the record of one cannot be read.
    """
    return sorted(read_release(path) for path in records(lake))


def records(lake: Path) -> list[Path]:
    """The records of all releases of a lake, readable or not."""
    return sorted((lake / FOLDER).glob(f"*/{RECORD}"))


def read_release(path: Path) -> Release:
    """Reads the record of a release.

    Raises:
        BrokenArtefact: If it cannot be read.
    """
    try:
        return Release(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BrokenArtefact(
            f"{path}: not the record of a release ({error}). Restore it from a backup, or "
            f"delete the folder {path.parent}: the release is then no corpus any more."
        ) from error


def frozen_list(lake: Path, key: str) -> Path:
    """File with the revisions of a release."""
    return lake / FOLDER / key / FROZEN


def verify(lake: Path, corpus: str) -> None:
    """Refuses a release whose list is not the one that was frozen; other corpora pass.

    Raises:
        BrokenArtefact: With the file.
    """
    for release in read_releases(lake):
        if release.key == corpus and not unchanged(lake, release):
            raise BrokenArtefact(
                f"{frozen_list(lake, corpus)}: gone, or not the list of revisions that was frozen. "
                f"{mend_of(lake, corpus)}"
            )


def unchanged(lake: Path, release: Release) -> bool:
    """Whether the list of a release is the one that was frozen."""
    path = frozen_list(lake, release.key)
    return path.is_file() and file_sha256(path) == release.frozen_sha256


def mend_of(lake: Path, key: str) -> str:
    """What to do about a release whose list is gone or damaged."""
    return (
        f"Restore it from a backup, or delete the folders {lake / FOLDER / key} and lake/*/{key}: "
        "the release is then no corpus any more."
    )


def freeze_closed(
    lake: Path,
    corpus: str,
    source: WikiEvents,
    listed: Sequence[Listed],
    *,
    open_before: str,
    now: datetime,
    taken: Collection[str] = (),
) -> list[Release]:
    """Freezes the months that have closed since the last time, and edits of those before.

    Args:
        lake: Where releases are kept.
        corpus: Key of the rolling corpus.
        source: Its source.
        listed: What its months hold now; months that are not among them are not known.
        open_before: Month that was open the last time; empty when there was none: then nothing has
            closed yet.
        now: The profile's clock.
        taken: Keys of the profile's own corpora, which are left alone.

    Returns:
        The new releases; they are on disk.
    """
    known = {row.month for row in listed}
    releases = read_releases(lake)
    earlier = [release for release in releases if release.corpus == corpus]
    taken = {*taken, *(release.key for release in releases if release.corpus != corpus)}
    watched = window_months("now", source.revisit_months, now)[0]
    new: list[Release] = []
    for month in sorted(known):
        before = [release for release in earlier if release.month == month]
        closed = bool(open_before) and open_before <= month < month_of(now)
        if not (closed or (before and watched <= month)):
            continue
        window = window_months(month, source.window_months, now)
        rows = {row.article_id: row for row in listed if row.month in window and row.article_id}
        version = content_hash(sorted((row.article_id, row.text_sha256) for row in rows.values()))
        revisions = content_hash(sorted((row.article_id, row.revision_id) for row in rows.values()))
        stem = f"{corpus.removesuffix(SUFFIX)}-{month}"
        if stem in taken or not known.issuperset(window) or not rows:
            continue
        # Another way of cleaning is no edit, and an edit that was reverted is there already.
        if any(version == r.version or revisions == r.revisions for r in before):
            continue
        number = len(before) + 1
        key = stem if number == 1 else f"{stem}-r{number}"
        path = frozen_list(lake, key)
        write_frozen(sorted(rows.values()), path)
        release = Release(
            corpus=corpus,
            month=month,
            number=number,
            key=key,
            first_month=window[0],
            version=version,
            revisions=revisions,
            frozen_sha256=file_sha256(path),
            pages=len(rows),
            frozen_at=now.isoformat(),
        )
        # Its record last: with it, the release is there.
        write_atomically(path.with_name(RECORD), json.dumps(asdict(release), indent=2) + "\n")
        new.append(release)
    return new


def family(profile: Profile, lake: Path, corpus: str) -> list[str]:
    """Corpora that share pages with one: the rolling corpus of a release and its other releases."""
    releases = read_releases(lake)
    root = next((r.corpus for r in releases if r.key == corpus), corpus)
    keys = [root, *(r.key for r in releases if r.corpus == root)]
    return [key for key in keys if key != corpus and key in profile.corpora]


def with_releases(profile: Profile, lake: Path) -> Profile:
    """A profile with its releases as corpora, asked for as their rolling corpus is."""
    corpora = dict(profile.corpora)
    grid = list(profile.grid)
    for release in read_releases(lake):
        rolling = profile.corpora.get(release.corpus)
        if rolling is None or release.key in corpora or not is_rolling(rolling):
            continue
        year, month = (int(part) for part in release.first_month.split("-"))
        corpora[release.key] = rolling.model_copy(
            update={
                "title": f"{rolling.title or release.corpus}, {release.first_month} to "
                f"{release.month}" + (f", revision {release.number}" * (release.number > 1)),
                "source": WikiPages(
                    kind="wiki",
                    wiki=rolling.source.wiki,  # pyright: ignore[reportAttributeAccessIssue] (is_rolling)
                    frozen=frozen_list(lake, release.key),
                ),
                "new_facts_since": rolling.new_facts_since or date(year, month, 1),
            }
        )
        grid = [
            cells.model_copy(update={"corpora": (*cells.corpora, release.key)})
            if release.corpus in cells.corpora
            else cells
            for cells in grid
        ]
    if len(corpora) == len(profile.corpora):
        return profile
    return profile.model_copy(update={"corpora": corpora, "grid": tuple(grid)})
