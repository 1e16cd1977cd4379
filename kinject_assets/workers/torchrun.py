"""Runs a worker as several processes of this machine: `python -m ... N WORKER`.

It is torchrun (`torch.distributed.run`, what `accelerate launch` also ends in) with three things
that its command line cannot do: it ends when its parent is gone, and each process when this one is;
it ends with the code that the process which failed first ended with; and nothing listens beyond
the loopback interface. The store that torchrun starts by itself listens on every interface, so the
processes meet through a file.
"""

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import psutil

from kinject_assets.core.training.ranks import STORE
from kinject_assets.workers.entry import (
    DISK_FULL,
    INTERRUPTED,
    OUT_OF_MEMORY,
    USERS_ERROR,
    end_with_parent,
)

SHUTDOWN_SECONDS = 10
"""How long a process may take to end before it is killed."""

TELLING = (OUT_OF_MEMORY, DISK_FULL, USERS_ERROR)
"""Exit codes that say what went wrong; when one process ends, others fail for want of it."""


def main(processes: int, worker: str) -> NoReturn:
    """Runs `kinject_assets.workers.WORKER` in so many processes and ends as they do."""
    end_with_parent()
    with tempfile.TemporaryDirectory(prefix="kinject-ranks-") as folder:
        os.environ.update(_environment(processes, Path(folder)))
        code = _run(processes, worker, Path(folder))
    sys.exit(code)


def _environment(processes: int, folder: Path) -> dict[str, str]:
    loopback = next(
        (
            name
            for name, addresses in psutil.net_if_addrs().items()
            if any(a.family == socket.AF_INET and a.address == "127.0.0.1" for a in addresses)
        ),
        "lo",
    )
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {
        STORE: str(folder / "ranks"),
        # Without this, torchrun starts a second store for its processes, on every interface.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }


def _run(processes: int, worker: str, folder: Path) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    arguments = [
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={folder / 'rendezvous'}",
        "--rdzv-id=kinject",
        "--rdzv-conf=store_type=file",
        "--local-addr=127.0.0.1",
        f"--nproc-per-node={processes}",
        f"--shutdown-timeout={SHUTDOWN_SECONDS}",
        "-m",
        f"kinject_assets.workers.{worker}",
    ]
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        told = [code for code in TELLING if code in codes]
        # A process that a signal ended has a negative code.
        return told[0] if told else max(1, error.get_first_failure()[1].exitcode)
    except SignalException:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
