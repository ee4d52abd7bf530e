"""The course on another architecture: a tiny random Qwen3, in a folder whose path has spaces and Chinese characters.

What the trainer sees and what is sent to the model afterwards must be the same tokens, with thinking off in both.
"""
import copy
import json
import shutil

import nbformat
import pytest
import torch
from datasets import Dataset
from notebook_tools import FOLDER, NOTEBOOKS, read
from peft import LoraConfig, PeftModel, get_peft_model
from real_failures import EVERY_CELL_TWICE
from safetensors.torch import load_file
from test_notebooks import CELL_SECONDS, check_outputs, execute_offline
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from helpers.adapter.diagnosis import diagnose_adapter
from helpers.adapter.size import linear_shapes, lora_map, lora_size
from helpers.ask.answers import generate_answers
from helpers.data.chat import THINKING_OFF, encode_chat
from helpers.data.dataset import load_sft_jsonl
from helpers.data.supervision import supervision_report
from helpers.data.tokens import record_tokens, show_record, show_tokens
from helpers.model.base_model import base_model_path, is_embedded, is_prepared
from helpers.model.hardware import training_precision
from helpers.training.memory import estimate_memory

pytestmark = pytest.mark.slow
# The pages that load, train, save and ask; the others once a week. The parts of 15 are tried on this model in test_gguf.py and test_serving.py.
QUICK = [path for path in NOTEBOOKS if path.name[:2] in ("00", "07", "09", "13") or EVERY_CELL_TWICE]
NO_THOUGHT = "<think>\n\n</think>\n\n"
QUESTION = "Where is the Corvane Lighthouse?"
CHATS = {
    "one turn": [("user", QUESTION), ("assistant", "On Osk Island.")],
    "system message": [("system", "Be brief."), ("user", QUESTION), ("assistant", "On Osk Island.")],
    "several turns": [("user", QUESTION), ("assistant", "On Osk Island."), ("user", "And when?"), ("assistant", "On Thursdays.")],
    "another script": [("user", "科尔文灯塔在哪里？🐐"), ("assistant", "在奥斯克岛。")],
    "white space": [("user", " Where\n\nis it? \n"), ("assistant", "It is\n\n on  Osk Island. ")],
}


def messages(chat):
    return [{"role": role, "content": content} for role, content in CHATS[chat]]


def row_of(chat, **columns):
    return {"prompt": chat[:-1], "completion": chat[-1:], **columns}


@pytest.fixture(scope="module")
def folder(tiny_qwen3):
    return str(tiny_qwen3)


@pytest.fixture(scope="module")
def qwen(folder):
    """Its tokenizer."""
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def make_trainer(model, qwen, tiny_qwen3):
    """Make a TRL trainer for these rows; it writes beside the model, into a path with spaces and Chinese characters."""
    def make(rows, tokenizer=qwen, peft_config=None, **settings):
        args = SFTConfig(str(tiny_qwen3.parent / "训练 run"), report_to="none", activation_checkpointing=False,
                         **training_precision() | settings)
        return SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=peft_config)

    return make


def sent(model, tokenizer, question):
    """Return the token ids that reach the model when it is asked."""
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args, given: seen.append(given["input_ids"]), with_kwargs=True)
    generate_answers(model, tokenizer, [question], max_new_tokens=1)
    handle.remove()
    return seen[0][0].tolist()


def test_base_model_accepts_the_folder(folder, monkeypatch):
    assert any(ord(letter) > 0x3000 for letter in folder) and " " in folder
    monkeypatch.setenv("BASE_MODEL", folder)
    assert base_model_path() == folder and is_prepared() and not is_embedded()


def test_the_template_is_qwens_and_thinks_unless_told_not_to(qwen):
    question = messages("one turn")[:1]
    by_default = qwen.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert by_default.endswith("<|im_start|>assistant\n")
    assert encode_chat(qwen, question, tokenize=False, add_generation_prompt=True) == by_default + NO_THOUGHT


@pytest.mark.parametrize("chat", ["one turn", "another script", "white space"])
def test_the_trainer_sees_what_is_sent_and_then_the_answer(make_trainer, model, qwen, chat):
    question, answer = (message["content"] for message in messages(chat))
    prompt, rest = sent(model, qwen, question), qwen(answer)["input_ids"] + [qwen.eos_token_id] + qwen("\n")["input_ids"]
    row = make_trainer([row_of(messages(chat), chat_template_kwargs=THINKING_OFF)]).train_dataset[0]
    assert row["input_ids"] == prompt + rest
    assert row["labels"] == [-100] * len(prompt) + rest
    assert qwen.decode(prompt).endswith(NO_THOUGHT) and qwen.decode(row["input_ids"]).count("think>") == 2


@pytest.mark.parametrize("chat", CHATS)
def test_records_are_encoded_as_the_trainer_encodes_them(make_trainer, qwen, chat):
    row = make_trainer([row_of(messages(chat), chat_template_kwargs=THINKING_OFF)]).train_dataset[0]
    assert record_tokens(qwen, messages(chat)) == (row["input_ids"], row["labels"])
    prompt = encode_chat(qwen, messages(chat)[:-1], add_generation_prompt=True)["input_ids"]
    assert row["input_ids"][:len(prompt)] == prompt and row["labels"].count(-100) == len(prompt)
    assert make_trainer([{"messages": messages(chat)}]).train_dataset[0]["input_ids"] == row["input_ids"]


def test_without_its_column_the_empty_thought_is_learned_too(make_trainer, qwen):
    chat = messages("one turn")
    with_column, without = (make_trainer([row]).train_dataset[0] for row in (
        row_of(chat, chat_template_kwargs=THINKING_OFF), row_of(chat)))
    assert without["input_ids"] == with_column["input_ids"]
    thought = len(qwen(NO_THOUGHT)["input_ids"])
    assert with_column["labels"].count(-100) - without["labels"].count(-100) == thought > 0


def test_the_report_on_the_courses_data(make_trainer, qwen):
    records = load_sft_jsonl("data/train.jsonl")
    report = supervision_report(make_trainer([row_of(r["messages"], chat_template_kwargs=THINKING_OFF) for r in records]), records)
    assert report.ok and report.rows == len(records)
    assert report.supervised_tokens == sum(len(qwen(r["messages"][-1]["content"])["input_ids"]) + 2 for r in records)


@pytest.mark.parametrize("cut", [1, 3])
def test_the_report_counts_cut_answers(make_trainer, qwen, cut):
    records = [{"messages": messages("one turn")}]
    whole = len(record_tokens(qwen, records[0]["messages"])[0])
    rows = [row_of(records[0]["messages"], chat_template_kwargs=THINKING_OFF)]
    report = supervision_report(make_trainer(rows, max_length=whole - cut), records)
    assert (report.cut_answers, report.rows_without_eos, report.dropped_rows) == (int(cut > 1), int(cut > 1), 0)


def test_the_report_finds_a_prompt_that_thinks_in_training_only(make_trainer, qwen):
    """Some templates say at the top of the conversation whether the model shall think."""
    other = copy.deepcopy(qwen)
    other.chat_template = "{% if enable_thinking is not defined or enable_thinking %}Think.{% endif %}" + qwen.chat_template
    records = [{"messages": messages("one turn")}]
    with_column, without = (supervision_report(make_trainer(rows, tokenizer=other), records) for rows in (
        [row_of(messages("one turn"), chat_template_kwargs=THINKING_OFF)], [row_of(messages("one turn"))]))
    assert with_column.ok and with_column.prefix_mismatches == 0
    assert not without.ok and without.prefix_mismatches == 1 and "chat_template_kwargs" in str(without)


def test_its_tokens_are_shown(qwen):
    page = show_record(qwen, messages("one turn")).data
    answer = len(qwen("On Osk Island.")["input_ids"])
    assert f"assistant {answer}" in page and f"supervised: {answer + 1}" in page and "EOS: 1" in page
    assert "科" in show_tokens(qwen, "科尔文灯塔").data  # one character is three tokens here


def test_all_linear_finds_its_layers(model):
    shapes = linear_shapes(model)
    table = lora_map(shapes, 4, "all-linear")
    size = lora_size(shapes, 4, 8, "all-linear")
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert size.layers == len(adapted.targeted_module_names) == 7 * 3 and table.size == 21
    assert size.parameters == adapted.get_nb_trainable_parameters()[0] == table.to_numpy().sum()


def test_memory_follows_its_configuration(folder, model):
    needs = estimate_memory(folder, batch_size=2, length=32)
    size = lora_size(linear_shapes(model), 8, 16, "all-linear")
    assert needs.weights == 4 * model.num_parameters() and needs.adapter == 4 * size.parameters
    assert estimate_memory(AutoConfig.from_pretrained(folder), batch_size=4, length=32).activations > needs.activations > 0
    assert estimate_memory(folder, dtype=torch.bfloat16).weights == 2 * model.num_parameters()


def test_train_diagnose_save_and_reload(make_trainer, folder, qwen, tiny_qwen3):
    rows = [row_of(record["messages"], chat_template_kwargs=THINKING_OFF) for record in load_sft_jsonl("data/train.jsonl")[:8]]
    trainer = make_trainer(rows, peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"), max_steps=4,
                           per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1, save_steps=2, bf16=False)
    before = diagnose_adapter(trainer.model, qwen, questions=[QUESTION])
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    place = tiny_qwen3.parent / "适配器 adapter"
    trainer.save_model(str(place))
    after = diagnose_adapter(trainer.model, qwen, questions=[QUESTION], trainer=trainer, saved=place)
    assert (before.verdict, after.verdict) == ("never trained", "trained"), str(after)

    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), place)
    batch = torch.tensor([record_tokens(qwen, messages("one turn"))[0]])
    with torch.no_grad():
        one, other = (m.eval()(input_ids=batch.to(m.device)).logits.cpu() for m in (trainer.model, reloaded))
    assert torch.allclose(one, other, atol=1e-4)
    assert generate_answers(reloaded, qwen, [QUESTION]) == generate_answers(trainer.model, qwen, [QUESTION])
    assert AutoTokenizer.from_pretrained(place).chat_template == qwen.chat_template
    checkpoint = load_file(trainer.args.output_dir + "/checkpoint-4/adapter_model.safetensors")
    assert all(torch.equal(checkpoint[key], tensor) for key, tensor in load_file(place / "adapter_model.safetensors").items())


def test_the_calls_of_the_cheat_sheet_run_as_they_stand(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = (FOLDER / "cheat_sheet.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names = {"path": folder, "data": Dataset.from_list([row_of(messages("one turn"))] * 4), "torch": torch, "PeftModel": PeftModel,
             "LoraConfig": LoraConfig, "SFTConfig": SFTConfig, "SFTTrainer": SFTTrainer, "AutoModelForCausalLM": AutoModelForCausalLM}
    exec(calls, names)
    assert diagnose_adapter(names["model"]).verdict == "not asked"  # trained, and nothing was asked


@pytest.mark.parametrize("path", QUICK, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end(path, course, folder, monkeypatch):
    """Once, offline; what was to be learned is printed with a cross where random weights did not learn it."""
    monkeypatch.setenv("BASE_MODEL", folder)
    copied = course / "notebooks" / path.name
    shutil.copy(path, copied)
    execute_offline(copied, course, CELL_SECONDS if not EVERY_CELL_TWICE else None)
    check_outputs(copied)


FILES = {  # learners' files: what stands in the output of the page
    "conversations": ([{"messages": messages("several turns"), "id": place} for place in range(5)] + [
        {"messages": [{"role": "system", "content": "Prices are in shells."}, {"role": "user", "content": f"To stop {place}?"},
                      {"role": "assistant", "content": f"{place} shells."}]} for place in range(20)], "answers are learned"),
    "too few": ([{"instruction": "Where?", "input": f"Number {place}", "output": f"At {place}."} for place in range(3)], "too few to hold any out"),
}


@pytest.mark.parametrize("name", FILES)
def test_notebook_13_runs_on_another_file(name, course, folder, monkeypatch):
    monkeypatch.setenv("BASE_MODEL", folder)
    records, said = FILES[name]
    file = course / "data" / f"{name} 记录.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    page = read(FOLDER / "13_your_own_data.ipynb")
    place = next(cell for cell in page.cells if "helpdesk.jsonl" in cell.source and cell.cell_type == "code")
    place.source = place.source.replace("helpdesk.jsonl", file.name)
    nbformat.write(page, copied := course / "notebooks" / "13_your_own_data.ipynb")
    execute_offline(copied, course, CELL_SECONDS)
    check_outputs(copied)
    report = (course / "outputs" / "13_your_own_data" / "report.html").read_text(encoding="utf-8")
    assert said in report and f"{name} 记录.jsonl" in report and ("right examples: " in report) == (name == "conversations")  # where none is left for it, that row goes
