"""The recipe for TRL's command line is the run of notebook 07, on its records."""
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from accelerate.commands.launch import launch_command_parser
from notebook_tools import FOLDER, ROOT, read
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser, get_dataset, get_peft_config
from trl.cli.accelerate_config import resolve_accelerate_config_argument
from trl.scripts.sft import make_parser

from helpers.model.base_model import base_model_path
from helpers.tools.processes import run_module

RECIPE = ROOT / "data" / "recipe.yaml"
# what does not change what is learned: where and how often something is written, measured or kept
OTHERWISE = {"output_dir", "logging_steps", "eval_strategy", "eval_steps", "eval_on_start", "per_device_eval_batch_size", "save_strategy",
             "save_steps", "save_total_limit"}


def calls_in_07(name: str) -> list[dict]:
    """Return the keywords, as values, of each call of that name in notebook 07."""
    trees = [ast.parse(cell.source) for cell in read(FOLDER / "07_training.ipynb").cells if cell.cell_type == "code"]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call) and name in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))]
    return [{word.arg: value(word.value) for word in call.keywords if word.arg} for call in calls]


def function_in_07(name: str):
    """Return a function that notebook 07 defines."""
    trees = [ast.parse(cell.source) for cell in read(FOLDER / "07_training.ipynb").cells if cell.cell_type == "code"]
    found = next(node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    exec(ast.unparse(found), names := {})
    return names[name]


def value(node):
    try:
        return ast.literal_eval(node)
    except ValueError:  # an expression, such as 1/3
        return ast.unparse(node)


@pytest.fixture
def recipe():
    """Parse the recipe as `trl sft` does; its paths are those of the course's folder."""
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    return parser.parse_args_and_config(["--config", str(RECIPE)], fail_with_unknown_args=True)


def test_the_adapter_is_that_of_notebook_07(recipe):
    [wanted] = [call for call in calls_in_07("LoraConfig") if call["target_modules"] == "all-linear"]  # the real run's
    lora = get_peft_config(recipe[2])
    assert wanted and {name: getattr(lora, name) for name in wanted} == wanted


def test_the_training_is_that_of_notebook_07(recipe):
    wanted = {name: set_to for name, set_to in calls_in_07("SFTConfig")[0].items() if name not in OTHERWISE}
    assert set(wanted) >= {"learning_rate", "warmup_steps", "per_device_train_batch_size", "num_train_epochs", "max_length", "seed"}
    assert {name: set_to if set_to != "none" else [] for name, set_to in wanted.items()} == {
        name: getattr(recipe[1], name) for name in wanted}


def test_what_it_leaves_open_is_as_in_notebook_07(recipe):
    """Two more settings that change a run: neither 07 nor the recipe names them, so both have TRL's defaults."""
    assert (recipe[1].gradient_accumulation_steps, recipe[1].lr_scheduler_type) == (1, "linear")


def test_attention_is_computed_as_in_notebook_07(recipe):
    assert {call["attn_implementation"] for call in calls_in_07("from_pretrained") if "attn_implementation" in call} == {recipe[2].attn_implementation}


def test_it_runs_on_a_cpu_without_bf16(recipe):
    training, model = recipe[1:3]
    assert training.use_cpu and not training.bf16 and not training.fp16 and model.dtype == "float32"


def test_its_records_are_those_of_the_notebooks(recipe):
    """Each line of train.jsonl, in the same order, as notebook 07 makes it ready for training."""
    lines = (ROOT / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(get_dataset(recipe[3])["train"]) == [function_in_07("to_prompt_completion")(json.loads(line)) for line in lines]


def test_the_command_for_several_gpus_is_understood():
    """It can't be run here; but TRL must know each of its words, and hand the right ones on to accelerate."""
    command = next(line for cell in read(FOLDER / "14_beyond_this_laptop.ipynb").cells for line in cell.source.splitlines()
                   if line.startswith("trl sft") and "--accelerate_config" in line)
    words = command.replace(" --bf16 True", "").split()[2:]  # which TRL refuses to read on a machine without such a GPU
    *_, rest = make_parser().parse_args_and_config(words, return_remaining_strings=True, separate_remaining_strings=True)
    launch = launch_command_parser().parse_args([*resolve_accelerate_config_argument(rest), "sft.py"])
    assert (launch.num_processes, Path(launch.config_file).name) == (4, "fsdp2.yaml") and Path(launch.config_file).is_file()


def cells_of_14(*ids: str) -> str:
    cells = {cell.id: cell.source for cell in read(FOLDER / "14_beyond_this_laptop.ipynb").cells}
    return "\n".join(cells[name] for name in ids)


@pytest.mark.parametrize("reason, goes_on", [("DistStoreError: use_libuv was requested but PyTorch was built without libuv support", True),
                                             ("OutOfMemoryError", False)])
def test_where_two_processes_cannot_find_each_other_the_page_goes_on(reason, goes_on, capsys, tmp_path):
    """PyTorch's words on Windows, which we do not have here, before many lines more; any other failure is a failure."""
    program = f"import sys; print({reason!r}, *range(40), sep=chr(10)); sys.exit(1)"
    (tmp_path / "dies.py").write_text(program, encoding="utf-8")

    def run_recipe(name, *_, **__):
        run_module("dies", folder=tmp_path, log=tmp_path / f"{name}.log", threads=1, show=str)

    names = {"run_recipe": run_recipe, "outputs": tmp_path, "threads": 2, "pd": pd, "one": {"steps 1-10": 2.0, "memory (GB)": 1.0}}
    if not goes_on:
        with pytest.raises(RuntimeError, match="exit code 1"):
            exec(cells_of_14("two-processes-run"), names)
    else:
        exec(cells_of_14("two-processes-run", "scaled"), names)
        assert names["two"] is None and list(names["runs"].index) == ["one process"] and "libuv" in capsys.readouterr().out


def test_the_command_in_the_recipe_prints_where_the_model_is():
    line = next(line for line in RECIPE.read_text(encoding="utf-8").splitlines() if "trl sft" in line)
    module, command = re.search(r"python -m (\w+) (\w+)\)", line).groups()
    done = subprocess.run([sys.executable, "-m", module, command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == base_model_path()


def test_every_setting_is_explained():
    lines = [line for line in RECIPE.read_text(encoding="utf-8").splitlines() if re.match(r"[\s-]*\w+:\s+\S", line)]
    assert len(lines) > 20 and not [line for line in lines if " #" not in line]
