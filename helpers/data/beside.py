"""Say of what stands beside a conversation, in a record or in a message, whether training would lose its meaning."""
import re

from helpers.data.advice import ANSWERERS, BESIDE, SAME, VERDICTS, filled
from helpers.data.phrases import NO_SPACES, holds_phrase, is_phrase

IN_MESSAGES = ("loss", "train", "mask", "masked", "training", "train_detail", "loss_mask", "refusal")  # in a record they are about it
PREFERENCES = (*(f"{which}{what}" for which in ("chosen", "rejected") for what in ("", "_response", "_messages", "_conversations")),
               "preferred_output", "non_preferred_output")
LOST = {key: mend for keys, mend in (  # what carries meaning and has no place in this training -> what to do
    (("tools", "functions", "tool_calls", "tool_call_id", "function_call"), "calls of tools are not learned here: remove the record"),
    (("reasoning_content", "reasoning", "reasoning_details", "thinking"), "write the reasoning into the answer, or remove the key"),
    (("enable_thinking",), "this training is without thinking aloud: remove the key"),
    (("weight", "weights", *IN_MESSAGES[:-1]), "the last answer of each record is learned, it alone and all alike, so remove the key, and let each record end with an answer to learn"),
    (("refusal",), "if it is the answer, write it as the content, else remove the record"),
    (PREFERENCES, "preferences are for TRL's DPOTrainer: here, "
     "write the chosen answer under completion, or, if it is a list of all messages, under messages, and remove the others"),
    (("images", "image", "image_url", "audio", "audios", "video", "videos"),
     "the model reads text only: remove the record, or the key if its text does without"),
) for key in keys}
NOTHING = ("[]", "{}", "null", "none", "nan")  # an empty value, where a program wrote it as text
MASKS = ("mask", "masked")  # whether a message is not learned
LEARNED = ("weight", "weights", "loss", "train", "training", "loss_mask", *MASKS)  # and how much it is, or whether
JUDGED = {"answer": VERDICTS, **dict.fromkeys(("accept", "label", "kto_tag"), ("true", "false"))}  # a CSV makes texts of them
WORDS = {"true": ("true", "yes"), "false": ("false", "no")}  # in which an answer says the same
CHOICES = ("choices", "options")
ASKED = ("question", "query", "text", "message", "problem", "definition", "inputs", *BESIDE)  # beside a pair one of these would belong to what is asked
ADDRESS, IN_CODE = re.compile(r"\w+://\S+(?: \S+)?"), re.compile(r"[\w.:/-]+")


def carries(key: str, value: object, role: object = None) -> bool:
    """Say whether a key of LOST means with this value what it is there for; role: whose message it is of, None for a record."""
    if says_nothing(value):
        return False
    if key == "enable_thinking":
        return str(value).casefold() == "true"
    if key in ("tools", "functions"):  # plain texts are names or tags
        return "{" in str(value)
    if key in LEARNED:
        return not _as_trained(key, value, role)
    return key in PREFERENCES or str(value).strip().casefold() not in ("false", "off", "0")  # what can be switched


def says_nothing(value: object) -> bool:
    """Say whether a value is empty, or was before a program wrote it as a text."""
    return not filled(value) or isinstance(value, str) and value.strip().casefold() in NOTHING


def _as_trained(key: str, value: object, role: object) -> bool:
    """Say whether a weight or a flag asks for what training does anyway: an answer is learned, and no question; a weight in words is a thing's."""
    try:
        number = float({"true": 1, "false": 0}.get(str(value).casefold(), value))
    except (TypeError, ValueError, OverflowError):
        return role is None and isinstance(value, str)
    return number == ((role in (None, "assistant")) != (key in MASKS))


def verdict_on(record: dict, columns: tuple[str, ...]) -> str | None:
    """Return the key that says whether somebody wanted the record; where the answer says that word (of yes and no: alone), it is no verdict."""
    said = {key: word for key in JUDGED if key in record and (word := str(record[key]).strip().casefold()) in JUDGED[key]}
    answer = (texts_of(record, columns[-1:])[-1:] or [""])[0] if said else ""
    return next((key for key, word in said.items()
                 if not (any(is_phrase(answer, each) for each in WORDS[word]) if word in WORDS else holds_phrase(answer, word))), None)


def says_more(record: dict, columns: tuple[str, ...], key: str, meant: str = "") -> bool:
    """Say whether a key, meant as another perhaps, holds a text that the conversation does not: some tools write the question once more beside it."""
    value, texts, key = record[key], texts_of(record, columns), meant or key.strip().casefold()
    if len(columns) == 2 and key in ("text", "prompt", "instruction") and all(folded(text) in folded(value) for text in texts):
        return False  # both once more, as a whole text to train on
    parts = _texts_in(key, value) if key in ASKED else strings(value)
    if key in ("history", "messages", "conversations"):
        return bool(parts) and not _is_copy(record, columns, key, list(map(folded, parts)))
    side = side_of(record, columns, key)
    return not all(held(part, side) for part in parts)


def _is_copy(record: dict, columns: tuple[str, ...], key: str, turns: list[str]) -> bool:
    """Say whether these turns stand in the conversation one after the other, an input as a turn of its own or as the end of the question."""
    before = texts_of(record, ("system",) if key == "history" else ("system", "history"))
    asked = texts_of(record, (columns[0], "input", "context") if len(columns) == 2 else columns)
    ways = [list(map(folded, [*before, *each, *texts_of(record, columns[1:])])) for each in (asked, ["\n\n".join(asked)])]
    return any(way[place:place + len(turns)] == turns for way in ways for place in range(len(way)))


def side_of(record: dict, columns: tuple[str, ...], key: str) -> list[str]:
    """Return the texts that a key may say once more: under another name of the answer's those of answers, under any other what is asked."""
    if len(columns) == 2:
        joined = ("input", "context") if isinstance(record.get(columns[0]), str) else ()  # _from_pair puts them behind the question
        asked, answers = texts_of(record, (columns[0], "system", *joined)), texts_of(record, columns[1:])
    else:
        turns = record[columns[0]] if isinstance(record[columns[0]], list) else []
        answers, asked = (strings([turn for turn in turns if isinstance(turn, dict) and (turn.get("role", turn.get("from")) in ANSWERERS) == said])
                          for said in (True, False))
    return answers if key in SAME[1] else asked


def texts_of(record: dict, columns: tuple[str, ...]) -> list[str]:
    """Return the texts of the conversation that stands in these columns."""
    return [text for column in columns for text in strings(record.get(column))]


def strings(value: object) -> list[str]:
    """Return the texts in a value: of a message its content, of anything else all that says something."""
    if isinstance(value, dict):
        value = [value[key] for key in ("content", "value", "text") if key in value] or list(value.values())
    if isinstance(value, list):
        return [text for each in value for text in strings(each)]
    return [str(value)] if filled(value) else []


def held(text: str, texts: list[str]) -> bool:
    """Say whether one of the texts holds this one, as whole words or but for its white space."""
    if len(text) > 100:  # characters: no word of another hides so much
        return any(folded(text) in folded(each) for each in texts)
    return any(holds_phrase(each, text) for each in texts)


def folded(text: object) -> str:
    """Return a text in small letters, with one space where white space is."""
    return " ".join(str(text).split()).casefold()


def _texts_in(key: str, value: object) -> list[str]:
    """Return the texts in a value that may belong to a question; an address, a number or one word beside it is none."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else [str(part) if type(part) in (int, float) and key in CHOICES else part for part in value]
        return [text for part in parts for text in _texts_in(key, part)]
    if not isinstance(value, str) or not value.strip() or ADDRESS.fullmatch(value.strip()):
        return []
    word = key in ("question", "query", *CHOICES) or key == "text" and not (IN_CODE.fullmatch(value) and re.search(r"\d", value))
    return [value] if word or len(value.split()) > 1 or re.search(f"[{NO_SPACES}]", value) else []
