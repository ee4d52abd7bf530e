"""Is an answer right, how many are, and how sure can one be of that."""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from helpers.data.phrases import holds_phrase, is_phrase, is_right, phrases_of, plain, wrong_phrases_of


class Count(NamedTuple):
    """How many of a list are right, with the ends of the 95 % Wilson interval as shares between 0 and 1."""

    right: int
    of: int
    low: float
    high: float

    def __repr__(self) -> str:
        return f"{self.right} of {self.of} ({self.low:.0%} to {self.high:.0%})"


class Comparison(NamedTuple):
    """Two systems on the same questions: who alone was right how often, and the p-value of McNemar's exact test."""

    only_first: int
    only_second: int
    p: float

    def __repr__(self) -> str:
        return f"only the first is right: {self.only_first}, only the second: {self.only_second}, p = {self.p:.2g}"


def score_answers(answers: Sequence, expected: Sequence, whole: bool = False) -> list[bool]:
    """Say for each answer whether it holds what is expected as whole words, ignoring upper and lower case.

    Expected is for each answer a phrase, a list of phrases of which one will do, or a record of the exam (`key_phrase` or
    `accept`, and perhaps `wrong_phrase`: what no right answer holds). whole: the answer must be the phrase and nothing more;
    a full stop at the end makes no difference. Answers are Answer or plain text. Raises ValueError when the two lists
    differ in length, for what is no list, an answer that is no text, and a phrase in which nothing stands.
    """
    if alone := [name for name, given in (("answers", answers), ("expected", expected)) if isinstance(given, str | Mapping)]:
        raise ValueError(f"{alone[0]} is one text or record; put it into a list")
    same = is_phrase if whole else holds_phrase
    pairs = [(getattr(answer, "text", answer), right) for answer, right in zip(answers, expected, strict=True)]
    if other := [place for place, (answer, _) in enumerate(pairs) if not isinstance(answer, str)]:
        raise ValueError(f"answers[{other[0]}] is of type {type(pairs[other[0]][0]).__name__}; give what generate_answers returns, or a text")
    if blank := [place for place, (_, right) in enumerate(pairs) if not phrases_of(right) or not all(map(plain, phrases_of(right) + wrong_phrases_of(right)))]:
        raise ValueError(f"expected[{blank[0]}] is blank: give what a right answer holds, or does not hold")
    return [is_right(answer, right, same) for answer, right in pairs]


def right_of(scores: Sequence[bool]) -> Count:
    """Count the right ones, with the 95 % Wilson interval: where the share would lie on many more questions of the same kind.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference (1927). Raises ValueError for
    an empty list, and for anything but what score_answers returns.
    """
    scores = _checked(scores)
    if not scores:
        raise ValueError("there are no scores to count")
    right = sum(scores)
    interval = _binomtest(right, len(scores)).proportion_ci(method="wilson")
    return Count(right, len(scores), float(interval.low), float(interval.high))


def _checked(scores: Sequence[bool]) -> list[bool]:
    scores = list(scores)
    if wrong := [score for score in scores if score not in (0, 1)]:
        raise ValueError(f"{wrong[0]!r:.40} is neither True nor False: give the list that score_answers returns")
    return list(map(bool, scores))


def compare_scores(first: Sequence[bool], second: Sequence[bool]) -> Comparison:
    """Compare two systems on the same questions with McNemar's exact test, two-sided: only where they differ counts.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions (1947). Raises ValueError
    when the lists differ in length, and for anything but what score_answers returns.
    """
    pairs = list(zip(_checked(first), _checked(second), strict=True))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    differ = only_first + only_second
    return Comparison(only_first, only_second, float(_binomtest(only_first, differ).pvalue) if differ else 1.0)


def _binomtest(count: int, of: int):
    from scipy.stats import binomtest  # most of a page does not need it, and it takes a second to import

    return binomtest(count, of)
