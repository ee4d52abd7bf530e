import shutil

import pytest
from notebook_tools import ROOT
from tiny_qwen3 import build_tiny_qwen3

from helpers.model.base_model import base_model_path

TIMES: dict[str, list[tuple[float, str]]] = {}


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_model_path())


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory):
    """Build a tiny random Qwen3, once, in a folder whose path has spaces and Chinese characters; return the folder."""
    return build_tiny_qwen3(tmp_path_factory.mktemp("models") / "我的 模型" / "Qwen3 tiny")


@pytest.fixture
def make_sft_trainer(tmp_path, tokenizer):
    """Make a TRL trainer for these rows, on a tiny random model."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from helpers.model.hardware import training_precision

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))

    def make(rows, data_collator=None, processing_class=tokenizer, **settings):
        args = SFTConfig(str(tmp_path), report_to="none", activation_checkpointing=False, **settings, **training_precision())
        return SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=processing_class,
                          data_collator=data_collator)

    return make


@pytest.fixture
def course(tmp_path):
    """A copy of the course with nothing in outputs/ and no notebook."""
    (tmp_path / "course" / "notebooks").mkdir(parents=True)
    shutil.copytree(ROOT / "data", tmp_path / "course" / "data")
    if (ROOT / "notebooks" / "images").is_dir():
        shutil.copytree(ROOT / "notebooks" / "images", tmp_path / "course" / "notebooks" / "images")
    return tmp_path / "course"


@pytest.fixture(scope="session")
def notebook_times():
    """Seconds and source of every code cell, by notebook; printed at the end of the run."""
    return TIMES


def pytest_terminal_summary(terminalreporter):
    """Report what the notebooks took: a report and not a test, since machines differ."""
    if not TIMES:
        return
    write = terminalreporter.write_line
    terminalreporter.section("seconds of the notebooks, first pass")
    for name, cells in TIMES.items():
        write(f"{sum(seconds for seconds, _ in cells):7.1f}  {name}")
    write(f"{sum(seconds for cells in TIMES.values() for seconds, _ in cells):7.1f}  the whole course")
    write("slowest cells:")
    slow = sorted(((seconds, name, source) for name, cells in TIMES.items() for seconds, source in cells), reverse=True)[:12]
    for seconds, name, source in slow:
        write(f"{seconds:7.1f}  {name[:2]}  {source.splitlines()[0][:80]}")
