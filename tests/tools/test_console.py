"""Consoles and pipes that are not UTF-8, in real locales: what Windows has in Western Europe, and what it has in China."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from notebook_tools import ROOT
from real_failures import locale_of

import helpers

SIGNS = {r"\N{CHECK MARK}", r"\N{BALLOT X}"}
REPORT = """
from datasets import Dataset
from tiny_qwen3 import build_tiny_qwen3
from helpers.data import load_sft_jsonl, supervision_report
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
import sys
model = build_tiny_qwen3(sys.argv[1])
records = load_sft_jsonl("data/train.jsonl")[:3]
records[0]["messages"][0]["content"] = "Où est 灯塔? ✓"
args = SFTConfig(sys.argv[2], max_length=40, report_to="none", use_cpu=True, bf16=False)
trainer = SFTTrainer(str(model), args, train_dataset=Dataset.from_list(records), processing_class=AutoTokenizer.from_pretrained(model))
print(supervision_report(trainer, records))
print("灯塔 ✓ é")
"""


@pytest.fixture(scope="module", params=[("CP1252", "de_DE", "cp1252"), ("GBK", "zh_CN", "gbk")], ids=lambda made: made[0])
def console(request, tmp_path_factory):
    """The variables of a locale in which Python writes that encoding into files and pipes, and its name."""
    charmap, language, encoding = request.param
    env = os.environ | locale_of(charmap, language, tmp_path_factory.mktemp("locales"))
    env.pop("PYTHONIOENCODING", None)
    told = subprocess.run([sys.executable, "-c", "import sys; print(sys.stdout.encoding)"], env=env, capture_output=True, text=True)
    assert told.stdout.strip() == encoding
    return env, encoding


def printed(console, *words):
    """Run Python with its output in a file, as `> page.txt` does; return the status and the text of the file, in the console's encoding."""
    env, encoding = console
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=env, capture_output=True)
    complaint = done.stderr.decode(encoding)
    assert "Traceback" not in complaint and "UnicodeError" not in complaint, complaint
    return done.returncode, done.stdout.decode(encoding), complaint


def test_the_readiness_page_is_whole(console):
    _, text, _ = printed(console, "-m", "helpers", "ready")
    *lines, verdict = text.splitlines()
    assert {re.match(r"\\N\{[A-Z ]+\}", line)[0] for line in lines if not line.startswith("  ")} <= SIGNS
    assert len(lines) >= 9 and ("ready" in verdict)


def test_the_other_commands(console, tmp_path):
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "✗ 灯塔 é", "content": "x"}]}\n', encoding="utf-8")
    status, text, _ = printed(console, "-m", "helpers", "check", tmp_path / "chats.jsonl")
    assert status == 1 and "chats.jsonl:1" in text and r"\N{BALLOT X}" in text
    for command in ("prepare", "ready", "check", "diagnose", "kit", "render"):
        assert printed(console, "-m", "helpers", command, "--help")[0] == 0
    status, text, _ = printed(console, "-m", "helpers", "prepare")
    assert status == 0 and text.strip().endswith("SmolLM2-135M-Instruct")


def test_pip_s_reason_arrives_in_words(console, tmp_path):
    env, encoding = console
    env = env | {"LORA_COURSE_CACHE": str(tmp_path / "缓存"), "PIP_CONFIG_FILE": str(tmp_path / "é.conf")}
    (tmp_path / "é.conf").write_text("no section\n", encoding="utf-8")
    status, _, complaint = printed((env, encoding), "-m", "helpers", "prepare")
    assert status == 1 and "File contains no section headers" in complaint


@pytest.mark.slow
def test_the_supervision_report_is_printed(console, tmp_path):
    env, encoding = console
    env = env | {"PYTHONPATH": str(ROOT / "tests")}
    (tmp_path / "report.py").write_text(REPORT, encoding="utf-8")
    status, text, complaint = printed((env, encoding), tmp_path / "report.py", tmp_path / "model", tmp_path / "out")
    assert status == 0 and "record" in text, complaint
    assert text.splitlines()[-1] == {"cp1252": r"\N{CJK UNIFIED IDEOGRAPH-706F}\N{CJK UNIFIED IDEOGRAPH-5854} \N{CHECK MARK} é",
                                     "gbk": r"灯塔 \N{CHECK MARK} é"}[encoding]


def test_what_a_console_can_show_is_left_as_it_is():
    done = subprocess.run([sys.executable, "-c", "import helpers; print('✓ 灯塔')"], env=os.environ | {"PYTHONUTF8": "1"}, capture_output=True)
    assert done.stdout.decode("utf-8").strip() == "✓ 灯塔"


@pytest.mark.parametrize("folder", ["notebooks", "notebooks/solutions"])
def test_relative_paths_mean_the_course_wherever_a_kernel_starts(folder, tmp_path, monkeypatch):
    data = "../" * len(folder.split("/")) + "data"
    for start in (ROOT, ROOT / "helpers", tmp_path, ROOT / folder):
        monkeypatch.chdir(start)
        helpers.work_in(folder)
        helpers.work_in(folder)
        assert Path(data).resolve() == ROOT / "data"  # and so ../outputs


def test_a_copy_of_the_course_stays_the_place_of_its_own_pages(course, monkeypatch):
    monkeypatch.chdir(course / "notebooks")
    helpers.work_in("notebooks")
    assert Path.cwd() == (course / "notebooks").resolve()
