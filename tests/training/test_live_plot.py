import builtins
import re
import signal
import sys
import threading

import pytest
import torch
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image as PillowImage
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainerState, TrainingArguments

from helpers.training import live_plot
from helpers.training.live_plot import LossPlot, as_html, draw, samples_as_html, stop_button, stopped_text

pytestmark = pytest.mark.slow
HISTORY = {"train": [(2, 2.5), (4, 1.25), (6, float("nan"))], "validation": [(0, 2.0), (4, 0.5)], "rate": [(2, 1e-3), (4, 5e-4)]}


class AtStep(TrainerCallback):
    """Do something during one step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.action()


def make_trainer(tmp_path, plot, steps=6, *others):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 4
    args = TrainingArguments(
        str(tmp_path), max_steps=steps, logging_steps=1, eval_strategy="steps", eval_steps=3, learning_rate=0.05,
        per_device_train_batch_size=2, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True)
    return Trainer(model, args, train_dataset=rows, eval_dataset=rows, callbacks=[plot, *others])


@pytest.fixture
def page(tmp_path, monkeypatch):
    """What a real IPython shell sends to the notebook's page, in order."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setattr(HistoryManager, "enabled", False)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # which the shell replaces
    before = dict(vars(builtins))
    shell = InteractiveShell.instance()
    shell.display_pub = CapturingDisplayPublisher(shell=shell)
    yield shell.display_pub.outputs
    InteractiveShell.clear_instance()
    for name in vars(builtins).keys() - before:
        delattr(builtins, name)


def shown(page) -> list[list[dict]]:
    """Return for each place of the page what stood there, one after the other."""
    places: dict = {}
    for message in page:
        places.setdefault(message["transient"]["display_id"], []).append(message["data"])
    return list(places.values())


def redraws(page) -> int:
    """Return how often the picture on the page was replaced, the first one not counted."""
    return len(shown(page)[1]) - 1


def test_keeps_what_the_trainer_logged_and_saves_a_picture(tmp_path, monkeypatch, page):
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
    assert redraws(page) >= 9  # 6 losses, 2 validation losses, the end
    with PillowImage.open(tmp_path / "new" / "loss.png") as picture:
        assert min(picture.size) > 300


def test_does_not_redraw_at_every_step(tmp_path, monkeypatch, page):
    monkeypatch.setattr(live_plot, "SECONDS_BETWEEN_PICTURES", 3600)
    plot = LossPlot(tmp_path / "loss.png")
    make_trainer(tmp_path, plot).train()
    assert redraws(page) == 2  # the first number, and the end


def test_a_slow_machine_draws_less_often(tmp_path, monkeypatch, page):
    monkeypatch.setattr(live_plot, "SECONDS_BETWEEN_PICTURES", 0)
    monkeypatch.setattr(live_plot, "DRAWING_SHARE", 1e-6)
    plot = LossPlot(tmp_path / "loss.png")
    make_trainer(tmp_path, plot).train()
    assert redraws(page) == 2


def test_updates_one_picture_and_one_text_in_place(tmp_path, monkeypatch, page):
    monkeypatch.setattr(live_plot, "SECONDS_BETWEEN_PICTURES", 0)
    plot = LossPlot(tmp_path / "loss.png", sample=lambda model: "<script>", sample_every=3)
    make_trainer(tmp_path, plot).train()
    button, pictures, texts = shown(page)
    assert "Stop training" in button[0]["text/plain"] and button[-1]["text/html"] == ""
    pictures, texts = ([data["text/html"] for data in place] for place in (pictures, texts))
    assert all("<svg" in picture for picture in pictures) and len(texts) == 1 + len(plot.samples)
    assert "&lt;script&gt;" in texts[-1] and "<script>" not in texts[-1]
    assert len({re.search(r'viewBox="[^"]+"', picture).group() for picture in pictures}) == 1  # no jump of the page


def test_the_picture_shows_the_history():
    figure = draw(HISTORY, max_steps=8, title="step 6 of 8")
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for axes in figure.axes for line in axes.lines}
    assert lines["validation loss"] == HISTORY["validation"] and lines["training loss"][:2] == HISTORY["train"][:2]
    assert lines["learning rate"] == HISTORY["rate"]
    assert [axes.get_xlim() for axes in figure.axes] == [(0, 8), (0, 8)] and figure.axes[0].get_ylim()[0] == 0
    assert figure.axes[0].get_title() == "step 6 of 8"


def test_the_picture_is_told_in_words():
    assert ('role="img" aria-label="Loss and learning rate, step 4 of 8, 2 s; training loss from 2.5 to 1.25; '
            'validation loss from 2 to 0.5; learning rate from 0.001 to 0.0005"') in as_html(
                draw(HISTORY, 8, "step 4 of 8, 2 s"), HISTORY | {"train": HISTORY["train"][:2]})
    warmed_up = HISTORY | {"rate": [(1, 1e-4), (2, 1e-3), (4, 1e-5)]}
    assert 'learning rate from 0.0001 up to 0.001 and to 1e-05"' in as_html(draw(warmed_up, 8, ""), warmed_up)
    rising = HISTORY | {"rate": warmed_up["rate"][:2]}
    assert 'learning rate from 0.0001 to 0.001"' in as_html(draw(rising, 8, ""), rising)


def test_an_empty_history_is_drawn_too():
    empty = dict.fromkeys(HISTORY, [])
    picture = as_html(draw(empty, 0, "step 0 of 0"), empty)
    assert "<circle" not in picture and 'aria-label="Loss and learning rate, step 0 of 0"' in picture


def test_each_point_tells_its_value_where_it_is_drawn():
    picture = as_html(draw(HISTORY, 8, ""), HISTORY)
    spots = re.findall(r'<circle cx="([^"]+)" cy="([^"]+)" [^>]*><title>([^<]+)</title>', picture)
    assert [text for _, _, text in spots] == [
        "step 2: training loss 2.5", "step 4: training loss 1.25", "step 2: learning rate 0.001",
        "step 4: learning rate 0.0005", "step 0: validation loss 2", "step 4: validation loss 0.5"]
    markers = [(float(x), float(y)) for x, y in re.findall(r'<use xlink:href="#m[^"]+" x="([^"]+)" y="([^"]+)"', picture)]
    losses = [(float(x), float(y)) for x, y, text in spots if "loss" in text]
    for spot in losses:  # the markers that matplotlib drew itself
        assert min(abs(spot[0] - x) + abs(spot[1] - y) for x, y in markers) < 0.2


def test_stop_from_another_thread_ends_training_after_the_step(tmp_path):
    plot = LossPlot(tmp_path / "loss.png", sample=lambda model: "", sample_every=100)
    other = threading.Thread(target=plot.stop)
    trainer = make_trainer(tmp_path, plot, 6, AtStep(2, lambda: (other.start(), other.join())))
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    assert trainer.state.global_step == 2 and plot.stopped
    assert plot._progress(trainer.state).startswith("step 2 of 6") and "left" not in plot._progress(trainer.state)
    assert not torch.equal(before, trainer.model.lm_head.weight)
    assert [step for step, _ in plot.samples] == [0, 2] and (tmp_path / "loss.png").exists()
    trainer.remove_callback(AtStep)
    trainer.train()
    assert trainer.state.global_step == 6 and not plot.stopped  # the next run is a whole one


def test_a_stop_in_the_last_step_stops_nothing(tmp_path):
    plot = LossPlot(tmp_path / "loss.png")
    trainer = make_trainer(tmp_path, plot, 3, AtStep(3, plot.stop))
    trainer.train()
    assert trainer.state.global_step == 3 and not plot.stopped


def test_the_notebooks_interrupt_stops_after_the_step_and_the_page_says_so(tmp_path, page):
    before = signal.getsignal(signal.SIGINT)
    plot = LossPlot(tmp_path / "loss.png")
    trainer = make_trainer(tmp_path, plot, 6, AtStep(4, lambda: signal.raise_signal(signal.SIGINT)))
    trainer.train()
    assert trainer.state.global_step == 4 and plot.stopped
    assert shown(page)[0][-1]["text/html"] == stopped_text(4, 6) and "after step 4 of 6" in stopped_text(4, 6)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_is_not_held_back(tmp_path, page):
    before = signal.getsignal(signal.SIGINT)
    twice = AtStep(2, lambda: (signal.raise_signal(signal.SIGINT), signal.raise_signal(signal.SIGINT)))
    try:
        with pytest.raises(KeyboardInterrupt):
            make_trainer(tmp_path, LossPlot(tmp_path / "loss.png"), 6, twice).train()
    finally:
        signal.signal(signal.SIGINT, before)  # as the notebook does after every cell


def test_the_button_stops_once():
    calls = []
    button = stop_button(lambda: calls.append(1))
    button.click()
    assert calls == [1] and button.disabled and button.description == "Stopping ..."


def test_outside_a_notebook_nothing_is_shown_and_ctrl_c_is_pythons(tmp_path, capsys):
    seen = []
    plot = LossPlot(tmp_path / "loss.png")
    make_trainer(tmp_path, plot, 2, AtStep(1, lambda: seen.append(signal.getsignal(signal.SIGINT)))).train()
    assert seen == [signal.getsignal(signal.SIGINT)]
    assert not re.search("IPython|Button|<svg", capsys.readouterr().out)  # what display prints where there is no page


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


def test_of_several_sets_to_validate_with_the_first_is_drawn(tmp_path):
    plot = LossPlot(tmp_path / "loss.png")
    trainer = make_trainer(tmp_path, plot)
    trainer.eval_dataset = {"first": trainer.eval_dataset, "second": [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}] * 4}
    trainer.train()
    first = [(entry["step"], entry["eval_first_loss"]) for entry in trainer.state.log_history if "eval_first_loss" in entry]
    assert len(first) == 2 and plot.history["validation"] == first


@pytest.mark.parametrize(("path", "every", "reason"), [("loss.txt", 20, "one of the endings .png"), (".", 20, "give the file for the picture"), ("loss.png", 0, "sample_every is 0")])
def test_what_could_not_be_written_or_asked_is_refused_before_training(path, every, reason):
    with pytest.raises(ValueError, match=reason):
        LossPlot(path, sample_every=every)


def test_a_picture_that_cannot_be_written_loses_nothing(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file where the folder would be")
    plot = LossPlot(tmp_path / "taken" / "loss.png")
    make_trainer(tmp_path, plot).train()
    assert "The picture could not be written" in capsys.readouterr().out and len(plot.history["train"]) == 6


def test_in_another_thread_the_interrupt_stays_pythons(tmp_path, page):
    before, trainer = signal.getsignal(signal.SIGINT), make_trainer(tmp_path, plot := LossPlot(tmp_path / "loss.png"))
    (thread := threading.Thread(target=trainer.train)).start()
    thread.join()
    assert len(plot.history["train"]) == 6 and signal.getsignal(signal.SIGINT) is before


def test_the_time_left_is_that_of_the_steps_done_since_it_went_on(tmp_path):
    plot = LossPlot(tmp_path / "loss.png")
    plot._start_afresh(first_step=90)
    plot._start -= 10
    state = TrainerState(global_step=95, max_steps=100)
    assert re.search(r"step 95 of 100, 1\d s, about 1\d s left", plot._progress(state))
