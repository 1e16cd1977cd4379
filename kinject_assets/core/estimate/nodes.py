"""Nodes of a cluster: what is free on them, what fits, and how fast it works there."""

import math
from collections.abc import Mapping, Sequence

from kinject_assets.config import Need, Node

TOLERANCE = 1e-9


def named_nodes(kinds: Mapping[str, Node], times: int = 1) -> dict[str, Node]:
    """Every node by a name of its own, those of a kind next to one another.

    Args:
        kinds: Kind -> what each node of it is, and how many there are.
        times: How many times as many of each kind there shall be.
    """
    found: dict[str, Node] = {}
    for kind, node in kinds.items():
        count = node.count * times
        found |= {kind if count == 1 else f"{kind}:{n + 1}": node for n in range(count)}
    return found


def speed(need: Need, node: Node) -> float:
    """How fast a process works on a node, to one that has a node of speed 1 to itself.

    It has a part of a GPU, or one: a process uses no second one. Without a GPU it has as many of
    the node's cores as it asks for, since Ray sets the number of its threads so.
    """
    if need.gpus:
        return node.speed * min(1.0, need.gpus)
    if need.cpus and node.cpus and math.isfinite(node.cpus):
        return node.speed * min(1.0, need.cpus / node.cpus)
    return node.speed


class Machine:
    """A node with what is free on it.

    Args:
        name: Its own.
        node: What it is.
    """

    def __init__(self, name: str, node: Node) -> None:
        self.name, self.node = name, node
        self._cpus, self._memory = node.cpus, node.memory_gb
        self._gpus = [1.0] * node.gpus
        self._resources = dict(node.resources)

    def take(self, need: Need) -> tuple[int, ...] | None:
        """Takes what a process needs, if it is free.

        Returns:
            Numbers of the GPUs that it has; `None` if it does not fit.
        """
        if need.accelerator not in {"", self.node.accelerator} or not self._free(need):
            return None
        gpus = self._gpus_for(need.gpus)
        if gpus is None:
            return None
        self._change(need, gpus, -1)
        return gpus

    def give_back(self, need: Need, gpus: Sequence[int]) -> None:
        """Gives back what a process had."""
        self._change(need, gpus, 1)

    def _free(self, need: Need) -> bool:
        return (
            need.cpus <= self._cpus + TOLERANCE
            and need.memory_gb <= self._memory + TOLERANCE
            and all(
                amount <= self._resources.get(name, 0.0) + TOLERANCE
                for name, amount in need.resources.items()
            )
        )

    def _gpus_for(self, asked: float) -> tuple[int, ...] | None:
        """GPUs for a process: whole free ones, or of those in which its part fits the fullest."""
        each = min(1.0, asked)
        fitting = [n for n, free in enumerate(self._gpus) if each <= free + TOLERANCE]
        count = math.ceil(asked)
        if len(fitting) < count:
            return None
        return tuple(sorted(fitting, key=lambda n: (self._gpus[n], n))[:count])

    def _change(self, need: Need, gpus: Sequence[int], sign: int) -> None:
        self._cpus += sign * need.cpus
        self._memory += sign * need.memory_gb
        for name, amount in need.resources.items():
            self._resources[name] += sign * amount
        for number in gpus:
            self._gpus[number] += sign * min(1.0, need.gpus)


def lacking(need: Need, node: Node) -> list[str]:
    """What an empty node lacks for a process; empty if it fits."""
    found = [
        f"{there:g} of the {asked:g} {name} asked for"
        for name, asked, there in (
            ("CPU cores", need.cpus, node.cpus),
            ("GPUs", need.gpus, node.gpus),
            ("GB of memory", need.memory_gb, node.memory_gb),
            *((name, a, node.resources.get(name, 0.0)) for name, a in need.resources.items()),
        )
        if asked > there + TOLERANCE
    ]
    if need.accelerator and need.accelerator != node.accelerator:
        found.append(f"GPUs of kind `{node.accelerator}` and not `{need.accelerator}`")
    return found


def share_of(need: Need, node: Node) -> float:
    """Part of a node that a process takes, of the resource that it takes most of."""
    return max(
        (
            asked / there
            for asked, there in (
                (need.cpus, node.cpus),
                (need.gpus, node.gpus),
                (need.memory_gb, node.memory_gb),
                *((a, node.resources.get(name, 0.0)) for name, a in need.resources.items()),
            )
            if asked and there
        ),
        default=0.0,
    )


def said(need: Need) -> str:
    """What a process needs, for people."""
    parts = [
        f"{amount:g} {name}{'s' if amount > 1 else ''}"
        for amount, name in ((need.cpus, "CPU core"), (need.gpus, "GPU"))
        if amount
    ]
    if need.accelerator:
        parts.append(f"of kind {need.accelerator}")
    if need.memory_gb:
        parts.append(f"{need.memory_gb:g} GB of memory")
    parts += [f"{amount:g} {name}" for name, amount in need.resources.items()]
    return ", ".join(parts) or "nothing"
