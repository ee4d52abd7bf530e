"""Show the tokens of a text, coloured by what they are for the model and for the loss."""
import html
from collections import Counter
from collections.abc import Mapping
from numbers import Integral
from os.path import commonprefix

from IPython.display import HTML

from helpers.data.chat import encode_chat
from helpers.data.rows import IGNORED
from helpers.data.wording import are_messages

# Kind -> colour, border and weight. Each colour stands out on light and on dark pages; border and weight tell the kinds
# apart without colour: bold is what carries loss, double is a control token.
KINDS = {
    "special": ("#8250df", "3px double", "normal"),
    "text": ("#6e7781", "1px solid", "normal"),
    "prompt": ("#6e7781", "1px solid", "normal"),
    "supervised": ("#1a7f37", "2px solid", "bold"),
    "EOS": ("#cf222e", "3px double", "bold"),
    "padding": ("#9a6700", "2px dotted", "normal"),
    "cut off": ("#bc4c00", "2px dashed", "normal"),
}
BLANK = "\ue000"  # stands for a message's text; a character that nobody writes
SPLIT = " (a small number: the character takes so many tokens)"
CHIP = ("display:inline-block;margin:1px;padding:0 3px;border:{border} {colour};border-radius:4px;background:{colour}22;"
        "font-family:monospace;font-weight:{weight};white-space:pre;line-height:1.5")
STYLES = {kind: CHIP.format(colour=colour, border=border, weight=weight) for kind, (colour, border, weight) in KINDS.items()}


def token_kinds(tokenizer, ids: list[int], labels: list[int] | None = None, attention_mask: list[int] | None = None,
                cut_from: int | None = None) -> list[str]:
    """Return the kind of each token, one of KINDS; without labels a token is text or special, and nothing carries loss.

    ids, labels and attention_mask have the same length; a label of -100 carries no loss. Tokens from position cut_from on are cut off.
    """
    special = set(tokenizer.all_special_ids)

    def kind(position: int, token: int) -> str:
        if attention_mask is not None and not attention_mask[position]:
            return "padding"
        if cut_from is not None and position >= cut_from:
            return "cut off"
        if labels is not None and labels[position] != IGNORED:
            return "EOS" if token == tokenizer.eos_token_id else "supervised"
        return "special" if token in special else "text" if labels is None else "prompt"

    return [kind(position, token) for position, token in enumerate(ids)]


def token_groups(tokenizer, ids: list[int]) -> list[tuple[int, int, str]]:
    """Split ids into pieces that decode to whole characters; return (start, end, text) of each.

    A Chinese character or an emoji is often spread over several tokens, none of which is text by itself.
    """
    groups, start = [], 0
    for end in range(1, len(ids) + 1):
        text = _piece(tokenizer, ids, start, end)
        if not text.endswith("\ufffd") or end - start == 4 or end == len(ids):  # a character has 4 bytes at most
            groups.append((start, end, text))
            start = end
    return groups


def _piece(tokenizer, ids: list[int], start: int, end: int) -> str:
    """Return the text of some tokens as it is behind the one before them: alone, Llama 2's lose the space that they begin with."""
    before, whole = (tokenizer.decode(ids[max(0, start - 1):stop], clean_up_tokenization_spaces=False) for stop in (start, end))
    return whole[len(before):]


def show_tokens(tokenizer, ids_or_text, labels=None, attention_mask=None, cut_from: int | None = None,
                parts: list[str] | None = None) -> HTML:
    """Show tokens as coloured chips with a legend that counts them; the ids appear on hover. The text is escaped.

    Tokens that are no whole character share a chip, with their number in it; it is cut off if one of them is.
    Takes a text, or the token ids of one text as a list or 1-D tensor; labels, attention_mask and parts (for each token
    the name of what it belongs to, shown on hover) have the same length.
    Raises ValueError for a batch, and for labels or a mask of another length.
    """
    ids, labels, attention_mask = _encode(tokenizer, ids_or_text), _as_list(labels), _as_list(attention_mask)
    for name, values in (("labels", labels), ("attention_mask", attention_mask), ("parts", parts)):
        if values is not None and len(values) != len(ids):
            raise ValueError(f"{name} has {len(values)} entries for {len(ids)} tokens: give one for each token of one row")
    kinds = token_kinds(tokenizer, ids, labels, attention_mask, cut_from)
    notes = kinds if parts is None else [f"{kind}, {part}" for kind, part in zip(kinds, parts, strict=True)]
    groups = token_groups(tokenizer, ids)
    chips = [_chip(text, ids[start:end], kinds[end - 1], notes[end - 1]) for start, end, text in groups]
    counts = Counter(kinds)
    legend = " ".join(f'<span style="{STYLES[kind]}">{kind}: {counts[kind]}</span>' for kind in KINDS if counts[kind])
    total = f"<b>{len(ids)} tokens</b>" + (SPLIT if len(groups) < len(ids) else "")
    return HTML(f'<div style="margin-bottom:6px">{legend} {total}</div><div>{"".join(chips)}</div>')


def show_record(tokenizer, text_or_messages, max_length: int | None = None) -> HTML:
    """Show a text, or a record or its messages in the chat template, with what max_length would cut off.

    Where the last message is an answer, it carries the loss, as in training with prompt and completion. Raises ValueError
    for anything else, and for a max_length below 1.
    """
    if max_length is not None and (not isinstance(max_length, Integral) or max_length < 1):
        raise ValueError(f"max_length is {max_length!r:.40}; give a whole number of tokens, 1 or more")
    if isinstance(text_or_messages, str):
        ids, labels, parts, counts = _encode(tokenizer, text_or_messages), None, None, ""
    else:
        messages = text_or_messages.get("messages") if isinstance(text_or_messages, Mapping) else text_or_messages
        if not are_messages(messages):
            raise ValueError("this is no text, no record with messages as load_sft_jsonl returns it, and not its messages; give one of them")
        ids, labels = record_tokens(tokenizer, messages)
        parts = _parts(tokenizer, ids, messages)
        counts = "tokens of each part: " + ", ".join(f"{part} {count}" for part, count in Counter(parts).items())
    lost = "" if max_length is None else f"<b>{what_is_lost(tokenizer, ids, labels, max_length)}</b>"
    chips = show_tokens(tokenizer, ids, labels, cut_from=max_length, parts=parts).data
    return HTML(f"{chips}<div style='margin-top:6px'>{'<br>'.join(filter(None, [html.escape(counts), lost]))}</div>")


def record_tokens(tokenizer, messages: list[dict]) -> tuple[list[int], list[int] | None]:
    """Return the ids of a record and its labels, -100 on the prompt; without an answer at the end, the prompt and None."""
    if messages[-1]["role"] != "assistant":
        return encode_chat(tokenizer, messages, add_generation_prompt=True)["input_ids"], None
    if len(messages) == 1:
        raise ValueError("the conversation is an answer alone; put its question before it")
    ids = encode_chat(tokenizer, messages)["input_ids"]
    prompt = encode_chat(tokenizer, messages[:-1], add_generation_prompt=True)["input_ids"]
    begun = len(commonprefix([prompt, ids]))  # as TRL: an answer's white space may be one token with the template's before it
    return ids, [IGNORED] * begun + ids[begun:]


def what_is_lost(tokenizer, ids: list[int], labels: list[int] | None, max_length: int) -> str:
    """Say in one sentence what is lost of a row when it is cut off after max_length tokens."""
    cut = len(ids) - max_length
    if cut <= 0:
        return f"Nothing is lost: {len(ids)} tokens, at most {max_length} are kept."
    learned, lost = ([label for label in part if label != IGNORED] for part in (labels or [], (labels or [])[max_length:]))
    if not lost:
        return f"{cut} of {len(ids)} tokens are cut off."
    if len(lost) == len(learned):
        return f"{cut} of {len(ids)} tokens are cut off, and the whole answer with them: the trainer drops the record."
    end = ("EOS is lost: the model would not learn to stop" if tokenizer.eos_token_id in lost else "EOS is kept" if tokenizer.eos_token_id in learned
           else "The answer has no EOS: see supervision_report")
    return f"{cut} of {len(ids)} tokens are cut off, {len(lost)} of the {len(learned)} learned ones. {end}."


def _parts(tokenizer, ids: list[int], messages: list[dict]) -> list[str]:
    """Return for each token the role of the message whose text it belongs to, or "template"."""
    groups, spans, end = token_groups(tokenizer, ids), [], 0
    text = "".join(piece for _, _, piece in groups)
    blanks = [message | {"content": BLANK} for message in messages]
    pieces = encode_chat(tokenizer, blanks, tokenize=False).split(BLANK)  # what the template itself writes
    for piece, message in zip(pieces, messages, strict=False):
        start = text.find(message["content"].strip(), end + len(piece))
        if start < 0:  # the tokenizer has changed the text
            continue
        end = start + len(message["content"].strip())
        spans.append((start, end, message["role"]))
    parts, place = [], 0
    for first, last, piece in groups:
        middle = place + len(piece) / 2  # a piece may begin or end with a space of its neighbour
        parts += [next((role for start, end, role in spans if start <= middle <= end), "template")] * (last - first)
        place += len(piece)
    return parts


def _encode(tokenizer, ids_or_text) -> list[int]:
    if isinstance(ids_or_text, str):
        ids_or_text.encode()  # a ValueError for half an emoji
        return tokenizer(ids_or_text, add_special_tokens=False)["input_ids"]
    ids = _as_list(ids_or_text)
    if isinstance(ids, Mapping) or (ids and not isinstance(ids[0], Integral)) or min(ids, default=0) < 0:
        raise ValueError('show_tokens takes one text or one row of token ids, for instance batch["input_ids"][0]; labels go beside it')
    return ids


def _as_list(values):
    return values.tolist() if hasattr(values, "tolist") else values


def _chip(text: str, ids: list[int], kind: str, note: str) -> str:
    shown = html.escape(text.replace("\n", "↵").replace("\t", "⇥")) + (f"<sub>{len(ids)}</sub>" if len(ids) > 1 else "")
    return f'<span style="{STYLES[kind]}" title="{html.escape(note)}, id {", ".join(map(str, ids))}">{shown}</span>' + ("<br>" if "\n" in text else "")
