import json
import random
import time
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from notebook_tools import FOLDER
from transformers import AutoConfig, AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from helpers.ask.answers import Answer, compare_answers
from helpers.data.dataset import DatasetError, load_sft_jsonl
from helpers.data.own_data import (
    FEWEST_EPOCHS,
    MOST_EPOCHS,
    MOST_HELD_OUT,
    STEPS,
    _limit,
    fact_groups,
    one_row_a_reply,
    suggest_settings,
    suggest_split,
)
from helpers.data.supervision import supervision_report
from helpers.data.wording import leaked_questions, said, words
from helpers.model.hardware import training_precision
from helpers.page.report import write_report
from helpers.training.fit import PeakMemory


def record(question, answer, system=None):
    turns = [("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in ([("system", system)] if system else []) + turns]}


def write(tmp_path, *lines):
    path = tmp_path / "我的 data.jsonl"
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")
    return path


USER, ASSISTANT = record("灯塔在哪里?", "在奥斯克岛 🐐")["messages"]
THREE_FORMS = {
    "messages": {"messages": [USER, ASSISTANT]},
    "prompt/completion": {"prompt": "灯塔在哪里?", "completion": "在奥斯克岛 🐐"},
    "prompt/completion of messages": {"prompt": [USER], "completion": [ASSISTANT]},
    "a text and messages": {"prompt": "灯塔在哪里?", "completion": [ASSISTANT]},
    "alpaca": {"instruction": "灯塔在哪里?", "input": "", "output": "在奥斯克岛 🐐"},
    "alpaca without input": {"instruction": "灯塔在哪里?", "output": "在奥斯克岛 🐐"},
    "alpaca, null input": {"instruction": "灯塔在哪里?", "input": None, "output": "在奥斯克岛 🐐"},
}


@pytest.mark.parametrize("form", THREE_FORMS)
def test_every_form_becomes_messages_and_other_keys_stay(tmp_path, form):
    path = write(tmp_path, THREE_FORMS[form] | {"key_phrase": "岛"})
    assert load_sft_jsonl(path, convert=True) == [{"messages": [USER, ASSISTANT], "key_phrase": "岛"}]


def test_an_input_follows_its_instruction_and_a_system_message_its_place(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    path = write(tmp_path, {"instruction": "ترجم", "input": "منارة", "output": "lighthouse"}, {"prompt": [system, USER], "completion": [ASSISTANT]})
    assert load_sft_jsonl(path, convert=True) == [record("ترجم\n\nمنارة", "lighthouse"), {"messages": [system, USER, ASSISTANT]}]


COLUMN_FAULTS = {
    "number": ({"prompt": "a", "completion": 41}, 'the column "completion" is 41, not text'),
    "null": ({"instruction": None, "output": "b"}, 'the column "instruction" is null'),
    "list in alpaca": ({"instruction": [USER], "output": "b"}, 'the column "instruction" is [{'),
    "blank": ({"prompt": "a", "completion": " "}, 'the column "completion" is blank'),
    "no answer": ({"prompt": "a"}, 'the column "completion" is missing'),
    "no question": ({"output": "b"}, 'the column "instruction" is missing'),
    "odd input": ({"instruction": "a", "input": 3, "output": "b"}, 'the column "input" is 3'),
    "answer by the user": ({"prompt": [USER], "completion": [USER]}, "no assistant"),
    "two answers": ({"prompt": [USER, ASSISTANT], "completion": "b"}, "user, assistant, assistant"),
    "no message": ({"prompt": ["a"], "completion": "b"}, "a list of texts, not one text; join them to one"),
    "another tool's": ({"conversations": []}, "the conversation is empty"),
    "two lists and an input": ({"prompt": [USER], "completion": [ASSISTANT], "input": "ä"}, '"input" stands beside "prompt"'),
    "none of them": ({"text": "a"}, '"messages" is missing'),
    "half an emoji": (record("a", "\ud83d"), "the content of message 2 holds half a character"),
}


@pytest.mark.parametrize("name", COLUMN_FAULTS)
def test_a_fault_in_a_column_is_named_in_one_sentence_with_file_and_line(tmp_path, name):
    line, expected = COLUMN_FAULTS[name]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in (THREE_FORMS["alpaca"], line)))
    with pytest.raises(DatasetError) as error:
        load_sft_jsonl(path, convert=True)
    assert str(error.value).startswith(f"{path}:2: ") and expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("form", ["prompt/completion", "alpaca"])
def test_without_convert_the_sentence_says_how_to_read_them(tmp_path, form):
    with pytest.raises(DatasetError, match=f"{form} columns .*; read the file with convert=True"):
        load_sft_jsonl(write(tmp_path, THREE_FORMS[form]))


@pytest.mark.parametrize(("one", "other", "same"), [
    ("Where is it?", "WHERE is … it", True), ("北京。", "北京", True), ("القاهرة؟", "القاهرة", True), ("ＡＢＣ", "abc", True),
    ("का", "की", False), ("👍", "👎", False), ("Is it 👍?", "Is it 👎?", False), ("b\u2063c", "bc", True), ("?", "!", False), ("北京", "东京", False), ("C", "D", False), ("b\u200cc", "bc", True), ("❤\ufe0f", "❤", True), ("\u3164", "?", False)])
def test_words_are_compared_in_any_script(one, other, same):
    assert (words(one) == words(other)) is same
    assert bool(leaked_questions([record(one, "a")], [record(other, "a")])) is same


PHRASINGS = [record(f"{ask} {thing}?", f"The {thing} is {thing}-like.") for thing in "abcdef" for ask in ("What is", "Describe", "Tell me of")]


def shuffled(records, seed):
    return random.Random(seed).sample(records, len(records))


@pytest.mark.parametrize("seed", range(5))
def test_phrasings_of_one_fact_stay_on_one_side(seed):
    split = suggest_split(shuffled(PHRASINGS, seed), seed=seed)
    answers = [{each["messages"][-1]["content"] for each in part} for part in (split.train, split.heldout)]
    assert not answers[0] & answers[1] and len(split.heldout) == 3
    assert sorted(map(str, split.train + split.heldout)) == sorted(map(str, PHRASINGS))
    assert not leaked_questions(split.train, split.heldout)
    assert "15 records to train on, 3 held out: 1 of 6 groups" in split.note


def test_a_seed_repeats_its_split_and_another_one_differs():
    assert suggest_split(PHRASINGS, seed=3) == suggest_split(PHRASINGS, seed=3)
    assert len({str(suggest_split(PHRASINGS, seed=seed).heldout) for seed in range(6)}) > 2


def test_groups_join_what_shares_a_question_or_an_answer_however_it_is_written():
    records = [record("Where?", "On Osk."), record("At which place?", "on osk"), record("WHERE", "Osk Island"), record("谁?", "On Osk"),
               record("Who?", "Nell"), record("Who?", "Nobody", system="On Osk."), record("Why?", "On Osk, so.")]
    assert fact_groups(records) == [[0, 1, 2, 3], [4, 5], [6]]
    assert fact_groups(records, by="question") == [[0, 2], [1], [3], [4, 5], [6]]


TICKETS = [{"messages": [
    {"role": "system", "content": "You sell tickets in Tarn. Prices are in shells."},
    {"role": "user", "content": f"A ticket to stop {stop}."}, {"role": "assistant", "content": f"That is {stop} shells."},
    {"role": "user", "content": f"And back to {stop}?"}, {"role": "assistant", "content": f"{2 * stop + 1} shells for both ways."}]} for stop in range(1, 13)]


def test_one_row_a_reply_makes_a_record_of_each_answer_and_changes_nothing():
    before = repr(TICKETS)
    rows = one_row_a_reply([TICKETS[0] | {"id": 7}, record("Where?", "Here.")])
    messages = TICKETS[0]["messages"]
    assert rows == [{"messages": messages[:3], "id": 7}, {"messages": messages, "id": 7}, record("Where?", "Here.")]
    assert repr(TICKETS) == before and one_row_a_reply([]) == []


@pytest.mark.parametrize("by", ["answer", "question"])
def test_the_replies_of_one_conversation_stay_on_one_side(by):
    rows = one_row_a_reply(TICKETS)
    assert len(rows) == 24 and fact_groups(rows, by) == [[place, place + 1] for place in range(0, 24, 2)]
    split = suggest_split(rows, by=by)
    assert len(split.heldout) == 4 and "answers are learned" not in split.note
    trained = {message["content"] for each in split.train for message in each["messages"]}
    assert not trained & {each["messages"][-1]["content"] for each in split.heldout}


def test_conversations_that_only_begin_alike_are_apart_and_the_learned_answer_makes_the_group():
    def chat(*texts):
        return {"messages": [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=True)]}

    records = [chat("Hello?", "Hi.", "Where?", "Here."), chat("Hello?", "Hi.", "Who?", "Nell."), chat("Yes?", "Hm.", "And where?", "here")]
    assert fact_groups(records) == [[0, 2], [1]]
    assert fact_groups([*records, record("Hello?", "Hi.")]) == [[0, 1, 2, 3]]


def test_a_greeting_that_opens_every_conversation_makes_no_group_of_them():
    chats = [{"messages": [{"role": role, "content": text} for role, text in (
        ("user", "Hi"), ("assistant", "Hello! How can I help you?"), ("user", f"My kettle {n} leaks."), ("assistant", f"Ticket {n}: bench {n}"))]} for n in range(50)]
    split = suggest_split(one_row_a_reply(chats))
    assert 10 <= len(split.heldout) <= 20 and len({each["messages"][-1]["content"] for each in split.heldout}) == len(split.heldout)


def test_labels_that_are_held_out_whole_are_counted():
    tickets = [record(f"Ticket {n}", ("crash", "login", "speed", "other")[n % 4]) for n in range(28)]
    assert "trained on in no wording: 1; if answers are labels" in suggest_split(tickets).note
    told = [record("Classify.", ("crash", "login", "speed", "other")[n % 4], system=f"Ticket {n}") for n in range(28)]
    assert "trained on in no wording: 1; if answers are labels" in suggest_split(told).note
    assert "in no wording: 2;" in suggest_split([record(f"q{n}", f"a{n // 2}") for n in range(24)]).note
    assert "in no wording" not in suggest_split(tickets, by="question").note and "in no wording" not in suggest_split(TICKETS).note


def test_a_long_conversation_is_split_in_seconds_and_little_memory():
    chat = [{"role": role, "content": f"{role[0]}{n}"} for n in range(1000) for role in ("user", "assistant")]
    rows, start = one_row_a_reply([{"messages": chat}]), time.process_time()
    with PeakMemory() as memory:
        assert fact_groups(rows) == [list(range(1000))]
    assert time.process_time() - start < 10 and memory.growth_bytes < 500e6


def test_what_a_right_answer_holds_stays_with_the_last_reply():
    messages = TICKETS[0]["messages"]
    rows = one_row_a_reply([{"messages": messages, "key_phrase": "3 shells", "accept": ["3"], "id": 7}])
    assert rows == [{"messages": messages[:3], "id": 7}, {"messages": messages, "key_phrase": "3 shells", "accept": ["3"], "id": 7}]


def test_the_note_counts_the_answers_that_are_not_learned():
    assert suggest_split(TICKETS).note.startswith("10 records to train on, 2 held out") and "12 of 24 answers are learned" in suggest_split(TICKETS).note
    assert suggest_split(TICKETS[:1]).note.startswith("1 records are too few") and "1 of 2 answers is learned" in suggest_split(TICKETS[:1]).note
    assert "one_row_a_reply(records)" in suggest_split(TICKETS).note and "learned" not in suggest_split(PHRASINGS).note


@pytest.mark.parametrize(("how", "sentence"), [({"share": 2}, "share is 2; give a part"), ({"share": 0}, "share is 0"), ({"share": -1}, "share is -1"),
                                               ({"by": "foo"}, "by is 'foo'; write")])
def test_a_split_that_can_not_be_gets_a_sentence(how, sentence):
    with pytest.raises(ValueError, match=sentence):
        suggest_split(PHRASINGS, **how)


def test_where_each_record_is_its_own_fact_a_fifth_is_held_out_and_never_more_than_the_most():
    def facts(number):
        return [record(f"question {i}", f"answer {i}") for i in range(number)]

    assert [len(suggest_split(facts(number)).heldout) for number in (10, 24, 100, 2000)] == [2, 5, 20, MOST_HELD_OUT]
    assert len(suggest_split(facts(50), share=0.5).heldout) == 25


def test_groups_larger_than_the_share_still_leave_one_held_out():
    records = [record(f"question {i} {j}", f"answer {i}") for i in range(4) for j in range(10 + i)]
    assert {each["messages"][-1]["content"] for each in suggest_split(records).heldout} == {"answer 0"}


def test_a_tiny_file_is_trained_on_as_a_whole():
    split = suggest_split(PHRASINGS[:9])
    assert split.train == PHRASINGS[:9] and not split.heldout
    assert split.note.startswith("9 records are too few") and "\n" not in split.note


def test_labels_are_split_by_question():
    labels = [record(f"Is {number} even?", "no" if number % 2 else "yes") for number in range(40)]
    split = suggest_split(labels)
    assert split.train == labels and not split.heldout and 'by="question"' in split.note
    assert len(suggest_split(labels, by="question").heldout) == 8
    same = suggest_split([record("Hello?", f"Hi {number}.") for number in range(12)], by="question")
    assert not same.heldout and "write more that differ" in same.note


def described(name="Qwen3-0.6B", **changes):
    """Return a model with real shapes and no numbers."""
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(FOLDER.parent / "data" / "model_configs" / f"{name}.json", **changes)
        return AutoModelForCausalLM.from_config(config)


SMALL = described()


def chosen(records, tokenizer, model=SMALL):
    return suggest_settings(records, tokenizer, model)["value"].to_dict()


def rows_of(records):
    return [{"prompt": each["messages"][:-1], "completion": each["messages"][-1:]} for each in records]


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 3, 19, 45])
def test_the_trainer_takes_the_suggested_steps_and_cuts_nothing(make_sft_trainer, tokenizer, number):
    records = [record(f"问题 {i}" + "灯" * (i % 10), f"answer {i}") for i in range(number)]
    settings = chosen(records, tokenizer)
    steps = settings.pop("steps")
    trainer = make_sft_trainer(rows_of(records), disable_tqdm=True, save_strategy="no", **settings)
    report = supervision_report(trainer, records)
    assert report.cut_answers == report.dropped_rows == 0
    assert max(len(row["input_ids"]) for row in trainer.train_dataset) <= settings["max_length"]
    trainer.train()
    assert trainer.state.global_step == steps


@pytest.mark.slow
def test_with_records_held_out_the_best_epoch_is_kept(make_sft_trainer, tokenizer):
    records, heldout = [record(f"question {i}", f"answer {i}") for i in range(12)], [record("question x", "another")]
    settings = suggest_settings(records, tokenizer, SMALL, heldout)["value"].drop("steps").to_dict() | {"learning_rate": 0.3}  # it gets worse
    plain = make_sft_trainer(rows_of(records), disable_tqdm=True)
    args = SFTConfig(plain.args.output_dir, report_to="none", activation_checkpointing=False, disable_tqdm=True, **settings, **training_precision())
    trainer = SFTTrainer(plain.model, args, train_dataset=Dataset.from_list(rows_of(records)), eval_dataset=Dataset.from_list(rows_of(heldout)),
                         processing_class=tokenizer)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == settings["num_train_epochs"] and losses.index(min(losses)) < len(losses) - 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-3)


def test_what_keeps_the_best_epoch_is_suggested_only_where_records_are_held_out(tokenizer):
    plain = suggest_settings(PHRASINGS, tokenizer, SMALL)
    assert plain.equals(suggest_settings(PHRASINGS, tokenizer, SMALL, heldout=[]))
    more = suggest_settings(PHRASINGS, tokenizer, SMALL, heldout=PHRASINGS[:2])
    assert more.loc[list(plain.index)].equals(plain)
    assert more["value"].drop(plain.index).to_dict() == {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": 1}


def test_a_long_record_that_is_held_out_is_not_cut_either(tokenizer):
    assert suggest_settings(PHRASINGS, tokenizer, SMALL, heldout=[record("word " * 200, "a")]).loc["max_length", "value"] == 256


@pytest.mark.parametrize(("number", "a_step", "epochs"), [(4, 2, 4), (16, 2, 4), (20, 2, 4), (26, 2, 4), (36, 2, 3), (40, 4, 4), (155, 4, 2), (5000, 4, 2)])
def test_two_to_four_epochs_make_enough_steps_where_they_can(tokenizer, number, a_step, epochs):
    settings = chosen([record(f"q {i}", "a") for i in range(number)], tokenizer)
    assert settings["num_train_epochs"] == epochs and FEWEST_EPOCHS <= epochs <= MOST_EPOCHS
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == a_step
    assert settings["steps"] == -(-number // a_step) * epochs and (settings["steps"] >= STEPS or epochs == MOST_EPOCHS)


def test_long_records_come_in_smaller_batches_and_too_long_ones_are_counted(tokenizer):
    batches = [chosen([record("word " * length, "a")] * 40, tokenizer) for length in (440, 700, 1500)]
    assert batches[0]["max_length"] == 512  # 4 of them are just what a batch may hold
    assert [(settings["num_train_epochs"], settings["steps"]) for settings in batches] == [(4, 40)] * 3
    assert [settings["per_device_train_batch_size"] for settings in batches] == [4, 2, 1]
    assert [settings["per_device_eval_batch_size"] for settings in batches] == [4, 2, 1]
    assert [settings["gradient_accumulation_steps"] for settings in batches] == [1, 2, 4]
    many = [record("word " * 600, "a")] * 2 + [record("short", "a")]
    longest = suggest_settings(many, tokenizer, described(max_position_embeddings=512)).loc["max_length"]
    assert longest["value"] == 512 and "2 longer" in longest["reason"]
    assert "1 longer" in _limit([512, 513], 512)[1]


@pytest.mark.parametrize(("conversations", "groups"), [(4, 1), (5, 6)])
def test_what_begins_with_a_greeting_is_no_group(conversations, groups):
    hello = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    more = [[*hello, {"role": "user", "content": f"Where is {n}?"}, {"role": "assistant", "content": f"In {n}."}] for n in range(conversations)]
    assert len(fact_groups([{"messages": hello}, *({"messages": each} for each in more)], "question")) == groups


def test_the_rate_follows_the_size_of_the_model_and_every_setting_has_its_reason(tokenizer):
    records = PHRASINGS[:6]
    models = [described(f"Qwen3-{size}") for size in ("0.6B", "1.7B", "4B")]
    assert [chosen(records, tokenizer, model)["learning_rate"] for model in models] == [1e-3, 2e-4, 2e-4]
    table = suggest_settings(records, tokenizer, SMALL)
    assert list(table) == ["value", "reason"] and table["reason"].str.len().min() > 20
    assert table.loc["per_device_train_batch_size", "reason"] == "all records of a step at once"  # memory is no reason here
    with pytest.raises(ValueError, match="no record"):
        suggest_settings([], tokenizer, SMALL)


HOSTILE = '<script>alert(1)</script><img src="https://example.org/x.png" onerror="alert(2)">'


class Page(HTMLParser):
    """Read a page as a browser does: its tags with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def picture():
    figure = Figure()
    figure.subplots().plot([2, 1], label="loss")
    return figure


@pytest.fixture
def page(tmp_path):
    answers = {"before": [Answer("在北京", False)], "after": [Answer(f"القاهرة 🐐 {HOSTILE}", True)]}
    parts = {"Data": [f"灯塔 {HOSTILE}", 24], "Settings": pd.DataFrame({"reason": [HOSTILE + "long " * 40]}, index=[HOSTILE]),
             "Loss": picture(), "Answers": compare_answers([HOSTILE], answers, ["北京"]), HOSTILE: "end", "Prompt": [TICKETS[0]["messages"][:4], record(HOSTILE, HOSTILE)["messages"]]}
    path = write_report(tmp_path / "报告" / "report.html", f"My run {HOSTILE}", parts)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_the_report_holds_every_part_and_escapes_it(page):
    assert [tag for tag, _ in page.tags].count("h2") == 6
    for text in ("24", "灯塔", "✓ 在北京", "القاهرة 🐐", "did not stop", "long " * 39, "My run <script>"):
        assert text in page.text
    assert page.text.count("<script>alert(1)</script>") >= 9
    assert "assistant: That is 1 shells.\nuser: And back to 1?" in page.text and "pre-wrap" in page.text


def test_the_report_has_no_script_and_needs_no_network(page):
    assert "script" not in {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") or name in ("href", "srcset") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
    assert [attributes["src"][:22] for tag, attributes in page.tags if tag == "img"] == ["data:image/png;base64,"]
    policy = next(attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "script" not in policy


def test_a_report_that_fails_leaves_the_one_before(tmp_path):
    class Broken:
        def _repr_html_(self):
            raise RuntimeError("no table")

    path = write_report(tmp_path / "report.html", "first", {})
    with pytest.raises(RuntimeError, match="no table"):
        write_report(path, "second", {"part": Broken()})
    assert "first" in path.read_text(encoding="utf-8") and len(list(tmp_path.iterdir())) == 1


def labelled(number, labels):
    return [record(f"Ticket {place}: {'word ' * (place % 7)}", labels[place % len(labels)]) for place in range(number)]


def test_a_split_that_holds_out_a_whole_label_says_so():
    records = labelled(200, ["billing", "delivery", "returns", "login", "other"])
    by_answer, by_question = suggest_split(records), suggest_split(records, by="question")
    assert 'if answers are labels such as yes and no, pass by="question"' in by_answer.note
    assert "labels" not in by_question.note
    assert {said(each, "assistant") for each in by_question.heldout} == {"billing", "delivery", "returns", "login", "other"}


def test_no_more_is_held_out_than_promised():
    records = labelled(2000, ["billing", "delivery", "returns", "login", "other"])
    split = suggest_split(records)
    assert split.heldout == [] and split.train == records and "has 400 records, and at most 100 are held out, so nothing is" in split.note
    assert len(suggest_split(records, by="question").heldout) <= 100


@pytest.mark.parametrize("ways", [["Summarise."], ["Summarise.", "List the main points."]])
def test_texts_in_the_system_message_are_what_differs_where_all_ask_alike(ways):
    records = [{"messages": [{"role": "system", "content": f"Text number {place}."}, {"role": "user", "content": ways[place % len(ways)]},
                             {"role": "assistant", "content": f"Number {place}."}]} for place in range(20)]
    split = suggest_split(records)
    assert len(split.heldout) == 4 and len(split.train) == 16 and not leaked_questions(split.train, split.heldout)
