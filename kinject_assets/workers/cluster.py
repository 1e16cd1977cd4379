"""Runs a worker on the nodes of a Ray cluster: `python -m kinject_assets.workers.cluster`.

It is the entry point of a Ray job and runs on the head node. The worker's function runs as tasks on
nodes that have what the profile's `cluster` asks for. Ray starts a task again on another node when
its own is lost; what was finished is in the work folder, so that it goes on from there. Processes
that train one checkpoint together are started and lost together.

What it tells its parent are custom messages of Dagster Pipes: `{"progress": [message, done,
total]}`, and at the end `{"outcome": ...}` with `result` or `error`.
"""

import contextlib
import importlib
import logging
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

import kinject_assets
from kinject_assets.config import base_folder
from kinject_assets.core.errors import KinjectError, is_disk_full
from kinject_assets.core.lake.opening import open_lake
from kinject_assets.core.lake.travel import send_draft, sync_work, unpacked
from kinject_assets.core.progress import KEPT_SECONDS, Report, repeating, silent
from kinject_assets.core.store import Store
from kinject_assets.core.training.ranks import STORE, RankOutOfMemory
from kinject_assets.workers.entry import read_request, stay_local

LOOK_SECONDS = 0.5
"""Between two looks at the tasks."""

GONE_SECONDS = 30.0
"""How long Ray may take to notice that a node is gone."""

NODES_SECONDS = 5.0
"""Between two looks at the nodes."""

TOLD_SECONDS = 60.0
"""Between two words on a step that waits for a node."""

SYNC_SECONDS = 30.0
"""Between two copies of a work folder to a lake that nodes do not share."""

NODE_LOCK = ".node.lock"
"""File in the profile's folder: one process of a node at a time brings files to it."""

OUT_OF_MEMORY = "RankOutOfMemory"
DISK_FULL = "DiskFull"
"""Types of errors that the parent answers with more than a message."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A step as its parent asks for it; travels as JSON.

    Attributes:
        worker: Module of `kinject_assets.workers`.
        need: Fields of `config.Need`: what a process needs from its node.
        parts: Processes that share the work of one partition.
        processes: Processes that train one checkpoint together.
        retries: How often a process is started again whose node was lost.
        wait_minutes: How long a step waits for a node that has what it needs.
        version: Version of kinject, which nodes must have, too.
        lake: Where nodes share no folder: `profile` (its name), `url` and `cache_gb` of the lake in
            an object store.
    """

    worker: str
    need: Mapping[str, Any]
    parts: int = 1
    processes: int = 1
    retries: int = 3
    wait_minutes: float = 15
    version: str = kinject_assets.__version__
    lake: Mapping[str, Any] | None = None

    @property
    def bundle(self) -> dict[str, float]:
        """What a process needs, in Ray's words."""
        need = self.need
        found = {
            "CPU": need["cpus"],
            "GPU": need["gpus"],
            "memory": int(need["memory_gb"] * 10**9),
            **need["resources"],
        }
        if need["accelerator"]:
            # As Ray itself spells what a node of that kind has one of.
            found[f"accelerator_type:{need['accelerator']}"] = 0.001
        return {name: amount for name, amount in found.items() if amount}

    @property
    def one_node(self) -> bool:
        """Whether processes that train together must be on one node.

        Without a folder that nodes share, what they save has to lie on one of them.
        """
        return self.lake is not None

    @property
    def options(self) -> dict[str, Any]:
        """Ray's options of a task."""
        bundle = self.bundle
        return {
            "num_cpus": bundle.pop("CPU", 0),
            "num_gpus": bundle.pop("GPU", 0),
            "memory": bundle.pop("memory", None),
            "resources": bundle or None,
            "max_retries": self.retries,
        }


@dataclass
class Hub:
    """Collects what tasks say; an actor beside the driver."""

    said: list[tuple[int, str, int | None, int | None]] = field(default_factory=list)

    def tell(self, number: int, message: str, done: int | None, total: int | None) -> None:
        """A task says where it is."""
        self.said.append((number, message, done, total))

    def take(self) -> list[tuple[int, str, int | None, int | None]]:
        """What was said since the last call."""
        said, self.said = self.said, []
        return said


def main() -> None:
    """Runs the job that the Pipes extras describe."""
    import ray
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as pipes:
        job = read_request(Job, pipes.extras["job"])
        request: dict[str, Any] = dict(pipes.extras["request"])
        ray.init(logging_level=logging.WARNING)

        def report(message: str, done: int | None = None, total: int | None = None) -> None:
            pipes.report_custom_message({"progress": [message, done, total]})

        outcome = Driver(job, request, report).run()
        pipes.report_custom_message({"outcome": outcome})


class Driver:
    """Starts the tasks of a job, passes on what they say, and starts lost ones again."""

    def __init__(self, job: Job, request: dict[str, Any], report: Report) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._job, self._request, self._report = job, request, report
        # On this node: it must not be lost with another one.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        hub: Any = ray.remote(Hub)
        self._hub = hub.options(num_cpus=0, scheduling_strategy=here).remote()
        self._places: dict[str, None] = {}
        self._processes: list[dict[str, Any]] = []
        self._begun: Counter[int] = Counter()
        self._lost = 0
        self._looked = self._told = -float("inf")
        self._lacked: float | None = None

    def run(self) -> dict[str, Any]:
        """Runs the job.

        Returns:
            `result` (what the worker returned) and `seconds`, or `error` (`type`, `message`);
            `places` (nodes that worked on it, in the order in which they began), `lost` (how often
            one was lost), `processes` that came to an end, and `files` of a lake that nodes do not
            share.
        """
        self._warn_of_idle_gpus()
        try:
            outcome = self._together() if self._job.processes > 1 else self._apart()
        except KinjectError as error:
            outcome = {"error": {"type": type(error).__name__, "message": str(error)}}
        except _lost() as error:
            name = type(error).__name__
            outcome = {"error": {"type": name, "message": self._often(name)}}
        return {
            **outcome,
            "places": [*self._places],
            "lost": self._lost,
            "processes": self._processes,
        }

    def _apart(self) -> dict[str, Any]:
        """One process, or several that share the work and one that puts it together."""
        parts = self._job.parts
        if parts == 1:
            before = self._kept_by_parts()
            return self._tasks([{**self._request, "parts": before} if before else self._request])[0]
        before = self._kept_by_parts()
        requests = [
            _part(self._job.worker, self._request, number, parts, before) for number in range(parts)
        ]
        done = self._tasks(requests)
        if failed := next((outcome for outcome in done if "error" in outcome), None):
            return failed
        outcome = self._tasks([_whole(self._job.worker, self._request, requests)])[0]
        if "seconds" in outcome:
            outcome["seconds"] += max(part["seconds"] for part in done)
        if "counts" in outcome.get("result", {}):
            # Each process counted what it read; the last one found all of it there.
            shares = [part["result"] for part in done]
            counts = Counter[str]()
            for share in (outcome["result"], *shares):
                counts.update(share["counts"])
            unshared = next((share["unshared"] for share in shares if share["unshared"]), "")
            outcome["result"] |= {"counts": dict(counts), "unshared": unshared}
        return outcome

    def _kept_by_parts(self) -> list[str]:
        """Folders with what parts of an earlier try made, of however many; of a shared folder."""
        if self._job.lake or self._job.worker not in PART_FOLDERS:
            return []
        inside = PART_FOLDERS[self._job.worker]
        found = sorted(Path(self._request.get("work", "")).glob(f"part-*-of-*/{inside}"))
        return [str(path) for path in found]

    def _tasks(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        task = _task().options(**self._job.options)
        tasks = [
            task.remote(self._job, number, request, {}, self._hub)
            for number, request in enumerate(requests)
        ]
        return self._outcomes(tasks)

    def _together(self) -> dict[str, Any]:
        """Processes that work as one: when a node is lost all of them start again."""
        from ray.util.placement_group import placement_group, remove_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        job = self._job
        # Ray takes no bundle of nothing.
        group = placement_group(
            [job.bundle or {"CPU": 0.001}] * job.processes,
            strategy="STRICT_PACK" if job.one_node else "PACK",
        )
        while not group.wait(timeout_seconds=NODES_SECONDS):
            self._watch()
        task = _task()
        try:
            while True:
                # Names with a dot first are never copied or cleared with the work folder.
                store = f".ranks-{uuid.uuid4().hex}"
                tasks = [
                    task.options(
                        **{**job.options, "max_retries": 0},
                        scheduling_strategy=PlacementGroupSchedulingStrategy(
                            group, placement_group_bundle_index=number
                        ),
                    ).remote(
                        job,
                        number,
                        self._request,
                        {"RANK": str(number), "WORLD_SIZE": str(job.processes), STORE: store},
                        self._hub,
                    )
                    for number in range(job.processes)
                ]
                try:
                    return self._outcomes(tasks, together=True)[0]
                except _lost() as error:
                    self._lost += 1
                    if self._lost > job.retries:
                        raise
                    self._report(f"a node was lost ({type(error).__name__}); all start again")
        finally:
            remove_placement_group(group)

    def _outcomes(self, tasks: Sequence[Any], together: bool = False) -> list[dict[str, Any]]:
        """Waits for tasks; of those that work together the first error ends all."""
        import ray
        from ray.exceptions import RayTaskError

        self._begun.clear()
        waiting = list(tasks)
        found: dict[Any, dict[str, Any]] = {}
        try:
            while waiting:
                ready, waiting = ray.wait(waiting, timeout=LOOK_SECONDS)
                self._watch()
                self._pass_on(len(tasks), together)
                self._require_progress()
                for task in ready:
                    try:
                        found[task] = ray.get(task)
                    except RayTaskError:
                        failed = _failed(waiting) if together else None
                        if failed is None:
                            raise
                        return [failed] * len(tasks)
                    if process := found[task].pop("process", None):
                        self._processes.append(process)
                    if "error" in found[task]:
                        return [found[task]] * len(tasks)
        finally:
            for task in waiting:
                with contextlib.suppress(Exception):
                    ray.cancel(task, force=True)
            self._pass_on(len(tasks), together)
        return [found[task] for task in tasks]

    def _pass_on(self, tasks: int, together: bool) -> None:
        import ray

        for number, message, done, total in ray.get(self._hub.take.remote()):
            if message.startswith(BEGINS):
                self._places[message.removeprefix(BEGINS)] = None
                self._begun[number] += 1
                if self._begun[number] > 1:
                    self._lost += 1
                    message += ", since its process or node was lost"
            part = f"part {number + 1} of {tasks}: " if tasks > 1 and not together else ""
            self._report(part + message, done, total)

    def _require_progress(self) -> None:
        """Ends a step that loses its process again and again.

        Ray itself counts neither restarts after its own memory monitor nor those it plans.

        Raises:
            KinjectError: If a process was started more often than the profile allows.
        """
        if max(self._begun.values(), default=0) > self._job.retries + 1:
            raise KinjectError(self._often("it was killed or its node went away"))

    def _often(self, why: str) -> str:
        return (
            f"a process was lost more often than cluster.retries ({self._job.retries}) allows: "
            f"{why}. Out of memory? Say under cluster.{self._job.worker}.memory_gb what it needs, "
            "or lower batch sizes. Finished parts are kept: start it again."
        )

    def _watch(self) -> None:
        """Says that no node has what is asked for; a cluster that grows may bring one.

        Raises:
            KinjectError: If there is none for too long.
        """
        import ray

        now = time.monotonic()
        if now - self._looked < NODES_SECONDS:
            return
        self._looked = now
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        lacking = _lacking(self._job, nodes)
        if not lacking:
            self._lacked = None
            return
        self._lacked = now if self._lacked is None else self._lacked
        if now - self._lacked >= self._job.wait_minutes * 60:
            raise KinjectError(lacking)
        if now - self._told >= TOLD_SECONDS:
            self._told = now
            self._report(f"waits for a node: {lacking}")

    def _warn_of_idle_gpus(self) -> None:
        import ray

        if "GPU" not in self._job.bundle and ray.cluster_resources().get("GPU"):
            self._report(
                f"the cluster has GPUs, and cluster.{self._job.worker}.gpus in the profile asks "
                "for none: this step gets none"
            )


PART_FOLDERS = {"score": "", "embed": "out"}
"""Worker -> folder of a part that holds what others may take over."""

BEGINS = "runs on "
"""Begins what a task says first; its node follows."""


def _failed(others: Sequence[Any]) -> dict[str, Any] | None:
    """What another process said when one of several failed: it may have failed for want of that.

    Raises:
        RayError: If another one is gone.
    """
    import ray
    from ray.exceptions import RayTaskError

    ended, _ = ray.wait(list(others), num_returns=len(others), timeout=GONE_SECONDS)
    for task in ended:
        with contextlib.suppress(RayTaskError):
            outcome = ray.get(task)
            if "error" in outcome:
                return outcome
    return None


def _lost() -> tuple[type[Exception], ...]:
    """What Ray raises when a process or its node is gone."""
    from ray import exceptions

    return (
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.LocalRayletDiedError,
        exceptions.OutOfMemoryError,
    )


def _lacking(job: Job, nodes: Sequence[Mapping[str, float]]) -> str:
    """What no nodes have of what a job's processes need at once; empty if they have it."""
    bundle = job.bundle
    room = [
        min((int(node.get(name, 0) / amount) for name, amount in bundle.items()), default=1)
        for node in nodes
    ]
    if (max(room, default=0) if job.one_node else sum(room)) >= job.processes:
        return ""
    times = f"{job.processes} times on one node " if job.one_node else f"{job.processes} times "
    asked = ", ".join(_said(name, amount) for name, amount in bundle.items())
    there = "; ".join(
        ", ".join(_said(name, node.get(name, 0)) for name in bundle) for node in nodes
    )
    return (
        f"the cluster does not have {times if job.processes > 1 else ''}{asked}. Its {len(nodes)} "
        f"nodes have: {there}. Ask for less under `cluster` in the profile, or add a node that has "
        "it."
    )


def _said(name: str, amount: float) -> str:
    kind = name.removeprefix("accelerator_type:")
    if kind != name:
        return f"accelerator {kind}" if amount else f"no {kind}"
    return f"{name} {amount:g}"


def _part(
    worker: str, request: Mapping[str, Any], number: int, parts: int, before: Sequence[str]
) -> dict[str, Any]:
    """The request of one process of several that share the work.

    Args:
        worker: Who works.
        request: Of the whole.
        number: Which of them it is.
        parts: How many there are.
        before: Folders with what others made in an earlier try.
    """
    folder = f"{request['work']}/part-{number}-of-{parts}"
    share = {**request, "part": [number, parts], "work": folder, "parts": [*before]}
    if worker == "embed":
        return share | {"out": f"{folder}/out"}
    # What one process alone had answered before is not asked again either.
    return share | {"parts": [request["work"], *before]}


def _whole(
    worker: str, request: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The request of the process that puts together what parts made."""
    made = [part["out" if worker == "embed" else "work"] for part in parts]
    before = [folder for part in parts[:1] for folder in part["parts"] if folder not in made]
    return {**request, "parts": [*made, *before]}


def _task() -> Any:
    import ray

    # A process of its own each time: its memory is freed, and torch's state is new.
    return ray.remote(max_calls=1)(on_node)


def on_node(
    job: Job, number: int, request: Mapping[str, Any], ranks: Mapping[str, str], hub: Any
) -> dict[str, Any]:
    """Runs a worker in this process, on a node of the cluster.

    Args:
        job: What it belongs to.
        number: Which of its processes this is.
        request: The worker's request.
        ranks: Environment of processes that train together; empty for others.
        hub: The actor that is told of progress.

    Returns:
        `result`, `seconds` that it took and `process` (`node`, and `start` and `end` in seconds
        since 1970), or `error`; `files` of a lake that nodes do not share.
    """
    report = _teller(hub, number)
    place, since = _place(), time.time()
    report(BEGINS + place)
    try:
        if job.version != kinject_assets.__version__:
            raise KinjectError(
                f"{place} has kinject {kinject_assets.__version__}, and {job.version} asks it. "
                "Install the same version on all nodes."
            )
        if not _gpus():
            # Ray hides GPUs from those alone that asked for some.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        module = importlib.import_module(f"kinject_assets.workers.{job.worker}")
        first = not (ranks and number)
        with _lake(job, request, first) as (fields, files):
            if ranks:
                _join(ranks, Path(fields["work"]))
            stay_local(*module.sources(fields))
            began = time.monotonic()
            result = module.run(fields, report if first else silent)
            seconds = time.monotonic() - began
        process = {"node": place, "start": since, "end": time.time()}
        return {"result": result, "seconds": seconds, "process": process, **files}
    except KinjectError as error:
        return {"error": {"type": type(error).__name__, "message": str(error)}}
    except RankOutOfMemory:
        return {"error": {"type": OUT_OF_MEMORY, "message": "a GPU's memory is full"}}
    except Exception as error:
        if not is_disk_full(error):
            raise
        return {"error": {"type": DISK_FULL, "message": f"the disk of {place} is full"}}


@contextlib.contextmanager
def _lake(
    job: Job, request: Mapping[str, Any], first: bool
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The request with this node's paths, and a mapping that gets what became of its files.

    Args:
        job: What it belongs to.
        request: As it arrived.
        first: Whether this process brings back what it, or others with it, made.
    """
    files: dict[str, Any] = {}
    if job.lake is None:
        _require_shared(request)
        Path(request.get("work") or request["out"]).mkdir(parents=True, exist_ok=True)
        yield dict(request), files
        return
    store = open_lake(base_folder() / job.lake["profile"], job.lake["url"], job.lake["cache_gb"])
    with FileLock(store.root / NODE_LOCK):
        fields = unpacked(request, store)
    with _synced(store, Path(fields["work"]) if first and "work" in fields else None):
        yield fields, files
    if first and "part" not in fields:
        files["files"] = send_draft(store, Path(fields["out"]))


def _require_shared(request: Mapping[str, Any]) -> None:
    """Refuses to work where the lake of the parent is not seen: all of it would seem damaged.

    Raises:
        KinjectError: If its folder is not there.
    """
    folder = Path(request.get("work") or request["out"])
    folder = folder.parent if "part" in request else folder
    if not folder.exists():
        raise KinjectError(
            f"{_place()} does not see {folder}, where the lake is. On a cluster the lake lies in a "
            "folder that all nodes see under the same path (lake: file:///shared/folder), or in an "
            "object store (lake: s3://bucket/prefix). Nothing is damaged."
        )


@contextlib.contextmanager
def _synced(store: Store, work: Path | None) -> Iterator[None]:
    """Brings to the store what is finished in a work folder, also when the work fails."""
    if work is None:
        yield
        return

    def sync() -> None:
        with contextlib.suppress(KinjectError):  # the next time, or in the end
            sync_work(store, work)

    try:
        with repeating(sync, SYNC_SECONDS):
            yield
    finally:
        sync_work(store, work)


def _join(ranks: Mapping[str, str], work: Path) -> None:
    """Sets what `core.training.ranks` and accelerate read, before torch is imported."""
    import psutil
    import ray

    address = ray.util.get_node_ip_address()
    mine = next(
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(a.family == socket.AF_INET and a.address == address for a in addresses)
    )
    os.environ.update(
        {
            **ranks,
            # They meet through a file, which listens on no port. Nodes share the work folder.
            STORE: str(work / ranks[STORE]),
            # Ray shows a process its own GPUs alone.
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            # accelerate asks for it, although they have met by then.
            "MASTER_ADDR": address,
            "GLOO_SOCKET_IFNAME": mine,
            "NCCL_SOCKET_IFNAME": mine,
        }
    )


def _gpus() -> list[str]:
    """GPUs that Ray gave to this process."""
    import ray

    return ray.get_runtime_context().get_accelerator_ids().get("GPU", [])


def _place() -> str:
    """Name of this node, for people."""
    import ray

    gpus = _gpus()
    node = ray.get_runtime_context().get_node_id()
    name = next((n["NodeName"] for n in ray.nodes() if n["NodeID"] == node), "")
    # Ray's own name of a node is its address, unless it was given one.
    host = socket.gethostname() if name == ray.util.get_node_ip_address() else name
    return f"{host} ({node[:8]}{', GPU ' + ', '.join(gpus) if gpus else ''})"


def _teller(hub: Any, number: int) -> Report:
    """Tells the hub, not more often than a person reads."""
    told_at = -KEPT_SECONDS

    def tell(message: str, done: int | None = None, total: int | None = None) -> None:
        nonlocal told_at
        now = time.monotonic()
        if done is None or done == total or now - told_at >= KEPT_SECONDS:
            told_at = now
            hub.tell.remote(number, message, done, total)

    return tell


if __name__ == "__main__":
    # By its own name, so that nodes find the functions by it.
    importlib.import_module("kinject_assets.workers.cluster").main()
