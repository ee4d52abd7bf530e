"""Count the steps of a training run before it starts: the learning rate at each, and when it logs and saves."""
import math

import torch


def training_steps(records: int, batch_size: int, accumulation: int = 1, epochs: float = 1) -> int:
    """Return the number of optimizer steps of a run on one device.

    A batch that is not full counts as a batch, a group of batches that is not full makes a step, and so does a part of
    an epoch. Raises ValueError when a number is not above 0.
    """
    check_above_zero(records=records, batch_size=batch_size, accumulation=accumulation, epochs=epochs)
    batches = math.ceil(records / batch_size)
    return math.ceil(epochs * math.ceil(batches / accumulation))


def log_and_save_steps(records: int, batch_size: int, accumulation: int = 1, epochs: float = 1, logging_steps: int = 10,
                       save: str | int = "epoch") -> tuple[list[int], list[int]]:
    """Return the steps after which a line is logged, and those after which a checkpoint is saved.

    save: "no", "epoch", or a number of steps. A number below 1 is a share of all steps, rounded up. Both ways of saving also save after the last step.
    Raises ValueError when a number is not above 0.
    """
    steps = training_steps(records, batch_size, accumulation, epochs)
    every = {"no": steps, "epoch": training_steps(records, batch_size, accumulation)}.get(save, save)
    if isinstance(every, str):
        raise ValueError(f'save is "{save}": give "no", "epoch" or a number of steps')
    check_above_zero(logging_steps=logging_steps, save=every)
    distances = (math.ceil(steps * n) if n < 1 else int(n) for n in (logging_steps, every))
    logs, saves = (list(range(n, steps + 1, n)) for n in distances)
    return logs, [] if save == "no" else sorted({*saves, steps})


def learning_rates(steps: int, learning_rate: float, warmup_steps: float = 0, lr_scheduler_type: str = "linear") -> list[float]:
    """Return the learning rate of each step, made by the scheduler that the trainer uses.

    warmup_steps below 1 is a share of all steps, rounded up, as in TrainingArguments; from 1 on it is a number of steps.
    Raises ValueError for a schedule that follows the losses, such as "reduce_lr_on_plateau", or needs settings of its own.
    """
    from transformers import get_scheduler

    warmup = int(warmup_steps) if warmup_steps >= 1 else math.ceil(steps * warmup_steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=learning_rate)
    try:
        scheduler = get_scheduler(lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    except TypeError as error:
        raise ValueError(f"lr_scheduler_type is {lr_scheduler_type}: it needs lr_scheduler_kwargs of its own, so its rates can't be planned here") from error
    if not hasattr(scheduler, "lr_lambdas"):
        raise ValueError(f"lr_scheduler_type is {lr_scheduler_type}: its rates depend on the losses, so they can't be planned")
    return [learning_rate * scheduler.lr_lambdas[0](step) for step in range(steps)]


def check_above_zero(**given: float) -> None:
    """Raise ValueError, with its name, for a number that is not above 0."""
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}, but it must be more than 0")
