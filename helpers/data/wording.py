"""Compare what records say: whose question it is, in which words, and which of the answers are learned."""
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

KEPT = ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "So")  # letters, marks, numbers, and emoji
SYMBOLS = ("Sm", "Sc")  # + < = and money; each is a word
SIGNS = re.compile(  # 7 - 2, x - y, -5, x / 3, C#, 5 %, !ok, -x, .5, f'(x), // alone, the * operator: no punctuation
    r"(?=[-*/%:^#!.'@&\s])(?:"  # where no sign begins, one look is enough
    r"(?<=\d)\s*([-*/%:^])\s*(?=\d)|(?:(?<=\d)|(?<=\b[nxyz]))[ \t]*([-*/%^])[ \t]*(?=\d|[nxyz]\b)|(?<!\w)(-)(?=\d)|(?<=\d)([*/%^])(?=\w)"
    r"|(?<=\w)([*/%^])(?=\d)|(?<=\w)(#)|(?<=\d)[ \t]*(%)|(?<![^\s(\[])(!)(?=\w)"
    r"|(?<!\w)(-)(?=[a-z]\b)|(?<![\w.])(\.)(?=\d)|(?<=\w)('+)(?=\()|(?<!\S)([*/%^@&]{2,}|%)(?!\S)|(?<= )([@&*%^])(?= (?:operator|sign|symbol|character)\b))")
DASHES = "‐‑‒–−"  # what is written for "-"
WRITTEN = str.maketrans({**{char: f"^{n}" for n, char in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}, **dict.fromkeys(DASHES, "-"), **dict.fromkeys("’′", "'"), "×": "*", "⋅": "*", "÷": "/"})  # what NFKC would lose, or leave
# What is drawn as nothing: Unicode's Default_Ignorable_Code_Point, and the blank pattern of Braille.
INVISIBLE = ("\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800"
             "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff")
HIDDEN, SEEN = re.compile(f"[{INVISIBLE}]"), re.compile(f"[^{INVISIBLE}\\s\x00-\x1f\x7f-\x9f\ufff9-\ufffb]")  # nor are control characters seen
FEW_WAYS = 4  # of asking; a file of questions has more
GREETING = 4  # conversations that may have one beginning or one end, and still belong together


def beginnings(records: list[dict]) -> list[list[int]]:
    """Return for each record a number for what was said up to each of its messages: conversations that begin alike share it."""
    numbers, found = {}, []
    for record in records:
        places = [0]
        for message in record["messages"]:
            places.append(numbers.setdefault((places[-1], message["role"], message["content"]), len(numbers) + 1))
        found.append(places[1:])
    return found


def reply_places(records: list[dict], begun: list[list[int]]) -> set[int]:
    """Return the numbers, of beginnings(records), at which an answer stands: one for each answer that differs."""
    return {place for record, places in zip(records, begun, strict=True)
            for message, place in zip(record["messages"], places, strict=True) if message["role"] == "assistant"}


def conversations(records, name: str = "records") -> list[dict]:
    """Return records as a list; raise ValueError, which names it and the place, for one without messages of text."""
    records = list(records) if isinstance(records, Iterable) else [records]
    for place, record in enumerate(records):
        if not isinstance(record, Mapping) or not are_messages(record.get("messages")):
            raise ValueError(f"{name}[{place}] holds no messages with role and content, each a text; give what load_sft_jsonl returns")
    return records


def are_messages(messages: object) -> bool:
    """Say whether this is a list of messages, at least one, each with a role and a text."""
    return isinstance(messages, list) and bool(messages) and all(
        isinstance(message, Mapping) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str) for message in messages)


def leaked_questions(train: list[dict], test: list[dict]) -> list[str]:
    """Return the questions of `test` that stand in `train` too, whatever their case, punctuation, spaces and invisible signs.

    What is compared of a conversation, and where its system message is a part of the question, asked_words says. Raises
    ValueError for a record without messages of text.
    """
    train, test = conversations(train, "train"), conversations(test, "test")
    asked = asked_words([*train, *test])
    known = set(asked[:len(train)])
    return [said(record, "user") for record, question in zip(test, asked[len(train):], strict=True) if question in known]


def asked_words(records: list[dict]) -> list[tuple[str, ...]]:
    """Return the words of each record's question: of its last user message where that says all (_last_questions), else of all of them.

    Where all ask in few ways ("Summarise."), they stand after those of the system message.
    """
    asked, told = ([words(said(record, role)) for record in records] for role in ("user", "system"))
    asked = _last_questions(records, asked)
    if len(set(asked)) < FEW_WAYS <= len(set(told)):
        return [system + question for system, question in zip(told, asked, strict=True)]
    return asked


def _last_questions(records: list[dict], asked: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return for each record the words of its last user message where that says all, else those given for the whole.

    It says all where another record asks it alone ("Where is it?" behind a greeting), or where whoever asks it last gets the
    same answer. "And on Sunday?", answered in several ways, does not, nor do one or two words, nor what ends many conversations.
    """
    users = [[message["content"] for message in record["messages"] if message["role"] == "user"] for record in records]
    last = [words(turns[-1]) if len(turns) > 1 else whole for turns, whole in zip(users, asked, strict=True)]
    wholes = Counter(end for end, _ in {*zip(last, asked, strict=True)})
    answers = Counter(end for end, _ in {(end, record["messages"][-1]["content"].strip()) for end, record in zip(last, records, strict=True)})
    alone = {whole for turns, whole in zip(users, asked, strict=True) if len(turns) == 1}
    return [end if len(end) > 2 and wholes[end] <= GREETING and (end in alone or answers[end] == 1) else whole
            for end, whole in zip(last, asked, strict=True)]


def said(record: dict, role: str) -> str:
    """Return what one role says in a record; a system message is no question."""
    return "\n".join(message["content"] for message in record["messages"] if message["role"] == role)


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text in any script, whatever their case; punctuation is dropped.

    An emoji is kept, and so is a sign of arithmetic, of money, or of a name such as C#. Marks are kept, since in Hindi, for instance, they are the vowels; what is invisible is not, wherever it stands.
    A text of nothing else is one word.
    """
    plain = HIDDEN.sub("", unicodedata.normalize("NFKC", text.translate(WRITTEN)).replace("\u2044", "/")).casefold()
    parts, end = [], 0
    for sign in SIGNS.finditer(plain):
        start, stop = sign.span(sign.lastindex)
        parts += plain[end:start].translate(AS_WORDS), " ", " ".join(plain[start:stop]), " "
        end = stop
    return tuple("".join([*parts, plain[end:].translate(AS_WORDS)]).split()) or (plain.strip(),)


class _AsWords(dict):
    """What a character of a text becomes in its words: itself, a word of its own, or the space between two; found once."""

    def __missing__(self, code: int) -> str:
        char, kind = chr(code), unicodedata.category(chr(code))
        self[code] = char if kind in KEPT else f" {char} " if kind in SYMBOLS else " "
        return self[code]


AS_WORDS = _AsWords()
