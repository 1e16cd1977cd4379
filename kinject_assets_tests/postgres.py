"""A real Postgres server of the test's own: loopback, a free port, a password, gone at the end."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kinject_assets_tests.e2e.browsing import free_port

USER = "kinject"


def binaries() -> Path | None:
    """Folder of the server's newest programs, as Debian and others install them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def unprivileged() -> str | None:
    """A user to run the server as, where we are root: the server refuses root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


needs_postgres = pytest.mark.skipif(
    binaries() is None, reason="no Postgres server (apt-get install postgresql)"
)


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    port: int
    password: str

    def url(self, database: str, password: str | None = None) -> str:
        """Address of a database."""
        return f"postgresql://{USER}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def create(self) -> str:
        """Creates a database; its address."""
        name = f"test_{uuid.uuid4().hex[:8]}"
        self.ask("postgres", f'CREATE DATABASE "{name}"')
        return self.url(name)

    def ask(self, database: str, statement: str) -> list[tuple]:
        """Runs a statement; its rows."""
        import psycopg2

        connection = psycopg2.connect(self.url(database))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


@contextmanager
def running_postgres() -> Iterator[Server]:
    """A server with an empty cluster in a temporary folder."""
    programs, user = binaries(), unprivileged()
    assert programs is not None
    # Not pytest's folder: that one is closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="kinject-postgres-"))
    server = Server(free_port(), secrets.token_urlsafe(16))
    password = folder / "password"
    password.write_text(server.password)
    if user:
        for path in (folder, password):
            shutil.chown(path, user)
    data = folder / "data"
    words = ["-D", str(data), "-U", USER, "-A", "scram-sha-256", "-E", "UTF8"]
    subprocess.run(
        [programs / "initdb", *words, "--no-sync", f"--pwfile={password}"],
        user=user,
        cwd=folder,
        check=True,
        capture_output=True,
    )
    settings = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(folder),
        "fsync": "off",
        "log_min_messages": "warning",
    }
    options = [word for item in settings.items() for word in ("-c", "=".join(item))]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [programs / "postgres", "-D", data, "-p", str(server.port), *options],
            user=user,
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        _wait(process, server, folder / "log")
        yield server
    finally:
        process.send_signal(signal.SIGINT)  # fast shutdown: sessions are ended
        process.wait(timeout=60)
        shutil.rmtree(folder)


def _wait(process: subprocess.Popen[bytes], server: Server, log: Path) -> None:
    import psycopg2

    until = time.monotonic() + 60
    while True:
        try:
            server.ask("postgres", "SELECT 1")
            return
        except psycopg2.OperationalError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
