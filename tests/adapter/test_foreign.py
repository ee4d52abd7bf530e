"""Adapters and files of other tools: the verdict is right, or it is said in a sentence what can't be examined."""
import json
import shutil

import pytest
import torch
from adapters import base_model, config, diagnose, found, save, set_b, trained_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers.adapter.diagnosis import diagnose_adapter
from helpers.ask.answers import generate_answers


def of_layers(model, part, value):
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.data.fill_(value) if value == 0 else parameter.data.mul_(value)
    return model


# Two adapters: the one that is asked is judged


def test_an_adapter_that_is_not_in_use_is_not_counted():
    model = trained_model()
    model.add_adapter("other", config(target_modules=["o_proj"]))
    result = diagnose(model)
    assert result.verdict == "trained" and len(result.update) == 4 and "o_proj" not in str(result.update)


def test_a_trained_one_beside_it_does_not_make_an_untrained_one_trained():
    model = trained_model()
    model.add_adapter("small", config(target_modules=["o_proj"]))
    model.set_adapter("small")
    assert diagnose(model).verdict == "never trained"


# Numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_file_with_more_digits_than_the_model_is_no_damaged_copy(dtype, tmp_path):
    model = set_b(get_peft_model(base_model(), config(modules_to_save=["lm_head"])), 0.5)
    model.save_pretrained(tmp_path / "adapter")
    result = diagnose(tmp_path / "adapter", base=base_model().to(dtype))
    assert found(result, "saved copy").ok and result.verdict == "trained"
    tensors = {name: tensor.clone() for name, tensor in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items()}
    here = diagnose(PeftModel.from_pretrained(base_model().to(dtype), tmp_path / "adapter"), saved=tmp_path / "adapter")
    assert found(here, "saved copy").ok
    next(iter(tensors.values())).mul_(1.5)
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    changed = diagnose(model, saved=tmp_path / "adapter")
    assert changed.verdict == "damaged copy"


def test_scores_that_are_no_numbers_are_not_too_little_to_see():
    result = diagnose(of_layers(trained_model(), "lora_B", 1e30))
    assert result.verdict == "not a number" and "lower rate" in result.sentence


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_named(alpha, tmp_path):
    save(trained_model(), tmp_path / "adapter", "plain")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": alpha}))
    result = diagnose(tmp_path / "adapter", base=base_model())
    assert result.verdict == "not a number" and "scale of " in str(result)


def test_on_weights_that_are_all_zero_an_untrained_adapter_is_untrained():
    base = of_layers(base_model(), "o_proj", 0)
    model = get_peft_model(base, config(target_modules=["o_proj"]))
    assert diagnose(model).verdict == "never trained"
    result = diagnose(set_b(model, 0.5))
    assert result.verdict not in ("never trained", "not a number") and all(0 < size < 100 for size in result.update.values())


@pytest.mark.parametrize("make", [lambda model: of_layers(model, "lora_A", 0), lambda model: [layer.scale_layer(0) for layer in model.modules()
                                                                                           if hasattr(layer, "scale_layer")] and model])
def test_trained_numbers_that_add_nothing_are_not_called_untrained(make):
    result = diagnose(make(trained_model()))
    assert result.verdict == "no effect" and "lora_alpha" in result.sentence and found(result, "B is not zero").ok


# Models and tokenizers that can't be asked


@pytest.fixture
def folder(tiny_qwen3, tmp_path):
    """The folder of a trained adapter of the tiny Qwen3."""
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_qwen3), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    set_b(model, 0.5).save_pretrained(tmp_path / "trained")
    return tmp_path / "trained"


@pytest.fixture
def qwen(tiny_qwen3):
    return AutoModelForCausalLM.from_pretrained(tiny_qwen3)


def test_without_a_pad_token_questions_are_asked_one_by_one(folder, qwen, tiny_qwen3):
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen3)
    questions = ["Where?", "And when is it open?"]
    padded = generate_answers(qwen, tokenizer, questions, 5)
    tokenizer.pad_token = None
    assert generate_answers(qwen, tokenizer, questions, 5) == padded
    assert diagnose_adapter(folder, tokenizer, base=qwen, questions=questions).verdict == "trained"


@pytest.mark.parametrize(("spoil", "reason"), [
    (lambda tokenizer: setattr(tokenizer, "chat_template", None), "chat_template"),
    (lambda tokenizer: setattr(tokenizer, "chat_template", "{{ raise_exception('no such role') }}"), "no such role"),
    (lambda tokenizer: tokenizer.add_tokens([f"new {number}" for number in range(2000)]), "index out of range")])
def test_where_asking_fails_the_weights_are_examined_and_the_reason_is_said(spoil, reason, folder, qwen, tiny_qwen3):
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen3)
    spoil(tokenizer)
    result = diagnose_adapter(folder, tokenizer, base=qwen, questions=["Where is new 1999 ?"])
    assert result.verdict == "not asked" and "asking failed" in result.sentence and reason in result.sentence
    assert found(result, "B is not zero").ok and found(result, "logits differ").ok


@pytest.mark.parametrize("text", ['{"do_sample": false}', "[]", "{"])
def test_a_generation_config_that_names_no_end_ends_nothing(text, folder, tiny_qwen3, tmp_path):
    base = shutil.copytree(tiny_qwen3, tmp_path / "base")
    shutil.copy(tiny_qwen3 / "generation_config.json", folder)
    (folder / "generation_config.json").write_text(text)
    result = diagnose_adapter(folder, AutoTokenizer.from_pretrained(base), base=AutoModelForCausalLM.from_pretrained(base), questions=["Where?"])
    assert found(result, "answers differ").ok is not None


def test_an_adapter_for_another_task_is_not_judged_by_answers(tmp_path, tiny_qwen3, qwen):
    small = base_model()
    classifier = LlamaForSequenceClassification(small.config)
    set_b(get_peft_model(classifier, config(task_type="SEQ_CLS")), 0.5).save_pretrained(tmp_path / "classifier")
    for base in (LlamaForSequenceClassification(small.config), base_model()):
        result = diagnose(tmp_path / "classifier", base=base)
        assert result.verdict in ("not asked", "file does not fit") and "another task" in str(result)


def test_an_encoder_with_a_decoder_is_no_causal_model():
    model = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    result = diagnose(set_b(get_peft_model(model, LoraConfig(target_modules=["q", "v"])), 0.5))
    assert result.verdict == "not asked" and "no causal language model" in result.sentence


# Files that somebody's tool, or hand, has changed


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"peft_type": "NEW_KIND"}', '{"peft_type": null}',
                                  '{"peft_type": "LORA", "r": "x", "target_modules": ["q_proj"]}', '{"peft_type": "LORA", "target_modules": 5}',
                                  '{"peft_type": "LORA", "target_modules": "("}', "{"])
def test_a_configuration_that_is_none_gets_one_sentence(text, folder, qwen):
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError) as error:
        diagnose_adapter(folder, base=qwen)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize("write", [lambda file: file.write_bytes(b"no pickle"), lambda file: torch.save([1, 2], file), lambda file: torch.save({"a": 1}, file)])
def test_a_pickle_without_tensors_gets_one_sentence(write, folder, qwen):
    (folder / "adapter_model.safetensors").unlink()
    write(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="not whole"):
        diagnose_adapter(folder, base=qwen)


@pytest.mark.parametrize("change", [{"steps": "x"}, {"base_sha256": None}, {"base_dtype": None}, {"supervised_tokens": 1.5}])
def test_a_record_with_other_values_is_none_of_ours(change, folder, qwen):
    record = {"base_sha256": "0" * 64, "base_dtype": "float32", "steps": 3, "supervised_tokens": 9}
    (folder / "training_record.json").write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match="no record that keep_record wrote"):
        diagnose_adapter(folder, base=qwen)


@pytest.mark.parametrize(("how", "sentence"), [
    ({"questions": "Where?"}, "questions is one text"), ({"base": "Qwen/Qwen3-4B"}, "base is of type str")])
def test_what_is_no_list_or_no_model_gets_one_sentence(how, sentence, folder, qwen):
    with pytest.raises(ValueError, match=sentence):
        diagnose_adapter(folder, **{"base": qwen} | how)


def test_a_base_without_numbers_gets_one_sentence(folder, qwen):
    with torch.device("meta"):
        empty = type(qwen)(qwen.config)
    with pytest.raises(ValueError, match="device meta"):
        diagnose_adapter(folder, base=empty)
