"""The script that learners take home: plain library calls, run as what it is, a process of its own in a folder of its own."""
import ast
import gzip
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from notebook_tools import FOLDER, ROOT
from peft import PeftModel
from real_failures import WEEKLY
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from helpers.data.dataset import load_sft_jsonl
from helpers.model.base_model import base_model_path

SCRIPT, EXAMPLE = FOLDER / "take_home.py", ROOT / "data" / "helpdesk.jsonl"
PLAIN = {"argparse", "json", "random", "sys", "pathlib", "torch", "datasets", "peft", "transformers", "trl"}
QUESTION, ANSWER = "Where is the 灯塔?", "On the rock. 🐐"
KINDS = {
    "messages": lambda question: {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question},
                                               {"role": "assistant", "content": ANSWER}]},
    "prompt and completion": lambda question: {"prompt": question, "completion": ANSWER},
    "instruction, input, output": lambda question: {"instruction": "Answer.", "input": question, "output": ANSWER},
}


@pytest.fixture(scope="module")
def script():
    """The script as a module: its guard keeps it from training when it is imported."""
    spec = importlib.util.spec_from_file_location("take_home", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_it_is_short_and_takes_nothing_but_the_libraries():
    text = SCRIPT.read_text(encoding="utf-8")
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name.split(".")[0] for node in nodes for name in [getattr(node, "module", None) or node.names[0].name]}
    assert names == PLAIN
    assert len([line for line in text.splitlines() if line.strip()]) <= 105 and max(map(len, text.splitlines())) <= 100
    assert text.endswith('if __name__ == "__main__":\n    main()\n')


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_record_becomes_the_row_that_the_course_makes_of_it(kind, script, tmp_path):
    path = write(tmp_path / "own.jsonl", [KINDS[kind](QUESTION)])
    row, = script.read(path)
    assert row["prompt"] + row["completion"] == load_sft_jsonl(path, convert=True)[0]["messages"]
    assert row["completion"] == [{"role": "assistant", "content": ANSWER}]


def test_the_courses_example_is_read_alike(script):
    rows = script.read(EXAMPLE)
    assert [row["prompt"] + row["completion"] for row in rows] == [each["messages"] for each in load_sft_jsonl(EXAMPLE, convert=True)]


FAULTS = {
    "broken JSON": '{"prompt": "a",',
    "no object": '["a", "b"]',
    "no answer": '{"prompt": "a"}',
    "blank answer": '{"prompt": "a", "completion": " "}',
    "a number": '{"instruction": "a", "output": 3}',
    "no question": '{"messages": [{"role": "assistant", "content": "b"}]}',
    "the question comes last": '{"messages": [{"role": "user", "content": "a"}]}',
    "no content": '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}',
    "a number for an answer": '{"prompt": "a", "completion": 4}',
    "a list on a line": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]',
    "messages that are a text": '{"messages": "text"}',
    "a message that is a text": '{"messages": ["a", "b"]}',
    "a message that is a list": '{"messages": [["a", "b"]]}',
    "a prompt that is a list of texts": '{"prompt": ["a"], "completion": ["b"]}',
    "a list of another form": '{"instruction": [{"role": "user", "content": "a"}], "output": "b"}',
    "an input that is a number": '{"instruction": "a", "input": 5, "output": "b"}',
    "a message without content": '{"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}',
    "no message": '{"messages": []}',
    "a weight": '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}',
    "two forms": '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "prompt": "c", "completion": "d"}',
    "two pairs": '{"prompt": "a", "completion": "b", "instruction": "c", "output": "d"}',
    "a key twice": '{"prompt": "a", "prompt": "z", "completion": "b"}',
    "an input that is false": '{"instruction": "a", "input": false, "output": "b"}',
    "an earlier turn without text": '{"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}, '
                                    '{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}',
    "an earlier turn of a tool": '{"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}, '
                                 '{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}',
    "a system message alone": '{"messages": [{"role": "system", "content": "a"}]}',
    "turns as Python writes them": """{"prompt": "[{'role': 'user', 'content': 'a'}]", "completion": "b"}""",
    "turns as NumPy writes them": """{"prompt": "[{'content': 'Be brief.', 'role': 'system'}\\n {'content': 'a', 'role': 'user'}]", "completion": "b"}""",
    "turns of JSON in a text": '{"instruction": "[{\\"role\\": \\"user\\", \\"content\\": \\"a\\"}]", "output": "b"}',
    "no answer, as alpaca writes nothing": '{"prompt": "a", "completion": "<noinput>"}',
    "a part": '{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}]}',
    "nothing to see": '{"prompt": "a", "completion": "\\u200b"}',
    "drawn as nothing": '{"prompt": "a", "completion": "\\u3164 \\u2800"}',
    "half a character": '{"prompt": "a", "completion": "\\ud83d"}',
    "brackets": '{"prompt": ' + "[" * 100_000,
    "a key that carries meaning": '{"system": "Be brief.", "prompt": "a", "completion": "b"}',
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_line_that_is_no_record_ends_it_with_file_and_line(fault, script, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(('\ufeff{"prompt": "a", "completion": "b"}\r\n\r\n' + FAULTS[fault]).encode())
    with pytest.raises(SystemExit) as end:
        script.read(path)
    assert str(end.value).startswith(f"{path}:3: ") and "\n" not in str(end.value)
    assert not re.search("TypeError|AttributeError|format|attribute", str(end.value))


@pytest.mark.parametrize("data", [None, "é".encode("latin-1"), '{"prompt": "a"}'.encode("utf-16"), gzip.compress(b"{}", mtime=0)])
def test_a_file_that_is_no_text_ends_it_with_one_sentence(data, script, tmp_path):
    path = tmp_path / "own.jsonl"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(SystemExit) as end:
        script.read(path)
    assert str(end.value).startswith(f"{path}:1: ") and "\n" not in str(end.value)


@pytest.mark.parametrize("record", [
    {"instruction": "a", "input": " ", "output": "b"}, {"instruction": "a", "input": "<noinput>", "output": '[{"contact": "Nell"}]'}, {"prompt": None, "completion": None, "instruction": "a", "output": "b"},
    {"prompt": "a", "completion": "🐐"}, {"id": 0, "prompt": "a", "completion": "b", "input": None},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}], "chat_template_kwargs": {"enable_thinking": False}},
    {"messages": [{"role": "user", "content": "a", "name": None, "tool_calls": []}, {"role": "assistant", "content": "b"}]},
    {"messages": [{"role": "system", "content": "s"}, *[{"role": role, "content": role} for role in ("user", "assistant")] * 2]}])
def test_what_it_takes_the_course_reads_alike(record, script, tmp_path):
    path = write(tmp_path / "own.jsonl", [record])
    row, = script.read(path)
    assert row["prompt"] + row["completion"] == load_sft_jsonl(path, convert=True)[0]["messages"]


def test_a_byte_that_is_no_text_is_placed_in_its_line(script, tmp_path):
    (tmp_path / "own.jsonl").write_bytes(b'{"prompt": "a", "completion": "b"}\n' * 2 + b'{"prompt": "caf\xe9", "completion": "b"}\n')
    with pytest.raises(SystemExit, match=r"own\.jsonl:3: UnicodeDecodeError"):
        script.read(tmp_path / "own.jsonl")


def test_all_rows_with_one_question_go_to_one_side(script):
    rows = [script.to_row({"prompt": f"question {number}", "completion": answer}) for number in range(20) for answer in "ab"]
    train, heldout = script.split(rows)
    assert len(heldout) == 8 and len(train) == 32
    assert not {str(row["prompt"]) for row in train} & {str(row["prompt"]) for row in heldout}


def run_script(file, base, cwd):
    """Run the script in a folder of its own, offline, in a terminal that has no Chinese unless it is asked for UTF-8."""
    plain = {"PYTHONIOENCODING": "ascii", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, SCRIPT, file, "--base", base, "--output", "适配器"], cwd=cwd, capture_output=True,
                          text=True, encoding="utf-8", env=os.environ | plain)


@pytest.fixture(scope="module")
def other_end(tiny_qwen3, tmp_path_factory):
    """A tiny Qwen3 whose generation_config names another end than its chat template writes."""
    folder = shutil.copytree(tiny_qwen3, tmp_path_factory.mktemp("other end") / "model")
    config = GenerationConfig.from_pretrained(folder)
    config.eos_token_id = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|endoftext|>")
    config.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_on_every_kind_it_leaves_an_adapter_that_loads_and_knows_its_end(kind, other_end, tmp_path):
    file = write(tmp_path / "own.jsonl", [KINDS[kind](f"{QUESTION} {number}") for number in range(10)])
    run = run_script(file.name, other_end, tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count(f"wanted: {ANSWER}") == 2 == run.stdout.count("\nafter: ")
    assert {path.name for path in tmp_path.iterdir()} == {"own.jsonl", "适配器", "适配器_run"}

    base = AutoModelForCausalLM.from_pretrained(other_end, dtype=torch.float32)
    ends = base.generation_config.eos_token_id
    model = PeftModel.from_pretrained(base, tmp_path / "适配器")
    trained = [value.abs().max() for name, value in model.named_parameters() if "lora_B" in name]
    assert len(trained) == 21 and all(trained)
    end = AutoTokenizer.from_pretrained(tmp_path / "适配器").eos_token_id
    assert end != ends and end in GenerationConfig.from_pretrained(tmp_path / "适配器").eos_token_id


@pytest.mark.slow
@pytest.mark.parametrize(("words", "number", "sentence"), [(600, 10, "12 answers lack their end"), (1, 4, "5 different questions")])
def test_what_can_not_teach_ends_it_before_training(words, number, sentence, tiny_qwen3, tmp_path):
    records = [{"prompt": f"{place}?", "completion": "goat " * words} for place in range(number + number // 5)]
    ends(run_script(write(tmp_path / "own.jsonl", records).name, tiny_qwen3, tmp_path), sentence, tmp_path)


def ends(run, sentence, folder):
    assert run.returncode == 1 and sentence in run.stderr and "Traceback" not in run.stderr
    assert not (folder / "适配器").exists()


@pytest.mark.slow
def test_what_is_held_out_must_have_its_end_too(script, tiny_qwen3, tmp_path):
    records = [{"prompt": f"{place}?", "completion": "goat"} for place in range(5)]
    _, [heldout] = script.split(script.read(write(tmp_path / "own.jsonl", records)))
    records[int(heldout["prompt"][0]["content"][0])]["completion"] = "goat " * 600
    ends(run_script(write(tmp_path / "own.jsonl", records).name, tiny_qwen3, tmp_path), "1 answers lack their end", tmp_path)


@WEEKLY  # notebook 13 trains on the same records in every run
@pytest.mark.slow
def test_on_the_real_model_new_messages_become_tickets(tmp_path):
    run = run_script(EXAMPLE, base_model_path(), tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    before, after = (re.findall(rf"^{time}: +(.*)", run.stdout, re.MULTILINE) for time in ("before", "after"))
    assert len(before) == len(after) == 6
    assert not any(answer.startswith("Item: ") for answer in before)
    assert sum(answer.startswith("Item: ") and "Bench: " in answer for answer in after) >= 5
