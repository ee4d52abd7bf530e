"""From a learner's own records to a training run: what to hold out, and which settings to begin with."""
import math
import random
import statistics
from collections import Counter
from itertools import pairwise
from numbers import Integral, Real
from typing import NamedTuple

import pandas as pd

from helpers.data.notes import learned_note
from helpers.data.phrases import SCORED
from helpers.data.tokens import record_tokens
from helpers.data.wording import GREETING, asked_words, beginnings, conversations, words

FEWEST_RECORDS, FEWEST_GROUPS = 10, 4  # below, a part that is held out would say little, and be missed in training
MOST_HELD_OUT = 100  # enough to see a trend, and quick to measure
STEPS = 40  # after some dozens of steps answers change (notebooks 07 and 10)
FEWEST_EPOCHS, MOST_EPOCHS = 2, 4
RECORDS_A_STEP = (4, 2)  # as in notebook 07; two, where a small file makes too few steps
BEST_KEPT = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": 1}
TOKENS_A_BATCH = 2048  # 4 records of 512 tokens, which a laptop holds (notebook 03)
SHARED = {"answer": "its question or its answer", "question": "its question"}  # what makes a group
LABELS = 'if answers are labels such as yes and no, pass by="question"'
SMALL = 1e9  # parameters of a model that takes the course's learning rate


class Split(NamedTuple):
    """Records to train on, records to measure with, and one sentence on how they were chosen."""

    train: list[dict]
    heldout: list[dict]
    note: str


def fact_groups(records: list[dict], by: str = "answer") -> list[list[int]]:
    """Return groups of places in `records`; records of one group have an answer or a question in common.

    by="question" looks at the questions alone. Case, punctuation and spaces are ignored, a system message and what stands
    before the last question too, unless they are what differs (wording.asked_words). The answer is the one that is learned; a record that
    another one goes on from belongs to it, but not a greeting, from which more than four go on. Raises ValueError for another word in by.
    """
    if not isinstance(by, str) or by not in SHARED:
        raise ValueError(f'by is {by!r:.40}; write "answer" or "question"')
    import networkx  # only here, and half a second to import

    shared, begun = networkx.Graph(), beginnings(records)
    shared.add_nodes_from(range(len(records)))
    asked = asked_words(records)
    whole = {places[-1] for places in begun}
    goes_on = Counter(place for place, _ in {step for places in begun for step in pairwise(places)})
    for place, record in enumerate(records):
        shared.add_edge(place, ("question", asked[place]))
        if by == "answer":
            shared.add_edge(place, ("answer", words(record["messages"][-1]["content"])))
        starts = [start for start in begun[place] if start in whole and goes_on[start] <= GREETING]
        shared.add_edges_from((place, ("begins", start)) for start in starts)
    return sorted(sorted(node for node in group if isinstance(node, int)) for group in networkx.connected_components(shared))


def one_row_a_reply(records: list[dict]) -> list[dict]:
    """Return a record for each answer of a conversation, with all that was said before it; other keys are copied.

    Training learns the last answer of a record alone, so that of a conversation each reply is learned in a row of its own.
    What a right answer holds (key_phrase, accept, wrong_phrase) is said of the last one, and stays with it.
    """
    return [{key: value for key, value in record.items() if key not in SCORED or end == len(record["messages"])}
            | {"messages": record["messages"][:end]}
            for record in conversations(records) for end, message in enumerate(record["messages"], start=1) if message["role"] == "assistant"]


def suggest_split(records: list[dict], share: float = 0.2, seed: int = 0, by: str = "answer") -> Split:
    """Hold out about `share` of the records, at most 100, in whole groups of fact_groups(records, by).

    So no phrasing of a held-out fact is trained on. Answers that are labels, such as yes and no, make no facts: pass
    by="question" then. The same seed gives the same split. Of fewer than 10 records, or 4 groups, nothing is held out,
    and the note says so. Raises ValueError unless share lies between 0 and 1, and for a record without messages.
    """
    if not isinstance(share, Real) or not 0 < share < 1:
        raise ValueError(f"share is {share!r:.40}; give a part of the records, a number above 0 and below 1")
    records = conversations(records)
    groups = fact_groups(records, by)
    if why := _why_none(records, groups, by):
        return Split(records, [], " ".join(filter(None, (why, learned_note(records)))))
    random.Random(int(seed) if isinstance(seed, Integral) else seed).shuffle(groups)
    wanted, chosen = min(round(share * len(records)), MOST_HELD_OUT), []
    for group in groups:
        if sum(map(len, chosen)) + len(group) <= wanted and len(chosen) < len(groups) - 1:  # one is left to train on
            chosen.append(group)
    chosen = chosen or [min(groups, key=len)]
    places = {place for group in chosen for place in group}
    train = [record for place, record in enumerate(records) if place not in places]
    heldout = [records[place] for place in sorted(places)]
    note = (f"{len(train)} records to train on, {len(heldout)} held out: {len(chosen)} of {len(groups)} groups, whole, "
            f"so that none shares {SHARED[by]} with a training record.")
    return Split(train, heldout, " ".join(filter(None, (note, _labels_note(heldout) if by == "answer" else "", learned_note(records)))))


def _why_none(records: list[dict], groups: list[list[int]], by: str) -> str:
    """Say why nothing can be held out; "" where a part can."""
    if len(records) < FEWEST_RECORDS:
        return (f"{len(records)} records are too few to hold any out: train on all, and write questions of your own "
                f"for a test; from {FEWEST_RECORDS} records on a part can be held out.")
    if len(groups) < FEWEST_GROUPS:
        helps = by == "answer" and len(fact_groups(records, "question")) >= FEWEST_GROUPS
        return (f"A group is what shares {SHARED[by]}, and {len(records)} records make only {len(groups)} of them, so nothing "
                f"is held out: {LABELS if helps else 'write more that differ'}.")
    smallest = min(map(len, groups))
    if smallest > MOST_HELD_OUT:
        return (f"The smallest of {len(groups)} groups, which share {SHARED[by]}, has {smallest:,} records, "
                f"and at most {MOST_HELD_OUT} are held out, so nothing is: {LABELS}.")
    return ""


def _labels_note(heldout: list[dict]) -> str:
    """Say how many held-out answers belong to several questions: such a fact, or label, is never seen in training."""
    answers = [words(record["messages"][-1]["content"]) for record in heldout]
    different = set(zip(answers, asked_words(heldout), strict=True))
    several = sum(questions > 1 for questions in Counter(answer for answer, _ in different).values())
    return f"Held-out answers that belong to several questions, and are trained on in no wording: {several}; {LABELS}." if several else ""


def suggest_settings(records: list[dict], tokenizer, model, heldout: list[dict] | None = None) -> pd.DataFrame:
    """Return a table of settings to begin with, each with its value and reason, from the records' number and lengths.

    model: the base model, for its size and its longest input. heldout: what suggest_split held out; with it, the
    settings keep the epoch that does best on it. The names are those of SFTConfig; the row "steps" follows from the
    others. Raises ValueError if there is no record, and for one without messages.
    """
    from helpers.training.steps import training_steps  # here, so that reading data does not wait for the training libraries

    records, heldout = conversations(records), conversations(heldout or [], "heldout")
    if not records:
        raise ValueError("there is no record: settings follow from the records to train on")
    lengths = [len(record_tokens(tokenizer, record["messages"])[0]) for record in [*records, *heldout]]
    readable = getattr(model.config.get_text_config(), "max_position_embeddings", tokenizer.model_max_length)
    (limit, why_limit), small = _limit(lengths, readable), model.num_parameters() < SMALL
    a_step = next((size for size in RECORDS_A_STEP if MOST_EPOCHS * training_steps(len(records), size, 1) >= STEPS), RECORDS_A_STEP[-1])
    batch = next((size for size in (4, 2) if size <= a_step and size * limit <= TOKENS_A_BATCH), 1)
    an_epoch = training_steps(len(records), batch, a_step // batch)
    epochs = min(max(math.ceil(STEPS / an_epoch), FEWEST_EPOCHS), MOST_EPOCHS)
    rows = {
        "max_length": (limit, why_limit),
        "per_device_train_batch_size": (batch, "all records of a step at once" if batch == a_step else f"at most {TOKENS_A_BATCH} tokens at once, or one record"),
        "per_device_eval_batch_size": (batch, "as in training: the library's own 8 may take more memory than training does"),
        "gradient_accumulation_steps": (a_step // batch, f"a step sees {a_step} records" + (
            ", as in notebook 07" if a_step == RECORDS_A_STEP[0] else f": with {len(records)} records, more would make few steps")),
        "num_train_epochs": (epochs, f"steps an epoch: {an_epoch}; some {STEPS} steps teach a form; with more than {MOST_EPOCHS} epochs "
                                     "a held-out loss must say when to stop"),
        "learning_rate": (1e-3, "a small model with an adapter on all layers, as in notebook 07") if small
        else (2e-4, "usual for LoRA on a model of a billion parameters or more"),
        **{name: (value, "the epoch with the lowest loss on the held-out records is kept") for name, value in BEST_KEPT.items() if heldout},
        "steps": (an_epoch * epochs, "follows from the others: what the trainer will count up to"),
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "reason"], dtype=object)
    return table.rename_axis("setting")


def _limit(lengths: list[int], readable: int) -> tuple[int, str]:
    """Return max_length and its reason; readable: the most tokens that the model reads."""
    longest = max(lengths)
    limit = min(64 * math.ceil(longest / 64), readable)
    if longest > limit:
        return limit, f"the model reads no more; {sum(length > limit for length in lengths)} longer: shorten them"
    median = statistics.median(lengths)
    return limit, f"the longest record has {longest} tokens (median {median:.0f}); nothing is cut off"
