"""supervision_report against what TRL's own trainer prepares, with the real tokenizer and a tiny random model."""
import copy

import pytest
import torch
from transformers import DataCollatorForLanguageModeling

from helpers.data.tokens import SupervisionError, supervision_report

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
    assert "!" not in str(report) and str(report).count("✓") == len(report.lines()) == 8


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


def test_a_template_that_writes_the_prompt_alone_differently(make_trainer, tokenizer):
    other = copy.deepcopy(tokenizer)
    mark = "{{ '<|im_start|>assistant\n' }}"
    assert mark in other.chat_template
    other.chat_template = other.chat_template.replace(mark, "{{ '<|im_start|>assistant\nWell, ' }}")
    report = supervision_report(make_trainer(split_all(RECORDS), processing_class=other), RECORDS)
    assert report.prefix_mismatches == 3 and not report.ok


def test_a_template_whose_end_is_not_eos(make_trainer, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|endoftext|>"
    report = supervision_report(make_trainer(split_all(RECORDS), processing_class=other), RECORDS)
    assert (report.rows_without_eos, report.masked_eos_rows, report.cut_answers) == (3, 0, 0)
    assert "tokenizer.eos_token" in str(report)


def test_several_turns_and_a_system_message(make_trainer):
    record = {"messages": [{"role": "system", "content": "Be brief."}, *RECORDS[0]["messages"], *RECORDS[1]["messages"]]}
    assert supervision_report(make_trainer([split(record)]), [record]).ok


def test_without_records_their_lines_are_left_out(make_trainer):
    report = supervision_report(make_trainer(split_all(RECORDS)))
    assert report.dropped_rows is report.cut_answers is report.prefix_mismatches is report.control_token_rows is None
    assert report.ok and len(report.lines()) == 4


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
    assert table.count("<tr>") == len(report.lines()) and "<b>!</b>" in table and "✓" in table
    monkeypatch.setattr("helpers.data.supervision.EVERYTHING", "<script>")
    assert "<script>" not in report._repr_html_() and "&lt;script&gt;" in report._repr_html_()


def test_reporting_leaves_the_random_numbers_of_training_alone(make_trainer):
    trainer = make_trainer(split_all(RECORDS))
    before = torch.get_rng_state()
    supervision_report(trainer, RECORDS)
    assert torch.equal(torch.get_rng_state(), before)
