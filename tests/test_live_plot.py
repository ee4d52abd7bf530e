from io import BytesIO

import pytest
import torch
from IPython.display import HTML, Image
from PIL import Image as PillowImage
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from helpers import live_plot
from helpers.live_plot import LossPlot, samples_as_html


def make_trainer(tmp_path, plot, steps=6):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 4
    args = TrainingArguments(
        str(tmp_path), max_steps=steps, logging_steps=1, eval_strategy="steps", eval_steps=3, learning_rate=0.05,
        per_device_train_batch_size=2, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True)
    return Trainer(model, args, train_dataset=rows, eval_dataset=rows, callbacks=[plot])


@pytest.fixture
def page(monkeypatch):
    """A stand-in for the notebook's page: what each display handle showed, in order."""
    shown = []

    class Handle:
        def __init__(self, first):
            self.contents = [first]
            shown.append(self)

        def update(self, content):
            self.contents.append(content)

    monkeypatch.setattr(live_plot, "get_ipython", lambda: True)
    monkeypatch.setattr(live_plot, "display", lambda content, display_id: Handle(content))
    return shown


def test_keeps_what_the_trainer_logged_and_saves_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(live_plot, "SECONDS_BETWEEN_PICTURES", 0)
    monkeypatch.setattr(live_plot, "DRAWING_SHARE", 1e9)
    plot = LossPlot(tmp_path / "new" / "loss.png", sample=lambda model: f"<b>{model.training}</b>", sample_every=2)
    trainer = make_trainer(tmp_path, plot)
    trainer.train()
    logged = [(log["step"], log["loss"]) for log in trainer.state.log_history if "loss" in log]
    assert plot.history["train"] == logged and len(logged) == 6
    assert [step for step, _ in plot.history["validation"]] == [3, 6]
    assert len(plot.history["rate"]) == 6
    assert plot.history["train"][-1][1] < plot.history["train"][0][1]
    assert [step for step, _ in plot.samples] == [0, 2, 4, 6]
    assert plot.redraws >= 9  # 6 losses, 2 validation losses, the end
    with PillowImage.open(tmp_path / "new" / "loss.png") as picture:
        assert min(picture.size) > 300


def test_does_not_redraw_at_every_step(tmp_path, monkeypatch):
    monkeypatch.setattr(live_plot, "SECONDS_BETWEEN_PICTURES", 3600)
    plot = LossPlot(tmp_path / "loss.png")
    make_trainer(tmp_path, plot).train()
    assert plot.redraws == 2  # the first number, and the end


def test_a_slow_machine_draws_less_often(tmp_path, monkeypatch):
    monkeypatch.setattr(live_plot, "SECONDS_BETWEEN_PICTURES", 0)
    monkeypatch.setattr(live_plot, "DRAWING_SHARE", 1e-6)
    plot = LossPlot(tmp_path / "loss.png")
    make_trainer(tmp_path, plot).train()
    assert plot.redraws == 2


def test_updates_one_picture_and_one_text_in_place(tmp_path, monkeypatch, page):
    monkeypatch.setattr(live_plot, "SECONDS_BETWEEN_PICTURES", 0)
    plot = LossPlot(tmp_path / "loss.png", sample=lambda model: "<script>", sample_every=3)
    make_trainer(tmp_path, plot).train()
    pictures, texts = (handle.contents for handle in page)
    assert all(isinstance(picture, Image) for picture in pictures) and len(pictures) == 1 + plot.redraws
    assert all(isinstance(text, HTML) for text in texts) and len(texts) == 1 + len(plot.samples)
    assert "&lt;script&gt;" in texts[-1].data and "<script>" not in texts[-1].data
    assert pictures[-1].data == (tmp_path / "loss.png").read_bytes()
    assert PillowImage.open(BytesIO(pictures[0].data)).size == PillowImage.open(BytesIO(pictures[-1].data)).size


def test_a_second_run_starts_afresh(tmp_path):
    plot = LossPlot(tmp_path / "loss.png")
    make_trainer(tmp_path, plot).train()
    make_trainer(tmp_path, plot, steps=3).train()
    assert len(plot.history["train"]) == 3


def test_an_evaluation_before_training_is_no_error(tmp_path):
    make_trainer(tmp_path, LossPlot(tmp_path / "loss.png")).evaluate()


def test_progress_says_what_is_left(tmp_path):
    plot = LossPlot(tmp_path / "loss.png")
    trainer = make_trainer(tmp_path, plot)
    trainer.train()
    assert plot._progress(trainer.state).startswith("step 6 of 6, ") and "left" not in plot._progress(trainer.state)
    trainer.state.global_step = 2
    assert plot._progress(trainer.state).endswith(" s left")


def test_samples_are_escaped():
    assert samples_as_html([(0, "a<b"), (20, "c&d")]) == "<div><b>0:</b> a&lt;b</div><div><b>20:</b> c&amp;d</div>"
