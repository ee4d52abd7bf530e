"""The checks of notebooks 01 to 03: LoRA, tokens and padding, the model in memory."""
from __future__ import annotations

from collections.abc import Callable

import torch

from helpers.data.supervision import IGNORED
from helpers.exercises.core import Right, exercise, explain, function, number, some_of


@exercise("the number of trained parameters", number)
def check_lora_parameters(answer: float, n_in: int, n_out: int, r: int, old_r: int) -> str:
    """Check what LoRA of rank r trains beside one linear layer."""
    right = r * (n_in + n_out)
    return explain(answer, right, f"Right: {r} × ({n_in} + {n_out}) = {right:,}, beside {n_in * n_out:,} that stay frozen.", [
        (r * n_in, "That is A alone. B is trained too."),
        (r * n_out, "That is B alone. A is trained too."),
        (old_r * (n_in + n_out), f"That is rank {old_r}. Both strips become wider with r."),
        (n_in * n_out, "That is the frozen matrix W, which LoRA does not train."),
        (n_in * n_out + right, "W is counted in. It is read, but not trained."),
        (r * n_in * n_out, "You multiplied the sizes of A and B. They lie side by side in memory: add them."),
        (r * r * n_in * n_out, "You multiplied the sizes of A and B. They lie side by side in memory: add them."),
    ], "Not this number. Look at the picture of the three matrices: how many numbers do the two hatched strips hold?")


@exercise("a set of numbers from 1 to 4", some_of(1, 2, 3, 4))
def check_start(answer: set) -> str:
    """Check which starting values of A and B change nothing at first and can still learn."""
    good = {way for way, (a, b) in {1: (1, 0), 2: (0, 1), 3: (0, 0), 4: (1, 1)}.items() if _starts_well(a, b)}
    if answer == good:
        return Right("Right: one of the two must be zero, and only one.")
    if 3 in answer:
        return ("Two zeros change nothing at first, and nothing ever after: each gradient is multiplied by the other "
                "matrix.")
    if 4 in answer:
        return "With two random matrices B · A is not zero, so the very first answers are no longer the base model's."
    if answer == {1}:
        return "That is LoRA's own way. Is it the only one? Ask of the others: is B · A zero, and is any gradient not?"
    if answer == {2}:
        return "It works, but so does the notebook's own way: a B of zeros holds A back for the first step only."
    return "Not this set. Ask two things of each way: is B · A zero, and is there a gradient that is not?"


def _starts_well(a: float, b: float) -> bool:
    generator = torch.Generator().manual_seed(0)
    A, B, x = (torch.randn(shape, generator=generator) for shape in ((2, 6), (5, 2), (3, 6)))
    A, B = (A * a).requires_grad_(), (B * b).requires_grad_()
    added = x @ A.T @ B.T
    (added - 1).square().sum().backward()
    return not added.any() and bool(A.grad.any() or B.grad.any())


@exercise("a function split(update, r) that returns A and B", function)
def check_split(answer: Callable) -> str:
    """Check a function that makes the best A and B of rank r out of a full update."""
    n_out, n_in, r = 12, 20, 3
    update = torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(0))
    matrices = answer(update.clone(), r)
    shapes = [tuple(getattr(matrix, "shape", ())) for matrix in matrices] if isinstance(matrices, tuple | list) else []
    if shapes == [(n_out, r), (r, n_in)]:
        return "These are B and A, in this order. Return A first."
    if shapes in ([(n_in, r), (r, n_out)], [(n_in, r), (n_out, r)], [(r, n_in), (r, n_out)]):
        return ("A or B lies on its side: A has r rows, as long as the inputs, and B has r columns, as long as the "
                "outputs.")
    if shapes == [(n_out, n_in), (n_out, n_out)]:
        return "All the parts are still there. Keep the first r of them."
    if shapes != [(r, n_in), (n_out, r)]:
        return (f"For an update of {n_out} × {n_in} and r = {r}, A is to be {r} × {n_in} and B {n_out} × {r}. These "
                f"are {shapes or 'not two matrices'}.")
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    made = matrices[1] @ matrices[0]
    products = {
        "right": U[:, :r] * S[:r] @ Vh[:r],
        "The directions are right, the sizes S are missing: the parts do not all weigh the same.": U[:, :r] @ Vh[:r],
        "The sizes S count twice, once in A and once in B. Put them on one side.": U[:, :r] * S[:r] ** 2 @ Vh[:r],
        "These are the r smallest parts. svd returns the largest first.": U[:, -r:] * S[-r:] @ Vh[-r:],
    }
    said = next((text for text, product in products.items() if torch.allclose(made, product, atol=1e-4)), None)
    if said == "right":
        return Right(f"Right: no other matrix of rank {r} is closer to the update.")
    return said or 'B @ A is not the best cut. Look at `kept` in "What the rank limits" and divide that product in two.'


@exercise("a number of tokens", number)
def check_system_prompt(answer: float, tokenizer, records: list[dict], system: str) -> str:
    """Check how many tokens all records save with a system message of our own."""
    chats = [[record["messages"], [{"role": "system", "content": system}, *record["messages"]]] for record in records]
    def saved(size: Callable) -> int:
        return sum(size(default) - size(own) for default, own in chats)
    right = saved(lambda chat: len(tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]))
    words = saved(lambda chat: len(tokenizer.apply_chat_template(chat, tokenize=False).split()))
    characters = saved(lambda chat: len(tokenizer.apply_chat_template(chat, tokenize=False)))
    message = len(tokenizer(system)["input_ids"])
    return explain(answer, right, f"Right: {right:,} tokens, in every epoch.", [
        (right / len(records), f"That is one record. There are {len(records)}, and each has its system prompt."),
        (-right, "The size is right, the sign is not: saved is what there was before less what there is now."),
        (words, "You counted words. The model counts tokens."),
        (characters, "You counted characters. The model counts tokens."),
        (0, "None? Without tokenize=False the template returns a dictionary, and its length is the number of its keys."),
        (right + len(records) * message, "The new system message costs tokens as well: take them off."),
    ], 'Not this number. Add up the "input_ids" of all records, as they are and with the system message before them.')


@exercise("a function labels_of(input_ids, attention_mask) that returns the labels", function)
def check_labels(answer: Callable, tokenizer, rows: list[list[int]]) -> str:
    """Check a function that makes labels for a batch whose pad token is EOS."""
    ids, mask = (torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long) for _ in range(2))
    ids += tokenizer.eos_token_id
    for place, row in enumerate(rows):
        ids[place, :len(row)], mask[place, :len(row)] = torch.tensor(row), 1
    given = ids.clone()
    labels = answer(given, mask.clone())
    if not isinstance(labels, torch.Tensor) or labels.shape != ids.shape:
        return f"One label for each token is asked for: a tensor of the shape {tuple(ids.shape)} of this batch."
    if not given.equal(ids):
        return ("The function changed input_ids itself, so the model would read -100. Make a new tensor: masked_fill "
                "does, as does clone().")
    if labels.equal(ids.masked_fill(mask == 0, IGNORED)):
        return Right(f"Right: {(mask == 0).sum()} places of padding are hidden, and every EOS has kept its label.")
    mistakes = {
        "You asked for the id. Padding and EOS have the same, so the end of every answer is hidden too: ask the mask.":
            ids.masked_fill(ids == tokenizer.eos_token_id, IGNORED),
        "The padding carries loss: the model would learn to write filler after filler.": ids,
        "The other way round: the text is hidden and the padding is learned. The mask has a 0 where there is padding.":
            ids.masked_fill(mask == 1, IGNORED),
        "0 is a token like any other, and would be learned. The label that carries no loss is -100.": ids * mask,
    }
    return next((said for said, wrong in mistakes.items() if labels.equal(wrong)),
                'Not these labels. They are the ids, with -100 where the mask is 0: see "Does padding change the '
                'result?".')


@exercise("a percentage, for instance 12.5", number)
def check_padding(answer: float, tokenizer, rows: list[list[int]]) -> str:
    """Check what share of a padded batch is padding."""
    width, real = max(map(len, rows)), sum(map(len, rows))
    places, ends = len(rows) * width, sum(row.count(tokenizer.eos_token_id) for row in rows)
    right = 100 * (places - real) / places
    return explain(answer, right, f"Right: {places - real} of {places} places are filler, {right:.1f} %, which the model computes for nothing.", [
        (right / 100, "That is the share, from 0 to 1. Times 100 for per cent."),
        (100 - right, "That is the text. What is left of the hundred is padding."),
        (100 * (places - real) / real, "That is padding for each token of text. Divide by all places of the batch."),
        (100 * (places - real + ends) / places, "You counted by the id, it seems. That finds the real EOS tokens too: "
                                                "ask the mask."),
        (places - real, "That is how many. Divide by the places of the whole batch, times 100."),
        (100 * sum(len(row) < width for row in rows) / len(rows), "That is the share of the rows that have some "
                                                                  "padding. Count places."),
    ], "Not this share. How many places has the batch, rows times columns, and how many of them does the mask mark "
       "with 0?", tolerance=0.01)


@exercise("a number of GB (10⁹ bytes)", number)
def check_loading_peak(answer: float, parameters: float) -> str:
    """Check the peak while a float32 file is loaded as bfloat16."""
    file, copy = (parameters * dtype.itemsize / 1e9 for dtype in (torch.float32, torch.bfloat16))
    return explain(answer, file + copy, f"Right: {file:g} GB of the mapped file and {copy:g} GB of the converted copy.", [
        (copy, "That is what stays. While it loads, the file that is being converted lies in memory as well."),
        (file, "That is the file. The converted copy lies beside it for a moment."),
        (2 * file, "The copy is in bfloat16, and takes half as much as the file."),
        ((file + copy) * 1e9 / 2**30, "That is counted in GiB, of 2³⁰ bytes. This course counts in GB, of 10⁹."),
        (8 * (file + copy), "That is in bits. A byte has eight."),
    ], "Not this peak. What is in memory at the worst moment? Look at the row bfloat16 of the "
       "measurement.", tolerance=0.01)


@exercise("a percentage, for instance 12.5", number)
def check_counted_twice(answer: float, model) -> str:
    """Check by how much the prediction is wrong if the table of embeddings is counted once too often."""
    table, whole = model.get_input_embeddings().weight.numel(), sum(p.numel() for p in model.parameters())
    right = 100 * table / whole
    return explain(answer, right, f"Right: {table:,} too many, beside {whole:,}, are {right:.1f} %.", [
        (right / 100, "That is the share, from 0 to 1. Times 100 for per cent."),
        (100 * table / (whole + table), "You divided by the wrong prediction. An error is measured against what is "
                                        "true."),
        (100 + right, "That is how large the prediction is. The error is what it has above 100."),
        (2 * right, "That is both tables. One of them is right, only the second is too much."),
        (100 * table / (whole - table), "You divided by the model without its table. Divide by the whole model."),
    ], "Not this share. How many parameters are counted too often, and how many does the model really "
       "have?", tolerance=0.01)


@exercise("a set with some of 0.01, 0.001 and 0.0001", some_of(0.01, 0.001, 0.0001))
def check_survivors(answer: set) -> str:
    """Check which changes to a weight of 1 survive in bfloat16."""
    def surviving(dtype: torch.dtype) -> set:
        one = torch.tensor(1, dtype=dtype)
        return {change for change in (0.01, 0.001, 0.0001) if one + torch.tensor(change, dtype=dtype) != one}
    return explain(answer, surviving(torch.bfloat16), "Right: the others are less than half a step above 1, and are rounded away.", [
        (surviving(torch.float16), "That is float16, which has finer steps. bfloat16 gave them up for its range."),
        (surviving(torch.float32), "All of them survive in float32. bfloat16 keeps its range, not its exactness."),
        (set(), "The largest is more than one step above 1: see the column \"step above 1\"."),
        ({0.001, 0.0001}, "The other way round: it is small changes that are lost."),
    ], 'Not this set. Compare each change with the column "step above 1": less than half a step is rounded away.')
