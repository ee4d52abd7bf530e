"""What all checks share: a check prints one line, "Not yet", "✓" or "✗", and never stops the notebook.

The sentences are in sentences.toml, a table for each check. A check is made of a function that takes an answer and
returns the name of the sentence that fits, alone or with values for its placeholders; "right" accepts the answer.
"""
import inspect
import math
import tomllib
from collections.abc import Callable
from functools import wraps
from numbers import Real
from pathlib import Path

SENTENCES = tomllib.loads((Path(__file__).parent / "sentences.toml").read_text(encoding="utf-8"))
COMMON = SENTENCES["every_check"]
Said = str | tuple[str, dict]


class Unfit(Exception):
    """The answer can't be judged; the two arguments are the name of the common sentence that says so, and values for it."""


def exercise(kind: Callable, sentences: dict[str, dict[str, str]] = SENTENCES) -> Callable:
    """Make a check out of a function that judges an answer; its parameters fill placeholders, too.

    kind turns the answer into what the function expects, or raises Unfit.
    """
    def make(judge: Callable) -> Callable:
        own = sentences[judge.__name__]

        @wraps(judge)
        def check(answer, *context) -> None:
            print(_line(kind, judge, own, answer, context))
        return check
    return make


def _line(kind: Callable, judge: Callable, own: dict[str, str], answer, context: tuple) -> str:
    try:
        if answer is ... or isinstance(answer, dict) and ... in answer.values():
            raise Unfit("not_yet", {})
        given = inspect.signature(judge).bind(kind(answer), *context).arguments
        said = judge(**given)
        name, values = (said, {}) if isinstance(said, str) else said
        return ("✓ " if name == "right" else "✗ ") + own[name].format(**given | values)
    except Unfit as error:
        name, values = error.args
    except Exception as error:  # an answer of the right kind that the judge can't use, such as a tensor of another dtype
        name, values = "unusable", {"error": type(error).__name__}
    return COMMON[name].format(asked=own["asked"], **values)


def near(one, other, tolerance: float = 1e-9) -> bool:
    """Say whether two answers are the same; numbers may differ by the relative tolerance."""
    if isinstance(one, Real) and isinstance(other, Real):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=1e-12)
    return one == other


def explain(answer, right, same: Callable = near, values: dict | None = None, **mistakes) -> Said:
    """Name the sentence for an answer: "right", the first mistake that leads to it (one of several in a tuple), or "otherwise".

    The right answer, what the mistakes lead to, and `values` fill the placeholders.
    """
    ways = {"right": right, **mistakes}
    fits = {name: any(same(answer, one) for one in (way if isinstance(way, tuple) else (way,))) for name, way in ways.items()}
    return first(ways | (values or {}), **fits)


def first(values: dict | None = None, /, **cases: bool) -> Said:
    """Name the first case that is true, or "otherwise"; the values are for the placeholders of its sentence."""
    return next((name for name, true in cases.items() if true), "otherwise"), values or {}


def number(answer) -> float:
    """Return a number, also one that NumPy or PyTorch wrapped."""
    if hasattr(answer, "item") and math.prod(getattr(answer, "shape", ())) == 1:
        answer = answer.item()
    return _fit(answer, isinstance(answer, Real) and not isinstance(answer, bool) and math.isfinite(answer), "not_a_number")


def choice(letters: str) -> Callable:
    """Return the kind "one of these letters"."""
    def letter(answer) -> str:
        plain = str(answer).strip(" ().:").lower()
        _fit(answer, plain in list(letters), "not_a_letter", letters=", ".join(letters))
        return plain
    return letter


def some_of(*options) -> Callable:
    """Return the kind "a set with some of these options, or none"."""
    def subset(answer) -> set:
        offered = ", ".join(map(repr, options))
        _fit(answer, isinstance(answer, set | frozenset | list | tuple) or isinstance(answer, dict) and not answer, "not_a_set", options=offered)
        chosen = set()
        for one in (one.item() if hasattr(one, "item") else one for one in answer):
            option = next((option for option in options if near(one, option, 1e-6)), ...)
            _fit(one, option is not ..., "not_in_set", options=offered)
            chosen.add(option)
        return chosen
    return subset


def instance(cls: type) -> Callable:
    """Return the kind "an object of this class"."""
    return lambda answer: _fit(answer, isinstance(answer, cls), "not_an_instance", kind=cls.__name__)


def function(answer, nothing_fits: bool = False) -> Callable:
    """Return the learner's function, which raises Unfit where it fails and, unless that fits, where it returns nothing."""
    def called(*arguments):
        try:
            result = answer(*arguments)
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else COMMON["no_text"]
            raise Unfit("function_failed", {"error": type(error).__name__, "text": text}) from error
        if result is ... or result is None and not nothing_fits:
            raise Unfit("not_yet", {})
        return result
    _fit(answer, callable(answer), "not_a_function")
    return called


def _fit(answer, fits: bool, name: str, **values):
    """Return the answer if it fits; otherwise raise Unfit with this sentence."""
    if fits:
        return answer
    text = " ".join(repr(answer).split())
    given = text if len(text) <= 30 else COMMON["too_long_to_show"].format(kind=type(answer).__name__)
    raise Unfit(name, {"given": given, **values})
