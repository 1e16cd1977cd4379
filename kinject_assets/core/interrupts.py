"""Ctrl-C that cannot get lost."""

import contextlib
import os
import signal


class Interrupts:
    """Remembers that the process was asked to stop, whatever became of the exception.

    Python raises KeyboardInterrupt inside whatever code runs at the moment; where it meets a
    destructor or a callback of the garbage collector it is printed and lost. The interpreter itself
    notes each signal in a pipe, and that is read here. For the main thread.
    """

    def __enter__(self) -> "Interrupts":
        self._seen = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._read)
        os.close(self._write)

    def check(self) -> None:
        """Called often by long work.

        Raises:
            KeyboardInterrupt: If SIGINT or SIGTERM came since the beginning.
        """
        with contextlib.suppress(BlockingIOError):
            noted = os.read(self._read, 64)
            self._seen = self._seen or signal.SIGINT in noted or signal.SIGTERM in noted
        if self._seen:
            raise KeyboardInterrupt
