"""Measure how much memory a piece of work takes: the peak of this process while a block runs; `estimate_memory` predicts it."""

import os
import threading
from types import TracebackType

import psutil

from helpers.memory_estimate import MemoryEstimate, estimate_memory

__all__ = ["MemoryEstimate", "PeakMemory", "estimate_memory", "resident_bytes"]


def resident_bytes() -> int:
    """Return the bytes of real memory (RSS) that this process holds now, pages of mapped files included."""
    return psutil.Process(os.getpid()).memory_info().rss


class PeakMemory:
    """Watch this process's memory while a `with` block runs.

    start_bytes: RSS when the block began; peak_bytes: the highest RSS seen, in bytes, and readable while the block
    runs; growth_bytes: peak_bytes - start_bytes. A thread looks every `interval` seconds, so a shorter spike can be
    missed. GPU memory is not counted, and memory that the block reuses rather than asks for does not show as growth.
    """

    def __init__(self, interval: float = 0.01) -> None:
        """Set the seconds between two looks; raise ValueError unless it is above 0."""
        if not interval > 0:
            raise ValueError(f"interval is {interval}, but it is the seconds between two looks: give more than 0")
        self.interval = interval
        self.start_bytes = self.peak_bytes = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def growth_bytes(self) -> int:
        """Return how many bytes the peak lies above the start."""
        return self.peak_bytes - self.start_bytes

    def __enter__(self) -> "PeakMemory":
        """Note where memory stands and begin to watch it; raise RuntimeError if it is watched already."""
        if self._thread is not None:
            raise RuntimeError("this PeakMemory is already watching a block: make a second one for the inner block")
        self.start_bytes = self.peak_bytes = resident_bytes()
        self._done.clear()
        self._thread = threading.Thread(target=self._watch, name="PeakMemory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the last look and stop watching; an error in the block goes on to the caller."""
        self._look()
        self._done.set()
        self._thread.join()
        self._thread = None

    def _watch(self) -> None:
        """Look again and again until the block ends."""
        while not self._done.wait(self.interval):
            self._look()

    def _look(self) -> None:
        """Raise the peak if the process is larger now than it has been."""
        self.peak_bytes = max(self.peak_bytes, resident_bytes())
