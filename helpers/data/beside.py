"""Say of what stands beside a conversation, in a record or in a message, whether training would lose its meaning."""
import re

from helpers.data.advice import BESIDE, VERDICTS, filled
from helpers.data.phrases import NO_SPACES, holds_phrase

IN_MESSAGES = ("loss", "train", "mask", "masked", "training", "train_detail", "loss_mask", "refusal")  # in a record they are about it
LOST = {key: mend for keys, mend in (  # what carries meaning and has no place in this training -> what to do
    (("tools", "functions", "tool_calls", "tool_call_id", "function_call"), "calls of tools are not learned here: remove the record"),
    (("reasoning_content", "reasoning", "reasoning_details", "thinking"), "write the reasoning into the answer, or remove the key"),
    (("enable_thinking",), "this training is without thinking aloud: remove the key"),
    (("weight", "weights", *IN_MESSAGES), "remove the key, and let each record end with an answer to learn"),
    ((*(f"{which}{what}" for which in ("chosen", "rejected") for what in ("", "_response", "_messages", "_conversations")), "preferred_output", "non_preferred_output"), "preferences are for TRL's DPOTrainer: here, "
     "write the chosen answer under completion, or, if it is a list of all messages, under messages, and remove the others"),
    (("images", "image", "image_url", "audio", "audios", "video", "videos"),
     "the model reads text only: remove the record, or the key if its text does without"),
) for key in keys}
OFF = ("false", "off", "0")
LEARNED = ("weight", "loss", "train", "training", "loss_mask", "mask", "masked")  # how much a message is learned, or whether it is; the last two: is not
JUDGED = {"answer": VERDICTS, **dict.fromkeys(("accept", "label", "kto_tag"), ("true", "false"))}  # a CSV makes texts of them
WORDS = {"true": ("true", "yes"), "false": ("false", "no")}  # in which an answer says the same
CALLS = ("tools", "functions")  # plain texts under one of these are names or tags
ASKED = ("question", "query", "text", "message", "problem", "definition", "inputs", *BESIDE)  # beside a pair one of these would belong to what is asked
ADDRESS, NUMBERED = re.compile(r"\w+://\S+(?: \S+)?"), re.compile(r"[\w.:/-]*\d[\w.:/-]*")


def lost_keys(holder: dict, where: str = "") -> list[str]:
    """Return a fault for the keys of a record, or of a message in it, whose meaning training would lose."""
    lost = [key for key in sorted(LOST.keys() & holder) if (where or key not in IN_MESSAGES) and carries(key, holder[key], holder.get("role") if where else None)]
    mends = {LOST[key]: [f'"{other}"' for other in lost if LOST[other] == LOST[key]] for key in lost}
    return [f"the meaning of {' and '.join(keys)}{where} would be lost; {mend}" for mend, keys in mends.items()]


def carries(key: str, value: object, role: object = None) -> bool:
    """Say whether a key of LOST means with this value what it is there for; role: whose message it is of, None for a record."""
    if key == "enable_thinking":
        return str(value).casefold() == "true"
    if key in CALLS:
        return "{" in str(value)
    return filled(value) and (not _as_trained(key, value, role) if key in LEARNED else str(value).strip().casefold() not in OFF)


def _as_trained(key: str, value: object, role: object) -> bool:
    """Say whether a weight or a flag asks for what training does anyway: an answer is learned, and no question; a weight in words is a thing's."""
    try:
        number = float({"true": 1, "false": 0}.get(str(value).casefold(), value))
    except (TypeError, ValueError):
        return role is None and isinstance(value, str)
    return number == ((role in (None, "assistant")) != (key in LEARNED[-2:]))


def verdict_on(record: dict, answer: str) -> str | None:
    """Return the key that says whether somebody wanted the record; where the answer (or its conversation) says the same, it is no verdict."""
    said = {key: str(record.get(key)).strip().casefold() for key in JUDGED}
    return next((key for key, verdicts in JUDGED.items() if said[key] in verdicts
                 and not any(holds_phrase(answer, word) for word in WORDS.get(said[key], [said[key]]))), None)


def says_more(record: dict, columns: tuple[str, ...], key: str) -> bool:
    """Say whether a key holds a text that the conversation does not: some tools write the question once more beside it."""
    value, texts = record[key], texts_of(record, columns)
    if len(columns) == 2 and key in ("text", "prompt", "instruction") and all(folded(text) in folded(value) for text in texts):
        return False  # both once more, as a whole text to train on
    parts = _texts_in(key, value) if key in ASKED else _strings(value)
    return not all(held(part, texts[:1] if key in ("choices", "options") else texts) for part in parts)


def texts_of(record: dict, columns: tuple[str, ...]) -> list[str]:
    """Return the texts of the conversation that stands in these columns."""
    return [text for column in columns for text in _strings(record.get(column))]


def _strings(value: object) -> list[str]:
    """Return the texts in a value: of a message its content, of anything else all that says something."""
    if isinstance(value, dict):
        value = [value[key] for key in ("content", "value", "text") if key in value] or list(value.values())
    if isinstance(value, list):
        return [text for each in value for text in _strings(each)]
    return [str(value)] if filled(value) else []


def held(text: str, texts: list[str]) -> bool:
    """Say whether one of the texts holds this one, as whole words or but for its white space."""
    return any(folded(text) == folded(each) or holds_phrase(each, text) for each in texts)


def folded(text: object) -> str:
    """Return a text in small letters, with one space where white space is."""
    return " ".join(str(text).split()).casefold()


def _texts_in(key: str, value: object) -> list[str]:
    """Return the texts in a value that may belong to a question; an address, a number or one word beside it is none."""
    if isinstance(value, dict | list):
        return [text for part in (value.values() if isinstance(value, dict) else value) for text in _texts_in(key, part)]
    if not isinstance(value, str) or not value.strip() or ADDRESS.fullmatch(value.strip()):
        return []
    word = key in ("question", "query", "choices", "options") or key == "text" and not NUMBERED.fullmatch(value)
    return [value] if word or len(value.split()) > 1 or re.search(f"[{NO_SPACES}]", value) else []
