"""From a learner's own records to a training run: what to hold out, and which settings to begin with."""
from __future__ import annotations

import math
import random
import statistics
from typing import NamedTuple

import networkx
import pandas as pd

from helpers.data.dataset import said, words
from helpers.data.tokens import record_tokens

FEWEST_RECORDS, FEWEST_GROUPS = 10, 4  # below, a part that is held out would say little, and be missed in training
MOST_HELD_OUT = 100  # enough to see a trend, and quick to measure
STEPS = 40  # after some dozens of steps answers change (notebooks 07 and 10)
MOST_EPOCHS = 10  # a record that is seen more often is learned by heart
RECORDS_A_STEP = 4  # as in notebook 07
TOKENS_A_BATCH = 2048  # 4 records of 512 tokens, which a laptop holds (notebook 03)
SHARED = {"answer": "its question or its answer", "question": "its question"}  # what makes a group
SMALL = 1e9  # parameters of a model that takes the course's learning rate


class Split(NamedTuple):
    """Records to train on, records to measure with, and one sentence on how they were chosen."""

    train: list[dict]
    heldout: list[dict]
    note: str


def fact_groups(records: list[dict], by: str = "answer") -> list[list[int]]:
    """Return groups of places in `records`; records of one group have an answer or a question in common.

    by="question" looks at the questions alone. Case, punctuation and spaces are ignored, a system message too.
    """
    roles = {"answer": ("user", "assistant"), "question": ("user",)}[by]
    shared = networkx.Graph()
    shared.add_nodes_from(range(len(records)))
    for place, record in enumerate(records):
        shared.add_edges_from((place, (role, words(said(record, role)))) for role in roles)
    groups = (sorted(node for node in group if isinstance(node, int)) for group in networkx.connected_components(shared))
    return sorted(groups)


def suggest_split(records: list[dict], share: float = 0.2, seed: int = 0, by: str = "answer") -> Split:
    """Hold out about `share` of the records, at most 100, in whole groups of fact_groups(records, by).

    So no phrasing of a held-out fact is trained on. Answers that are labels, such as yes and no, make no facts: pass
    by="question" then. The same seed gives the same split. Of fewer than 10 records, or 4 groups, nothing is held out,
    and the note says so.
    """
    groups = fact_groups(records, by)
    if len(records) < FEWEST_RECORDS or len(groups) < FEWEST_GROUPS:
        return Split(records, [], _too_few(len(records), len(groups), by))
    random.Random(seed).shuffle(groups)
    wanted, chosen = min(round(share * len(records)), MOST_HELD_OUT), []
    for group in groups:
        if sum(map(len, chosen)) + len(group) <= wanted:
            chosen.append(group)
    chosen = chosen or [min(groups, key=len)]
    places = {place for group in chosen for place in group}
    train = [record for place, record in enumerate(records) if place not in places]
    heldout = [records[place] for place in sorted(places)]
    note = (f"{len(train)} records to train on, {len(heldout)} held out: {len(chosen)} of {len(groups)} groups, whole, "
            f"so that none shares {SHARED[by]} with a training record.")
    return Split(train, heldout, note)


def _too_few(records: int, groups: int, by: str) -> str:
    if records < FEWEST_RECORDS:
        return (f"{records} records are too few to hold any out: train on all, and write questions of your own "
                f"for a test; from {FEWEST_RECORDS} records on a part can be held out.")
    labels = 'if answers are labels such as yes and no, pass by="question"'
    mend = labels if by == "answer" else "write more that differ"
    return (f"A group is what shares {SHARED[by]}, and {records} records make only {groups} of them, so nothing "
            f"is held out: {mend}.")


def suggest_settings(records: list[dict], tokenizer, model) -> pd.DataFrame:
    """Return a table of settings to begin with, each with its value and reason, from the records' number and lengths.

    model: the base model, for its size and its longest input. The names are those of SFTConfig; the row "steps" follows
    from the others. Raises ValueError if there is no record.
    """
    from helpers.training.steps import (
        training_steps,  # here, so that reading data does not wait for the training libraries
    )

    if not records:
        raise ValueError("there is no record: settings follow from the records to train on")
    lengths = [len(record_tokens(tokenizer, record["messages"])[0]) for record in records]
    readable = getattr(model.config.get_text_config(), "max_position_embeddings", tokenizer.model_max_length)
    (limit, why_limit), small = _limit(lengths, readable), model.num_parameters() < SMALL
    batch = next((size for size in (4, 2) if size * limit <= TOKENS_A_BATCH), 1)
    accumulation = RECORDS_A_STEP // batch
    an_epoch = training_steps(len(records), batch, accumulation)
    epochs = min(math.ceil(STEPS / an_epoch), MOST_EPOCHS)
    rows = {
        "max_length": (limit, why_limit),
        "per_device_train_batch_size": (batch, f"at most {TOKENS_A_BATCH} tokens at once, or one record"),
        "gradient_accumulation_steps": (accumulation, f"a step sees {batch * accumulation} records, as in notebook 07"),
        "num_train_epochs": (epochs, f"steps an epoch: {an_epoch}; {STEPS} steps are enough to change answers, "
                                     f"more than {MOST_EPOCHS} epochs learn the records by heart"),
        "learning_rate": (1e-3, "a small model with an adapter on all layers, as in notebook 07") if small
        else (2e-4, "usual for LoRA on a model of a billion parameters or more"),
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
