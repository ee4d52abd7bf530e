"""Say whether an answer holds a phrase, however both are written."""
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from helpers.data.wording import DASHES, HIDDEN

NO_SPACES = ("\u0e00-\u0e4f\u0e5a-\u0ecf\u0eda-\u0eff\u1000-\u103f\u104a-\u108f\u109a-\u109f\u1780-\u17df\u17ea-\u17ff"  # without their digits
             "\u3005\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff")
MARKS = "".join(char for char in map(chr, range(0x300, 0x1F000)) if unicodedata.category(char).startswith("M") and not re.match(f"[{NO_SPACES}]", char))
LETTER = rf"(?:[^\W{NO_SPACES}]|[{MARKS}])"  # a letter or digit of a script that has spaces between words, or a vowel sign
INDENTED, LINE = re.compile(r"\n[ \t]+\S"), re.compile(r"\n(?:[ \t\r]*\n)*([ \t]*)")
STOPS = " .。।۔။።"
IN_WORD = re.compile(LETTER)  # compiled once: it takes ten milliseconds
TWINS = str.maketrans({**dict.fromkeys("’‘‚‛´`ʼʻ׳", "'"), **dict.fromkeys("“”„‟«»「」״", '"'), **dict.fromkeys(DASHES, "-"),  # what keyboards and editors write for them
                       **dict.fromkeys("İı", "i"), "™": " ", "№": "No "})
VULGAR, RAISED = re.compile("(?<=\\d)(?=[¼-¾⅐-⅞])"), re.compile("(?<=\\d)(?=[²³¹⁰⁴-⁹])")  # 1½ is no 11/2, nor 2³ 23
EMPHASIS = re.compile(r"(?<!\w)_+|_+(?!\w)")  # Markdown's
SPACED = re.compile(r"(?<=\d) (?=[%°€$£¥])|(?<=[€$£¥]) (?=\d)")
TENS, ONES = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety", "one|two|three|four|five|six|seven|eight|nine"
ONE_WORD = (  # what belongs to a number or a name, and how it is written so that it is one word
    (re.compile(r"(?<![\w.,$€£¥])(\d+(?:[.,]\d+)*)(?=(?:[ckm]?m[23]?|[km]g|[cm]l|[kmgt]b)\b)"), r"\1 "),  # 41m is 41 m; $5m and 5G stay
    (re.compile(r"(?<![\d.,])([1-9]\d{0,2}(?:,\d{3})+)(?!,?\d)"), lambda found: found[0].replace(",", "")),  # 1,000 and 1,000.5
    (re.compile(r"(\d\.\d+),(?=\d+\.\d)"), r"\1, "),  # two numbers
    (re.compile(r"(?<![\w.])\.(\d+)"), r"0_\1"),  # .5
    (re.compile(r"(?<![\d.,])(\d+)[.,](\d+)(?![.,]?\d)"), r"\1_\2"),  # 31.5 or 31,5, and neither a date nor a list of numbers
    (re.compile(r"(?<![\d/])(\d{1,2})/(\d{1,2})(?![\d/])"), r"\1_of_\2"),  # 3/4
    (re.compile(r"(?<![\d.,])(\d{1,3}) (\d+_of_\d+)"), r"\1_and_\2"),  # 1 1/2 is one number
    (re.compile(r"""(?<![^\s(\[{=:$*"'<>|,~≈])-(?=\d)"""), "_"),  # -5, and no range
    (re.compile(r"(?<=[^\W\d_])(?:\+{2,}|\+(?!\w))"), lambda found: "_plus" * len(found[0])),  # C++, C++17
    (re.compile(r"(?<=[^\W\d_])#(?!\w)|(?<=\b[^\W\d_])#(?=\d)"), "_sharp"),  # C#, C#12
    (re.compile(rf"\b({TENS})[- ]({ONES})\b"), r"\1_\2"),
)
SCORED = ("key_phrase", "accept", "wrong_phrase")  # the keys of a record that say what a right answer holds, or does not


def phrases_of(right) -> list[str]:
    """Return the phrases of which one must be in a right answer: of a record (null, NaN and an empty list name none), of a list, or the phrase itself."""
    if isinstance(right, Mapping):
        return phrases_under("accept", right) or phrases_under("key_phrase", right)
    return _as_phrases(right)


def wrong_phrases_of(right) -> list[str]:
    """Return the phrases of which none is in a right answer, of a record; of anything else there are none."""
    return phrases_under("wrong_phrase", right) if isinstance(right, Mapping) else []


def phrases_under(key: str, record: Mapping) -> list[str]:
    """Return the phrases under one key of a record; a truth value is one under key_phrase alone."""
    value = record.get(key)
    return [] if _is_missing(value) or isinstance(value, bool) and key != "key_phrase" else _as_phrases(value)


def _as_phrases(value: object) -> list[str]:
    return [str(value)] if isinstance(value, str) or not isinstance(value, Iterable) else list(map(str, value))


def _is_missing(value: object) -> bool:
    return value is None or isinstance(value, list) and not value or isinstance(value, float) and value != value  # pandas' sign for nothing


def holds_phrase(text: str, phrase: str) -> bool:
    """Say whether the text holds the phrase as whole words: "Au" is not in "because".

    In Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese it may stand anywhere: they write words, or words and
    their endings, without spaces. Case, how much white space, Markdown's emphasis, signs that nobody sees, and how a character,
    a quotation mark or a thousand (1,000 or 1000) is written make no difference, but in a phrase that is indented, such as a
    program, its lines do. 31 is not in 31.5, 5 not in -5, C not in C++, five not in thirty-five. 41m is 41 m, and so with
    other common units of length, weight, volume and storage.
    """
    text, phrase = _alike(text, phrase)
    start, first, last = text.find(phrase), IN_WORD.match(phrase), IN_WORD.match(phrase[-1:])  # a sign, as in $5, may stand beside letters
    while start >= 0 and (first and start and IN_WORD.match(text, start - 1) or last and IN_WORD.match(text, start + len(phrase))):
        start = text.find(phrase, start + 1)
    return start >= 0


def is_right(text: str, right, same: Callable[[str, str], bool] = holds_phrase) -> bool:
    """Say whether a text holds one of the phrases (same: how that is told) and none of the wrong ones."""
    return any(same(text, phrase) for phrase in phrases_of(right)) and not any(holds_phrase(text, phrase) for phrase in wrong_phrases_of(right))


def _alike(text: str, phrase: str) -> tuple[str, str]:
    """Return both as they are compared, with their lines where the phrase is indented."""
    indented = bool(INDENTED.search(phrase))
    return plain(text, indented), plain(phrase, indented)


@lru_cache(maxsize=16)
def plain(text: str, indented: bool = False) -> str:
    """Return a text as it is compared; indented: how far its lines stand from the edge matters too."""
    if indented:
        text = LINE.sub(lambda found: f" line_{len(found[1].expandtabs(4))} ", text.strip())
    text = unicodedata.normalize("NFKC", RAISED.sub("^", VULGAR.sub(" ", text.translate(TWINS)))).replace("\u2044", "/")
    text = SPACED.sub("", " ".join(EMPHASIS.sub(" ", HIDDEN.sub("", text).casefold()).split()))
    for pattern, written in ONE_WORD:
        text = pattern.sub(written, text)
    return text


def is_phrase(text: str, phrase: str) -> bool:
    """Say whether the text is the phrase and nothing more; a full stop at the end makes no difference."""
    text, phrase = _alike(text, phrase)
    return (text.rstrip(STOPS) or text) == (phrase.rstrip(STOPS) or phrase)
