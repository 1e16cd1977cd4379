"""The lab's clock: it stands still until somebody moves it.

The profile's `lab.months` say where it starts; `kinject lab advance` moves it. It lies beside the
profile's lake, so that every process of a study, and the lab's server, see the same moment.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

from kinject_assets.config import Profile, home
from kinject_assets.core.errors import ProfileError
from kinject_assets.core.manifest import write_atomically
from kinject_assets.lab.world import World, last_moment

FILE = "lab-clock.json"


def _path(profile: Profile) -> Path:
    return home(profile) / FILE


def lab_now(profile: Profile) -> datetime:
    """The moment at which a profile's lab is seen, in UTC.

    Raises:
        ProfileError: If the profile has no lab, or the clock's file is damaged.
    """
    if profile.lab is None:
        raise ProfileError(f"{profile.path}: has no part `lab:`, and so no clock of the lab")
    path = _path(profile)
    try:
        return datetime.fromisoformat(json.loads(path.read_text(encoding="utf-8"))["now"])
    except FileNotFoundError:
        return last_moment(profile.lab)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProfileError(
            f"{path}: not the lab's clock ({error}). Delete it: the lab starts again at the end of "
            "lab.months."
        ) from error


def advance(profile: Profile, to: datetime) -> datetime:
    """Moves the lab's clock; never back, as articles that were read would not be there yet.

    Raises:
        ProfileError: If `to` is not after the clock's moment, or the lab has no names for so much
            news.
    """
    before = lab_now(profile)
    moment = to.astimezone(UTC)
    if moment <= before:
        raise ProfileError(
            f"the lab's clock stands at {before:%Y-%m-%d %H:%M} UTC and cannot go back to "
            f"{moment:%Y-%m-%d %H:%M}. Give a later time, or delete {home(profile)} to start anew."
        )
    assert profile.lab is not None, "lab_now has refused a profile without a lab"
    World(profile.lab, moment)  # refuses a time for which it has no names left
    write_atomically(_path(profile), json.dumps({"now": moment.isoformat()}) + "\n")
    return moment
