"""supervision_report against what TRL's own trainer prepares, with the real tokenizer and a tiny random model."""
import copy
import time

import pytest
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from helpers.data.supervision import SupervisionError, supervision_report

ANSWERS = ["Osk Island.", "The Old Candle.", "It is open on Thursdays and on no other day of the week."]


def chat(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


RECORDS = [chat(f"Question {number}?", answer) for number, answer in enumerate(ANSWERS)]


def split(record):
    return {"prompt": record["messages"][:-1], "completion": record["messages"][-1:]}


def split_all(records):
    return [split(record) for record in records]


@pytest.fixture
def make_trainer(make_sft_trainer):
    return make_sft_trainer


def lengths(tokenizer, record):
    """The lengths of the prompt and of the whole record in tokens, and the place of its last EOS."""
    prompt = tokenizer.apply_chat_template(record["messages"][:-1], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(record["messages"])["input_ids"]
    return len(prompt), len(whole), max(i for i, token in enumerate(whole) if token == tokenizer.eos_token_id)


def test_healthy_data_passes(make_trainer, tokenizer):
    report = supervision_report(make_trainer(split_all(RECORDS)), RECORDS)
    sizes = [lengths(tokenizer, record) for record in RECORDS]
    assert report.ok and report.check() is report
    assert report.rows == 3
    assert report.tokens == sum(whole for _, whole, _ in sizes)
    assert report.supervised_tokens == sum(whole - prompt for prompt, whole, _ in sizes)
    assert report.supervised_share == report.supervised_tokens / report.tokens
    assert [report.rows_without_eos, report.masked_eos_rows, report.dropped_rows, report.cut_answers,
            report.prefix_mismatches, report.control_token_rows] == [0] * 6
    assert "!" not in str(report) and str(report).count("✓") == len(report.lines()) == 10


def test_supervised_tokens_are_those_that_the_training_batches_carry(make_trainer):
    trainer = make_trainer(split_all(RECORDS), per_device_train_batch_size=2)
    carried = sum((batch["labels"] != -100).sum().item() for batch in trainer.get_train_dataloader())
    assert supervision_report(trainer).supervised_tokens == carried > 0


def test_messages_carry_loss_everywhere(make_trainer):
    report = supervision_report(make_trainer(RECORDS), RECORDS)
    assert report.supervised_share == 1 and report.rows_without_eos == 0
    assert not report.ok and report.check() is report  # wasteful, but something is learned
    assert "prompt and completion" in str(report)


def test_all_masked_by_a_tiny_max_length(make_trainer):
    trainer = make_trainer(split_all(RECORDS), max_length=8)
    report = supervision_report(trainer, RECORDS)
    assert (report.rows, report.supervised_tokens, report.dropped_rows, report.cut_answers) == (0, 0, 3, 0)
    assert report.supervised_share == 0 and not report.ok
    with pytest.raises(SupervisionError, match="max_length"):
        report.check()


def test_a_set_to_validate_with_that_max_length_empties_is_named(make_trainer):
    trainer = make_trainer(split_all(RECORDS))
    for left, shown in (([], True), (split_all(RECORDS), False), ({"a": [], "b": [1]}, True), (None, False)):
        trainer.eval_dataset = left
        assert ("! sets to validate with that have no row left: 1" in str(supervision_report(trainer, RECORDS))) == shown


def test_labels_that_hide_everything(make_trainer):
    rows = [{"input_ids": [10, 11], "labels": [-100, -100]}]
    report = supervision_report(make_trainer(rows, dataset_kwargs={"skip_prepare_dataset": True}))
    assert (report.rows, report.supervised_tokens, report.rows_without_eos) == (1, 0, 1)
    with pytest.raises(SupervisionError, match="No token of 1 rows"):
        report.check()


def test_counts_dropped_rows_and_cut_answers(make_trainer, tokenizer):
    long_question = chat("word " * 40, "Yes.")
    records = [*RECORDS, long_question]
    room = max(lengths(tokenizer, record)[1] for record in RECORDS[:2])
    assert lengths(tokenizer, RECORDS[2])[2] >= room < lengths(tokenizer, long_question)[0]
    trainer = make_trainer(split_all(records), max_length=room)
    report = supervision_report(trainer, records)
    assert (report.rows, report.dropped_rows, report.cut_answers, report.rows_without_eos) == (3, 1, 1, 1)
    assert "the prompt alone fills max_length" in str(report)
    assert "answers learned" not in str(report)  # each record had one answer: none is left unlearned within a row
    assert report.masked_eos_rows == 0 and report.check() is report and not report.ok


@pytest.mark.parametrize(("room", "cut"), [(0, 1), (1, 0)])
def test_an_answer_is_whole_exactly_when_its_eos_is_kept(make_trainer, tokenizer, room, cut):
    place = lengths(tokenizer, RECORDS[0])[2]
    report = supervision_report(make_trainer([split(RECORDS[0])], max_length=place + room), RECORDS[:1])
    assert report.cut_answers == report.rows_without_eos == cut


@pytest.mark.parametrize(("room", "dropped", "cut"), [(0, 1, 0), (1, 0, 1)])
def test_a_row_is_dropped_exactly_when_its_prompt_fills_the_limit(make_trainer, tokenizer, room, dropped, cut):
    prompt = lengths(tokenizer, RECORDS[0])[0]
    report = supervision_report(make_trainer([split(RECORDS[0])], max_length=prompt + room), RECORDS[:1])
    assert (report.dropped_rows, report.cut_answers) == (dropped, cut)


def test_a_lost_answer_counts_as_cut_where_the_question_keeps_the_row(make_trainer):
    report = supervision_report(make_trainer(RECORDS, max_length=8), RECORDS)
    assert (report.rows, report.dropped_rows, report.cut_answers) == (3, 0, 3)
    assert report.prefix_mismatches == 0  # what is left of these rows is the beginning of what is asked


def test_no_limit_cuts_nothing(make_trainer):
    report = supervision_report(make_trainer(split_all(RECORDS), max_length=None), RECORDS)
    assert report.ok and report.cut_answers == 0


def test_eos_masked_by_the_collator_of_transformers(make_trainer, tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    report = supervision_report(make_trainer(RECORDS, DataCollatorForLanguageModeling(tokenizer, mlm=False)), RECORDS)
    assert report.rows_without_eos == report.masked_eos_rows == 3 and report.cut_answers == 0
    with pytest.raises(SupervisionError, match="EOS is hidden from the loss in 3 of 3 rows"):
        report.check()


def test_the_same_collator_with_another_pad_token_is_well(make_trainer, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.pad_token = "<|endoftext|>"
    trainer = make_trainer(RECORDS, DataCollatorForLanguageModeling(other, mlm=False), other)
    report = supervision_report(trainer, RECORDS)
    assert report.rows_without_eos == report.masked_eos_rows == 0


def test_padding_of_a_single_row_is_not_counted(make_trainer, tokenizer):
    plain = supervision_report(make_trainer(RECORDS))
    padded = supervision_report(make_trainer(
        RECORDS, DataCollatorForLanguageModeling(tokenizer, mlm=False, pad_to_multiple_of=512)))
    assert padded.tokens == plain.tokens
    cut = supervision_report(make_trainer(
        split_all(RECORDS[2:]), max_length=lengths(tokenizer, RECORDS[2])[2], pad_to_multiple_of=512))
    assert (cut.rows_without_eos, cut.masked_eos_rows) == (1, 0)  # the padding is EOS, but not the row's own


def test_control_tokens_in_a_text(make_trainer, tokenizer):
    records = [*RECORDS, chat(f"What does {tokenizer.eos_token} mean?", "The end."), chat("And </s> or <b>?", "Nothing.")]
    report = supervision_report(make_trainer(split_all(records)), records)
    assert report.control_token_rows == 1 and not report.ok
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<note>"])  # a word of its own, and no sign
    noted = [*RECORDS, chat("What is <note>?", "A word.")]
    assert supervision_report(make_trainer(split_all(noted), processing_class=other), noted).control_token_rows == 0


def test_a_template_that_writes_the_prompt_alone_differently(make_trainer, tokenizer):
    other = copy.deepcopy(tokenizer)
    mark = "{{ '<|im_start|>assistant\n' }}"
    assert mark in other.chat_template
    other.chat_template = other.chat_template.replace(mark, "{{ '<|im_start|>assistant\nWell, ' }}")
    report = supervision_report(make_trainer(split_all(RECORDS), processing_class=other), RECORDS)
    assert report.prefix_mismatches == 3 and not report.ok


def test_an_answer_whose_white_space_joins_the_templates(make_trainer):
    records = [*RECORDS, chat("Which line?", "\n\n    return 1")]
    report = supervision_report(make_trainer(split_all(records)), records)
    assert report.prefix_mismatches == 1 and "the answers begin with white space" in str(report)


def test_a_template_whose_end_stops_nothing(make_trainer, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|endoftext|>"
    trainer = make_trainer(split_all(RECORDS), processing_class=other)
    trainer.model.generation_config.eos_token_id = other.eos_token_id
    report = supervision_report(trainer, RECORDS)
    assert (report.rows_without_eos, report.masked_eos_rows, report.cut_answers) == (3, 0, 0)
    assert "tokenizer.eos_token" in str(report)
    with pytest.raises(SupervisionError, match="None of 3 rows ends with a token that stops generation"):
        report.check()
    trainer.model.generation_config.eos_token_id = [5, tokenizer.eos_token_id]  # one of several ends is enough
    assert supervision_report(trainer, RECORDS).check().rows_without_eos == 0


# Are the rows what is asked?


def as_text(tokenizer):
    return [{"text": tokenizer.apply_chat_template(record["messages"], tokenize=False)} for record in RECORDS]


def test_rows_in_a_form_of_their_own_are_not_what_is_asked(make_trainer):
    plain = [{"prompt": f"Question: {record['messages'][0]['content']}\nAnswer:", "completion": " " + record["messages"][1]["content"]}
             for record in RECORDS]
    report = supervision_report(make_trainer(plain), RECORDS)
    assert report.prefix_mismatches == 3 and not report.ok and "another form, or BOS twice" in str(report)
    assert report.rows_without_eos == 0 and report.check() is report


def test_bos_twice_is_not_what_is_asked(make_trainer, tokenizer):
    from tokenizers.processors import TemplateProcessing

    other = copy.deepcopy(tokenizer)
    bos = (other.bos_token, other.bos_token_id)
    other.chat_template = "{{ bos_token }}" + other.chat_template
    rows = [{"text": other.apply_chat_template(record["messages"], tokenize=False)} for record in RECORDS]
    assert supervision_report(make_trainer(rows, processing_class=other), RECORDS).prefix_mismatches == 0
    other.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    trainer = make_trainer(rows, processing_class=other)
    assert trainer.train_dataset[0]["input_ids"][:2] == [bos[1]] * 2
    assert supervision_report(trainer, RECORDS).prefix_mismatches == 3


def test_rows_in_another_order_or_made_by_hand_with_the_template_are_well(make_trainer, tokenizer):
    assert supervision_report(make_trainer(split_all(RECORDS[::-1])), RECORDS).ok
    report = supervision_report(make_trainer(as_text(tokenizer)), RECORDS)
    assert report.prefix_mismatches == 0


def test_each_record_is_asked_with_its_own_prompt(make_trainer):
    named = [{"messages": [{"role": "system", "content": "Be brief."}, *record["messages"]]} for record in RECORDS]
    assert supervision_report(make_trainer(split_all(named)), named).ok
    report = supervision_report(make_trainer(split_all(named)), RECORDS)  # trained with a system message, asked without
    assert report.prefix_mismatches == 3


# What will be learned?


@pytest.mark.parametrize("turns", [2, 3])
def test_of_several_replies_the_last_one_is_learned(turns, make_trainer):
    record = {"messages": [message for each in RECORDS[:turns] for message in each["messages"]]}
    report = supervision_report(make_trainer([split(record)]), [record])
    assert (report.learned, report.replies) == (1, turns) and f"! answers learned: 1 of {turns} (" in str(report)
    rows = [{"messages": record["messages"][:end]} for end in range(2, 2 * turns + 1, 2)]
    report = supervision_report(make_trainer(split_all(rows)), rows)  # one row a reply: the advice is followed
    assert (report.learned, report.replies) == (turns, turns) and report.ok
    assert "answers learned" not in str(report)
    several = [record] * 5  # copies hide nothing
    assert f"! answers learned: 1 of {turns} (" in str(supervision_report(make_trainer(split_all(several)), several))
    assert "answers learned" not in str(supervision_report(make_trainer(split_all(rows * 5)), rows * 5))
    everything = supervision_report(make_trainer([record]), [record])
    assert f"✓ answers learned: {turns} of {turns}" in str(everything)


def test_an_answer_is_each_part_that_carries_loss(make_trainer, tokenizer):
    record = {"messages": [message for each in RECORDS for message in each["messages"]]}
    ids = tokenizer.apply_chat_template(record["messages"])["input_ids"]
    labels = [-100] * len(ids)
    for end in (len(ids) - 2, len(ids) // 2):
        labels[end - 3:end + 1] = ids[end - 3:end + 1]
    trainer = make_trainer([{"input_ids": ids, "labels": labels}], dataset_kwargs={"skip_prepare_dataset": True})
    assert "! answers learned: 2 of 3" in str(supervision_report(trainer, [record]))


def test_an_adapter_that_is_loaded_to_answer_is_not_trained(make_trainer, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    trainer = make_trainer(split_all(RECORDS))
    model = get_peft_model(trainer.model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    base = model.unload()
    trainer.model = PeftModel.from_pretrained(base, tmp_path / "adapter")
    report = supervision_report(trainer)
    assert report.trainable == 0 and not report.ok
    with pytest.raises(SupervisionError, match="is_trainable=True"):
        report.check()
    trainer.model = PeftModel.from_pretrained(trainer.model.unload(), tmp_path / "adapter", is_trainable=True)
    assert supervision_report(trainer).check().trainable == 2 * (16 + 16)


def test_a_token_for_which_the_model_has_no_row(make_trainer, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<note>"])
    trainer = make_trainer(split_all([chat("What is <note>?", "A mark.")]), processing_class=other)
    report = supervision_report(trainer)
    assert report.largest_id == report.table == len(tokenizer)
    with pytest.raises(SupervisionError, match=r"resize_token_embeddings\(len\(tokenizer\)\)"):
        report.check()
    trainer.model.resize_token_embeddings(len(other))
    assert supervision_report(trainer).check().ok


# No advice that is followed already


def test_advice_that_is_followed_is_not_given_again(make_trainer, tokenizer):
    rows = [row | {"chat_template_kwargs": {"enable_thinking": False}} for row in split_all(RECORDS)]
    report = supervision_report(make_trainer(rows, completion_only_loss=False))
    assert "completion_only_loss is False" in str(report) and "instead of messages" not in str(report)
    other = copy.deepcopy(tokenizer)
    other.chat_template = other.chat_template.replace("assistant\n' }}", "assistant\nWell, ' }}")
    report = supervision_report(make_trainer(rows, processing_class=other), RECORDS)
    assert report.prefix_mismatches == 3 and "mend the template" in str(report) and "chat_template_kwargs" not in str(report)
    other = copy.deepcopy(tokenizer)
    other.pad_token = "<|endoftext|>"
    labels = [{"input_ids": [10, tokenizer.eos_token_id], "labels": [10, -100]}]
    report = supervision_report(make_trainer(labels, processing_class=other, dataset_kwargs={"skip_prepare_dataset": True}))
    assert report.masked_eos_rows == 1 and "pad token is not the reason" in str(report)


def test_without_records_their_lines_are_left_out(make_trainer):
    report = supervision_report(make_trainer(split_all(RECORDS)))
    assert report.dropped_rows is report.cut_answers is report.prefix_mismatches is report.control_token_rows is None
    assert report.ok and len(report.lines()) == 6


def test_records_that_are_not_the_trainers(make_trainer):
    with pytest.raises(ValueError, match="3 rows and records has 2"):
        supervision_report(make_trainer(split_all(RECORDS)), RECORDS[:2])


@pytest.mark.parametrize(("setting", "value"), [("packing", True), ("truncation_mode", "keep_end")])
def test_rows_that_cannot_be_traced_are_refused(make_trainer, setting, value):
    trainer = make_trainer(split_all(RECORDS))
    setattr(trainer.args, setting, value)
    with pytest.raises(ValueError, match="packing=False"):
        supervision_report(trainer)


def test_the_table_shows_each_line_and_escapes_its_text(make_trainer, monkeypatch):
    report = supervision_report(make_trainer(RECORDS), RECORDS)
    table = report._repr_html_()
    assert table.count("<tr>") == len(report.lines()) and ">!<" in table and "✓" in table
    monkeypatch.setattr("helpers.data.supervision.EVERYTHING", "<script>")
    assert "<script>" not in report._repr_html_() and "&lt;script&gt;" in report._repr_html_()


def test_reporting_leaves_the_random_numbers_of_training_alone(make_trainer):
    trainer = make_trainer(split_all(RECORDS))
    before = torch.get_rng_state()
    supervision_report(trainer, RECORDS)
    assert torch.equal(torch.get_rng_state(), before)


def tokenized(tokenizer, labels_of, records=RECORDS):
    """Rows with labels of one's own: labels_of(ids, length of the prompt, place of the user's end, place of the answer's)."""
    rows = []
    for record in records:
        ids = tokenizer.apply_chat_template(record["messages"])["input_ids"]
        prompt, _, end = lengths(tokenizer, record)
        asked = max(place for place in range(prompt) if ids[place] == tokenizer.eos_token_id)
        rows.append({"input_ids": ids, "labels": labels_of(ids, prompt, asked, end)})
    return rows


UNTOUCHED = {"dataset_kwargs": {"skip_prepare_dataset": True}}


@pytest.mark.parametrize("labels_of", [
    lambda ids, prompt, asked, end: ([-100] * prompt + ids[prompt:])[1:] + [-100],  # shifted by hand
    lambda ids, prompt, asked, end: [-100] * prompt + [7] * (end - prompt) + ids[end:],
], ids=["shifted", "another token"])
def test_labels_are_the_tokens_at_their_place(make_trainer, tokenizer, labels_of):
    report = supervision_report(make_trainer(tokenized(tokenizer, labels_of), **UNTOUCHED), RECORDS)
    assert report.other_labels == 3 and not report.ok and "! rows with a label that is not the token at its place: 3" in str(report)


def test_a_question_that_is_learned_in_place_of_the_answer(make_trainer, tokenizer):
    rows = tokenized(tokenizer, lambda ids, prompt, asked, end: ids[:asked + 1] + [-100] * (len(ids) - asked - 1))
    report = supervision_report(make_trainer(rows, **UNTOUCHED), RECORDS)
    assert report.questions_learned == 3 and report.other_labels == 0 and not report.ok


def test_a_collator_that_learns_the_question_again_is_named(make_trainer, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.pad_token = other.bos_token
    collator = DataCollatorForLanguageModeling(other, mlm=False)
    report = supervision_report(make_trainer(split_all(RECORDS), data_collator=collator), RECORDS)
    assert report.questions_learned == 3 and "the data_collator makes the labels anew" in str(report)


def test_answers_of_other_questions_are_noticed(make_trainer):
    turned = [{"prompt": one["messages"][:-1], "completion": other["messages"][-1:]}
              for one, other in zip(RECORDS, RECORDS[1:] + RECORDS[:1], strict=True)]
    report = supervision_report(make_trainer(turned), RECORDS)
    assert report.answers_unknown == 3 and not report.ok


def test_several_learned_replies_are_no_learned_question(make_trainer, tokenizer):
    talk = [{"messages": RECORDS[0]["messages"] + RECORDS[1]["messages"]}] * 3

    def both(ids, prompt, asked, end):
        first = len(tokenizer.apply_chat_template(RECORDS[0]["messages"][:1], add_generation_prompt=True)["input_ids"])
        until = len(tokenizer.apply_chat_template(RECORDS[0]["messages"])["input_ids"])
        return [-100] * first + ids[first:until] + [-100] * (prompt - until) + ids[prompt:]

    report = supervision_report(make_trainer(tokenized(tokenizer, both, talk), **UNTOUCHED), talk)
    assert report.questions_learned == report.answers_unknown == 0 and report.ok


def test_padding_on_the_left_is_no_fault(make_trainer, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.padding_side = "left"
    trainer = make_trainer(tokenized(tokenizer, lambda ids, prompt, asked, end: [-100] * prompt + ids[prompt:]),
                           data_collator=DataCollatorForSeq2Seq(other, pad_to_multiple_of=64), **UNTOUCHED)
    report = supervision_report(trainer, RECORDS)
    assert report.ok and report.supervised_tokens == supervision_report(make_trainer(split_all(RECORDS)), RECORDS).supervised_tokens


def test_rows_as_tensors_are_the_same_rows(make_trainer):
    trainer = make_trainer(split_all(RECORDS))
    trainer.train_dataset = trainer.train_dataset.with_format("torch", columns=["input_ids", "labels"], output_all_columns=True)
    assert supervision_report(trainer, RECORDS).ok


def test_records_that_were_held_out_are_not_called_dropped_by_max_length(make_trainer):
    report = supervision_report(make_trainer(split_all(RECORDS[:2])), RECORDS)
    assert report.dropped_rows == 1 and "max_length does not explain it" in str(report) and "the prompt alone fills" not in str(report)


def test_a_limit_that_was_not_applied_cuts_nothing(make_trainer, tokenizer):
    rows = tokenized(tokenizer, lambda ids, prompt, asked, end: [-100] * prompt + ids[prompt:])
    assert supervision_report(make_trainer(rows, max_length=8, **UNTOUCHED), RECORDS).cut_answers == 0


@pytest.mark.parametrize(("record", "said"), [
    ({"messages": RECORDS[0]["messages"][1:]}, "has no question and answer under messages"),
    *((other, "holds no messages with role and content") for other in (
        {"prompt": "a", "completion": "b"}, {"messages": []}, RECORDS[0]["messages"], "messages", {"messages": [{"role": "user", "content": None}]}))])
def test_records_that_are_none_are_named(make_trainer, record, said):
    with pytest.raises(ValueError, match=rf"^records\[1\] {said}"):
        supervision_report(make_trainer(split_all(RECORDS)), [RECORDS[0], record, RECORDS[1]])


def test_a_trainer_of_transformers_is_examined_too(make_trainer, tokenizer, tmp_path):
    rows = tokenized(tokenizer, lambda ids, prompt, asked, end: [-100] * prompt + ids[prompt:])
    trainer = Trainer(make_trainer(split_all(RECORDS)).model, TrainingArguments(str(tmp_path), report_to="none"),
                      DataCollatorForSeq2Seq(tokenizer), Dataset.from_list(rows), processing_class=tokenizer)
    assert supervision_report(trainer, RECORDS).ok


def test_rows_that_match_nothing_do_not_take_for_ever(make_trainer):
    plain = [{"input_ids": [*range(100 + number % 50, 130 + number % 50)], "labels": [*range(100 + number % 50, 130 + number % 50)]}
             for number in range(4000)]
    records = [*RECORDS, chat("word " * 60, "Yes."), *(chat(f"Number {number}?", "Yes.") for number in range(4000))]
    start = time.process_time()
    report = supervision_report(make_trainer(plain, **UNTOUCHED), records)
    assert report.prefix_mismatches == 4000 and time.process_time() - start < 60
