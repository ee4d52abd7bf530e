"""Run another program from a notebook: its output in a file, its progress in sight, and nothing of it left behind."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil


@contextmanager
def started(*words: str, folder: str | Path, threads: int = 1, output=subprocess.DEVNULL) -> Iterator[psutil.Popen]:
    """Start `python -m WORDS` in a folder, and stop it, with all that it started, when the block ends, however it ends.

    threads: how many threads PyTorch uses in each process; output: where what it prints goes, as for subprocess.Popen.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8"}
    process = psutil.Popen([sys.executable, "-m", *words], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT,
                           stdin=subprocess.DEVNULL, text=True, encoding="utf-8", errors="replace")
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: psutil.Popen) -> None:
    with suppress(psutil.NoSuchProcess):
        family = [*process.children(recursive=True), process]
        for signal in ("terminate", "kill"):  # asked first, then made to
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    getattr(one, signal)()
            family = psutil.wait_procs(family, timeout=10)[1]


def run_module(*words: str, folder: str | Path, log: Path, threads: int, show: Callable[[str], None] = print) -> int:
    """Run `python -m WORDS` to its end, call show(line) for every line that it prints, and keep them all in a file.

    Returns the bytes of memory (RSS) that all its processes held together at the highest point seen. Raises RuntimeError,
    with the last lines, if it fails.
    """
    peak = 0
    with log.open("w", encoding="utf-8") as file, started(*words, folder=folder, threads=threads, output=subprocess.PIPE) as process:
        for line in process.stdout:
            file.write(line)
            show(line.rstrip())
            peak = max(peak, _bytes_held(process))
        code = process.wait()
    if code:
        last = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
        raise RuntimeError(f"python -m {words[0]} failed (exit code {code}); all that it printed is in {log}. The last lines:\n{last}")
    return peak


def _bytes_held(process: psutil.Popen) -> int:
    held = 0
    with suppress(psutil.NoSuchProcess):  # one may end while we look
        for one in [process, *process.children(recursive=True)]:
            held += one.memory_info().rss
    return held
