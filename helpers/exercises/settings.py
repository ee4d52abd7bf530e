"""The checks of notebooks 04 to 06: LoraConfig, dataset, training arguments."""
from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model

from helpers.adapter.size import Shapes, linear_shapes, lora_size, select_layers
from helpers.data.chat import encode_chat
from helpers.exercises.core import Right, exercise, explain, function, instance, number
from helpers.training.steps import training_steps

Q_AND_V, ATTENTION = ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"]


@exercise("the factor by which the adapter's output is multiplied, a number", number)
def check_scaling(answer: float, r: int, alpha: float) -> str:
    """Check the factor that belongs to r and alpha."""
    return explain(answer, alpha / r, f"Right: alpha / r = {alpha} / {r} = {alpha / r:g}.", [
        (alpha * r, "That is alpha times r. r does not strengthen the adapter: alpha is divided by it."),
        (r / alpha, "That is r / alpha, upside down: a larger alpha must make the adapter stronger."),
        (alpha, "That is alpha itself. It is still divided by r."),
        (alpha / math.sqrt(r), "That is alpha / √r, which PEFT does only with use_rslora=True. Without it: alpha / r."),
        (r, "That is r, the width of A and B. The factor is about how strongly they count."),
    ], "Not this factor. Look at the column alpha / r of the table with four combinations.")


@exercise("the rank for q and v, the nearest whole number", number)
def check_rank_parameters(answer: float, shapes: Shapes, r: int) -> str:
    """Check the rank at which q and v train about as many parameters as all linear layers at rank r."""
    few = select_layers(shapes, Q_AND_V)
    exact = r * sum(map(sum, shapes.values())) / sum(map(sum, few.values()))
    products = [sum(inputs * outputs for inputs, outputs in layers.values()) for layers in (shapes, few)]
    size = lora_size(shapes, round(exact), 16, Q_AND_V).parameters
    return explain(answer, round(exact), f"Right: at rank {round(exact)} q and v train {size:,} parameters.", [
        (exact, f"The right result, {exact:.1f}, but a rank is a whole number: round to the nearest."),
        (round(exact / r), "That is how many times more parameters there are. It is still to be multiplied by r = "
                           f"{r}."),
        (round(r * len(shapes) / len(few)), "You counted layers. They differ in size: what counts is inputs + outputs "
                                            "of each."),
        (round(r * products[0] / products[1]), "You compared the large matrices, inputs × outputs. A and B have r × "
                                               "(inputs + outputs)."),
        (math.floor(exact), f"Close, but the exact value is {exact:.1f}, so another whole number is nearer."),
        (math.ceil(exact), f"Close, but the exact value is {exact:.1f}, so another whole number is nearer."),
    ], 'Not this rank. Both sums are r × (inputs + outputs), one over q and v, one over all `shapes`: see "r: how '
       'many parameters?".')


@exercise("a LoraConfig(...) with r, lora_alpha and target_modules", instance(LoraConfig))
def check_budget(answer: LoraConfig, skeleton) -> str:
    """Check for a LoraConfig on q, k, v and o, with factor 2 and the largest rank within 1 % of the model."""
    shapes, limit = linear_shapes(skeleton), sum(p.numel() for p in skeleton.parameters()) // 100
    targets = answer.target_modules if isinstance(answer.target_modules, str) else set(answer.target_modules or [])
    names = {layer.rsplit(".", 1)[-1] for layer in shapes}
    if isinstance(targets, set) and targets - names:
        return f"No layer is called {', '.join(sorted(targets - names))}. If another name fits, PEFT says nothing about it."
    if targets != set(ATTENTION):
        return "Not these layers: q, k, v and o are asked for, each under the last part of its name in `shapes`, such as q_proj."
    if not isinstance(answer.r, int) or answer.r < 1:
        return f"r is {answer.r}, and a rank is a whole number above 0. Round down."
    with torch.device("meta"):
        trained = get_peft_model(copy.deepcopy(skeleton), answer).get_nb_trainable_parameters()[0]
    if trained > limit:
        return f"Too large: r = {answer.r} trains {trained:,} parameters, and 1 % of the model is {limit:,}."
    if trained + trained // answer.r <= limit:
        return f"It fits, but so would a larger rank: {trained:,} of at most {limit:,} parameters are trained."
    if answer.lora_alpha != 2 * answer.r:
        return (f"The layers and the rank are right, but alpha / r = {answer.lora_alpha / answer.r:g}. For a factor of "
                "2 alpha must move with r.")
    return Right(f"Right: r = {answer.r} trains {trained:,} parameters, of at most {limit:,}, with a factor of 2.")


@exercise("the number of tokens that carry loss", number)
def check_supervised(answer: float, tokenizer, messages: list[dict]) -> str:
    """Check how many tokens of a record carry loss in the form of prompt and completion."""
    whole = len(encode_chat(tokenizer, messages)["input_ids"])
    prompt = len(encode_chat(tokenizer, messages[:-1], add_generation_prompt=True)["input_ids"])
    text = messages[-1]["content"]
    bare = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return explain(answer, whole - prompt, f"Right: {whole} tokens less the {prompt} of the prompt, which is only read, are {whole - prompt}.", [
        (whole, "That is the whole record. In the form of prompt and completion the prompt is read and not learned."),
        (prompt, "That is the prompt, the part without loss."),
        (bare, "That is the bare answer. Its EOS is learned as well, or the model would never stop; so is what the "
               "template writes after it."),
        (bare + 1, "The answer and its EOS, very nearly: the template writes a line break after EOS, which is learned "
                   "as well."),
        (len(text.split()), "Those are words. The model counts tokens, and a full stop is one too."),
        (len(text), "Those are characters. The model counts tokens."),
    ], "Not this number. From the length of the whole record subtract that of its prompt, marks included.")


@exercise("a length in tokens", number)
def check_max_length(answer: float, tokenizer, records: list[dict]) -> str:
    """Check for the smallest max_length at which every answer keeps its EOS."""
    chats = [record["messages"] for record in records]
    rows = encode_chat(tokenizer, chats)["input_ids"]
    prompts = map(len, encode_chat(tokenizer, [chat[:-1] for chat in chats], add_generation_prompt=True)["input_ids"])
    ends = [len(row) - row[::-1].index(tokenizer.eos_token_id) for row in rows]
    right, longest = max(ends), max(map(len, rows))
    if answer != right and answer >= longest:
        return (f"That is safe, but not the smallest. At {longest} nothing at all is cut; which token is lost first, "
                "and does it matter?")
    return explain(answer, right, f"Right: at {right} every answer keeps its EOS. The longest record has {longest} tokens.", [
        (right - 1, f"One too few: at {right - 1} the longest answer loses its EOS, and with it the lesson to stop."),
        (max(prompts), "That is the longest prompt. It would leave no room for the answer."),
        (sorted(map(len, rows))[len(rows) // 2], "That is the median, so about half of the records would be cut. The "
                                                 "longest one decides."),
        (sum(map(len, rows)) / len(rows), "That is the mean. The longest record decides."),
    ], "Not this length. Up to which place must the longest record be kept, so that its EOS is still there?")


@exercise("a function split(records) that returns train and test", function)
def check_split_by_fact(answer: Callable, records: list[dict]) -> str:
    """Check a function that splits records so that no answer is on both sides."""
    parts = answer(copy.deepcopy(records))
    if not isinstance(parts, tuple | list) or len(parts) != 2 or not all(isinstance(part, list) for part in parts):
        return "Return two lists of records, train and test."
    sides = [[json.dumps(record, sort_keys=True) for record in part] for part in parts]
    if not all(sides):
        return "One side is empty. Both need records: one to learn from, one to ask."
    if sorted(sides[0] + sides[1]) != sorted(json.dumps(record, sort_keys=True) for record in records):
        return (f"Every record must be on one side, once: {len(records)} came in, {len(sides[0])} + {len(sides[1])} "
                "came out.")
    facts = [{record["messages"][-1]["content"] for record in part} for part in parts]
    if both := facts[0] & facts[1]:
        return (f"{len(both)} answers are on both sides. Each record was put somewhere by itself: choose among the "
                "answers instead.")
    if len(sides[0]) < len(sides[1]):
        return "The larger part is to be learned from, and comes first: train, test."
    return Right(f"Right: {len(sides[0])} records with {len(facts[0])} answers to learn, {len(sides[1])} with {len(facts[1])} others to ask for.")


@exercise("the number of optimizer steps", number)
def check_steps(answer: float, records: int, batch_size: int, accumulation: int, epochs: int) -> str:
    """Check the steps of a run."""
    batches = math.ceil(records / batch_size)
    right = training_steps(records, batch_size, accumulation, epochs)
    return explain(answer, right, f"Right: {batches} batches make {right // epochs} steps, {epochs} times.", [
        (epochs * batches, f"You counted batches. With an accumulation of {accumulation} it takes {accumulation} of "
                           "them to make one step."),
        (right // epochs, "That is one epoch. The run goes through the data more than once."),
        (epochs * (records // batch_size // accumulation), "Rounded down, it seems: a batch, or a group of batches, "
                                                           "that is not full counts as well."),
        (math.ceil(epochs * records / (batch_size * accumulation)), "You rounded once, at the end. A batch never "
                                                                    "reaches over the end of an epoch: round up in "
                                                                    "each."),
        (epochs * records / (batch_size * accumulation), "A step is taken or not taken. Round up, first the batches "
                                                         "and then the steps of each epoch."),
        (epochs * records, "That is how many records are read. Each step reads a batch of them, several times."),
        (epochs * math.ceil(batches * accumulation), "Accumulation does not add steps: it makes each step wait for "
                                                     "several batches."),
    ], 'Not this number. Batches first, rounded up, then groups of batches, rounded up, then epochs: "How many '
       'steps?" has the three lines.')


@exercise("a value for logging_steps, a whole number", number)
def check_logging_steps(answer: float, records: int, batch_size: int, epochs: int) -> str:
    """Check for a logging_steps that makes ten lines of log."""
    steps = training_steps(records, batch_size, 1, epochs)
    if answer < 1 or answer != int(answer):
        return (f"{answer:g} is no whole number of steps. (From 0 to 1 the trainer takes it as a share of the run, "
                "rounded up.)")
    lines = steps // int(answer)
    if lines == 10:
        return Right(f"Right: {steps} steps, and a line after every {int(answer)}th, make 10 lines.")
    return explain(answer, None, "", [
        (10, f"logging_steps is the distance between two lines, not their number: every 10th of {steps} steps makes "
             f"{lines} lines."),
        (steps, "That is the whole run, so there would be one line, at the end."),
        (epochs * records // 10, "You counted records. The distance is counted in steps, each of which takes a whole "
                                 "batch."),
        (steps // epochs // 10, "You counted the steps of one epoch; the log goes on through all of them."),
    ], f"That would make {lines} lines. How many steps does the run take, and how many of them lie between two lines?")


@exercise("a dict with per_device_train_batch_size and gradient_accumulation_steps", instance(dict))
def check_accumulation(answer: dict, largest_batch: int, effective: int) -> str:
    """Check for settings that stay below a largest batch and reach an effective batch size."""
    names = ["per_device_train_batch_size", "gradient_accumulation_steps"]
    if set(answer) != set(names) or not all(isinstance(value, int) and value > 0 for value in answer.values()):
        return f"The dict needs these two keys, each with a whole number above 0: {', '.join(names)}."
    batch, accumulation = (answer[name] for name in names)
    if batch > largest_batch:
        return f"A batch of {batch} does not fit: {largest_batch} records at a time are all that the memory holds."
    if batch < largest_batch and batch * accumulation == effective:
        return (f"{batch} × {accumulation} = {effective} is right, but the memory holds {largest_batch} at a time, "
                "which takes less time for each record.")
    if batch + accumulation == effective:
        return "You added. Each of the accumulated batches has that many records: multiply."
    if accumulation == effective:
        return (f"Accumulation counts batches, not records: {accumulation} of them, of {batch} records each, are "
                f"{batch * accumulation}.")
    if batch * accumulation != effective:
        return (f"Each step would see {batch} × {accumulation} = {batch * accumulation} records, and {effective} are "
                "asked for: look for the effective batch size.")
    return Right(f"Right: {batch} × {accumulation} = {effective} records behind each step, and only {batch} in memory at a time.")
