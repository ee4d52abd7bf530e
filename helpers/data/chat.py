"""Encode conversations with the chat template in one way: for training, for asking, and for looking at the tokens."""
from __future__ import annotations

THINKING_OFF = {"enable_thinking": False}  # for models that think aloud before they answer; other templates pass over it


def encode_chat(tokenizer, messages: list[dict] | list[list[dict]], template_kwargs: dict = THINKING_OFF, **options):
    """Return what `apply_chat_template` makes of one conversation, or of several, with thinking off.

    SFTTrainer encodes records in the same way if their column chat_template_kwargs is THINKING_OFF. template_kwargs:
    what else the template is to be told; options: what `apply_chat_template` takes. add_generation_prompt=True ends the
    text where the answer begins.
    """
    return tokenizer.apply_chat_template(messages, return_dict=True, **template_kwargs, **options)
