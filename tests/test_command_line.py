"""`python -m helpers`: what it says, and the exit status that a script can use: 0 well, 1 a fault, 2 wrong use."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from notebook_tools import FOLDER, NOTEBOOKS, ROOT, read
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
)

from helpers.__main__ import main

COMMANDS = {"prepare", "ready", "check", "diagnose", "kit", "render"}


def command(*words):
    """Run a command in a process of its own; return its exit status, what it printed, and its complaint, which is never a traceback."""
    done = subprocess.run([sys.executable, "-m", "helpers", *map(str, words)], cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "utf-8"},
                          capture_output=True, text=True, encoding="utf-8")
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def here(monkeypatch, capsys):
    """The same as `command` in this process, where the libraries are loaded already."""
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["helpers", *map(str, words)])
        capsys.readouterr()
        try:
            status = main()
        except SystemExit as end:  # argparse's
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_says_what_it_does(name, here):
    status, text, _ = here(name, "--help")
    assert status == 0 and "Exit status: 0 all well" in text and len(text.split("\n\n")[1]) > 40


def test_the_texts_name_only_commands_that_there_are():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", FOLDER / "instructor_guide.md", ROOT / ".ci" / "run")]
    texts += [cell.source for path in NOTEBOOKS for cell in read(path).cells]
    named = set(re.findall(r"python -m helpers(\S*) (\w+)", "\n".join(texts)))
    assert named and named <= {("", name) for name in COMMANDS}


@pytest.mark.parametrize("words", [(), ("no-such-command",), ("check",), ("check", "no/such/file.jsonl"), ("diagnose", "x"),
                                   ("diagnose", "no/such/folder", "--base", "x"), ("kit",), ("render",), ("check", ROOT), ("check", "*.jsonl"), ("check", "https://example.org/data.jsonl")])
def test_wrong_use_is_2_with_a_sentence(words, here):
    status, text, complaint = here(*words)
    assert status == 2 and not text and complaint.strip()


def test_a_good_file_is_0(tmp_path):
    chat = {"messages": [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user", "assistant")]}
    (tmp_path / "我的.jsonl").write_text(json.dumps(chat | {"id": 1}) + '\n{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    status, text, _ = command("check", tmp_path / "我的.jsonl")
    assert status == 0 and text.splitlines()[0].endswith("2 records, no fault; 1 have several turns, 1 a system message.")
    assert "ignored: 'id' (kept in the record)" in text and "2 of 3 answers are learned" in text and text.count("\n") == 3


def test_a_file_that_is_no_jsonl_is_1_with_one_sentence(tmp_path):
    (tmp_path / "table.csv").write_text("prompt,completion\n" + "a,b\n" * 3000, encoding="utf-8")
    status, text, complaint = command("check", tmp_path / "table.csv")
    assert status == 1 and "(CSV)" in text and text.count("\n") == 1 and not complaint


def test_where_nobody_reads_the_output_it_ends_without_a_traceback(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text("{}\n" * 30_000, encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-m", "helpers", "check", file], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # as `| true` does
    assert process.wait(60) == 1 and process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.skipif(os.name == "nt", reason="no shell of Unix")
def test_where_there_is_no_output_the_status_still_tells():
    for file, status in ((ROOT / "data" / "train.jsonl", 0), (ROOT / "pyproject.toml", 1)):
        done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "helpers", "check", file], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert done.returncode == status and not done.stderr


def test_a_home_folder_that_nobody_has_is_a_sentence(here):
    for words in (("check", "~nosuchuser/x.jsonl"), ("diagnose", "~nosuchuser/x", "--base", "x"), ("render", "x", "~nosuchuser/x")):
        status, text, complaint = here(*words)
        assert status == 2 and not text and ("~nosuchuser/x" if os.name != "nt" else "nosuchuser") in complaint and complaint.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_where_the_output_finds_no_room_it_says_so(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text("{}\n", encoding="utf-8")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "helpers", "check", file], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr == "the output: No space left on device\n"


@pytest.mark.parametrize(("line", "status", "lines"), [
    ({"messages": [{"role": "user", "content": "Where is it?" * 10}, {"role": "assistant", "content": "On Osk Island." * 20}]}, 0, 1),
    ({"messages": [{"role": "nobody" * 100, "content": "x" * 300}]}, 1, 4)])
def test_a_hundred_thousand_records_take_seconds_and_a_few_lines(tmp_path, line, status, lines):
    (tmp_path / "many.jsonl").write_text((json.dumps(line) + "\n") * 100_000, encoding="utf-8")
    start = time.monotonic()
    code, text, _ = command("check", tmp_path / "many.jsonl")
    assert (code, text.count("\n")) == (status, lines) and len(text) < 4000
    assert "100,000 records, no fault" in text if status == 0 else "and 99,997 more of this sort" in text
    assert time.monotonic() - start < 30  # 3 to 5 when nothing else runs


@pytest.fixture(scope="module")
def adapter(tiny_qwen3, tmp_path_factory):
    """The folder of an adapter whose B is not zero, on the tiny model, as PEFT saves it."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder := tmp_path_factory.mktemp("adapters") / "an adapter")
    return folder


def test_a_trained_adapter_is_0_and_an_untrained_one_is_1(adapter, tiny_qwen3, tmp_path, here):
    status, text, _ = command("diagnose", adapter, "--base", tiny_qwen3, "--question", "Where is it?", "--question", "你好")
    assert status == 0 and text.startswith("trained: ") and "answers differ: " in text
    base = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32)
    get_peft_model(base, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(tmp_path / "fresh")
    status, text, _ = here("diagnose", tmp_path / "fresh", "--base", tiny_qwen3)
    assert status == 1 and text.startswith("never trained: ")


def test_where_answers_stop_is_seen_from_outside(adapter, tiny_qwen3, tmp_path, here):
    base, folder = (shutil.copytree(place, tmp_path / name) for place, name in ((tiny_qwen3, "base"), (adapter, "adapter")))
    (base / "generation_config.json").write_text('{"eos_token_id": 0}')
    status, text, _ = here("diagnose", folder, "--base", base)
    assert status == 0 and text.startswith("not asked: ") and "answers do not stop there; ask questions" in text
    status, text, _ = here("diagnose", folder, "--base", base, "--question", "Where is it?")
    assert status == 1 and text.startswith("does not stop: ") and "0 of 1 answers stop" in text
    shutil.copy(tiny_qwen3 / "generation_config.json", folder)  # as keep_record writes it
    status, text, _ = here("diagnose", folder, "--base", base)
    assert status == 0 and "load it too" in text


WORDS = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 1}
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
          "linear_value_head_dim": 8, "num_key_value_heads": 2, "head_dim": 16}
EYES = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}


def with_eyes():
    return AutoModelForImageTextToText.from_config(AutoConfig.for_model("qwen3_5", text_config=WORDS | LINEAR, vision_config=EYES))


@pytest.mark.slow
@pytest.mark.parametrize(("whole", "kind", "changes"), [
    (with_eyes, AutoModelForImageTextToText, {"task_type": "CAUSAL_LM"}), (with_eyes, AutoModelForCausalLM, {"task_type": "CAUSAL_LM"}),  # whose words have other names
    (lambda: BertForSequenceClassification(BertConfig(**WORDS)), BertForSequenceClassification, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    (lambda: RobertaForMaskedLM(RobertaConfig(**WORDS)), AutoModel, {"target_modules": ["query"], "task_type": "FEATURE_EXTRACTION"})])
def test_a_base_is_loaded_as_what_has_the_adapter_s_layers(whole, kind, changes, tmp_path, here):
    whole().save_pretrained(tmp_path / "base")
    model = get_peft_model(kind.from_pretrained(tmp_path / "base"), LoraConfig(**{"target_modules": ["q_proj", "v_proj"]} | changes))
    for name, parameter in model.named_parameters():
        parameter.data += 0.1 * ("lora_B" in name)
    model.save_pretrained(folder := tmp_path / "adapter")
    status, text, complaint = here("diagnose", folder, "--base", tmp_path / "base")
    assert status == 0 and text.startswith("not asked: "), (text, complaint)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"auto_mapping": {"base_model_class": "NoSuchModel"}}))
    status, text, complaint = here("diagnose", folder, "--base", tmp_path / "base")
    assert status == 0 and text.startswith("not asked: "), "one's own class: the base's architecture will do"
    settings = (tmp_path / "base" / "config.json").read_text()
    (tmp_path / "base" / "config.json").write_text(re.sub(r'"hidden_act": "\w+"', '"hidden_act": "nosuch"', settings))
    status, text, complaint = here("diagnose", folder, "--base", tmp_path / "base")
    assert status == 2 and "nosuch" in complaint, complaint


def test_a_tokenizer_without_tokens_is_passed_over(adapter, tiny_qwen3, tmp_path, here):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_qwen3).save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    status, text, _ = here("diagnose", folder, "--base", tiny_qwen3, "--question", "Where is it?", "--question", "When?")
    assert status == 0 and "answers differ: 2 of 2" in text


def test_older_tools_wrote_a_pickle_which_is_read_without_running_it(adapter, tiny_qwen3, tmp_path, here):
    (tmp_path / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    torch.save(load_file(adapter / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    status, text, complaint = here("diagnose", tmp_path, "--base", tiny_qwen3)
    assert status == 0 and "saved copy: 42 of 42 matrices equal" in text, (text, complaint)


def test_what_can_not_be_examined_is_said_in_a_sentence(adapter, tiny_qwen3, tmp_path, here):
    base = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32)
    get_peft_model(base, IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")).save_pretrained(tmp_path / "ia3")
    status, text, complaint = here("diagnose", tmp_path / "ia3", "--base", tiny_qwen3)
    assert status == 1 and not text and "only LoRA adapters can be examined" in complaint
    status, text, complaint = here("diagnose", adapter, "--base", tmp_path)
    assert status == 2 and not text and "no model can be loaded there" in complaint


def test_what_is_not_whole_or_not_meant_is_wrong_use_with_one_sentence(adapter, tiny_qwen3, tmp_path, here):
    base, folder = (shutil.copytree(place, tmp_path / name) for place, name in ((tiny_qwen3, "base"), (adapter, "adapter")))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{")
    cut = next(base.glob("*.safetensors"))
    cut.write_bytes(cut.read_bytes()[:1000])
    for words, sentence in (((adapter, "--base", base), "no model can be loaded there"), ((adapter, "--base", adapter), "this is an adapter"),
                            ((folder, "--base", tiny_qwen3), f"{folder}: the tokenizer there can't be loaded")):
        status, text, complaint = here("diagnose", *words)
        assert status == 2 and not text and sentence in complaint.splitlines()[-1], complaint


def test_a_base_on_the_hub_is_looked_for_whatever_model_the_course_uses(adapter, monkeypatch):
    asked = []

    class Hub(BaseHTTPRequestHandler):  # one that has no such model
        def do_HEAD(self):
            asked.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD

    server = HTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {"BASE_MODEL": "no/such-model", "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    status, text, complaint = command("diagnose", adapter, "--base", "no/other-model")
    server.shutdown()
    assert status == 2 and not text and "no model can be loaded there" in complaint
    assert any("no/other-model" in path for path in asked)
