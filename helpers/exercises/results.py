"""The checks of notebooks 07 to 10: training, saving, scoring, the experiment."""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model

from helpers.ask.answers import holds_phrase
from helpers.exercises.core import Right, choice, exercise, explain, function, instance, number, some_of
from helpers.training.steps import training_steps

FILES = ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "training_args.bin", "optimizer.pt", "trainer_state.json")


@exercise("a probability, from 0 to 1", number)
def check_probability(answer: float, loss: float) -> str:
    """Check the probability that belongs to a loss."""
    right = math.exp(-loss)
    return explain(answer, right, f"Right: exp(-{loss:.2f}) = {right:.2f}.", [
        (loss, "That is the loss itself. It is the negative logarithm of the probability."),
        (math.exp(loss), "That is the perplexity: among how many equally likely tokens the model seems to choose. "
                         "Turn it over."),
        (1 - loss, "A loss is no share of errors, and 1 - loss no probability. Undo the logarithm."),
        (1 / loss, "Turning over is a good idea, but what is turned over is exp(loss)."),
        (100 * right, "The right size, in per cent. A probability lies between 0 and 1."),
        (2**-loss, "You took the logarithm to be one of base 2. PyTorch's is the natural one: exp."),
        (10**-loss, "You took the logarithm to be one of base 10. PyTorch's is the natural one: exp."),
    ], "Not this probability. The loss is its negative natural logarithm: see the text below the loss curve.", tolerance=0.02)


@exercise("the number of an epoch, counted from 1", number)
def check_best_epoch(answer: float, train: list[float], validation: list[float]) -> str:
    """Check after which epoch to stop."""
    best = 1 + validation.index(min(validation))
    return explain(answer, best, f"Right: after epoch {best} the questions it has not seen are answered worse again.", [
        (1 + train.index(min(train)), "There the training loss is lowest: it knows its own records best. What of "
                                      "those that it has not seen?"),
        (best - 1, "Counted from 0, or one too early: the next epoch still lowers the validation loss."),
        (best + 1, "One too late: here the validation loss has already risen."),
        (0, "Without any training nothing is learned at all."),
    ], "Not this epoch. Which of the two curves speaks of records that the model was not trained on, and where is it "
       "lowest?")


@exercise("a number of minutes", number)
def check_minutes(answer: float, records: int, batch_size: int, epochs: int, minutes: float, steps: int) -> str:
    """Check how long a larger run will take, from the minutes that some steps took."""
    planned = training_steps(records, batch_size, 1, epochs)
    right = planned * minutes / steps
    return explain(answer, right, f"Right: {planned} steps of {60 * minutes / steps:.1f} seconds, if the records are as long as ours.", [
        (right / epochs, "That is one epoch. Each of them takes as long."),
        (right * batch_size, "You counted records. A step takes a batch of them, and the time you have is that of "
                             "steps."),
        (60 * right, "That is in seconds."),
        (minutes, "That is the run of this notebook. The new one has other steps to take."),
        (planned, "That is the number of steps. How long does one take here?"),
    ], "Not this time. How long did one step take here, and how many steps will the new run have?", tolerance=0.02)


@exercise("a number of MB (10⁶ bytes)", number)
def check_disk(answer: float, customers: int, base_bytes: int, adapter_bytes: int) -> str:
    """Check the disk that one base model and an adapter for each customer take."""
    base, adapter = base_bytes / 1e6, adapter_bytes / 1e6
    return explain(answer, base + customers * adapter, f"Right: {base:,.0f} MB once, and {adapter:.1f} MB for each of {customers}.", [
        (customers * (base + adapter), "You stored the base model with each adapter. An adapter does not contain it, "
                                       "and all of them share one."),
        (customers * base, "That is a merged model for each. Kept as adapters, they share one base model."),
        (customers * adapter, "Those are the adapters. Without the base model none of them can say a word."),
        (base + adapter, "That is one customer. Each needs an adapter of its own."),
        ((base + customers * adapter) * 1e6, "That is in bytes. An MB is a million of them."),
        ((base + customers * adapter) * 1e6 / 2**20, "That is counted in MiB, of 2²⁰ bytes. An MB has 10⁶."),
    ], "Not this size. What has to be there once, and what once for each customer?", tolerance=0.01)


@exercise("a set of file names", some_of(*FILES))
def check_to_share(answer: set) -> str:
    """Check which files a stranger needs, and may be given, to use an adapter."""
    if answer == set(FILES[:2]):
        return Right("Right: the numbers and where they belong. Write the public name of the base model into the config first.")
    if "training_args.bin" in answer:
        return ("training_args.bin is a pickle, which may run any code when it is read, and may hold paths of your "
                "machine. Nobody needs it.")
    if "optimizer.pt" in answer:
        return ("optimizer.pt is the memory of the optimizer: for going on with the training, twice as large as the "
                "adapter, and a pickle too.")
    if "trainer_state.json" in answer:
        return ("trainer_state.json is the log of your run. It is for resuming and tells what you did; the adapter "
                "works without it.")
    if "tokenizer.json" in answer:
        return "The tokenizer was not changed. Whoever has the base model has it already."
    if answer == {FILES[0]}:
        return ("The numbers alone do not say where in the model they belong, or what alpha is: adapter_config.json "
                "does.")
    if answer == {FILES[1]}:
        return "That says where the numbers belong. The numbers are missing."
    return "Not this set. With which files did the last section load the adapter again?"


@exercise("a function merged_weight(W, A, B, alpha, r) that returns a matrix", function)
def check_merged_weight(answer: Callable) -> str:
    """Check a function that merges an adapter into a weight, against PEFT."""
    r, alpha = 2, 6
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(6, 6, bias=False))
        layer = get_peft_model(net, LoraConfig(r=r, lora_alpha=alpha, target_modules=["0"], init_lora_weights=False)).base_model.model[0]
        W, A, B = (part.weight.clone() for part in (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]))
        layer.merge()
        given = W.clone()
        made = answer(given, A.clone(), B.clone(), alpha, r)
        if not isinstance(made, torch.Tensor) or made.shape != W.shape:
            return f"The merged weight has the shape of W, here {tuple(W.shape)}. B comes first: B @ A."
        if not given.equal(W):
            return ("W itself was changed. A base model that others share must stay as it is: write W + ..., not W += "
                    "...")
        mistakes = {
            "alpha / r is missing: PEFT multiplies B @ A by it.": W + B @ A,
            "That is alpha times B @ A. It is still divided by r.": W + alpha * B @ A,
            "That is alpha · r. A larger r does not make each part count more: alpha is divided by "
            "it.": W + alpha * r * B @ A,
            "That is the update alone. Merging adds it to W.": alpha / r * B @ A,
            "Subtracted, that is how to unmerge.": W - alpha / r * B @ A,
        }
        if torch.allclose(made, layer.base_layer.weight, atol=1e-5):
            return Right("Right: the same weight as PEFT's own merge.")
        return next((said for said, wrong in mistakes.items() if torch.allclose(made, wrong, atol=1e-5)),
                    'Not PEFT\'s weight. The formula is at the beginning of "Merge".')


@exercise("a function fair(questions, train_questions) that returns a list", function)
def check_fair(answer: Callable) -> str:
    """Check a function that keeps the questions which were not in training, however they were typed."""
    train = ["Where is the lighthouse?", "Who is its keeper?"]
    copied, shouted, bare = "Where is the lighthouse?", "WHO IS ITS KEEPER?", "where is the lighthouse"
    new = ["Where does the lighthouse stand?", "What do sailors call it?"]
    kept = answer([copied, new[0], shouted, bare, new[1]], list(train))
    if not isinstance(kept, list | tuple | set) or not set(kept) <= {copied, shouted, bare, *new}:
        return "Return those of the given questions that are fair, each as it was given."
    if set(kept) == set(new):
        return Right("Right: what is left was never trained on, in any spelling.")
    if set(kept) == {copied, shouted, bare} or set(kept) == {copied}:
        return ("These are the questions from training. They show what was learned by heart; the fair ones are the "
                "others.")
    if copied in kept:
        return "A question of the training data is still there, word for word. Its score would only show a good memory."
    if shouted in kept:
        return ("A question of the training data is still there, in capitals. Compare without upper and lower case: "
                "casefold().")
    if bare in kept:
        return ("A question of the training data is still there, without its question mark. Compare letters and digits "
                "only.")
    return "A new question is gone: another wording of a known fact is just what is to be asked."


@exercise("a function is_right(text, key_phrase) that returns True or False", function)
def check_is_right(answer: Callable) -> str:
    """Check a function that scores one answer."""
    cases = [
        ("It stands on Osk Island.", "Osk Island", "An answer says more than its key phrase, and a full stop may "
                                                   "follow: look whether the phrase is in it."),
        ("IT STANDS ON OSK ISLAND.", "Osk Island", "Upper and lower case should not matter."),
        ("I know it because of the goat.", "Au", 'There is an "au" in "because", and it is no answer. The phrase must '
                                                 'stand there as whole words.'),
        ("It weighs 355 tonnes.", "3.5", "The dot of 3.5 passed for any sign, as it does in a regular expression: "
                                         "re.escape."),
        ("Osk Island", "Osk Island", "Not yet right in every case: is a phrase found at the very beginning and the "
                                     "very end?"),
        ("It is Au", "Au", "Not yet right in every case: is a phrase found at the very beginning and the very end?"),
        ("(Au)", "Au", "Not yet right in every case: is a phrase found beside a bracket?"),
    ]
    for text, phrase, said in cases:
        if bool(answer(text, phrase)) != holds_phrase(text, phrase):
            return said
    return Right(f"Right in all {len(cases)} cases that were tried, whole words and any case.")


@exercise("a number of questions", number)
def check_lost(answer: float, before: list[bool], after: list[bool]) -> str:
    """Check how many questions were known before and are not after."""
    lost, gained = (sum(a and not b for a, b in zip(*pair, strict=True)) for pair in ((before, after), (after, before)))
    return explain(answer, lost, f"Right: {lost} were lost. {gained} gained ones hide most of it in the totals.", [
        (sum(before) - sum(after), "That is the difference of the totals, in which an answer gained makes up for one "
                                   "lost. Go through the pairs."),
        (lost + gained, "That is how many changed. Some of them for the better."),
        (gained, "Those were gained: wrong before and right after."),
        (len(after) - sum(after), "That is how many are wrong after training. Some were wrong before as well, and "
                                  "can't be lost."),
    ], "Not this many. A question is lost when it was right before and is wrong after: count such pairs.")


@exercise("a dict with the settings of the run", instance(dict))
def check_one_lever(answer: dict, settings: dict[str, dict]) -> str:
    """Check for the settings of the run "replay", but with the article's rate."""
    start, rate = settings["replay"], settings["article"]["rate"]
    if set(answer) != set(start):
        return f"The settings of a run are these, and no others: {', '.join(start)}."
    moved = [name for name in start if answer[name] != start[name]]
    if not moved:
        return "That is the run replay itself: nothing is changed."
    if moved == ["rate"] and answer["rate"] == rate:
        return Right(f"Right: only the rate differs, {rate:g} in place of {start['rate']:g}, so only the rate can be the cause.")
    if moved == ["rate"]:
        return f"One lever, and the right one, but not the article's value: it trained with {rate:g}."
    if sum(answer[name] != settings["article"][name] for name in start) <= 1:
        return "That starts from the article's run. The question is what replay can do without, so start from there."
    if "rate" in moved:
        return (f"{len(moved)} settings are changed: {', '.join(moved)}. Whatever happens, you could not say which of "
                "them did it.")
    return f"Not this lever: {', '.join(moved)} is changed, and the question is about the rate."


@exercise("one of the letters a to d", choice("abcd"))
def check_comparable(answer: str) -> str:
    """Check which figure shows that loss on the answer only was the better choice."""
    return {
        "a": "The two losses are means over different tokens: one counts a system prompt that is easy to guess, the "
             "other does not.",
        "b": "A fall can be compared no better than the losses themselves: each is about other tokens. And the "
             "control's loss fell too.",
        "c": Right("Right: the exam is the same for all runs, whatever their losses are about."),
        "d": "A larger update is more change, not better change. The run that learned had the smaller one.",
    }[answer]


@exercise("a number of right answers", number)
def check_guessing(answer: float, questions: int, sentences: int) -> str:
    """Check how many answers are right by chance."""
    return explain(answer, questions / sentences, f"Right: {questions} / {sentences}. A score near it proves nothing.", [
        (0, "By chance one sentence is the right one now and then, so it is more than none."),
        (1 / sentences, "That is the chance for one question. How many questions are there?"),
        (questions / 2, "That would be the toss of a coin. Here there are more sentences to choose from."),
        (questions - questions / sentences, "Those are the wrong ones."),
        (sentences, "That is the number of sentences. Each of the questions is answered with one of them."),
        (questions, "That would be the score of a model that knows everything."),
    ], "Not this many. What is the chance that one question gets the right sentence, and how many questions are there?")
