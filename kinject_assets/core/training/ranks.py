"""The processes that train one checkpoint together: which one this is, and how they meet."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STORE = "KINJECT_RANKS_STORE"
"""Environment variable with the file through which the processes find one another. Unlike torch's
own store, a file listens on no port."""

PATIENCE = timedelta(hours=1)
"""How long a process waits for another one, which may be writing a large checkpoint. One that dies
ends all of them at once, whatever this is."""


class RankOutOfMemory(Exception):
    """One of several processes ran out of GPU memory: all of them have to start again."""


@dataclass(frozen=True)
class Ranks:
    """A process among those that train together.

    Attributes:
        number: From 0; only process 0 reports and writes.
        count: How many there are.
    """

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.number == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def wait(self) -> None:
        """Returns when all processes have called it."""
        if self.several:
            import torch.distributed

            torch.distributed.barrier()

    def add(self, values: "torch.Tensor") -> None:
        """Replaces a tensor by its sum over all processes."""
        if self.several:
            import torch.distributed

            torch.distributed.all_reduce(values)

    def leave(self) -> None:
        """Ends working together; each goes on alone."""
        if self.several:
            import torch.distributed

            torch.distributed.destroy_process_group()


def launched() -> Ranks:
    """Which process this is, as torchrun has set it; alone if it was not started that way."""
    if STORE not in os.environ:
        return Ranks()
    return Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def meet(ranks: Ranks, device: "torch.device") -> None:
    """Connects this process with the others.

    Args:
        ranks: From `launched`.
        device: What this process computes on.
    """
    import torch

    if not ranks.several or torch.distributed.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo",
        init_method=f"file://{os.environ[STORE]}",
        rank=ranks.number,
        world_size=ranks.count,
        timeout=PATIENCE,
    )
