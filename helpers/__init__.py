"""Small helpers of the course "LoRA, step by step". Import them before torch and transformers."""
import logging
import os
import warnings
from pathlib import Path

HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE")  # what the user has set, if anything
# The hub libraries read these when they are first imported. With the embedded model, or a local folder, nothing is fetched.
if "BASE_MODEL" not in os.environ or Path(os.environ["BASE_MODEL"]).expanduser().is_dir():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no fork warning from data loaders
# A thread that waits for another one spins, for a while. On a core that something else needs too, this makes two threads
# slower than one; so it spins briefly (GNU's OpenMP counts turns, Intel's and LLVM's milliseconds). README, For maintainers.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "1")

# PEFT asks transformers for a setting by its older name, at every wrapping of a model; nobody who uses either can change that.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning, module=r"transformers\.modeling_utils")
# bitsandbytes, where it is installed, regrets at every import that it found no faster kernel on the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
