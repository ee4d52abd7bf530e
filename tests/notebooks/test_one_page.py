"""The script at the end of notebook 12, run as what it is: a plain Python file, in a fresh process and an empty folder."""
import os
import shutil
import subprocess
import sys

import pytest
import torch
from notebook_tools import FOLDER, ROOT, read
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers.adapter.diagnosis import diagnose_adapter
from helpers.ask.answers import generate_answers, score_answers
from helpers.data.dataset import load_sft_jsonl
from helpers.model.base_model import base_model_path

pytestmark = pytest.mark.slow


def script() -> str:
    """Return the source of the last code cell, which is the script."""
    cells = [cell for cell in read(FOLDER / "12_beyond_this_laptop.ipynb").cells if cell.cell_type == "code"]
    assert cells[-1].id == "whole-course"
    return cells[-1].source


def test_it_is_about_a_page_long():
    assert len([line for line in script().splitlines() if line.strip()]) <= 50


def run_script(folder, **environment):
    """Run the script in a folder that holds nothing but the data; return what it printed, and the adapter's folder."""
    shutil.copytree(ROOT / "data", folder / "data")
    (folder / "whole_course.py").write_text(script(), encoding="utf-8")
    run = subprocess.run([sys.executable, "whole_course.py"], cwd=folder, capture_output=True, text=True, encoding="utf-8",
                         env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout, folder / "outputs" / "whole_course" / "adapter"


def test_on_a_tiny_model_it_trains_an_adapter_that_is_whole(tmp_path, tiny_qwen3):
    printed, adapter = run_script(tmp_path, BASE_MODEL=str(tiny_qwen3))
    base = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32)
    failed = [check.name for check in diagnose_adapter(adapter, base=base).checks if check.ok is False]
    assert not failed and "after: " in printed


@pytest.mark.skipif(not os.environ.get("EVERY_CELL_TWICE"), reason="two minutes of training, once a week: notebook 07 trains the same way")
def test_the_adapter_that_it_leaves_passes_the_diagnosis(tmp_path, tokenizer):
    printed, adapter = run_script(tmp_path)
    heldout = load_sft_jsonl(ROOT / "data" / "heldout.jsonl")
    questions = [record["messages"][0]["content"] for record in heldout]
    base = AutoModelForCausalLM.from_pretrained(base_model_path(), dtype=torch.float32)
    diagnosis = diagnose_adapter(adapter, tokenizer, base=base, questions=questions[::9])
    assert diagnosis.verdict == "trained", diagnosis
    assert not [check for check in diagnosis.checks if check.ok is False]

    answers = generate_answers(PeftModel.from_pretrained(base, adapter), tokenizer, questions)
    right = sum(score_answers(answers, [record["key_phrase"] for record in heldout]))
    assert right >= 0.9 * len(heldout)
    assert f"after: {right} of {len(heldout)} right" in printed and "trained:" in printed
