"""Compare the memory that `estimate_memory` predicts with what training takes; write outputs/memory_benchmark.json.

    python tests/memory_benchmark.py [--only TEXT]

Every setting is trained for a few real steps with SFTTrainer, in a process of its own. The Qwen3 shapes get random
weights, so nothing is fetched. Afterwards, outside the measurement, each adapter is saved, put onto its base again and
compared with the one that was trained. All of it takes about nine minutes on two quiet cores; the last one needs 10 GB of memory.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = "RESULT "
GOAL = 0.10
QV = ["q_proj", "v_proj"]
SETTINGS = {
    "default, 1 x 64": {"batch_size": 1},
    "default, 4 x 64": {},
    "default, 8 x 64, checkpointing": {"batch_size": 8, "checkpointing": True},
    "default, 8 x 128": {"batch_size": 8, "length": 128},
    "default, 8 x 128, checkpointing": {"batch_size": 8, "length": 128, "checkpointing": True},
    "default, 1 x 512": {"batch_size": 1, "length": 512},
    "default, 4 x 256, checkpointing": {"length": 256, "checkpointing": True},
    "default, 4 x 64, q and v": {"target_modules": QV},
    "default, 8 x 128, q and v, all scored": {"batch_size": 8, "length": 128, "target_modules": QV, "supervised": 1.0},
    "default, 4 x 64, full": {"method": "full"},
    "default, 4 x 64, r 64": {"r": 64},
    "Qwen3-0.6B, 2 x 64": {"model": "Qwen3-0.6B", "batch_size": 2},
    "Qwen3-0.6B, 4 x 128, checkpointing": {"model": "Qwen3-0.6B", "length": 128, "checkpointing": True},
    "Qwen3-1.7B, 1 x 64": {"model": "Qwen3-1.7B", "batch_size": 1},
    "Qwen3-4B, 1 x 8, bfloat16": {"model": "Qwen3-4B", "batch_size": 1, "length": 8, "dtype": "bfloat16", "steps": 1},
}


def source(name: str) -> str:
    from helpers.model.base_model import base_model_path

    return base_model_path() if name == "default" else str(ROOT / "data" / "model_configs" / f"{name}.json")


def make_model(name: str, dtype):
    """Load the default model, or fill the shape of another one with random numbers, a million of them over and over."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    if name == "default":
        return AutoModelForCausalLM.from_pretrained(source(name), dtype=dtype)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source(name)), dtype=dtype)
    model.tie_weights()  # which the line above leaves out
    numbers = 0.02 * torch.randn(1_000_003, dtype=dtype)  # a prime, so that no two rows of a matrix are alike
    with torch.no_grad():
        for parameter in model.parameters():
            for part in parameter.view(-1).split(len(numbers)):
                part.copy_(numbers[:len(part)])
            if parameter.dim() == 1:
                parameter.fill_(1)  # a norm begins so
    return model


def rows(batch_size: int, length: int, supervised: float, steps: int) -> dict:
    """Return records of token ids: the first of each batch is the longest, and the same share of all places is scored."""
    lengths = [length - row * length // (8 * batch_size) for row in range(batch_size)] * steps
    scored = [min(n, max(1, round(supervised * length))) for n in lengths]
    return {"input_ids": [[(7 * row + place) % 40_000 for place in range(n)] for row, n in enumerate(lengths)],
            "completion_mask": [[0] * (n - k) + [1] * k for n, k in zip(lengths, scored, strict=True)]}


def child(setting: dict) -> int:
    """Train in this process; return the peak RSS in bytes."""
    from helpers.model.hardware import score_supervised_only, training_precision
    from helpers.training.fit import PeakMemory

    with PeakMemory(interval=0.002) as memory:
        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        setting = {"model": "default", "method": "lora", "target_modules": "all-linear", "r": 8, "batch_size": 4, "length": 64,
                   "supervised": 0.25, "dtype": "float32", "checkpointing": False, "steps": 3} | setting
        score_supervised_only()
        with tempfile.TemporaryDirectory() as folder:
            args = SFTConfig(output_dir=folder, per_device_train_batch_size=setting["batch_size"], num_train_epochs=1, max_length=setting["length"],
                             completion_only_loss=True, train_sampling_strategy="sequential", activation_checkpointing=setting["checkpointing"],
                             learning_rate=1e-5, save_strategy="no", report_to="none", logging_steps=1, disable_tqdm=True, **training_precision())
            lora = LoraConfig(r=setting["r"], target_modules=setting["target_modules"], lora_dropout=0.0, task_type="CAUSAL_LM")
            records = Dataset.from_dict(rows(setting["batch_size"], setting["length"], setting["supervised"], setting["steps"]))
            trainer = SFTTrainer(make_model(setting["model"], getattr(torch, setting["dtype"])), args, train_dataset=records,
                                 peft_config=None if setting["method"] == "full" else lora,
                                 processing_class=AutoTokenizer.from_pretrained(source("default")))
            trainer.train()
        assert trainer.state.global_step == setting["steps"]
    if setting["method"] != "full":
        save_and_reload(trainer)
    return memory.peak_bytes


def save_and_reload(trainer) -> None:
    """Save the trained adapter, put it onto the base again, and make sure that it is the same, number by number."""
    from peft import PeftModel, get_peft_model_state_dict

    trained = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(trainer.model).items()}
    assert all(tensor.any() for name, tensor in trained.items() if "lora_B" in name), "a matrix B is still zero"
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_model(folder)
        base = trainer.model.unload()  # the base alone: a second copy of it would not fit beside the largest
        reloaded = get_peft_model_state_dict(PeftModel.from_pretrained(base, folder))
    assert reloaded.keys() == trained.keys()
    assert all(reloaded[name].equal(tensor) for name, tensor in trained.items()), "the reloaded adapter differs"


def measure(setting: dict) -> int:
    """Return the peak RSS in bytes of a training with that setting, in a fresh process."""
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, "--child", json.dumps(setting)], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith(RESULT):
            return int(line.removeprefix(RESULT))
    raise RuntimeError(f"{setting} failed: {done.stderr[-2000:]}")


def predict(setting: dict):
    """Return the MemoryEstimate of that setting."""
    import torch

    from helpers.training.memory import estimate_memory

    settings = {key: value for key, value in setting.items() if key not in ("model", "steps")}
    if "dtype" in settings:
        settings["dtype"] = getattr(torch, settings["dtype"])
    return estimate_memory(source(setting.get("model", "default")), **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only the settings whose name contains this")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(f"{RESULT}{child(json.loads(options.child))}")
        return
    table = {}
    print(f"{'model, batch x length':40}{'predicted GB':>14}{'measured GB':>13}{'error':>8}")
    for name, setting in SETTINGS.items():
        if options.only in name:
            predicted, measured = predict(setting).total, measure(setting)
            table[name] = {"predicted": predicted, "measured": measured, "error": predicted / measured - 1}
            print(f"{name:40}{predicted / 1e9:14.2f}{measured / 1e9:13.2f}{table[name]['error']:8.1%}", flush=True)
    if not table:
        sys.exit(f"no setting has {options.only!r} in its name; there are: {', '.join(SETTINGS)}")
    worst = max(abs(row["error"]) for row in table.values())
    print(f"largest error: {worst:.1%} (goal {GOAL:.0%})")
    if not options.only:
        (ROOT / "outputs").mkdir(exist_ok=True)
        (ROOT / "outputs" / "memory_benchmark.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
    sys.exit(worst > GOAL)


if __name__ == "__main__":
    main()
