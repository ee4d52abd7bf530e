"""Run another program from a notebook: its output in a file, its progress in sight, and nothing of it left behind."""
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import psutil


@contextmanager
def started(*words: str, folder: str | Path, threads: int | None = None, output=subprocess.DEVNULL,
            **environment: str) -> Iterator[psutil.Popen]:
    """Start `python -m WORDS` in a folder, and stop it, with all that it started, when the block ends, however it ends.

    It also ends, with all that it started, within a second or two of this process, should that be killed before the block ends.
    threads: how many threads PyTorch uses in each process, by default as many as it would here; output: where what it
    prints goes, as for subprocess.Popen; environment: variables that are set for it.
    """
    own = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"} | own | environment
    command = [sys.executable, "-m", "helpers.tools.processes", str(os.getpid()), *words]
    process = psutil.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT,
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


def _run(parent: int, *words: str) -> None:
    """Do in this process what `python -m WORDS` does; watch the parent from a thread."""
    threading.Thread(target=_end_with, args=(psutil.Process(parent),), daemon=True).start()
    sys.argv = [*words]
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def _end_with(parent: psutil.Process) -> None:
    """Wait until the parent has ended; then end at once, with all that this process started."""
    with suppress(psutil.NoSuchProcess):
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(1)


@contextmanager
def memory_of(process: psutil.Popen) -> Iterator[dict[str, int]]:
    """Watch the memory (RSS) of a process and of all that it started, every 0.2 seconds, until the block ends.

    Yields the highest bytes seen so far: "together" over all of them, and "largest" for one of them alone.
    """
    peaks, done = {"together": 0, "largest": 0}, threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            held = _bytes_held(process)
            peaks["together"], peaks["largest"] = max(peaks["together"], sum(held)), max(peaks["largest"], *held)

    thread = threading.Thread(target=watch, name="memory_of", daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def _bytes_held(process: psutil.Popen) -> list[int]:
    held = [0]
    with suppress(psutil.NoSuchProcess):
        for one in [process, *process.children(recursive=True)]:
            with suppress(psutil.Error):  # it may end while we look
                held.append(one.memory_info().rss)
    return held


def run_module(*words: str, folder: str | Path, log: Path, threads: int, show: Callable[[str], None] = print,
               last: str | None = None, grace: float = 30) -> int:
    """Run `python -m WORDS` to its end, call show(line) for every line that it prints, and keep them all in a file.

    last: what stands in the line with which its work is done; it then has `grace` seconds to end, or is stopped, which is
    no failure. Returns the bytes of memory (RSS) that all its processes held together at the highest point seen. Raises
    RuntimeError, with the last lines, if it fails.
    """
    stopped = threading.Event()
    with (log.open("w", encoding="utf-8") as file, started(*words, folder=folder, threads=threads, output=subprocess.PIPE) as process,
          memory_of(process) as peaks):
        clock = threading.Timer(grace, lambda: (stopped.set(), _stop(process)))
        clock.daemon = True  # it may wait still where an error ends the block
        for line in process.stdout:
            file.write(line)
            show(line.rstrip())
            if last and last in line and not clock.ident:
                clock.start()
        code = process.wait()
        clock.cancel()
    if code and not stopped.is_set():
        lines = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
        raise RuntimeError(f"python -m {words[0]} failed (exit code {code}); all that it printed is in {log}. The last lines:\n{lines}")
    return peaks["together"]


def free_port() -> int:
    """Return a port of this computer that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_until_ready(server: psutil.Popen, address: str, log: Path, seconds: float = 120) -> None:
    """Wait until a server that was started answers at an http address; log: the file to which its output goes.

    Raises RuntimeError if the server ends, TimeoutError if it does not answer in that many seconds.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the server has ended (exit code {server.returncode}) before it answered at {address}; all that it printed is in {log}")
        with suppress(OSError):
            with suppress(HTTPError):  # it answers, if only that it has no such page
                build_opener(ProxyHandler({})).open(address, timeout=5).close()  # no proxy leads to this computer
            return
        time.sleep(0.2)
    raise TimeoutError(f"the server does not answer at {address} after {seconds:g} s; all that it printed is in {log}")


if __name__ == "__main__":  # as `started` calls it
    _run(int(sys.argv[1]), *sys.argv[2:])
