"""Which process something belongs to, so that its death can be told later."""

import os
import socket
from dataclasses import dataclass
from functools import cache

import psutil

CLOCK_SECONDS = 60
"""A process's start is told by the clock, which may be set while it runs."""


@dataclass(frozen=True)
class Owner:
    """A process, told apart from later ones that get its number.

    Attributes:
        born: Start of the process in seconds since 1970, whole.
        host: Name of the machine.
    """

    pid: int
    born: int
    host: str

    @property
    def alive(self) -> bool:
        """Whether it still runs; one of another machine counts as alive, since we cannot tell."""
        if self.host != socket.gethostname():
            return True
        try:
            process = psutil.Process(self.pid)
            return (
                abs(process.create_time() - self.born) < CLOCK_SECONDS
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return False


def this_process() -> Owner:
    """The process that asks."""
    return _owner(os.getpid())


@cache
def _owner(pid: int) -> Owner:
    return Owner(pid, int(psutil.Process(pid).create_time()), socket.gethostname())
