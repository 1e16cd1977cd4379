"""A Ray cluster of several nodes on this machine, where nothing outside it is reached.

Ray listens on every interface, so the cluster lives in a network namespace of its own that has the
loopback interface alone. Nodes are started and ended by their processes' ids.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

HEAD = "127.0.0.1:6379"
DASHBOARD = "http://127.0.0.1:8265"
FIRST_AGENT = 52400
"""First of the ports of nodes' agents: those of one machine must differ."""

SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


class Namespace:
    """A network namespace with the loopback interface alone; ended by `close`."""

    def __init__(self) -> None:
        words = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        self._holder = subprocess.Popen([*words, "sh", "-c", "ip link set lo up && exec sleep inf"])
        until = time.monotonic() + 10
        while psutil.Process(self._holder.pid).name() != "sleep":
            if self._holder.poll() is not None or time.monotonic() > until:
                raise RuntimeError("no network namespace can be made here")
            time.sleep(0.05)

    def words(self, *command: str) -> list[str]:
        """A command that runs inside."""
        enter = ["nsenter", f"--target={self._holder.pid}", "--net"]
        if os.geteuid() != 0:
            enter += ["--user", "--preserve-credentials"]
        return [*enter, *command]

    def listeners(self) -> set[str]:
        """Addresses that something listens on inside."""
        shown = subprocess.run(
            self.words("ss", "-Hltn"), capture_output=True, text=True, check=True
        ).stdout
        return {line.split()[3].rsplit(":", 1)[0] for line in shown.splitlines()}

    def close(self) -> None:
        """Ends it; what still runs inside keeps it."""
        self._holder.kill()
        self._holder.wait()


@dataclass
class Node:
    """A node: its `ray start --block` and what that started."""

    name: str
    process: subprocess.Popen[bytes]
    family: list[psutil.Process] = field(default_factory=list)

    @property
    def raylet(self) -> psutil.Process:
        """The process that is the node."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if process.name() == "raylet":
                return process
        raise RuntimeError(f"{self.name} has no raylet")

    def kill_raylet(self) -> None:
        """As if the machine were lost: `kill -9`."""
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        os.kill(self.raylet.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ends the node's processes."""
        if self.process.poll() is None:
            self.family += psutil.Process(self.process.pid).children(recursive=True)
            self.process.terminate()
        _, alive = psutil.wait_procs(self.family, timeout=10)
        for process in alive:
            process.kill()
        self.process.kill()
        self.process.wait()


class Cluster:
    """A cluster of nodes on this machine.

    Args:
        folder: For its files and logs; short, since Unix sockets lie there.
        environment: Of every node.

    Attributes:
        client: Environment of those who give it jobs.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.namespace = Namespace()
        self._folder = folder
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._environment = {**environment, **SETTINGS, **token}
        # The first of Ray's `python` is this one.
        path = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
        self._environment |= {"PATH": path}
        self.client = {"RAY_ADDRESS": DASHBOARD, **token}
        self.nodes: dict[str, Node] = {}

    def start(self, name: str, cpus: float, resources: dict[str, float], **more: str) -> Node:
        """Starts a node; the first one is the head.

        Args:
            name: Its name.
            cpus: CPU cores that it says it has.
            resources: What else it says it has.
            **more: Further environment.
        """
        how = (
            ["--head", "--port=6379", "--dashboard-host=127.0.0.1", f"--temp-dir={self._folder}"]
            if not self.nodes
            else [f"--address={HEAD}"]
        )
        words = [
            *(str(Path(sys.executable).parent / "ray"), "start", "--block"),
            *how,
            "--node-ip-address=127.0.0.1",
            f"--node-name={name}",
            f"--num-cpus={cpus:g}",
            f"--resources={json.dumps(resources)}",
            f"--dashboard-agent-listen-port={FIRST_AGENT + len(self.nodes)}",
            "--object-store-memory=100000000",
            "--disable-usage-stats",
        ]
        with (self._folder.parent / f"{self._folder.name}-{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self.namespace.words(*words),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self._environment, **more},
            )
        node = self.nodes[name] = Node(name, process)
        until = time.monotonic() + 90
        while name not in self.alive():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"node {name} did not start; see its log in {self._folder}")
            time.sleep(0.5)
        return node

    def alive(self) -> list[str]:
        """Names of the nodes that the cluster holds for alive."""
        try:
            shown = self.ask(f"{DASHBOARD}/nodes?view=summary")
            nodes = json.loads(shown)["data"]["summary"]
        except (subprocess.CalledProcessError, ValueError, KeyError):
            return []
        return [n["raylet"]["nodeName"] for n in nodes if n["raylet"].get("state") == "ALIVE"]

    def jobs(self) -> list[dict[str, Any]]:
        """What its dashboard says of the jobs."""
        return json.loads(self.ask(f"{DASHBOARD}/api/jobs/"))

    def ask(self, url: str) -> str:
        """The answer to a GET request, from inside."""
        code = (
            "import os, sys, httpx\n"
            "shown = {'Authorization': 'Bearer ' + os.environ['RAY_AUTH_TOKEN']}\n"
            "print(httpx.get(sys.argv[1], timeout=5, headers=shown).raise_for_status().text)"
        )
        done = subprocess.run(
            self.namespace.words(sys.executable, "-c", code, url),
            env={**os.environ, **self.client},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def stop(self) -> None:
        """Ends all nodes, the head last, and the namespace."""
        for node in reversed(self.nodes.values()):
            node.stop()
        self.namespace.close()
