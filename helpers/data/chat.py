"""Encode conversations with the chat template in one way: for training, for asking, and for looking at the tokens."""
THINKING_OFF = {"enable_thinking": False}  # for models that think aloud before they answer; other templates pass over it


def encode_chat(tokenizer, messages: list[dict] | list[list[dict]], template_kwargs: dict = THINKING_OFF, **options):
    """Return what `apply_chat_template` makes of one conversation, or of several, with thinking off.

    SFTTrainer encodes records in the same way if their column chat_template_kwargs is THINKING_OFF. template_kwargs:
    what else the template is to be told; options: what `apply_chat_template` takes. add_generation_prompt=True ends the
    text where the answer begins.
    """
    return tokenizer.apply_chat_template(messages, return_dict=True, **template_kwargs, **options)


def as_prompt(question: str | list[dict]) -> list[dict]:
    """Return the messages that ask a question: a text becomes one user message, a list of messages stays.

    Raises ValueError for anything else, and for messages that end with an answer.
    """
    if isinstance(question, str):
        return [{"role": "user", "content": question}]
    if not isinstance(question, list) or not question or not all(isinstance(message, dict) for message in question):
        raise ValueError(f'a question is a text or a list of messages, not {question!r:.40}; of a record take record["messages"][:-1]')
    if question[-1]["role"] == "assistant":
        raise ValueError('the question ends with its answer, which the model would only go on with; take record["messages"][:-1]')
    return question


def prompt_text(question: str | list[dict]) -> str:
    """Return what is asked as text; where there is more than one user message, each message stands after its role."""
    messages = question if isinstance(question, list) else as_prompt(question)
    if [message["role"] for message in messages] == ["user"]:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def end_ids(generation_config) -> set[int]:
    """Return the tokens that stop generation."""
    ends = getattr(generation_config, "eos_token_id", None)
    return {end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)}
