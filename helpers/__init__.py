"""Small helpers of the course "LoRA, step by step". Import them before torch and transformers."""
import io
import logging
import os
import sys
import warnings
from pathlib import Path


def at_home(path: str | Path) -> Path:
    """Return a path with the user's home folder in place of `~`; where there is none, it stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  pathlib's raises there


def is_folder(path: str | Path) -> bool:
    """Say whether a folder is there, as far as this account may look."""
    return os.path.isdir(path)  # noqa: PTH112  pathlib's raises where it may not


def chosen_folder(chosen: str) -> Path:
    """Return the folder that BASE_MODEL names, seen from the working directory or from the course's folder; it may not be there."""
    places = at_home(chosen), Path(__file__).resolve().parents[1] / at_home(chosen)
    return next(filter(is_folder, places), places[0])


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE")  # what the user has set, if anything
# The hub libraries read these when they are first imported. With the embedded model, or a local folder, nothing is fetched.
_chosen = os.environ.get("BASE_MODEL", "").strip().strip("\"'")
if not _chosen or is_folder(chosen_folder(_chosen)):
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no fork warning from data loaders
# A thread that waits for another one spins, for a while. On a core that something else needs too, this makes two threads
# slower than one; so it spins briefly (GNU's OpenMP counts turns, Intel's and LLVM's milliseconds). CONTRIBUTING.md, What is measured.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several GPUs in one process SFTTrainer stops
# PyTorch asks Linux for its large tensors in pages of 2 MB instead of 4 KB: training spends less time in the system.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

for _stream in (sys.stdout, sys.stderr):  # a console, file or pipe that lacks a character (✓ in Windows' cp1252) gets its name
    if isinstance(_stream, io.TextIOWrapper) and _stream.errors == "strict":
        _stream.reconfigure(errors="namereplace")

# PEFT asks transformers for a setting by its older name, at every wrapping of a model; nobody who uses either can change that.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning, module=r"transformers\.modeling_utils")
# The Trainer pins memory by default; on Apple's processors nothing can be pinned, and nothing is lost.
warnings.filterwarnings("ignore", "'pin_memory' argument is set as true but not supported on MPS", UserWarning)
# bitsandbytes, where it is installed, regrets at every import that it found no faster kernel on the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def work_in(folder: str) -> None:
    """Make the relative paths of a page in this folder of the course right, wherever its kernel was started.

    folder: seen from the course's, such as "notebooks". Where the course's data are not in their place beside the working
    directory, that becomes this folder of the course to which `helpers` belongs.
    """
    if not Path(*[".."] * len(Path(folder).parts), "data", "two_examples.jsonl").is_file():
        os.chdir(Path(__file__).resolve().parents[1] / folder)
