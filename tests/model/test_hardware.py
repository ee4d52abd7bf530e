import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import torch
from real_failures import skip_unless_ci
from trl import SFTConfig

from helpers.model import hardware
from helpers.tools.processes import started


def test_describes_this_machine():
    table, memory = hardware.describe_hardware(), psutil.virtual_memory()
    assert set(table) >= {"CPU cores", "memory", "free disk", "device", "precision"}
    assert 1 <= int(table["CPU cores"]) <= os.cpu_count()
    total, available = map(float, re.findall(r"([\d.]+) GB", table["memory"]))
    assert (total, available) == (pytest.approx(memory.total / 1e9, abs=0.1), pytest.approx(memory.available / 1e9, abs=1.5))
    assert float(table["free disk"].split()[0]) == pytest.approx(shutil.disk_usage(".").free / 1e9, abs=1)


def test_trainer_accepts_the_precision(tmp_path):
    config = SFTConfig(str(tmp_path), **hardware.training_precision())
    assert not (config.bf16 and config.fp16)
    assert config.use_cpu == (hardware.best_device() == "cpu")


@pytest.mark.parametrize(("device", "speedup", "supported", "expected"), [
    ("cpu", 0.3, False, (False, False)),
    ("cpu", 2.0, False, (True, False)),
    ("mps", 2.0, False, (False, False)),
    ("cuda", 0.3, True, (True, False)),
    ("cuda", 2.0, False, (False, True)),
])
def test_precision_follows_what_is_fast(monkeypatch, device, speedup, supported, expected):
    monkeypatch.setattr(hardware, "best_device", lambda: device)
    monkeypatch.setattr(hardware, "bf16_speedup", lambda: speedup)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported or including_emulation)
    precision = hardware.training_precision()
    assert (precision["bf16"], precision["fp16"]) == expected


def test_speedup_is_measured_in_the_right_direction(monkeypatch):
    hardware.bf16_speedup.cache_clear()
    monkeypatch.setattr(hardware, "matmul_seconds", {torch.float32: 3.0, torch.bfloat16: 1.0}.get)
    assert hardware.bf16_speedup() == 3.0
    hardware.bf16_speedup.cache_clear()


@pytest.mark.parametrize("labels", [[[-100, -100, 5, 6], [-100, 7, -100, -100]], [[-100] * 4] * 2, [[1, 2, 3, 4]] * 2])
def test_skipping_masked_positions_changes_neither_loss_nor_gradient(tmp_path, monkeypatch, labels):
    """TRL's own way, which scores every position on a CPU, is the oracle."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTTrainer
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    original = chunked_logprob._use_triton

    def loss_and_gradient():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=50, pad_token_id=0, **sizes))
        rows = Dataset.from_list([{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}])
        config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
        trainer = SFTTrainer(model, SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none"), train_dataset=rows,
                             peft_config=config, processing_class=tokenizer_for(50))
        batch = {"input_ids": torch.tensor([[1, 2, 3, 4]] * 2), "labels": torch.tensor(labels), "attention_mask": torch.ones(2, 4)}
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return loss.item(), [p.grad.clone() for p in trainer.model.parameters() if p.requires_grad]

    monkeypatch.setattr(utils, "_use_triton", original)
    plain_loss, plain_gradient = loss_and_gradient()
    monkeypatch.setattr(utils, "_use_triton", original)  # undone after the test, also what the next line sets
    assert hardware.score_supervised_only()
    assert utils._use_triton(torch.device("cpu")), "the switch of this version of TRL is not the one that was checked"
    loss, gradient = loss_and_gradient()
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    for mine, plain in zip(gradient, plain_gradient, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)


def tokenizer_for(size):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({str(number): number for number in range(size)}, unk_token="1"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="2", unk_token="1")


def on_its_own_threads() -> dict[str, str]:
    """Return variables for a process that trains on the processor, with as many threads as it chooses."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {"ACCELERATE_USE_CPU": "1"}


def threads_in_a_new_process(**environment) -> tuple[int, str]:
    """Return how many threads PyTorch has after use_free_cores(), and what that says."""
    code = "from helpers.model import use_free_cores\nimport torch\nsaid = use_free_cores()\nprint(torch.get_num_threads(), said)"
    printed = subprocess.run([sys.executable, "-c", code], env=on_its_own_threads() | environment, capture_output=True, text=True, check=True).stdout
    return int(printed.split()[0]), printed.split(maxsplit=1)[1].strip()


def test_where_every_core_is_busy_one_thread_is_used():
    with ExitStack() as busy:
        for _ in range(os.cpu_count()):
            busy.enter_context(started("timeit", "-n", "1", "-r", "1", "while True: pass", folder="."))
        threads, said = threads_in_a_new_process()
    assert threads == 1 and said.startswith("Training uses 1 of ")
    assert ("keeps this computer busy" in said) == ("1 of 1 " not in said)


def test_the_users_own_number_of_threads_is_left_alone():
    assert threads_in_a_new_process(OMP_NUM_THREADS="1") == (1, "Training uses as many processor cores as OMP_NUM_THREADS says: 1.")


def test_where_a_card_trains_the_threads_stay_as_they_are():
    threads = torch.get_num_threads()
    assert hardware.use_free_cores("cuda") == "Training uses the graphics processor." and torch.get_num_threads() == threads


@pytest.mark.parametrize(("given", "expected"), [({}, ("1000", "1")), ({"OMP_WAIT_POLICY": "active"}, ("None", "None")),
                                                 ({"GOMP_SPINCOUNT": "7"}, ("7", "1"))])
def test_waiting_threads_spin_briefly_unless_the_user_says_otherwise(given, expected):
    code = "import os, helpers; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('KMP_BLOCKTIME'))"
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")}
    printed = subprocess.run([sys.executable, "-c", code], env=own | given, capture_output=True, text=True, check=True).stdout
    assert tuple(printed.split()) == expected


@pytest.mark.parametrize(("limit", "all_of_them"), [("150000 100000", False), ("max 100000", True)])
def test_a_container_s_share_of_the_cores_is_respected(limit, all_of_them):
    """As in a container, with what it would find at this place laid over the real one."""
    place = Path("/sys/fs/cgroup")
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", f'mount -t tmpfs none {place}; echo "{limit}" > {place}/cpu.max; exec "$@"', "sh"]
    if not place.is_dir() or not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        skip_unless_ci("this system lays nothing over a folder for one process (it takes Linux with unshare)")
    code = "import torch; print(torch.get_num_threads()); from helpers.model import use_free_cores; print(torch.get_num_threads(), use_free_cores())"
    printed = subprocess.run([*unshare, sys.executable, "-c", code], env=on_its_own_threads(), capture_output=True, text=True, check=True).stdout.split(maxsplit=2)
    assert printed[1] == (printed[0] if all_of_them else "1") and f" of {printed[1]} processor cores" in printed[2]


def page_faults(**environment):
    """Return how often a new process that imports helpers must ask for memory to fill 200 MB."""
    code = ("import helpers, resource, torch; before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt; torch.ones(50_000_000)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)")
    return int(subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True).stdout)


def test_large_tensors_come_in_large_pages():
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not pages.exists() or "[madvise]" not in pages.read_text():
        pytest.skip("this system does not leave it to programs to ask for large pages")
    assert page_faults() < page_faults(THP_MEM_ALLOC_ENABLE="0") / 10


def test_describing_the_machine_and_choosing_a_precision_change_nothing():
    from trl.trainer import utils

    before = utils._use_triton, torch.get_num_threads(), dict(os.environ)
    hardware.describe_hardware()
    hardware.training_precision()
    assert before == (utils._use_triton, torch.get_num_threads(), dict(os.environ))
