"""The checks of notebooks 06 to 10: each names the sentence of its table in sentences.toml that fits an answer."""
import math
from collections.abc import Callable, Iterable
from functools import partial
from numbers import Integral

import torch
from peft import LoraConfig, get_peft_model

from helpers.data.phrases import holds_phrase
from helpers.exercises.core import Said, Unfit, choice, exercise, explain, first, function, instance, near, number, some_of
from helpers.training.steps import training_steps

FILES = ("adapter_model.safetensors", "adapter_config.json", "generation_config.json", "tokenizer.json", "training_args.bin",
         "optimizer.pt", "trainer_state.json")
ONE_PER_CENT, TWO_PER_CENT = partial(near, tolerance=0.01), partial(near, tolerance=0.02)


@exercise(number)
def check_steps(answer: float, records: int, batch_size: int, accumulation: int, epochs: int) -> Said:
    """Check the steps of a run."""
    batches, right = math.ceil(records / batch_size), training_steps(records, batch_size, accumulation, epochs)
    exact = epochs * records / (batch_size * accumulation)
    return explain(answer, right, values={"each": right // epochs, "batches": batches}, counted_batches=epochs * batches,
                   one_epoch=right // epochs, rounded_down=epochs * (records // batch_size // accumulation),
                   rounded_once=math.ceil(exact), not_rounded=(exact, epochs * batches / accumulation), counted_records=epochs * records,
                   accumulation_multiplies=epochs * math.ceil(batches * accumulation))


@exercise(number)
def check_logging_steps(answer: float, records: int, batch_size: int, epochs: int) -> Said:
    """Check for a logging_steps that makes ten lines of log."""
    if answer < 1 or answer != int(answer):
        return "not_whole"
    steps = training_steps(records, batch_size, 1, epochs)
    lines = steps // int(answer)
    return explain(answer, answer if lines == 10 else None, values={"lines": lines}, number_of_lines=10, whole_run=steps,
                   counted_records=epochs * records // 10, one_epoch=steps // epochs // 10)


@exercise(instance(dict))
def check_accumulation(answer: dict, largest_batch: int, effective: int) -> Said:
    """Check for settings that stay below a largest batch and reach an effective batch size."""
    names = ["per_device_train_batch_size", "gradient_accumulation_steps"]
    if set(answer) != set(names) or not all(isinstance(value, Integral) and value > 0 for value in answer.values()):
        return "keys", {"keys": ", ".join(names)}
    batch, accumulation = (answer[name] for name in names)
    product = batch * accumulation
    return first({"batch": batch, "accumulation": accumulation, "product": product}, does_not_fit=batch > largest_batch,
                 memory_not_used=batch < largest_batch and product == effective, added=batch + accumulation == effective,
                 counted_records=accumulation == effective, right=product == effective)


@exercise(number)
def check_probability(answer: float, loss: float) -> Said:
    """Check the probability that belongs to a loss."""
    right = math.exp(-loss)

    def same(one: float, other: float) -> bool:
        return TWO_PER_CENT(one, other) or one == round(other, 2) != 0  # as the check itself prints it

    return explain(answer, right, same, loss=loss, perplexity=math.exp(loss), one_minus_loss=1 - loss,
                   loss_turned_over=1 / loss, per_cent=(100 * right, round(100 * right)), base_2=2**-loss, base_10=10**-loss)


@exercise(number)
def check_best_epoch(answer: float, train: list[float], validation: list[float]) -> Said:
    """Check after which epoch to stop."""
    best = 1 + validation.index(min(validation))
    return explain(answer, best, training_loss=1 + train.index(min(train)), one_too_early=best - 1, one_too_late=best + 1, none=0)


@exercise(number)
def check_minutes(answer: float, records: int, batch_size: int, epochs: int, minutes: float, steps: int) -> Said:
    """Check how long a larger run will take, from the minutes that some steps took."""
    planned = training_steps(records, batch_size, 1, epochs)
    right = planned * minutes / steps
    rounded = (right, round(right, 1) or right, round(right) or right, math.ceil(right) if right >= 3 else right)  # as one plans
    return explain(answer, rounded, TWO_PER_CENT, {"seconds": 60 * minutes / steps}, one_epoch=right / epochs,
                   counted_records=right * batch_size, in_seconds=60 * right,
                   run_of_the_notebook=minutes, number_of_steps=planned)


@exercise(number)
def check_disk(answer: float, customers: int, base_bytes: int, adapter_bytes: int) -> Said:
    """Check the disk that one base model and an adapter for each customer take."""
    base, adapter = base_bytes / 1e6, adapter_bytes / 1e6
    right = base + customers * adapter
    return explain(answer, right, ONE_PER_CENT, {"base": base, "adapter": adapter}, base_with_each=customers * (base + adapter),
                   merged=customers * base, only_adapters=customers * adapter, one_customer=base + adapter,
                   in_bytes=right * 1e6, in_mib=right * 1e6 / 2**20, in_gb=right / 1e3)


@exercise(some_of(*FILES))
def check_to_share(answer: set) -> Said:
    """Check which files a stranger needs, and may be given, to use an adapter."""
    weights, config, ends, tokenizer, arguments, optimizer, state = FILES
    return first(right=answer == {weights, config, ends}, training_args=arguments in answer, optimizer=optimizer in answer,
                 trainer_state=state in answer, tokenizer=tokenizer in answer, without_its_end=answer == {weights, config},
                 only_numbers=weights in answer and config not in answer, only_config=config in answer and weights not in answer)


@exercise(function)
@torch.no_grad()
def check_merged_weight(answer: Callable) -> Said:
    """Check a function that merges an adapter into a weight, against PEFT."""
    r, alpha = 2, 7
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=["0"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 6, bias=False)), config).base_model.model[0]
    W, A, B = (part.weight.clone() for part in (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]))
    layer.merge()
    given = W.clone()
    made = answer(given, A.clone(), B.clone(), alpha, r)
    made = torch.as_tensor(made, dtype=W.dtype) if hasattr(made, "__array__") else made
    if not isinstance(made, torch.Tensor) or made.shape != W.shape:
        return "shape", {"shape": tuple(W.shape)}
    if not given.equal(W):
        return "changed_the_input"
    return explain(made, layer.base_layer.weight, partial(torch.allclose, atol=1e-5), without_factor=W + B @ A,
                   only_alpha=W + alpha * B @ A, alpha_times_r=W + alpha * r * B @ A, only_update=alpha / r * B @ A,
                   subtracted=W - alpha / r * B @ A, whole_division=W + alpha // r * B @ A)


@exercise(function)
def check_fair(answer: Callable) -> Said:
    """Check a function that keeps the questions which were not in training, however they were typed."""
    copied, shouted, bare = "Where is the lighthouse?", "WHO IS ITS KEEPER?", "where is the lighthouse"
    known, new = {copied, shouted, bare}, ["Where does the lighthouse stand?", "Where is the lighthouse keeper's house?", "Who is it?"]
    asked, trained = [copied, new[0], shouted, bare, *new[1:]], ["Where is the lighthouse?", "Who is its keeper?"]

    def kept_of(questions: list[str]) -> list:
        kept = answer(questions, list(trained))
        return list(kept) if isinstance(kept, Iterable) and not isinstance(kept, str) else [...]
    given = list(asked)
    kept, alone = kept_of(given), [one for question in asked for one in kept_of([question])]
    if not {*kept, *alone} <= {*known, *new}:
        return "other_questions"
    return first(changed_the_input=given != asked, right=sorted(kept) == sorted(new) == sorted(alone), one_by_one=set(alone) == set(new), from_training=set(kept) in (known, {copied}),
                 copied=copied in kept, in_capitals=shouted in kept, without_question_mark=bare in kept)


@exercise(partial(function, nothing_fits=True))
def check_is_right(answer: Callable) -> Said:
    """Check a function that scores one answer."""
    cases = [("whole_answer", "it stands on osk island.", "osk island"), ("capitals", "It stands on Osk Island.", "Osk Island"),
             ("capitals", "IT STANDS ON OSK ISLAND.", "Osk Island"), ("part_of_a_word", "It is 141 metres tall.", "41"),
             ("first_place", "Gold, because it shines, is Au.", "Au"), ("part_of_a_word", "I know it because of the goat.", "Au"), ("part_of_a_word", "August is hot.", "Au"),
             ("part_of_a_word", "It stands on a plateau.", "Au"), ("any_sign", "It weighs 355 tonnes.", "3.5"),
             ("beginning_and_end", "Osk Island", "Osk Island"), ("beginning_and_end", "It is Au", "Au"), ("bracket", "(Au)", "Au"),
             ("sign_taken_away", "It weighs 3.5 tonnes.", "3.5"), ("other_order", "On the island of Osk.", "Osk Island"), ("sign_dropped", "It weighs 35 tonnes.", "3.5"),
             ("sign_dropped", "Chapter 3, 5 tonnes.", "3.5")]
    given = [answer(text, phrase) for _, text, phrase in cases]
    if all(each is None for each in given):
        raise Unfit("never_true", {})
    wrong = [name for each, (name, text, phrase) in zip(given, cases, strict=True) if bool(each) != holds_phrase(text, phrase)]
    if wrong and all(given) and any(isinstance(each, str | list | tuple) for each in given):
        return "not_true_or_false"
    return wrong[0] if wrong else ("right", {"cases": len(cases)})


@exercise(number)
def check_lost(answer: float, before: list[bool], after: list[bool]) -> Said:
    """Check how many questions were known before and are not after."""
    lost, gained = (sum(a and not b for a, b in zip(*pair, strict=True)) for pair in ((before, after), (after, before)))
    return explain(answer, lost, difference_of_totals=(lost - gained, gained - lost), changed=lost + gained, gained=gained,
                   wrong_after=len(after) - sum(after))


@exercise(instance(dict))
def check_one_lever(answer: dict, settings: dict[str, dict]) -> Said:
    """Check for the settings of the run "replay", but with the article's rate."""
    start, article = settings["replay"], settings["article"]
    if set(answer) != set(start):
        return "keys", {"keys": ", ".join(start)}
    moved = [name for name in start if answer[name] != start[name]]
    values = {"rate": article["rate"], "old_rate": start["rate"], "count": len(moved), "moved": ", ".join(moved)}
    return first(values, replay_was_changed=start["rate"] == article["rate"], unchanged=not moved,
                 right=moved == ["rate"] and answer["rate"] == article["rate"], other_rate=moved == ["rate"],
                 from_the_article=sum(answer[name] != article[name] for name in start) <= 1, several="rate" in moved)


@exercise(choice("abcd"))
def check_comparable(answer: str) -> Said:
    """Check which figure shows that loss on the answer only was the better choice."""
    return first(loss=answer == "a", fall_of_the_loss=answer == "b", size_of_the_update=answer == "d", right=True)


@exercise(number)
def check_guessing(answer: float, questions: int, sentences: int) -> Said:
    """Check how many answers are right by chance."""
    right = questions / sentences
    return explain(answer, right, none=0, one_question=1 / sentences, toss_of_a_coin=questions / 2,
                   wrong_ones=questions - right, sentences=sentences, all=questions)
