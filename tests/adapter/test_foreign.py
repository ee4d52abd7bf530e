"""Adapters and files of other tools: the verdict is right, or it is said in a sentence what can't be examined."""
import copy
import json
import shutil

import pytest
import torch
from adapters import base_model, config, diagnose, fingerprint, found, save, set_b, trained_model
from peft import AdaLoraConfig, BdLoraConfig, LoraConfig, PeftModel, XLoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    RobertaConfig,
    RobertaModel,
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


# Other kinds


@pytest.mark.parametrize("kind", ["ADALORA", "XLORA"])
def test_another_kind_of_adapter_is_named_and_not_judged(kind, tmp_path):
    save(trained_model(), tmp_path / "one", "plain")
    settings = {"ADALORA": AdaLoraConfig(target_modules=["q_proj"], total_step=9, init_r=4, target_r=2, task_type="CAUSAL_LM"),
                "XLORA": XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters={"0": str(tmp_path / "one")})}[kind]
    model = get_peft_model(base_model(use_cache=False), settings)
    save(model, tmp_path / "adapter", kind)
    for adapter in (model, tmp_path / "adapter"):
        with pytest.raises(ValueError, match=f"this adapter is of the kind {kind}; only LoRA"):
            diagnose(adapter, base=base_model(use_cache=False))


def classifier():
    """A base of which each load draws the head anew."""
    body = base_model()
    torch.seed()
    model = LlamaForSequenceClassification(body.config)
    model.model.load_state_dict(body.model.state_dict())
    return model


@pytest.mark.parametrize(("size", "verdict"), [(0, "never trained"), (0.5, "not asked")])
@pytest.mark.parametrize("changes", [{"task_type": "SEQ_CLS"}, {"task_type": None, "modules_to_save": ["score"]}])
def test_a_head_that_each_load_draws_anew_tells_nothing(size, verdict, changes, tmp_path, tiny_qwen3):
    model = get_peft_model(classifier(), config(**changes))
    model = set_b(model, size) if size else model
    folder, tokenizer = save(model, tmp_path / "adapter", "plain"), AutoTokenizer.from_pretrained(tiny_qwen3)
    (folder / "training_record.json").write_text(json.dumps({"base_sha256": "0" * 64, "base_dtype": "float32", "steps": 3, "supervised_tokens": 9}))
    for adapter in (model, PeftModel.from_pretrained(classifier(), folder), PeftModel.from_pretrained(classifier(), folder, is_trainable=True), folder):
        result = diagnose_adapter(adapter, tokenizer, base=classifier(), saved=folder)
        assert result.verdict == verdict and found(result, "its own base").ok is None, result
        assert "no generation_config" in found(result, "stops").measured


def test_a_pooler_that_each_load_draws_anew_is_no_wrong_base():
    model = RobertaModel(RobertaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32))
    base = copy.deepcopy(model)
    base.pooler.dense.weight.data += 1
    result = diagnose(set_b(get_peft_model(model, LoraConfig(target_modules=["query"], task_type="FEATURE_EXTRACTION")), 0.5), base=base)
    assert result.verdict == "not asked" and found(result, "its own base").ok is None


class WithAttention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2)


@pytest.mark.parametrize(("base", "changes", "sentence"), [
    (base_model, {"use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2)}, "disable_adapter"),
    (WithAttention, {"target_modules": ["attention"], "task_type": None}, "disable_adapter"),
    (lambda: base_model(tied=True), {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}, "pass its folder")])
def test_what_peft_can_not_measure_gets_one_sentence(base, changes, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        diagnose(set_b(get_peft_model(base(), config(**changes)), 0.5))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_where_the_model_can_not_compute_the_weights_are_examined(qwen):
    result = diagnose(set_b(get_peft_model(qwen, config(layer_replication=[[0, 2], [0, 2], [0, 2]])), 0.5))
    assert result.verdict == "not asked" and "computing failed (IndexError" in result.sentence and found(result, "every part moved").ok


# Names in files


def rewrite(folder, tensors):
    (folder / "adapter_model.safetensors").unlink()  # Windows replaces no mapped file
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("size", "verdict"), [(0, "never trained"), (0.5, "trained")])
@pytest.mark.parametrize("pickled", [False, True])
def test_a_file_with_the_names_of_state_dict_is_judged_by_what_peft_loads(size, verdict, pickled, tmp_path):
    model = set_b(get_peft_model(base_model(), config()), size)
    folder, tensors = save(model, tmp_path / "adapter", "plain"), {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}
    rewrite(folder, tensors)
    if pickled:
        (folder / "adapter_model.safetensors").unlink()
        torch.save(tensors, folder / "adapter_model.bin")
    before = fingerprint(model)
    (folder / "adapter_config.json").write_text((kept := (folder / "adapter_config.json").read_text()).replace('"lora_alpha": ', '"lora_alpha": 1'))
    assert not found(diagnose(model, saved=folder), "saved copy").ok
    (folder / "adapter_config.json").write_text(kept)
    for result in (diagnose(folder, base=base_model()), diagnose(model, saved=folder)):
        assert result.verdict == verdict and found(result, "saved copy").ok and found(result, "file fits").ok, result
    assert fingerprint(model) == before


@pytest.mark.parametrize(("end", "verdict"), [("", "trained"), (".weight", "trained"), (".default", "file does not fit")])
def test_a_magnitude_that_peft_drops_is_missed_and_one_that_it_loads_is_not(end, verdict, tmp_path):
    folder = save(set_b(get_peft_model(base_model(), config(use_dora=True)), 0.5), tmp_path / "adapter", "DoRA")
    tensors = load_file(folder / "adapter_model.safetensors", "cpu")
    rewrite(folder, {name + end * name.endswith("magnitude_vector"): tensor.clone() for name, tensor in tensors.items()})
    assert diagnose(folder, base=base_model()).verdict == verdict


@pytest.mark.parametrize("size", [0, 0.5])
def test_names_of_experts_from_before_transformers_5_are_those_that_peft_joins(size, tmp_path):
    def base():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
        return MixtralForCausalLM(MixtralConfig(vocab_size=64, num_local_experts=2, eos_token_id=1, pad_token_id=1, **sizes))

    folder = save(trained_model(), tmp_path / "adapter", "plain")
    file, places = folder / "adapter_config.json", [("self_attn.q_proj", 32, 32)]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ["q_proj", "w1", "w2", "w3"]}))
    places += [(f"block_sparse_moe.experts.{expert}.{name}", *shape) for expert in (0, 1) for name, *shape in (("w1", 32, 48), ("w2", 48, 32), ("w3", 32, 48))]
    names = [f"base_model.model.model.layers.0.{name}.lora_" for name, *_ in places]
    rewrite(folder, {f"{name}A.weight": torch.randn(4, inputs) for name, (_, inputs, _) in zip(names, places, strict=True)}
            | {f"{name}B.weight": size * torch.randn(outputs, 4) for name, (*_, outputs) in zip(names, places, strict=True)})
    for result in (diagnose(folder, base=base()), diagnose(PeftModel.from_pretrained(base(), folder), saved=folder)):
        assert result.verdict in (("trained", "too little to see") if size else ("never trained",)), result
        assert found(result, "file fits").ok and found(result, "saved copy").ok is None and "PEFT joins" in found(result, "saved copy").measured


def test_empty_placeholders_are_named(tmp_path):
    folder = save(trained_model(), tmp_path / "adapter", "plain")
    rewrite(folder, {name: tensor.flatten()[:0] for name, tensor in load_file(folder / "adapter_model.safetensors").items()})
    for how in ({"adapter": folder, "base": base_model()}, {"adapter": trained_model(), "saved": folder}):
        with pytest.raises(ValueError, match="DeepSpeed ZeRO-3"):
            diagnose(**how)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_with_fewer_digits_than_the_model_is_no_damaged_copy(dtype, tmp_path):
    model = trained_model()
    save(model, tmp_path / "adapter", "plain")
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items()}
    rewrite(tmp_path / "adapter", tensors)
    result = diagnose(model, saved=tmp_path / "adapter")
    assert result.verdict == "trained" and "8 of 8 matrices equal but for rounding" in found(result, "saved copy").measured
    rewrite(tmp_path / "adapter", tensors | {min(tensors): tensors[min(tensors)] * 1.02})
    assert diagnose(model, saved=tmp_path / "adapter").verdict == "damaged copy"


def test_an_adapter_in_16_bits_rounds_what_is_merged(tmp_path):
    model = of_layers(trained_model(), "lora_", 1)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.bfloat16() if "lora_" in name else parameter.data
    merged = found(diagnose(model, saved=save(model, tmp_path / "adapter", "plain")), "merged model")
    assert merged.ok is False and "of the adapter" in merged.mend and "shares" not in merged.mend


def test_an_untrained_adapter_converted_from_pissa_is_not_called_trained(tmp_path):
    model = get_peft_model(base_model(), config(init_lora_weights="pissa"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "first")
    model.peft_config["default"].init_lora_weights = "pissa"
    for size, verdict in ((0, "no effect"), (0.5, "trained")):
        model.save_pretrained(tmp_path / str(size))  # PEFT looks at what is there
        set_b(model, size) if size else None
        model.save_pretrained(tmp_path / str(size), path_initial_model_for_weight_conversion=str(tmp_path / "first"))
        result = diagnose(tmp_path / str(size), base=base_model())
        assert result.verdict == verdict and ("rounding" in result.sentence) == (not size), result


def test_scores_that_are_no_numbers_are_not_too_little_to_see():
    result = diagnose(of_layers(trained_model(), "lora_B", 1e30))
    assert result.verdict == "not a number" and "lower rate" in result.sentence


def test_a_bias_that_was_trained_is_the_adapters_own(tmp_path):
    model = set_b(get_peft_model(base_model(attention_bias=True), LoraConfig(target_modules=["q_proj"], bias="all", task_type="CAUSAL_LM")), 0.5)
    model.get_parameter("base_model.model.model.layers.0.self_attn.k_proj.bias").data[0] = float("nan")
    for result in (diagnose(model), diagnose(save(model, tmp_path / "adapter", "plain"), base=base_model(attention_bias=True))):
        assert result.verdict == "not a number" and result.sentence.startswith("The adapter")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"])
def test_a_base_that_holds_no_numbers_is_named_and_not_the_adapter(number, name, tmp_path):
    folder, base = save(trained_model(), tmp_path / "adapter", "plain"), base_model()
    base.get_parameter(name).data.view(-1)[0] = number
    result = diagnose(folder, base=base)
    assert result.verdict == "not a number" and result.sentence.startswith("The base") and name in found(result, "finite base").measured


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


@pytest.mark.parametrize(("text", "ok", "verdict"), [('{"do_sample": false}', False, "does not stop"), ("[]", None, "trained"), ("{", None, "trained")])
def test_a_generation_config_that_names_no_end_ends_nothing(text, ok, verdict, folder, tiny_qwen3, tmp_path):
    base = shutil.copytree(tiny_qwen3, tmp_path / "base")
    shutil.copy(tiny_qwen3 / "generation_config.json", folder)
    (folder / "generation_config.json").write_text(text)
    result = diagnose_adapter(folder, AutoTokenizer.from_pretrained(base), base=AutoModelForCausalLM.from_pretrained(base), questions=["Where?"])
    assert found(result, "answers differ").ok is not None and found(result, "stops").ok is ok and result.verdict == verdict


def test_an_adapter_for_another_task_is_not_judged_by_answers(tmp_path):
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
    with pytest.raises(ValueError, match="base has weights on the device meta"):
        diagnose_adapter(folder, base=empty)
    with pytest.raises(ValueError, match="the adapter's model has weights on the device meta"):
        diagnose_adapter(get_peft_model(empty, config()))
