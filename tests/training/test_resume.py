"""Real training processes, killed at several moments; what comes of going on must be the run that was never killed."""
import json
import os
import pickle
import shutil

import pytest
import torch
from resumable import ROWS, STEPS, make_trainer, run
from safetensors.torch import load_file
from transformers import TrainerCallback

from helpers.training.live_plot import LossPlot, stopped_text
from helpers.training.resume import run_settings, where_to_begin
from helpers.training.saving import keep_record, read_record

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(os.name != "posix", reason="SIGKILL and RLIMIT_FSIZE are Unix's"),
              pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]
IN_A_CHECKPOINT = ["adapter written", "optimizer written", "random numbers written", "disk full"]
# moment, step, how much of the newest file is on the disk, and the checkpoint from which training must go on
KILLS = [
    ("gradients computed", 2, 1, None),
    ("gradients computed", 6, 1, "checkpoint-4"),
    ("gradients computed", 9, 1, "checkpoint-8"),  # within the second epoch
    ("adapter written", 4, 0.5, None),
    ("adapter written", 8, 1, "checkpoint-4"),
    ("optimizer written", 8, 0.5, "checkpoint-4"),
    ("optimizer written", 12, 1, "checkpoint-8"),
    ("random numbers written", 12, 0.5, "checkpoint-8"),
    ("an old checkpoint half removed", 12, 1, "checkpoint-12"),
    ("disk full", 5, 1, "checkpoint-4"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


@pytest.fixture(autouse=True)
def threads():
    """The trainer of these tests computes in one thread, so that sums come in one order."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(one, other):
    one, other = adapter(one), adapter(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def begun(folder):
    """Return the name of the checkpoint from which the last run in this folder went on, and the sentence about it."""
    return json.loads((folder / "begun.json").read_text())


def logged(folder):
    """Return what was logged and what the plot holds.

    Left out: what the clock gives, the count of tokens, which TRL begins again at 0, and the validation loss that
    eval_on_start measures once more where the run goes on.
    """
    result = json.loads((folder / "result.json").read_text())
    log = [entry for entry in result["log"] if "train_runtime" not in entry and not ("eval_loss" in entry and entry["step"] % 5)]
    clock = ("runtime", "per_second", "num_tokens")
    log = [{name: value for name, value in entry.items() if not name.endswith(clock)} for entry in log]
    return log, result["plot"]["train"], result["plot"]["rate"], [point for point in result["plot"]["validation"] if point[0] % 5 == 0]


def assert_same_run(folder, whole):
    assert same(folder / "adapter", whole / "adapter")
    assert logged(folder) == logged(whole)
    assert [step for step, _ in logged(folder)[1]] == list(range(2, STEPS, 2))


@pytest.mark.parametrize(("moment", "step", "part", "goes_on_from"), KILLS)
def test_a_run_that_died_goes_on_exactly(tmp_path, whole, moment, step, part, goes_on_from):
    code = run(tmp_path, moment=moment, step=step)
    assert code > 0 if moment == "disk full" else code == -9
    if part < 1:
        newest = max((tmp_path / "run" / f"checkpoint-{step}").iterdir(), key=lambda file: file.stat().st_mtime_ns)
        newest.write_bytes(newest.read_bytes()[:int(part * newest.stat().st_size)])
    assert run(tmp_path, seed=7) == 0
    name, sentence = begun(tmp_path)
    assert name == goes_on_from
    assert ("is damaged" in sentence) == (moment in IN_A_CHECKPOINT)
    assert sentence.endswith(f"goes on after step {name.split('-')[1]} of {STEPS}." if name else "begins at step 0.")
    assert_same_run(tmp_path, whole)


def test_a_run_killed_again_and_again_arrives(tmp_path, whole):
    for moment, step in (("gradients computed", 6), ("optimizer written", 8), ("gradients computed", 10), ("adapter written", 12)):
        assert run(tmp_path, moment=moment, step=step, seed=step) == -9
    assert run(tmp_path, seed=1) == 0
    assert begun(tmp_path)[0] == "checkpoint-8"
    assert_same_run(tmp_path, whole)


def test_the_comparison_sees_a_run_that_went_on_otherwise(tmp_path, whole):
    """Without its optimizer's memory, or with other random numbers, a resumed run ends elsewhere."""
    trainer = make_trainer(tmp_path)
    trainer.train()
    assert same(tmp_path / "run" / "checkpoint-15", whole / "adapter")
    shutil.rmtree(tmp_path / "run" / "checkpoint-15")
    (tmp_path / "run" / "checkpoint-12" / "optimizer.pt").unlink()
    trainer = make_trainer(tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-12"))
    assert not same(tmp_path / "run" / "checkpoint-15", whole / "adapter")


def test_a_finished_run_is_kept_and_not_continued(tmp_path, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    assert run(tmp_path) == 0
    name, sentence = begun(tmp_path)
    assert name is None and sentence == f"A finished run of {STEPS} steps was here and is kept in run_previous. Training begins at step 0."
    assert same(tmp_path / "run_previous" / "checkpoint-15", whole / "adapter")
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(("change", "word"), [({"learning_rate": 0.01}, "learning_rate"), ({"rows": ROWS[1:]}, "training data")])
def test_a_run_with_other_settings_is_kept_and_not_continued(tmp_path, change, word):
    assert run(tmp_path, moment="gradients computed", step=6) == -9
    assert run(tmp_path, **change) == 0
    name, sentence = begun(tmp_path)
    assert name is None and sentence.startswith(f"A run with other settings ({word}) was here and is kept in run_previous.")
    assert (tmp_path / "run_previous" / "checkpoint-4").is_dir()


def test_an_adapter_is_whole_at_every_moment_and_the_one_before_is_kept(tmp_path, whole):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    assert run(tmp_path, moment="adapter not yet in place", step=STEPS, learning_rate=0.01) == -9
    assert same(tmp_path / "adapter", whole / "adapter") and not (tmp_path / "adapter_previous").exists()
    assert run(tmp_path, learning_rate=0.01) == 0
    assert same(tmp_path / "adapter_previous", whole / "adapter") and not same(tmp_path / "adapter", whole / "adapter")
    assert not list(tmp_path.glob("*.part*"))


class StopAt(TrainerCallback):
    def __init__(self, step, plot):
        self.step, self.plot = step, plot

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.plot.stop()


def test_a_run_that_was_stopped_goes_on_in_the_same_kernel(tmp_path, whole, capsys):
    """The button leaves a checkpoint, so that not even one step is lost."""
    trainer, plot = make_trainer(tmp_path), LossPlot(tmp_path / "loss.png")
    stop = StopAt(6, plot)
    trainer.add_callback(plot)
    trainer.add_callback(stop)
    checkpoint = where_to_begin(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert plot.stopped
    trainer.remove_callback(stop)
    capsys.readouterr()
    checkpoint = where_to_begin(trainer)
    assert capsys.readouterr().out == f"Training goes on after step 6 of {STEPS}.\n"
    trainer.train(resume_from_checkpoint=checkpoint)
    assert same(tmp_path / "run" / "checkpoint-15", whole / "adapter")

    with pytest.raises(ValueError, match="trained already, 15 steps"):  # finished, and its weights are no longer those of step 0
        where_to_begin(trainer)
    assert (tmp_path / "run" / "checkpoint-15").is_dir() and not (tmp_path / "run_previous").exists()


def test_a_checkpoint_whose_settings_are_not_known_is_kept(tmp_path, whole, capsys):
    shutil.copytree(whole / "run", tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text('{"learning_rate": 0.0')
    assert where_to_begin(make_trainer(tmp_path)) is None
    assert "whose settings are not known was here and is kept in run_previous" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_renamed_and_the_whole_one_stays(tmp_path, whole):
    shutil.copytree(whole / "run", tmp_path / "run")
    (tmp_path / "run" / "checkpoint-15" / "optimizer.pt").unlink()
    checkpoint = where_to_begin(make_trainer(tmp_path))
    assert checkpoint == str(tmp_path / "run" / "checkpoint-12")
    assert [file.name for file in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-12"]
    assert (tmp_path / "run" / "damaged-15" / "adapter_model.safetensors").is_file()


def test_what_is_not_the_trainers_stays(tmp_path, whole, capsys):
    """A learner's own files lie in output_dir, which may be the folder of the whole project."""
    run = tmp_path / "run"
    shutil.copytree(whole / "run", run)
    own = [run / "data.jsonl", run / "checkpoint-final" / "adapter_model.safetensors", run / "checkpoint-notes.txt"]
    for file in own:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    for rate in (0.01, 0.03):  # neither is the rate of what is there
        assert where_to_begin(make_trainer(tmp_path, learning_rate=rate)) is None
        shutil.copytree(whole / "run" / "checkpoint-12", run / "checkpoint-12")
    assert [file.read_text() for file in own] == ["mine"] * 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run", "run_previous", "run_previous_2"]
    assert "is kept in run_previous_2." in capsys.readouterr().out and (tmp_path / "run_previous" / "checkpoint-15").is_dir()


def test_how_often_is_written_is_no_other_run_and_another_base_is(tmp_path, whole, capsys):
    shutil.copytree(whole / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-15")
    args = {"logging_steps": 1, "save_steps": 7, "save_total_limit": 5, "disable_tqdm": False, "per_device_eval_batch_size": 1, "run_name": "again"}
    assert where_to_begin(make_trainer(tmp_path, **args)) == str(tmp_path / "run" / "checkpoint-12")
    trainer = make_trainer(tmp_path)
    before = run_settings(trainer)
    trainer.model.peft_config["default"].lora_alpha += 1
    assert {name for name, value in run_settings(trainer).items() if before[name] != value} == {"LoRA lora_alpha"}
    trainer.model.peft_config["default"].lora_alpha -= 1
    with torch.no_grad():
        next(weight for name, weight in trainer.model.named_parameters() if "base_layer" in name)[0] += 1
    assert where_to_begin(trainer) is None and "other settings (base weights)" in capsys.readouterr().out


def test_the_best_checkpoint_is_what_the_model_has_when_it_is_put_back(tmp_path, capsys):
    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": 1,
            "metric_for_best_model": "eval_loss", "greater_is_better": True}  # so the first is the best, since the loss falls
    trainer, plot = make_trainer(tmp_path, **best), LossPlot(tmp_path / "loss.png")
    trainer.add_callback(plot)
    trainer.add_callback(StopAt(13, plot))
    trainer.train(resume_from_checkpoint=where_to_begin(trainer))
    kept = trainer.state.best_global_step
    assert trainer.state.global_step == 13 and kept == 5
    trainer.save_model(str(tmp_path / "adapter"))
    keep_record(trainer, tmp_path / "adapter")
    assert read_record(tmp_path / "adapter")["steps"] == kept
    assert stopped_text(13, 15, kept) == f"<b>Stopped after step 13 of 15. The model is that of step {kept}, whose validation loss was the lowest.</b>"


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path, whole, name):
    """The trainer reads a checkpoint with weights_only=True, and training_args.bin not at all."""
    shutil.copytree(whole / "run", tmp_path / "run", ignore=lambda folder, names: {"checkpoint-15"} & set(names))
    torch.save(Bomb(tmp_path / "exploded"), tmp_path / "run" / "checkpoint-12" / name)
    trainer = make_trainer(tmp_path)
    checkpoint = where_to_begin(trainer)
    assert checkpoint == str(tmp_path / "run" / "checkpoint-12")
    if name == "training_args.bin":
        trainer.train(resume_from_checkpoint=checkpoint)
    else:
        with pytest.raises(pickle.UnpicklingError, match="Weights only"):
            trainer.train(resume_from_checkpoint=checkpoint)
    assert not (tmp_path / "exploded").exists()
