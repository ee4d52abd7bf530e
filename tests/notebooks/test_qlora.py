"""QLoRA as notebook 14 loads it, on the CPU, where bitsandbytes works too, if slowly."""
import re
import sys

import pytest
import torch
from datasets import Dataset
from notebook_tools import FOLDER, read
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_quantization_config

from helpers.adapter.diagnosis import diagnose_adapter
from helpers.model.base_model import base_model_path
from helpers.model.hardware import training_precision
from helpers.training.memory import estimate_memory

pytestmark = pytest.mark.slow


@pytest.fixture
def cells():
    return {cell.id: cell.source for cell in read(FOLDER / "14_beyond_this_laptop.ipynb").cells}


@pytest.fixture
def load_model(cells):
    """Take the function from the notebook."""
    names = {}
    exec("\n".join(cells[name] for name in ("imports", "imports-2", "qlora-load")), names)
    assert names["USE_QLORA"] is False
    return names["load_model"]


@pytest.fixture
def model_of_blocks(tiny_qwen3, tmp_path):
    """A tiny Qwen3 whose widths are multiples of a block of 64, as in real models: bitsandbytes asks for that where it answers on a CPU."""
    config, tokenizer = AutoConfig.from_pretrained(tiny_qwen3), AutoTokenizer.from_pretrained(tiny_qwen3)
    config.intermediate_size = 192
    torch.manual_seed(0)
    for part in (AutoModelForCausalLM.from_config(config), tokenizer):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_switch_is_off_and_then_the_model_is_the_usual_one(load_model, tiny_qwen3):
    assert not getattr(load_model(tiny_qwen3).config, "quantization_config", None)


def test_without_the_package_a_sentence_says_what_to_install(load_model, tiny_qwen3, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # so that Python finds no such package
    with pytest.raises(RuntimeError, match=r'pip install -e "\.\[qlora\]"'):
        load_model(tiny_qwen3, qlora=True)


@pytest.mark.packed
def test_the_base_model_packed_takes_what_was_predicted(cells, load_model, capsys):
    exec(cells["qlora-here"], load_model.__globals__ | {"model_path": base_model_path()})
    packed, predicted, whole = map(float, re.findall(r"([\d.]+) GB", capsys.readouterr().out))
    assert packed == pytest.approx(predicted, abs=0.011) and packed < 0.3 * whole


@pytest.mark.packed
def test_a_packed_model_is_small_and_an_adapter_beside_it_learns(load_model, model_of_blocks, tmp_path):
    model = load_model(model_of_blocks, qlora=True)
    packed = {name: weight.clone() for name, weight in model.state_dict().items()}
    needs = estimate_memory(AutoModelForCausalLM.from_pretrained(model_of_blocks).config, method="qlora", dtype=torch.bfloat16)
    assert model.get_memory_footprint() == pytest.approx(needs.weights, rel=0.1)

    row = {"prompt": [{"role": "user", "content": "Where is it?"}], "completion": [{"role": "assistant", "content": "On Osk Island."}]}
    args = SFTConfig(str(tmp_path), max_steps=6, per_device_train_batch_size=2, learning_rate=1e-2, logging_steps=1, save_strategy="no",
                     report_to="none", activation_checkpointing=False, **training_precision())
    tokenizer = AutoTokenizer.from_pretrained(model_of_blocks)
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list([row] * 12), processing_class=tokenizer,
                         peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert diagnose_adapter(trainer.model, tokenizer, questions=["Where is it?"]).verdict == "never trained"
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    after = {name.replace(".base_layer", ""): weight for name, weight in trainer.model.get_base_model().state_dict().items()}
    assert all(torch.equal(weight, after[name]) for name, weight in packed.items())

    trainer.save_model(str(tmp_path / "adapter"))
    for diagnosis in (diagnose_adapter(trainer.model, tokenizer, questions=["Where is it?"], trainer=trainer, saved=tmp_path / "adapter"),
                      diagnose_adapter(tmp_path / "adapter", tokenizer, base=load_model(model_of_blocks, qlora=True), questions=["Where is it?"])):
        assert diagnosis.verdict == "trained" and not [check for check in diagnosis.checks if check.ok is False], str(diagnosis)


def test_the_switch_of_the_command_line_packs_in_the_same_way(cells, load_model):
    flags = re.search(r"`(--load_in_4bit [^`]+)`", cells["qlora-read"])[1].split()
    [options] = TrlParser(ModelConfig).parse_args_and_config(flags)
    assert get_quantization_config(options).to_dict() == load_model.__globals__["four_bits"].to_dict()
