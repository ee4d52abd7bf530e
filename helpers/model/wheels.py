"""Fetch packages with pip, and say why when it can't be done: pip's own reason and what to do about it."""
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

MENDS = {  # a word of what pip printed, from the most telling to the least, and what to do about it
    "No space left": "free some space on the disk",
    "certificate verify failed": "this network shows a certificate of its own: set PIP_CERT to the file that holds it",
    "roxy": "the proxy does not let pip through: ask those who run it, or unset HTTPS_PROXY",
    "Retrying": "connect to the internet once",
    "error sending request": "connect to the internet once",  # uv's words
    "onfiguration": "mend that setting of pip; `python -m pip config debug` shows the file or the variable it stands in",
    "No matching distribution": "the package index that pip was told to use does not hold it: unset PIP_NO_INDEX and PIP_INDEX_URL",
}
CAUSE = r"Tunnel connection failed: \d+ [\w ]+|\[Errno -?\d+\] [\w ]+|certificate verify failed|(?:read|connect) timed out"


class NotFetched(RuntimeError):
    """The packages can't be had; the message says why and what to do."""


def can_fetch() -> bool:
    """Say whether anything is here that can fetch packages: pip, uv, or the pip that Python brings along."""
    return bool(find_spec("pip") or shutil.which("uv") or find_spec("ensurepip"))


def fetch(folder: Path, *what: str) -> None:
    """Let pip download wheels into a folder; what is not complete yet lies beside it, and pip shows its progress.

    what: requirements and options of `pip download`. Raises NotFetched in one sentence.
    """
    command = [*_pip(), "download", "--only-binary", ":all:", "--disable-pip-version-check", "-d", str(folder), *what]
    # Nothing is installed, so it need not be an environment; the system's temporary folder may be small, or full.
    own = {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_NO_DEPS": "0", "TMPDIR": str(folder.parent), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=os.environ | own, stdout=subprocess.PIPE if "--quiet" in what else None, stderr=subprocess.PIPE,
                          text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise NotFetched(_why((done.stdout or "") + done.stderr, what[-1]))


def _pip() -> list[str]:
    """Return what runs pip: this environment's own, or, as uv makes them without one, uv; else Python puts its own here."""
    if not find_spec("pip") and (uv := shutil.which("uv")):
        return [uv, "tool", "run", "--python", sys.executable, "pip"]
    if not find_spec("pip") and subprocess.run([sys.executable, "-m", "ensurepip"], capture_output=True).returncode:
        raise NotFetched(f"there is neither pip nor uv to fetch packages ({sys.executable}); make the environment again as the README says, or install uv.")
    return [sys.executable, "-m", "pip"]


def _why(printed: str, what: str) -> str:
    """Turn what pip printed into one sentence: what failed, the reason, what to do."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()] or ["no reason given"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"]
    setting = [place for place, line in enumerate(lines) if "onfiguration" in line]  # pip begins a sentence here, over several lines
    reason = (re.findall(CAUSE, printed) or errors or [" ".join(lines[setting[0]:] if setting else lines[-1:])])[-1]
    mend = next((mend for word, mend in MENDS.items() if word in printed), "mend that")
    return f"pip could not fetch {what} ({reason.rstrip('.')}): {mend}, or set PIP_FIND_LINKS to a folder that holds the wheels."
