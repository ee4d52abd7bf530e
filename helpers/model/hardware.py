"""Say what this machine has, and which device and precision are fast on it (measured, not guessed from a name)."""
import math
import os
import platform
import shutil
import timeit
from functools import cache
from importlib.metadata import version
from pathlib import Path

import psutil
import torch


def core_quota() -> int | None:
    """Return how many cores' time a container may use (Linux, cgroup 2); None where nothing limits it."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # another system, or the word max
        return None


OF_MACHINE = torch.get_num_threads()  # as PyTorch counts the cores of the machine
ALL_THREADS = OF_MACHINE if "OMP_NUM_THREADS" in os.environ else min(OF_MACHINE, core_quota() or OF_MACHINE)
if ALL_THREADS < OF_MACHINE:
    torch.set_num_threads(ALL_THREADS)


def best_device() -> str:
    """Return "cuda", "mps" (Apple) or "cpu": the fastest device that PyTorch can use here, or may (ACCELERATE_USE_CPU)."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "y", "yes", "t", "true", "on"):
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def training_precision() -> dict[str, bool]:
    """Return the precision switches of TrainingArguments, as `SFTConfig(**training_precision())`; change nothing.

    bf16 and fp16 switch mixed precision on where it is faster than float32 (on Apple's MPS neither is); use_cpu is True
    where no accelerator is found.
    """
    device = best_device()
    bf16 = device == "cpu" and bf16_speedup() > 1.2
    if device == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return {"bf16": bf16, "fp16": device == "cuda" and not bf16, "use_cpu": device == "cpu"}


def score_supervised_only() -> bool:
    """Let TRL's loss skip the positions without a label on a CPU too, as it does on a GPU: about a quarter of the time.

    The switch is private to TRL, so it is touched only in the version that it was checked with, where the tests compare
    loss and gradients; call this before training. Returns whether those positions are skipped.
    """
    from trl.trainer import utils

    if best_device() == "cpu" and version("trl").startswith("1.16.") and hasattr(utils, "_use_triton"):
        utils._use_triton = lambda device: True
    return getattr(utils, "_use_triton", lambda device: False)(torch.device(best_device()))


def use_free_cores(device: str | None = None) -> str:
    """Let PyTorch compute with as many threads as there are free cores, at least one; return a sentence that says so.

    device: where training will run, by default on `best_device()`; on a graphics processor the threads stay as they are.

    Its threads wait for each other, so one that shares its core with another program holds up all of them: with one of
    two cores busy, one thread is faster than two. What OMP_NUM_THREADS says is left alone.
    """
    if (device or best_device()) != "cpu":
        return "Training uses the graphics processor."
    if "OMP_NUM_THREADS" in os.environ:
        return f"Training uses as many processor cores as OMP_NUM_THREADS says: {torch.get_num_threads()}."
    free = (1 - psutil.cpu_percent(0.5) / 100) * OF_MACHINE  # this process waits, so half a second of it shows what others do
    torch.set_num_threads(max(1, min(ALL_THREADS, math.floor(free + 0.3))))  # 0.3: a browser in the background is no obstacle
    busy = "" if torch.get_num_threads() == ALL_THREADS else " Something else keeps this computer busy: training takes longer."
    return f"Training uses {torch.get_num_threads()} of {ALL_THREADS} processor cores.{busy}"


@cache
def bf16_speedup() -> float:
    """Time a matrix product on the CPU; return how many times faster bfloat16 is than float32 (below 1: slower)."""
    return matmul_seconds(torch.float32) / matmul_seconds(torch.bfloat16)


def matmul_seconds(dtype: torch.dtype, rows: int = 256, tries: int = 5) -> float:
    """Return the shortest of some times, in seconds, of one [rows, 576] x [576, 1536] product on the CPU."""
    left, right = torch.ones(rows, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
    return min(timeit.repeat(lambda: left @ right, number=1, repeat=tries))


def describe_hardware() -> dict[str, str]:
    """Describe the machine as a table of short texts; memory in GB (10^9 bytes), free disk space of the working directory."""
    memory, device = psutil.virtual_memory(), best_device()
    precision = training_precision()
    return {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "CPU cores": str(psutil.cpu_count(logical=False) or os.cpu_count()),
        "memory": f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB of it free",
        "free disk": f"{shutil.disk_usage('.').free / 1e9:.1f} GB",
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "precision": "bfloat16" if precision["bf16"] else "float16" if precision["fp16"] else "float32",
        "bfloat16 on this CPU": f"{bf16_speedup():.2f} times the speed of float32",
    }
