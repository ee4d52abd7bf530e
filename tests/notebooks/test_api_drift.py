"""Every keyword that a notebook passes to transformers, peft, trl or datasets must exist in the installed version."""
import ast
import importlib
import inspect
import re

import datasets
import peft
import pytest
import transformers
import trl
from notebook_tools import NOTEBOOKS, read

from helpers.model.hardware import training_precision

LIBRARIES = {"transformers", "peft", "trl", "datasets"}
METHODS = {  # called on objects of these libraries, by name
    "generate": transformers.GenerationMixin.generate,
    "apply_chat_template": transformers.PreTrainedTokenizerBase.apply_chat_template,
    "train": trl.SFTTrainer.train,
    "evaluate": trl.SFTTrainer.evaluate,
    "save_model": trl.SFTTrainer.save_model,
    "load_adapter": peft.PeftModel.load_adapter,
    "merge_and_unload": peft.LoraModel.merge_and_unload,
    "map": datasets.Dataset.map,
    "train_test_split": datasets.Dataset.train_test_split,
}
LEFT_TO_THE_TEMPLATE = {"enable_thinking"}  # apply_chat_template hands unknown keywords on to the template's own text
# Shown on purpose as names that were removed; the cell that uses one catches the TypeError that this test would foresee.
REMOVED = {"evaluation_strategy", "warmup_ratio", "overwrite_output_dir", "no_cuda", "logging_dir", "tokenizer"}


def accepted(target) -> set[str]:
    """Return the keywords that a callable of these libraries takes."""
    names = set(inspect.signature(target).parameters)
    name = getattr(target, "__name__", "")
    if name == "from_pretrained":  # Auto classes hand their keywords on to these, which take them out of **kwargs by name
        for handed_to in (transformers.PreTrainedModel.from_pretrained, transformers.PretrainedConfig.from_pretrained,
                          transformers.AutoConfig.from_pretrained, transformers.PreTrainedTokenizerBase.from_pretrained):
            names |= set(inspect.signature(handed_to).parameters)
            names |= set(re.findall(r"""kwargs\.(?:pop|get)\(\s*["'](\w+)""", inspect.getsource(handed_to)))
    if name == "generate":
        names |= set(vars(transformers.GenerationConfig()))
    if name == "apply_chat_template":
        names |= LEFT_TO_THE_TEMPLATE
    return names


def imported(trees) -> dict[str, object]:
    """Return what the notebook imports from the four libraries, by the name it has there."""
    found = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in LIBRARIES:
            module = importlib.import_module(node.module)
            found |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    return found


def calls(path) -> list[tuple[str, object, list[str]]]:
    """Return (name, callable, keywords) of each call into the libraries that passes keywords."""
    trees = [ast.parse(cell.source) for cell in read(path).cells if cell.cell_type == "code"]
    known, found = imported(trees), []
    for call in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)):
        target, function = None, call.func
        if isinstance(function, ast.Name):
            target = known.get(function.id)
        elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in known:
            target = getattr(known[function.value.id], function.attr)
        elif isinstance(function, ast.Attribute):
            target = METHODS.get(function.attr)
        keywords = [keyword.arg for keyword in call.keywords if keyword.arg]
        if target is not None and keywords:
            found.append((ast.unparse(function), target, keywords))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_keyword_exists_in_the_installed_version(path):
    shown = REMOVED if path.name.startswith("06") else set()
    wrong = [f"{name}({keyword}=...)" for name, target, keywords in calls(path) for keyword in keywords
             if keyword not in accepted(target) | shown]
    assert not wrong


def test_the_check_looks_at_the_calls_that_the_course_teaches():
    names = {name.split(".")[-1] for path in NOTEBOOKS for name, _, _ in calls(path)}
    assert names >= {"LoraConfig", "TrainingArguments", "SFTConfig", "SFTTrainer", "load_dataset", "from_pretrained", "train", "generate"}


def test_a_removed_keyword_is_noticed():
    for keyword in REMOVED - {"tokenizer"}:
        assert keyword not in accepted(transformers.TrainingArguments)
    assert "tokenizer" not in accepted(trl.SFTTrainer)
    assert "torch_dtypo" not in accepted(transformers.AutoModelForCausalLM.from_pretrained)
    assert "dtype" in accepted(transformers.AutoModelForCausalLM.from_pretrained)


def test_precision_switches_are_training_arguments():
    assert set(training_precision()) <= accepted(transformers.TrainingArguments) & accepted(trl.SFTConfig)
