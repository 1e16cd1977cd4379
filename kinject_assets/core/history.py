"""Where Dagster keeps what happened in a profile: SQLite files in its folder, or Postgres.

The address of a Postgres server holds a password: it comes from the environment alone and is in no
file, log or message of ours.
"""

import contextlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from kinject_assets.config import Profile, home
from kinject_assets.core.errors import KinjectError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

POSTGRES_URL = "KINJECT_POSTGRES_URL"
"""Environment variable: postgresql://USER:PASSWORD@HOST:PORT/DATABASE; unset, SQLite is used."""

SETTINGS = "dagster.yaml"

HEADER = "# Written by kinject; remove this line to keep your own changes.\n"

MARKER = "kinject/profile"
"""Key, in Dagster's table of keys and values, of whose history a database holds."""

LOCK = int.from_bytes(b"kinject", "big")
"""Advisory lock of those who open a database; two that create its tables at once would collide."""

SECONDS = 10
"""Patience with a server that does not answer."""

DRIVER = "postgresql+psycopg2"

SCHEMES = {"postgres", "postgresql", DRIVER}

FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"


class HistoryError(KinjectError):
    """Dagster's history cannot be reached, or is another profile's."""


def dagster_folder(profile: Profile) -> Path:
    """`$DAGSTER_HOME`, or the profile's own folder."""
    given = os.environ.get("DAGSTER_HOME")
    return Path(given) if given else home(profile) / "dagster"


def written_by_us(folder: Path) -> bool:
    """Whether kinject may write the folder's settings: there are none, or they say so."""
    path = folder / SETTINGS
    return not path.exists() or path.read_text(encoding="utf-8").startswith(HEADER)


def keeps_in_postgres(folder: Path) -> bool:
    """Whether the folder's settings name Postgres."""
    path = folder / SETTINGS
    if not path.exists():
        return False
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    return isinstance(settings, dict) and "postgres" in (settings.get("storage") or {})


def wants_postgres(folder: Path) -> bool:
    """Whether the settings that kinject writes name Postgres.

    Raises:
        HistoryError: If they do so far and the address is not in the environment: this command
            would write a second history beside the first.
    """
    if os.environ.get(POSTGRES_URL):
        return True
    if keeps_in_postgres(folder):
        raise HistoryError(
            f"{folder / SETTINGS}: the history of this profile is in Postgres, and {POSTGRES_URL} "
            f"is not set. Set it ({FORM}), or delete this file to begin a new history in SQLite"
        )
    return False


def name_driver() -> None:
    """Names the driver in the address, for Dagster in this process and in those that it starts.

    SQLAlchemy takes another driver than the one that dagster-postgres installs when none is named.
    """
    os.environ[POSTGRES_URL] = _url().render_as_string(hide_password=False)


@contextlib.contextmanager
def opening(profile: Profile) -> Iterator[None]:
    """Keeps the Postgres database for this profile and process while Dagster opens it.

    Dagster creates its tables when it first opens a database. Its tables know no profiles: two
    profiles in one database would share runs and partitions, so the first one that comes marks it
    as its own, and others are refused.

    Raises:
        HistoryError: If the server cannot be reached, or the database is another profile's.
    """
    with _connected() as connection:
        _execute(connection, "SELECT pg_advisory_lock(:key)", key=LOCK)
        try:
            _check_owner(connection, profile)
            yield
            _execute(
                connection,
                "INSERT INTO kvs (key, value) VALUES (:key, :value) ON CONFLICT DO NOTHING",
                key=MARKER,
                value=_mark(profile),
            )
        finally:
            _execute(connection, "SELECT pg_advisory_unlock(:key)", key=LOCK)


def described(profile: Profile) -> str:
    """Where the history is, in words, after a look whether it can be reached.

    Raises:
        HistoryError: If it cannot be reached, or the database is another profile's.
    """
    folder = dagster_folder(profile)
    if not written_by_us(folder):
        return f"as {folder / SETTINGS} says, which is your own (not looked at)"
    if not wants_postgres(folder):
        return f"SQLite files in {folder}"
    with _connected() as connection:
        _check_owner(connection, profile)
    return f"Postgres, {_where(_url())} (reached)"


def _mark(profile: Profile) -> str:
    return json.dumps(
        {"profile": profile.name, "lake": profile.lake or str(home(profile).resolve() / "lake")}
    )


def _check_owner(connection: "Connection", profile: Profile) -> None:
    if _execute(connection, "SELECT to_regclass('kvs')") is None:
        return
    mark = _execute(connection, "SELECT value FROM kvs WHERE key = :key", key=MARKER)
    if mark is None or mark == _mark(profile):
        return
    owner = json.loads(mark)
    raise HistoryError(
        f"{POSTGRES_URL}: {_where(_url())} holds the history of profile `{owner['profile']}` with "
        f"the lake {owner['lake']}. Profiles share no database: create one for `{profile.name}` "
        f"(createdb NAME) and name it in {POSTGRES_URL}. If that lake is this one, moved: DELETE "
        f"FROM kvs WHERE key = '{MARKER}'"
    )


def _execute(connection: "Connection", statement: str, **values: object) -> str | None:
    """Runs a statement; the first value of its first row, if it has rows."""
    from sqlalchemy import text

    result = connection.execute(text(statement), values)
    return result.scalar() if result.returns_rows else None


def _url() -> "URL":
    """The address. Nothing of a malformed one is shown: it may be a part of the password."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    wrong = HistoryError(
        f"{POSTGRES_URL} is not of the form {FORM}; characters like @ : / ? # % in the password "
        "are written as %40 %3A %2F %3F %23 %25"
    )
    try:
        url = make_url(os.environ[POSTGRES_URL])
    except (ArgumentError, ValueError):
        raise wrong from None
    names = (url.host or "", url.username or "", url.database or "/")
    if url.drivername not in SCHEMES or not all(re.fullmatch(r"[\w.:-]*", n) for n in names):
        raise wrong
    return url.set(drivername=DRIVER)


def _where(url: "URL") -> str:
    host = url.host or url.query.get("host") or "a local socket"
    return f"database {url.database} at {host}" + (f":{url.port}" if url.port else "")


@contextlib.contextmanager
def _connected() -> Iterator["Connection"]:
    if importlib.util.find_spec("dagster_postgres") is None:
        raise HistoryError(
            f"{POSTGRES_URL} is set, and the package dagster-postgres is not installed: "
            "pip install 'kinject[postgres]'"
        )
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.exc import DBAPIError

    url = _url()
    engine = create_engine(
        url,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"connect_timeout": SECONDS, "application_name": "kinject"},
    )
    try:
        connection = engine.connect()
    except DBAPIError as error:
        raise HistoryError(_refusal(url, str(error.orig))) from None
    with connection:
        yield connection


def _refusal(url: "URL", said: str) -> str:
    """What a failed connection means and how it is mended."""
    where = f"{POSTGRES_URL}: {_where(url)}"
    if "password" in said:
        return f"{where}: the server refuses user {url.username} with this password"
    if "does not exist" in said:
        return f"{where}: there is no such database or user on the server (createdb, createuser)"
    reason = said.strip().splitlines()[0] if said.strip() else "no reason given"
    if url.password:
        reason = reason.replace(str(url.password), "***")
    return f"{where} cannot be reached: {reason}. Is the server up, and does it take connections?"
