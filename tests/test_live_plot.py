import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from helpers import live_plot
from helpers.live_plot import LossPlot


def train(tmp_path, plot, steps=6):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2))
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 4
    args = TrainingArguments(str(tmp_path), max_steps=steps, logging_steps=1, eval_strategy="steps", eval_steps=3, learning_rate=0.05,
                             per_device_train_batch_size=2, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True)
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows, callbacks=[plot])
    trainer.train()
    return trainer


def test_keeps_what_the_trainer_logged_and_saves_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(live_plot, "SECONDS_BETWEEN_PICTURES", 0)
    plot = LossPlot(tmp_path / "new" / "loss.png", sample=lambda model: f"<b>{model.training}</b>", sample_every=2)
    trainer = train(tmp_path, plot)
    logged = [(log["step"], log["loss"]) for log in trainer.state.log_history if "loss" in log]
    assert plot.history["train"] == logged and len(logged) == 6
    assert [step for step, _ in plot.history["validation"]] == [3, 6]
    assert plot.history["train"][-1][1] < plot.history["train"][0][1]
    assert [step for step, _ in plot.samples] == [2, 4, 6]
    assert plot.redraws >= 7
    assert min(Image.open(tmp_path / "new" / "loss.png").size) > 300


def test_does_not_redraw_at_every_step(tmp_path, monkeypatch):
    monkeypatch.setattr(live_plot, "SECONDS_BETWEEN_PICTURES", 3600)
    plot = LossPlot(tmp_path / "loss.png")
    train(tmp_path, plot)
    assert plot.redraws <= 2


def test_a_second_run_starts_afresh(tmp_path):
    plot = LossPlot(tmp_path / "loss.png")
    train(tmp_path, plot)
    train(tmp_path, plot, steps=3)
    assert len(plot.history["train"]) == 3
