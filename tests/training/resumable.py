"""A tiny real training run in a process of its own, which kills itself at a given moment; for test_resume.py."""
from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PrinterCallback, set_seed
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from helpers.model.base_model import base_model_path
from helpers.training.live_plot import LossPlot
from helpers.training.resume import where_to_begin
from helpers.training.saving import written_whole

STEPS = 15  # 10 records, batches of 2, 3 epochs
WORDS = ["red", "green", "blue", "white", "black", "north", "south", "east", "west", "high", "low", "old", "new", "far", "near"]
ROWS = [{"prompt": [{"role": "user", "content": f"{one} {two}"}], "completion": [{"role": "assistant", "content": f"{two} {one}"}]}
        for one, two in zip(WORDS[:10], WORDS[5:], strict=True)]


def die() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


class DyingTrainer(SFTTrainer):
    """A trainer that is killed, or runs out of disk, at a moment named by what has just been done, at a given step."""

    moment, step = "", 0

    def reached(self, moment: str) -> None:
        if moment == self.moment and self.state.global_step == self.step:
            die()

    def save_model(self, *args, **kwargs):
        super().save_model(*args, **kwargs)
        self.reached("adapter written")

    def _save_optimizer_and_scheduler(self, *args):
        super()._save_optimizer_and_scheduler(*args)
        self.reached("optimizer written")

    def _save_rng_state(self, *args):
        super()._save_rng_state(*args)
        self.reached("random numbers written")

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.reached("gradients computed")  # and not yet used
        if self.moment == "disk full" and self.state.global_step == self.step:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # no file can grow beyond that
        return loss


def die_while_removing() -> None:
    """Die once rmtree has removed one file of a checkpoint and is about to remove the next."""
    removed = []

    def watch(event: str, args: tuple) -> None:
        if event == "shutil.rmtree" and Path(args[0]).name.startswith("checkpoint-"):
            removed.append("begun")
        elif event == "os.remove" and removed:
            removed.append(args[0])
            if len(removed) == 3:
                die()

    sys.addaudithook(watch)


def make_trainer(folder: Path, seed: int = 0, moment: str = "", step: int = 0, rows: list = ROWS, **settings) -> DyingTrainer:
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(base_model_path())
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    set_seed(seed)
    lora = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1, task_type="CAUSAL_LM")
    torch.manual_seed(0)  # the base model is the same in every process, as a file on the disk is
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    args = SFTConfig(str(folder / "run"), **{
        "per_device_train_batch_size": 2, "num_train_epochs": 3, "learning_rate": 0.02, "warmup_steps": 0.2, "logging_steps": 2,
        "eval_strategy": "steps", "eval_steps": 1/3, "eval_on_start": True, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 2, "seed": 0,
        "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True, "activation_checkpointing": False} | settings)
    trainer = DyingTrainer(model, args, train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(ROWS[:3]),
                           peft_config=lora, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.moment, trainer.step = moment, step
    if moment == "an old checkpoint half removed":
        die_while_removing()
    return trainer


def train(folder: Path, **how) -> None:
    """Train as notebook 07 does, and write what came of it to result.json."""
    logging.set_verbosity_error()
    trainer = make_trainer(folder, **how)
    plot = LossPlot(folder / "loss.png")
    trainer.add_callback(plot)
    with redirect_stdout(StringIO()) as printed:
        checkpoint = where_to_begin(trainer)
    (folder / "begun.json").write_text(json.dumps([checkpoint and Path(checkpoint).name, printed.getvalue().strip()]))
    trainer.train(resume_from_checkpoint=checkpoint)
    with written_whole(folder / "adapter") as part:
        trainer.save_model(str(part))
        trainer.reached("adapter not yet in place")
    (folder / "result.json").write_text(json.dumps({"log": trainer.state.log_history, "plot": plot.history}))


def run(folder: Path, **how) -> int:
    """Train in a process of its own; return its exit code, -9 if it was killed. The libraries are imported once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # where the fork server looks for this module
        process = context.Process(target=train, args=(folder,), kwargs=how)
        process.start()
    process.join(timeout=120)
    return process.exitcode
