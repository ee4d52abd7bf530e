import pytest
import torch

from helpers.tokens import KINDS, show_tokens, token_groups, token_kinds


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


def test_text_is_escaped(tokenizer):
    shown = show_tokens(tokenizer, "<script>alert(1)</script>").data
    assert "<script" not in shown and "&lt;" in shown


def test_legend_counts_and_ids_on_hover(tokenizer):
    ids = torch.tensor(tokenizer("Osk Island")["input_ids"])
    shown = show_tokens(tokenizer, ids, labels=ids).data
    assert f"supervised: {len(ids)}" in shown and f"{len(ids)} tokens" in shown
    assert f"id {ids[0]}" in shown


def test_kinds_differ_without_colour():
    looks = [(border, weight) for _, border, weight in KINDS.values()]
    assert len(set(looks)) == len(KINDS)
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
