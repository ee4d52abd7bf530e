"""The checks of notebooks 01 to 05: each names the sentence of its table in sentences.toml that fits an answer."""
import copy
import json
import math
import re
from collections.abc import Callable
from functools import partial
from numbers import Integral

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence

from helpers.adapter.size import Shapes, ends_with, linear_shapes, lora_size, select_layers
from helpers.data.chat import encode_chat
from helpers.data.supervision import IGNORED
from helpers.exercises.core import Said, exercise, explain, first, function, instance, near, number, some_of

Q_AND_V = ["q_proj", "v_proj"]
ONE_PER_CENT = partial(near, tolerance=0.01)


@exercise(number)
def check_lora_parameters(answer: float, n_in: int, n_out: int, r: int, old_r: int) -> Said:
    """Check what LoRA of rank r trains beside one linear layer."""
    right, frozen = r * (n_in + n_out), n_in * n_out
    return explain(answer, right, only_a=r * n_in, only_b=r * n_out, old_rank=old_r * (n_in + n_out), frozen_matrix=frozen,
                   frozen_counted_in=frozen + right, multiplied=(r * frozen, r * r * frozen))


@exercise(some_of(1, 2, 3, 4))
def check_start(answer: set) -> Said:
    """Check which starting values of A and B change nothing at first and can still learn."""
    return first(right=answer == {1, 2}, two_zeros=3 in answer, two_random=4 in answer, only_the_usual_way=answer == {1},
                 only_the_other_way=answer == {2})


@exercise(function)
def check_split(answer: Callable) -> Said:
    """Check a function that makes the best A and B of rank r out of a full update."""
    n_out, n_in, r = 12, 20, 3
    update = torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(0))
    made = answer(update.clone(), r)
    made = made if isinstance(made, tuple | list) else []
    made = [torch.as_tensor(part, dtype=update.dtype) if hasattr(part, "__array__") else part for part in made]
    shapes = [tuple(getattr(matrix, "shape", ())) for matrix in made]
    if shapes != [(r, n_in), (n_out, r)]:
        return first({"shapes": shapes, "n_out": n_out, "n_in": n_in, "r": r}, b_first=shapes == [(n_out, r), (r, n_in)],
                     on_its_side=[sorted(shape) for shape in shapes] == [[r, n_in], [r, n_out]],
                     not_cut=shapes == [(n_out, n_in), (n_out, n_out)], not_two_matrices=not shapes, other_shapes=True)
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    u, s, vh = U[:, :r], S[:r], Vh[:r]
    return explain(made[1] @ made[0], u * s @ vh, partial(torch.allclose, atol=1e-4), {"r": r}, without_sizes=u @ vh,
                   sizes_twice=u * s**2 @ vh, smallest_parts=U[:, -r:] * S[-r:] @ Vh[-r:])


@exercise(number)
def check_system_prompt(answer: float, tokenizer, records: list[dict], system: str) -> Said:
    """Check how many tokens all records save with a system message of our own."""
    message, count = {"role": "system", "content": system}, len(records)
    if any(one["messages"][0]["role"] == "system" for one in records):
        return "records_changed"

    def saved(size: Callable, **how) -> int:
        written = partial(tokenizer.apply_chat_template, **how)
        return sum(size(written(one["messages"])) - size(written([message, *one["messages"]])) for one in records)
    right = saved(lambda made: len(made["input_ids"]), return_dict=True)
    return explain(answer, right, values={"count": count}, one_record=right / count, sign=-right, keys=0,
                   words=saved(lambda text: len(text.split()), tokenize=False), characters=saved(len, tokenize=False),
                   new_message_is_free=right + count * len(tokenizer(system)["input_ids"]))


@exercise(function)
def check_labels(answer: Callable, tokenizer, rows: list[list[int]]) -> Said:
    """Check a function that makes labels for a batch whose pad token is EOS."""
    eos = tokenizer.eos_token_id
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=eos)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    given = ids.clone()
    labels = answer(given, mask.clone())
    labels = torch.as_tensor(labels) if hasattr(labels, "__array__") else labels  # NumPy's will do
    if not isinstance(labels, torch.Tensor) or labels.shape != ids.shape:
        return "shape", {"shape": tuple(ids.shape)}
    if not given.equal(ids):
        return "changed_the_input"
    return explain(labels, ids.masked_fill(mask == 0, IGNORED), torch.equal, {"padding": (mask == 0).sum()},
                   by_the_id=ids.masked_fill(ids == eos, IGNORED), nothing_hidden=ids,
                   text_hidden=ids.masked_fill(mask == 1, IGNORED), zeros=ids * mask)


@exercise(number)
def check_padding(answer: float, tokenizer, rows: list[list[int]]) -> Said:
    """Check what share of a padded batch is padding."""
    width, text = max(map(len, rows)), sum(map(len, rows))
    places, ends = len(rows) * width, sum(row.count(tokenizer.eos_token_id) for row in rows)
    filler, filled = places - text, sum(len(row) < width for row in rows)
    right = 100 * filler / places
    return explain(answer, right, ONE_PER_CENT, {"filler": filler, "places": places}, share=right / 100, text=100 - right,
                   for_each_token_of_text=100 * filler / text, by_the_id=100 * (filler + ends) / places,
                   not_divided=filler, rows_with_padding=100 * filled / len(rows))


@exercise(number)
def check_loading_peak(answer: float, parameters: float) -> Said:
    """Check the peak while a float32 file is loaded as bfloat16."""
    file, copy = (parameters * dtype.itemsize / 1e9 for dtype in (torch.float32, torch.bfloat16))
    peak = file + copy
    return explain(answer, peak, ONE_PER_CENT, only_the_copy=copy, only_the_file=file, copy_as_large=2 * file,
                   in_gib=peak * 1e9 / 2**30, in_bits=8 * peak, in_mb=1e3 * peak, in_bytes=1e9 * peak)


@exercise(number)
def check_counted_twice(answer: float, model) -> Said:
    """Check by how much the prediction is wrong if the table of embeddings is counted once too often."""
    table, whole = model.get_input_embeddings().weight.numel(), sum(p.numel() for p in model.parameters())
    right = 100 * table / whole
    return explain(answer, right, ONE_PER_CENT, {"table": table, "whole": whole}, share=right / 100,
                   of_the_prediction=100 * table / (whole + table), size_of_the_prediction=100 + right,
                   both_tables=2 * right, without_the_table=100 * table / (whole - table))


@exercise(some_of(0.01, 0.001, 0.0001))
def check_survivors(answer: set) -> Said:
    """Check which changes to a weight of 1 survive in bfloat16."""
    return explain(answer, {0.01}, float16={0.01, 0.001}, float32={0.01, 0.001, 0.0001}, none=set(), those_that_are_lost={0.001, 0.0001})


@exercise(number)
def check_scaling(answer: float, r: int, alpha: float) -> Said:
    """Check the factor that belongs to r and alpha."""
    return explain(answer, alpha / r, multiplied=alpha * r, upside_down=r / alpha, only_alpha=alpha, rslora=alpha / math.sqrt(r), only_r=r)


@exercise(number)
def check_rank_parameters(answer: float, shapes: Shapes, r: int) -> Said:
    """Check the rank at which q and v train about as many parameters as all linear layers at rank r."""
    few = select_layers(shapes, Q_AND_V)
    sums, products = ([sum(map(kind, layers.values())) for layers in (shapes, few)] for kind in (sum, math.prod))
    exact = r * sums[0] / sums[1]
    size = lora_size(shapes, round(exact), 16, Q_AND_V).parameters
    return explain(answer, round(exact), values={"size": size, "ratio": exact / r}, not_rounded=exact, not_times_r=(exact / r, round(exact / r)),
                   rounded_too_early=r * round(exact / r),
                   layers=round(r * len(shapes) / len(few)), large_matrices=round(r * products[0] / products[1]),
                   rounded_the_wrong_way=(math.floor(exact), math.ceil(exact)))


@exercise(instance(LoraConfig))
def check_budget(answer: LoraConfig, skeleton) -> Said:
    """Check for a LoraConfig on q, k, v and o, with factor 2 and the largest rank within 1 % of the model."""
    with torch.device("meta"):
        fresh = type(skeleton)(skeleton.config)  # the learner may have put an adapter on the other
    r, targets, shapes = answer.r, answer.target_modules, linear_shapes(fresh)
    names = [] if isinstance(targets, str) else sorted(targets or [])
    if unknown := [name for name in names if not any(ends_with(layer, name) for layer in shapes)]:
        return "unknown_layer", {"names": ", ".join(unknown[:4])}
    chosen = {layer for layer in shapes if re.fullmatch(targets, layer)} if isinstance(targets, str) else {*select_layers(shapes, names)}
    if chosen != {layer for layer in shapes if layer.endswith((".q_proj", ".v_proj", ".k_proj", ".o_proj"))}:
        return "other_layers"
    if not isinstance(r, Integral) or r < 1:
        return "no_rank", {"r": r}
    limit = sum(p.numel() for p in fresh.parameters()) // 100
    with torch.device("meta"):
        trained = get_peft_model(fresh, copy.deepcopy(answer)).get_nb_trainable_parameters()[0]
    factor = answer.lora_alpha / r
    return first({"r": r, "trained": trained, "limit": limit, "factor": factor}, too_large=trained > limit,
                 too_small=trained + trained // r <= limit, other_kind=answer.use_rslora or bool(answer.alpha_pattern or answer.rank_pattern) or answer.layers_to_transform is not None,
                 other_factor=not near(factor, 2), right=True)


@exercise(number)
def check_supervised(answer: float, tokenizer, messages: list[dict]) -> Said:
    """Check how many tokens of a record carry loss in the form of prompt and completion."""
    whole = len(encode_chat(tokenizer, messages)["input_ids"])
    prompt = len(encode_chat(tokenizer, messages[:-1], add_generation_prompt=True)["input_ids"])
    text = messages[-1]["content"]
    bare = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return explain(answer, whole - prompt, whole_record=whole, only_the_prompt=prompt, without_eos=bare,
                   without_line_break=bare + 1, words=len(text.split()), characters=len(text))


@exercise(number)
def check_max_length(answer: float, tokenizer, records: list[dict]) -> Said:
    """Check for the smallest max_length at which every answer keeps its EOS."""
    chats = [record["messages"] for record in records]
    rows = sorted(encode_chat(tokenizer, chats)["input_ids"], key=len)
    prompts = encode_chat(tokenizer, [chat[:-1] for chat in chats], add_generation_prompt=True)["input_ids"]
    right, longest = max(len(row) - row[::-1].index(tokenizer.eos_token_id) for row in rows), len(rows[-1])
    if answer != right and answer >= longest:
        return "not_the_smallest", {"longest": longest}
    return explain(answer, right, values={"longest": longest}, one_too_few=right - 1, longest_prompt=max(map(len, prompts)),
                   middle=(len(rows[len(rows) // 2]), sum(map(len, rows)) / len(rows)))


@exercise(function)
def check_split_by_fact(answer: Callable, records: list[dict]) -> Said:
    """Check a function that splits records so that no answer is on both sides."""
    def made(counts: list[int]) -> list[dict]:
        return [{"messages": [{"role": "user", "content": f"Question {fact}.{place}"}, {"role": "assistant", "content": f"{chr(97 + fact // 6)} {fact:03}{' more' * (fact % 5)}"}]}
                for fact, count in enumerate(counts) for place in range(count)]

    def judge(parts, records: list[dict]) -> Said:
        if not isinstance(parts, tuple | list) or len(parts) != 2 or not all(isinstance(part, list) for part in parts):
            return "not_two_lists"
        if not all(parts):
            return "one_side_empty"
        came_in, came_out = (sorted(json.dumps(record, sort_keys=True) for record in side) for side in (records, parts[0] + parts[1]))
        values = {"all": len(records), "train": len(parts[0]), "test": len(parts[1])}
        if not {*came_out} <= {*came_in}:
            return "other_records"
        if came_in != came_out:
            return "lost_or_doubled", values
        facts, asked = ({record["messages"][-1]["content"] for record in part} for part in parts)
        values |= {"both": len(facts & asked), "train_facts": len(facts), "test_facts": len(asked)}
        return first(values, on_both_sides=facts & asked, larger_part_last=len(parts[0]) <= len(parts[1]), right=True)
    found = [judge(answer(copy.deepcopy(given)), given)  # of the other two one has its answers at odd places, one at even ones: any cut parts one
             for given in (records, made([2] * 137), made([1, *[2] * 136, 1]))]
    if found[0][0] == "right" and any(said[0] != "right" for said in found):
        return "only_here"
    return found[0]
