import re

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace, Sequence, Split
from transformers import PreTrainedTokenizerFast

from helpers.data.tokens import KINDS, record_tokens, show_record, show_tokens, token_groups, token_kinds, what_is_lost

SCRIPT = "<script>alert(1)</script>"


def record(question="Where is it?", answer="On Osk Island."):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_kinds_of_a_padded_supervised_row(tokenizer):
    eos, start = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_start|>")
    ids = [start, 10, 11, eos, eos, eos]
    kinds = token_kinds(tokenizer, ids, labels=[-100, -100, 11, eos, -100, -100], attention_mask=[1, 1, 1, 1, 1, 0])
    assert kinds == ["special", "prompt", "supervised", "EOS", "special", "padding"]


def test_an_eos_without_loss_is_not_shown_as_learned(tokenizer):
    assert token_kinds(tokenizer, [10, tokenizer.eos_token_id], labels=[10, -100]) == ["supervised", "special"]


def test_cut_off_from_a_position(tokenizer):
    assert token_kinds(tokenizer, [10, 11, 12], labels=[-100, 11, 12], cut_from=2) == ["prompt", "supervised", "cut off"]


@pytest.mark.parametrize("text", ["plain words", "灯塔在奥斯克岛上。", "a 🐐 goat", "naïve café"])
def test_groups_hold_whole_characters_and_lose_nothing(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    groups = token_groups(tokenizer, ids)
    assert "".join(piece for _, _, piece in groups) == text
    assert [start for start, _, _ in groups[1:]] == [end for _, end, _ in groups[:-1]]


CHIP_TEXT = re.compile(r'<span style="[^"]+" title="[^"]+">([^<]*)(?:<sub>(\d+)</sub>)?</span>')


@pytest.mark.parametrize("text", ["灯塔在奥斯克岛上。", "أين المنارة؟", "a 🐐 goat 👨\u200d👩\u200d👧", "हिन्दी ไทย", "naïve"])
def test_a_split_character_is_shown_once_with_the_number_of_its_tokens(tokenizer, text):
    page, ids = show_tokens(tokenizer, text).data, tokenizer(text)["input_ids"]
    chips = CHIP_TEXT.findall(page)
    assert "".join(shown for shown, _ in chips) == text and "\ufffd" not in page
    assert sum(int(number or 1) for _, number in chips) == len(ids)
    assert all(len(shown.strip()) == 1 for shown, number in chips if number)
    assert ("so many tokens" in page) == (len(chips) < len(ids))


def test_plain_words_have_no_small_number(tokenizer):
    assert "<sub>" not in show_tokens(tokenizer, "plain words").data and "small number" not in show_tokens(tokenizer, "plain").data


def test_a_character_that_loses_a_token_is_cut_off(tokenizer):
    ids = tokenizer("塔")["input_ids"]
    chip = show_tokens(tokenizer, ids, cut_from=len(ids) - 1).data.split("<div>")[1]
    assert len(ids) > 1 and f'title="cut off, id {", ".join(map(str, ids))}"' in chip
    assert f"solid {KINDS['prompt'][0]}" not in chip and f"dashed {KINDS['cut off'][0]}" in chip


def test_text_is_escaped(tokenizer):
    shown = show_tokens(tokenizer, "<script>alert(1)</script>").data
    assert "<script" not in shown and "&lt;" in shown


def test_legend_counts_and_ids_on_hover(tokenizer):
    ids = torch.tensor(tokenizer("Osk Island")["input_ids"])
    shown = show_tokens(tokenizer, ids, labels=ids).data
    assert f"supervised: {len(ids)}" in shown and f"{len(ids)} tokens" in shown
    assert f"id {ids[0]}" in shown


def test_kinds_differ_without_colour():
    looks = [(border, weight) for kind, (_, border, weight) in KINDS.items() if kind != "text"]  # text and prompt never meet
    assert len(set(looks)) == len(looks)
    assert all(border.startswith("3px") for border, _ in looks if "double" in border)  # a thinner one looks solid


def luminance(colour):
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#111111"])  # JupyterLab's light and dark pages
@pytest.mark.parametrize("kind", KINDS)
def test_edges_stand_out_on_light_and_dark_pages(kind, page):
    dark, light = sorted([luminance(KINDS[kind][0]), luminance(page)])
    assert (light + 0.05) / (dark + 0.05) >= 3  # WCAG's minimum for graphics


def test_the_text_takes_the_colour_of_the_page(tokenizer):
    assert ";color:" not in show_tokens(tokenizer, "Osk").data


def test_labels_of_another_length_are_refused(tokenizer):
    with pytest.raises(ValueError, match="labels has 2 entries for 3 tokens"):
        show_tokens(tokenizer, [10, 11, 12], labels=[10, 11])


def test_a_batch_is_refused(tokenizer):
    batch = tokenizer(["one", "two"])
    for wrong in (batch, batch["input_ids"], torch.tensor(batch["input_ids"])):
        with pytest.raises(ValueError, match="one row"):
            show_tokens(tokenizer, wrong)
    numbers = torch.tensor([10, 11]).numpy()
    assert show_tokens(tokenizer, numbers).data == show_tokens(tokenizer, list(numbers)).data == show_tokens(tokenizer, [10, 11]).data


@pytest.mark.parametrize("messages", [record(), record("Ωmega 🐐?", " spaces \n and lines "), record(answer="a"), record(answer="    print(1)"), record(answer="\n\nHere.")],
                         ids=["plain", "odd", "short", "indented", "lines first"])
def test_a_record_has_the_tokens_and_labels_that_the_trainer_makes(make_sft_trainer, tokenizer, messages):
    rows = [{"prompt": messages[:-1], "completion": messages[-1:]}]
    row = make_sft_trainer(rows).train_dataset[0]
    assert record_tokens(tokenizer, messages) == (row["input_ids"], row["labels"])


def test_what_is_lost_is_what_the_trainer_loses(make_sft_trainer, tokenizer):
    ids, labels = record_tokens(tokenizer, record())
    prompt, eos, rows = labels.count(-100), len(ids) - ids[::-1].index(tokenizer.eos_token_id), [
        {"prompt": record()[:-1], "completion": record()[-1:]}]
    for limit in range(prompt - 1, len(ids) + 2):
        said, left = what_is_lost(tokenizer, ids, labels, limit), list(make_sft_trainer(rows, max_length=limit).train_dataset)
        assert ("drops the record" in said) == (not left) == (limit <= prompt)
        assert ("EOS is lost" in said) == (prompt < limit < eos) == (bool(left) and tokenizer.eos_token_id not in left[0]["labels"])
        assert ("Nothing is lost" in said) == (limit >= len(ids))
        if prompt < limit < len(ids):
            learned = len(ids) - prompt
            assert f"{len(ids) - limit} of {len(ids)} tokens are cut off, {len(ids) - limit} of the {learned} learned" in said


def test_a_text_or_a_lone_question_has_no_answer_to_lose(tokenizer):
    ids, labels = record_tokens(tokenizer, record()[:1])
    assert labels is None and ids == record_tokens(tokenizer, record())[0][:len(ids)]
    assert what_is_lost(tokenizer, ids, labels, len(ids) - 3) == f"3 of {len(ids)} tokens are cut off."


@pytest.mark.parametrize("question", ["Where is it?", "a", "assistant", "a helpful AI", "user"])  # all but one are in the template, too
def test_parts_are_the_messages_and_the_template(tokenizer, question):
    page = show_record(tokenizer, record(question)).data
    counts = {role: len(tokenizer(text)["input_ids"]) for role, text in (("user", question), ("assistant", "On Osk Island."))}
    template = len(record_tokens(tokenizer, record(question))[0]) - sum(counts.values())
    assert f"template {template}, user {counts['user']}, assistant {counts['assistant']}" in page
    assert page.count('title="supervised, assistant, id') == counts["assistant"]


@pytest.mark.parametrize("shown", [SCRIPT, record(SCRIPT, SCRIPT), record(SCRIPT)[:1]], ids=["text", "record", "question"])
def test_a_record_that_holds_html_is_shown_as_text(tokenizer, shown):
    page = show_record(tokenizer, shown, max_length=5).data
    assert "<script" not in page and "&lt;" in page and "cut off: " in page


def llama_2():
    """A tokenizer that decodes as Llama 2's does: each text loses the space that it begins with."""
    words = ["<s>", "[INST]", "[/INST]", "▁Where", "▁is", "▁it", "?", "▁On", "▁Osk", ".", "▁", "<unk>"]
    made = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = Sequence([Metaspace(), Split(Regex("[?.]"), "isolated")]), decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>", additional_special_tokens=["[INST]", "[/INST]"])
    tokenizer.chat_template = "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{% endif %}{% endfor %}"
    return tokenizer


def test_spaces_and_parts_stay_where_a_text_loses_the_space_that_it_begins_with():
    tokenizer, chat = llama_2(), [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "On Osk."}]
    ids = tokenizer("Where is it?", add_special_tokens=False)["input_ids"]
    assert [text for *_, text in token_groups(tokenizer, ids)] == ["Where", " is", " it", "?"]
    page = show_record(tokenizer, {"messages": chat}).data
    assert "user 4" in page and "assistant 3" in page


def test_an_answer_without_an_eos_is_not_said_to_keep_it(tokenizer):
    assert "has no EOS" in what_is_lost(tokenizer, [5, 6, 7, 8], [-100, 6, 7, 8], 3)


def test_an_empty_text_is_shown(tokenizer):
    assert "0 tokens" in show_record(tokenizer, "", max_length=5).data
    assert "user" not in show_record(tokenizer, record("")[:1]).data.split("tokens of each part")[1]
