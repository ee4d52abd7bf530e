"""Real conditions in which a command is run: a small disk, a user without rights, another locale; each is a prefix or variables for it."""
from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

EVERY_CELL_TWICE = bool(os.environ.get("EVERY_CELL_TWICE"))  # as in the weekly run
WEEKLY = pytest.mark.skipif(not EVERY_CELL_TWICE, reason="once a week: EVERY_CELL_TWICE=1")


def skip_unless_ci(reason: str) -> None:
    assert not os.environ.get("CI"), f"CI must run this: {reason}"
    pytest.skip(reason)


@functools.cache
def _works(*prefix: str) -> bool:
    return bool(shutil.which(prefix[0])) and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0


def small_disk(folder: Path, megabytes: int) -> list[str]:
    """Return what runs a command that finds a real disk of that size, in memory, at this folder."""
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount"]
    if not _works(*own_mounts, "sh", "-c", "mount -t tmpfs none /mnt"):
        skip_unless_ci("this system can't make a small disk (it takes Linux with unshare)")
    return [*own_mounts, "sh", "-ec", f'mount -t tmpfs -o size={megabytes}m none "{folder}"; exec "$@"', "sh"]


def little_memory(folder: Path, kilobytes: int) -> list[str]:
    """Return what runs a command to which this system says that so much memory is free."""
    small_disk(folder, 1)  # or skip
    told = re.sub(r"(?m)^MemAvailable:.*", f"MemAvailable: {kilobytes} kB", Path("/proc/meminfo").read_text())
    (folder / "meminfo").write_text(told)
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", f'mount --bind "{folder}/meminfo" /proc/meminfo; exec "$@"', "sh"]


@contextmanager
def no_file_can_grow() -> Iterator[None]:
    """Let the system refuse every byte that this process writes to a file, as it does on a full disk."""
    resource = pytest.importorskip("resource", reason="limits of a process are Unix's")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def as_nobody() -> list[str]:
    """Return what runs a command as a user whom the system does not know and who has no rights but those of a file's owner."""
    prefix = ["unshare", "--user", "--map-user=12345"]
    if not _works(*prefix):
        skip_unless_ci("this system can't run a command as somebody else (it takes Linux with unshare)")
    return [shutil.which("unshare"), *prefix[1:]]


@functools.cache
def locale_of(charmap: str, language: str, folder: Path) -> dict[str, str]:
    """Make a locale of that character set; return the variables with which a command runs in it."""
    if not shutil.which("localedef"):
        skip_unless_ci("this system can't make locales (it takes localedef and the package locales)")
    made = subprocess.run(["localedef", "-f", charmap, "-i", language, str(folder / f"{language}.{charmap}")], capture_output=True, text=True)
    if not (folder / f"{language}.{charmap}").is_dir():
        skip_unless_ci(f"localedef made no {charmap}: {made.stderr}")
    return {"LOCPATH": str(folder), "LC_ALL": f"{language}.{charmap}", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
