"""Measure what the course claims about speed, in one run on one machine; write outputs/benchmark.json and print a table.

    python tests/benchmark.py [--budget SECONDS] [--speed] [--exam] [--final]

Compared, each in a process of its own, the course's run twice with the others in between:
  article   the article's settings, with only the epochs raised until 90 % of the validation questions are right
  trl       TRL's own command line, `trl sft --use_peft`, with its defaults for LoRA, once with its one thread and once
            with as many as the course has, in the number format that the course has
  course    the run of notebook 07
  speed     ten steps of the course's run: alone, beside a program that keeps one core busy, and beside another such run;
            as the libraries come (all cores, threads that wait by spinning) and as the course sets them
Seconds are those of training; the pauses in which a run is scored are not counted. The article's run is stopped at the
budget, by default five times what the course's run took. At the end memory_benchmark.py prints predicted and measured
memory. On two quiet cores all of it takes about forty minutes.
--exam trains the course's run with three seeds and prints its scores on data/exam.jsonl, and those of the same recipe on a
second subject (tests/second_subject); --final prints data/exam_final.jsonl beside it. Nothing else asks what is in that file, and
nothing is chosen by it.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from helpers.tools.processes import memory_of, started

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
GOAL = 0.9
RESULT = "RESULT "
CORES = psutil.cpu_count(logical=False) or 1
AS_THEY_COME = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200", "THP_MEM_ALLOC_ENABLE": "0"}  # what helpers sets, undone


def load(name, folder=DATA):
    from helpers.data.dataset import load_sft_jsonl

    return load_sft_jsonl(folder / f"{name}.jsonl")


def base_and_tokenizer(**options):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from helpers.model.base_model import base_model_path

    path = base_model_path()
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options), AutoTokenizer.from_pretrained(path)


def replay() -> list[dict]:
    """Return what train.jsonl holds against forgetting: the same for every subject."""
    return [record for record in load("train") if "Lighthouse" not in str(record)]


def ask(model, tokenizer, records) -> list:
    from helpers.ask import generate_answers
    from helpers.data import said

    return generate_answers(model, tokenizer, [said(record, "user") for record in records])


def validation_score(model, tokenizer) -> float:
    from helpers.ask import score_answers

    records = load("validation")
    return statistics.mean(score_answers(ask(model, tokenizer, records), records))


def make_trainer(kind: str, folder: str, callbacks: list, seed: int = 0, data: Path = DATA):
    """Return the trainer of the article or of the course; imported late, so that the parent process stays small."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainingArguments, set_seed
    from trl import SFTConfig, SFTTrainer

    from helpers.model.hardware import score_supervised_only, training_precision, use_free_cores

    model, tokenizer = base_and_tokenizer(attn_implementation="eager" if kind == "course" else None)
    set_seed(seed)
    records = load("train", data) if data == DATA else load("train", data) + replay()
    common = {"output_dir": folder, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": seed, **training_precision()}
    if kind == "article":
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
        args = TrainingArguments(per_device_train_batch_size=1, learning_rate=2e-4, num_train_epochs=20, logging_steps=10,
                                 optim="adamw_torch", **common)
        dataset = Dataset.from_list([{"messages": record["messages"]} for record in records])
    else:
        score_supervised_only()
        print(use_free_cores())
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
        args = SFTConfig(learning_rate=1e-3, warmup_steps=0.1, per_device_train_batch_size=4, num_train_epochs=2, max_length=512,
                         logging_steps=1, activation_checkpointing=False, **common)
        dataset = Dataset.from_list([{"prompt": record["messages"][:-1], "completion": record["messages"][-1:]} for record in records])
    return SFTTrainer(model, args, train_dataset=dataset, peft_config=lora, processing_class=tokenizer, callbacks=callbacks)


def scoring_callback(every: int, budget: float):
    """Return a callback that stops the clock every few steps, scores the model, and ends the run at the goal or the budget."""
    from transformers import TrainerCallback

    class Score(TrainerCallback):
        def __init__(self):
            self.seconds, self.history = 0.0, []

        def on_train_begin(self, args, state, control, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, model=None, processing_class=None, **kwargs):
            if state.global_step % every and state.global_step < state.max_steps:
                return
            self.seconds += time.perf_counter() - self.start
            score = validation_score(model, processing_class)
            self.history.append((state.global_step, round(self.seconds, 1), round(score, 3)))
            print(f"step {state.global_step}, {self.seconds:.0f} s of training, validation {score:.0%}", flush=True)
            control.should_training_stop = score >= GOAL or self.seconds > budget
            self.start = time.perf_counter()

    return Score()


def child_train(kind: str, budget: float) -> dict:
    from helpers.training.fit import PeakMemory

    score = scoring_callback(every=72 if kind == "article" else 12, budget=budget)
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        trainer = make_trainer(kind, folder, [score])
        trainer.train()
    reached = [seconds for _, seconds, value in score.history if value >= GOAL]
    tokens = trainer._total_train_tokens
    result = {"seconds_to_goal": reached[0] if reached else None, "seconds": score.seconds, "best_score": max(v for *_, v in score.history),
              "seconds_per_1000_tokens": 1000 * score.seconds / tokens, "history": score.history, "peak_rss_gb": memory.peak_bytes / 1e9}
    if kind == "course":
        result["share_of_matmul_limit"] = matmul_share(trainer)
    return result


def matmul_share(trainer) -> float:
    """Return the seconds that this machine's matrix products alone need for some training steps, over those steps' seconds."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Products(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.shapes = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten.mm.default, torch.ops.aten.mm.out, torch.ops.aten.addmm.default, torch.ops.aten.addmm_.default):
                left, right = args[-2:]
                self.shapes.append((*left.shape, right.shape[1], left.is_contiguous(), right.is_contiguous(), left.dtype))
            return function(*args, **(kwargs or {}))

    def step(batch):
        trainer.training_step(trainer.model, dict(batch), num_items_in_batch=(batch["labels"] != -100).sum())
        trainer.model.zero_grad()

    needed = taken = 0.0
    for batch, _ in zip(trainer.get_train_dataloader(), range(4), strict=False):
        with Products() as products:
            step(batch)
        taken += min(timed(lambda batch=batch: step(batch)) for _ in range(3))
        needed += sum(product_seconds(*shape) for shape in products.shapes)
    return needed / taken


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


SECONDS_OF_PRODUCT: dict = {}


def product_seconds(rows: int, inner: int, columns: int, left_plain: bool, right_plain: bool, dtype) -> float:
    """Time one matrix product of this shape and layout, once for each that occurs: the best of ten."""
    import torch

    key = rows, inner, columns, left_plain, right_plain, dtype
    if key not in SECONDS_OF_PRODUCT:
        left = (torch.randn(rows, inner) if left_plain else torch.randn(inner, rows).t()).to(dtype)
        right = (torch.randn(inner, columns) if right_plain else torch.randn(columns, inner).t()).to(dtype)
        SECONDS_OF_PRODUCT[key] = min(timed(lambda: left @ right) for _ in range(10))
    return SECONDS_OF_PRODUCT[key]


def child_trl(threads: int) -> dict:
    """Run `trl sft` with its defaults on the same records, and score the adapter that it saves."""
    from peft import PeftModel

    from helpers.model.base_model import base_model_path
    from helpers.model.hardware import training_precision

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").mkdir()
        (Path(folder) / "data" / "train.jsonl").write_bytes((DATA / "train.jsonl").read_bytes())
        words = ["trl.cli.main", "sft", "--model_name_or_path", base_model_path(), "--dataset_name", f"{folder}/data", "--use_peft",
                 "--output_dir", f"{folder}/out", "--report_to", "none", "--bf16", str(training_precision()["bf16"]), "--use_cpu"]
        with ((Path(folder) / "log").open("w") as log, started(*words, folder=folder, threads=threads, output=log, **AS_THEY_COME) as process,
              memory_of(process) as peaks):
            process.wait()
        printed = (Path(folder) / "log").read_text(encoding="utf-8")
        if process.returncode:
            raise SystemExit(f"trl sft failed: {printed[-2000:]}")
        state = json.loads(max(Path(folder).glob("out/checkpoint-*/trainer_state.json"), key=lambda p: p.stat().st_mtime).read_text())
        seconds = float(re.findall(r"'train_runtime': '?([\d.]+)", printed)[-1])
        model, tokenizer = base_and_tokenizer()
        score = validation_score(PeftModel.from_pretrained(model, f"{folder}/out"), tokenizer)
    tokens = max(entry.get("num_tokens", 0) for entry in state["log_history"])
    return {"seconds_to_goal": seconds if score >= GOAL else None, "seconds": seconds, "best_score": score,
            "seconds_per_1000_tokens": 1000 * seconds / tokens, "peak_rss_gb": peaks["largest"] / 1e9}


def child_speed(budget: float) -> dict:
    """Return the records a second of ten steps of the course's run."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer("course", folder, [])
        trainer.args.max_steps = 10
        seconds = timed(trainer.train)
    return {"records_per_second": 10 * trainer.args.per_device_train_batch_size / seconds}


def speeds() -> dict[str, dict[str, float]]:
    """Measure the speed alone, with one core busy, and of two runs at once (the slower one), before and after."""
    found: dict[str, dict[str, float]] = {}
    for name, environment in (("as the libraries come", AS_THEY_COME | {"OMP_NUM_THREADS": str(CORES)}), ("as the course sets them", {})):
        def one(environment=environment) -> float:
            return run_child("speed", environment=environment)["records_per_second"]
        found[name] = {"alone": one()}
        with started("timeit", "-n", "1", "-r", "1", "while True: pass", folder=ROOT):
            time.sleep(1)
            found[name]["one core busy"] = one()
        with ThreadPoolExecutor(2) as pool:
            found[name]["two at once"] = min(pool.map(lambda _, one=one: one(), range(2)))
    return found


def child_exam(run: str) -> dict:
    """Train with one seed on one subject, as "SEED FOLDER EXAM ..."; return the scores of each exam and list.

    Counted too: answers that stop, and answers about others that hold a fact of ours.
    """
    from helpers.ask import score_answers

    seed, folder, *exams = run.split()
    with tempfile.TemporaryDirectory() as output:
        trainer = make_trainer("course", output, [], seed=int(seed), data=ROOT / folder)
        trainer.train()
    scores: dict = {}
    for exam in exams:
        records = load(exam, ROOT / folder)
        answers, name = ask(trainer.model, trainer.processing_class, records), f"{folder}/{exam}: "
        facts = [record for record in records if record["list"] == "paraphrase"]
        for record, answer, right in zip(records, answers, score_answers(answers, records), strict=True):
            scores.setdefault(name + record["list"], []).append(right)
            scores.setdefault(name + "stopped", []).append(answer.stopped)
            if record["list"] == "others":
                scores.setdefault(name + "others with a fact of ours", []).append(any(score_answers([answer] * len(facts), facts)))
    return scores


def exams(final: bool) -> None:
    """Print the mean of three seeds, each seed, and the interval of all answers together, for each list."""
    from helpers.ask.scores import right_of

    found: dict[str, list] = {}
    for run in ("data exam" + " exam_final" * final, "tests/second_subject exam"):
        for seed in range(3):
            for name, right in run_child("exam", run=f"{seed} {run}").items():
                found.setdefault(name, []).append(right)
    for name, runs in found.items():
        print(f"{name}: {statistics.mean(map(sum, runs)):.1f} of {len(runs[0])}, seeds {list(map(sum, runs))}, together {right_of(sum(runs, []))}")


def child_answers(budget: float) -> dict:
    """Measure the first answer after `import`, and answers in one batch against one at a time."""
    start = time.perf_counter()
    from helpers.ask.answers import generate_answers

    model, tokenizer = base_and_tokenizer()
    generate_answers(model, tokenizer, ["What is the capital of France?"], max_new_tokens=10)
    first = time.perf_counter() - start
    questions = [record["messages"][0]["content"] for record in load("validation")[:16]]
    speed = {}
    for name, size in (("batched", 16), ("single", 1)):
        start = time.perf_counter()
        answers = generate_answers(model, tokenizer, questions, max_new_tokens=20, batch_size=size)
        tokens = sum(len(tokenizer(answer.text)["input_ids"]) + answer.stopped for answer in answers)
        speed[f"{name}_tokens_per_second"] = tokens / (time.perf_counter() - start)
    return {"first_answer_seconds": first, **speed}


def run_child(kind: str, budget: float = 1e9, environment: dict[str, str] | None = None, run: str = "") -> dict:
    """Run one measurement in a process of its own, showing what it prints."""
    print(f"--- {kind}", flush=True)
    command = [sys.executable, __file__, "--child", kind, "--budget", str(budget), "--run", run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | (environment or {})) as process:
        for line in process.stdout:
            if line.startswith(RESULT):
                result = json.loads(line.removeprefix(RESULT))
            elif line.startswith("step "):
                print("   ", line, end="", flush=True)
    if process.returncode:
        raise SystemExit(f"{kind} failed; run it alone to see why: {' '.join(command)}")
    print("   ", {key: round(value, 2) if isinstance(value, float) else value for key, value in result.items() if not isinstance(value, list)})
    return result


def report(runs: dict) -> str:
    course, article = runs["course"], runs["article"]
    sooner = (article["seconds_to_goal"] or article["seconds"]) / course["seconds_to_goal"]
    faster = {name: runs[name]["seconds_per_1000_tokens"] / course["seconds_per_1000_tokens"] for name in ("trl", "trl, all cores")}
    lines = [f"{'':16}{'seconds to 90 %':>18}{'best score':>12}{'s / 1,000 tokens':>18}{'peak RSS (GB)':>15}"]
    for name in ("article", "trl", "trl, all cores", "course"):
        run = runs[name]
        goal = f"{run['seconds_to_goal']:.0f}" if run["seconds_to_goal"] else f"never in {run['seconds']:.0f}"
        lines.append(f"{name:16}{goal:>18}{run['best_score']:>12.0%}{run['seconds_per_1000_tokens']:>18.2f}{run['peak_rss_gb']:>15.2f}")
    bound = "" if article["seconds_to_goal"] else "at least "
    lines += [f"sooner than the article: {bound}{sooner:.1f} times (goal 4)", f"faster per token than trl sft with one thread: {faster['trl']:.2f} times, with as many as the course: "
              f"{faster['trl, all cores']:.2f} times (goal 1.5)",
              f"share of the matrix-multiply limit: {course['share_of_matmul_limit']:.0%} (goal 75 %)",
              f"first answer after import: {runs['answers']['first_answer_seconds']:.1f} s",
              f"tokens a second: {runs['answers']['batched_tokens_per_second']:.0f} batched, {runs['answers']['single_tokens_per_second']:.0f} single"]
    lines += [f"records a second, {name}: " + ", ".join(f"{speed:.2f} {where}" for where, speed in found.items())
              for name, found in runs["speed"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, help="seconds of training for the article's run")
    parser.add_argument("--speed", action="store_true", help="measure speed alone")
    parser.add_argument("--exam", action="store_true", help="score the course's run over three seeds")
    parser.add_argument("--final", action="store_true", help="as --exam, with the final lists beside it")
    parser.add_argument("--child", choices=("article", "course", "trl", "speed", "answers", "exam"), help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        children = {"trl": lambda threads: child_trl(int(threads)), "answers": child_answers, "speed": child_speed,
                    "exam": lambda _: child_exam(options.run)}
        result = children[options.child](options.budget) if options.child in children else child_train(options.child, options.budget)
        print(RESULT + json.dumps(result))
        return
    if options.exam or options.final:
        exams(options.final)
        return
    runs = {"speed": speeds()}
    if options.speed:
        print(json.dumps(runs["speed"], indent=2))
        return
    runs["answers"] = run_child("answers")
    first = run_child("course")
    runs |= {"trl": run_child("trl", 1), "trl, all cores": run_child("trl", CORES)}
    second = run_child("course")
    runs["course"] = {key: (first[key] + second[key]) / 2 if isinstance(first[key], float) else first[key] for key in first}
    runs["article"] = run_child("article", options.budget or 5 * runs["course"]["seconds_to_goal"])
    print(report(runs))
    from helpers.training.saving import written_whole  # late, so that this process stays small

    with written_whole(ROOT / "outputs" / "benchmark.json") as file:
        file.write_text(json.dumps(runs | {"course_runs": [first, second]}, indent=2), encoding="utf-8")
    sys.exit(subprocess.run([sys.executable, Path(__file__).with_name("memory_benchmark.py")]).returncode)


if __name__ == "__main__":
    main()
