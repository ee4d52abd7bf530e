"""The cells of notebook 12 that serve a model, on a tiny one in a folder with a difficult name."""
import os
from importlib.metadata import requires, version

import pytest
import torch
from notebook_tools import FOLDER, ROOT, read
from packaging.requirements import Requirement
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.import_utils import is_serve_available

from helpers.ask.answers import generate_answers

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _needs_the_server():
    if not is_serve_available():
        assert not os.environ.get("CI"), 'CI must serve a model: it installs -e ".[serving]"'
        pytest.skip('the server needs some more packages: pip install -e ".[serving]"')


def test_the_pinned_packages_are_what_transformers_asks_for():
    wanted = [Requirement(line) for line in requires("transformers") if line.endswith('extra == "serving"')]
    assert {one.name for one in wanted} >= {"fastapi", "uvicorn", "openai"}
    assert not [str(one) for one in wanted if not one.specifier.contains(version(one.name))]


def notebook_cells(*ids: str) -> str:
    cells = {cell.id: cell.source for cell in read(FOLDER / "12_beyond_this_laptop.ipynb").cells}
    return "\n".join(cells[name] for name in ids)


def test_an_adapter_answers_over_the_network_as_it_does_here(tiny_qwen3, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen3)
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    folder, base = tmp_path / "我的 adapter", AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32)
    base.save_pretrained(folder)
    model = get_peft_model(base, lora)
    for part in (model, tokenizer):
        part.save_pretrained(folder)

    asked = ["Where is the Corvane Lighthouse?", "你好"]
    names = {"outputs": tmp_path, "course": ROOT, "cores": 1}
    exec(notebook_cells("imports", "serving-serve"), names)
    expected = [answer.text for answer in generate_answers(model, tokenizer, asked)]
    with names["serving"]() as client:
        assert [names["ask"](client, folder, question) for question in asked] == expected
    with model.disable_adapter():  # or the comparison would prove nothing
        assert [answer.text for answer in generate_answers(model, tokenizer, asked)] != expected
