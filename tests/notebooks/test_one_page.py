"""The script at the end of notebook 12, run as what it is: a plain Python file, in a fresh process and an empty folder."""
import os
import shutil
import subprocess
import sys

import torch
from notebook_tools import FOLDER, ROOT, read
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers.adapter.diagnosis import diagnose_adapter
from helpers.ask.answers import generate_answers, score_answers
from helpers.data.dataset import load_sft_jsonl
from helpers.model.base_model import base_model_path


def script() -> str:
    """Return the source of the last code cell, which is the script."""
    cells = [cell for cell in read(FOLDER / "12_beyond_this_laptop.ipynb").cells if cell.cell_type == "code"]
    assert cells[-1].id == "whole-course"
    return cells[-1].source


def test_it_is_about_a_page_long():
    assert len([line for line in script().splitlines() if line.strip()]) <= 50


def test_the_adapter_that_it_leaves_passes_the_diagnosis(tmp_path, tokenizer):
    shutil.copytree(ROOT / "data", tmp_path / "data")
    (tmp_path / "whole_course.py").write_text(script(), encoding="utf-8")
    run = subprocess.run([sys.executable, "whole_course.py"], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
                         env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    assert run.returncode == 0, run.stderr[-3000:]

    adapter = tmp_path / "outputs" / "whole_course" / "adapter"
    heldout = load_sft_jsonl(ROOT / "data" / "heldout.jsonl")
    questions = [record["messages"][0]["content"] for record in heldout]
    base = AutoModelForCausalLM.from_pretrained(base_model_path(), dtype=torch.float32)
    diagnosis = diagnose_adapter(adapter, tokenizer, base=base, questions=questions[::9])
    assert diagnosis.verdict == "trained", diagnosis
    assert not [check for check in diagnosis.checks if check.ok is False]

    answers = generate_answers(PeftModel.from_pretrained(base, adapter), tokenizer, questions)
    right = sum(score_answers(answers, [record["key_phrase"] for record in heldout]))
    assert right >= 0.9 * len(heldout)
    assert f"after: {right} of {len(heldout)} right" in run.stdout and "trained:" in run.stdout
