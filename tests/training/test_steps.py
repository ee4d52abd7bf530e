import pytest
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from helpers.training.steps import learning_rates, log_and_save_steps, training_steps


class OneWeight(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return {"loss": (self.weight - x.float()).square().mean()}


def trained(folder, records, **settings):
    """Train for real and return the trainer."""
    settings = {"save_strategy": "no", "logging_steps": 1} | settings
    args = TrainingArguments(str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **settings)
    trainer = Trainer(OneWeight(), args, train_dataset=[{"x": i} for i in range(records)])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize(("records", "batch", "accumulation", "epochs"), [
    (2, 1, 1, 2), (2, 4, 8, 2), (2, 1, 8, 2.5), (9, 2, 1, 1), (9, 2, 2, 3), (9, 2, 5, 1), (10, 2, 5, 1.1), (23, 4, 3, 0.4)])
def test_steps_are_those_that_the_trainer_takes(tmp_path, records, batch, accumulation, epochs):
    trainer = trained(tmp_path, records, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
                      num_train_epochs=epochs)
    assert training_steps(records, batch, accumulation, epochs) == trainer.state.global_step


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 0.25, 3])
def test_rates_are_those_that_the_trainer_logs(tmp_path, schedule, warmup):
    trainer = trained(tmp_path, 9, per_device_train_batch_size=1, num_train_epochs=1, learning_rate=1e-3, warmup_steps=warmup,
                      lr_scheduler_type=schedule)
    logged = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert learning_rates(9, 1e-3, warmup, schedule) == pytest.approx(logged)


@pytest.mark.slow
@pytest.mark.parametrize("logging", [1, 3, 10])
@pytest.mark.parametrize("save", ["no", "epoch", 1, 4, 5, 50])
@pytest.mark.parametrize("plan", [(2, 1, 1, 2), (9, 2, 1, 2), (9, 2, 2, 2.5), (10, 2, 5, 1.1), (23, 4, 3, 0.4)])
def test_lines_and_checkpoints_fall_where_the_trainer_puts_them(tmp_path, plan, save, logging):
    records, batch, accumulation, epochs = plan
    how = {"save_strategy": save} if isinstance(save, str) else {"save_strategy": "steps", "save_steps": save}
    trainer = trained(tmp_path, records, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
                      num_train_epochs=epochs, logging_steps=logging, **how)
    logged = [line["step"] for line in trainer.state.log_history if "loss" in line]
    saved = sorted(int(folder.name.split("-")[1]) for folder in tmp_path.glob("checkpoint-*"))
    assert log_and_save_steps(*plan, logging, save) == (logged, saved)


@pytest.mark.parametrize(("name", "wrong"), [("logging_steps", {"logging_steps": 0}), ("save", {"save": 0})])
def test_intervals_of_zero_are_named(name, wrong):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        log_and_save_steps(4, 2, **wrong)


@pytest.mark.parametrize("name", ["records", "batch_size", "accumulation", "epochs"])
def test_what_is_not_above_zero_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        training_steps(**({"records": 4, "batch_size": 2, "accumulation": 1, "epochs": 1} | {name: 0}))


def test_a_share_is_one_of_all_steps_and_another_word_is_named():
    assert log_and_save_steps(40, 4, logging_steps=0.25, save=0.5) == ([3, 6, 9], [5, 10])
    for word in ("steps", "best"):
        with pytest.raises(ValueError, match=f'save is "{word}": give'):
            log_and_save_steps(40, 4, save=word)


def test_a_schedule_that_follows_the_losses_cannot_be_planned():
    with pytest.raises(ValueError, match="depend on the losses"):
        learning_rates(5, 1e-3, lr_scheduler_type="reduce_lr_on_plateau")
    with pytest.raises(ValueError, match="warmup_stable_decay: it needs lr_scheduler_kwargs"):
        learning_rates(5, 1e-3, lr_scheduler_type="warmup_stable_decay")
