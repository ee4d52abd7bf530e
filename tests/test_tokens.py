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
    looks = {kind: style for kind, (_, style) in KINDS.items()}
    assert len({looks[kind] for kind in ("supervised", "EOS", "padding", "cut off")}) == 4
