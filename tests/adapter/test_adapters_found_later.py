"""What an adversary found in a diagnosis that had passed all other tests: each adapter with its right verdict."""
import pytest
import torch
from adapters import base_model, config, diagnose, fingerprint, found, save, set_b, trained_model
from datasets import Dataset
from peft import ArrowConfig, IA3Config, KasaConfig, LoHaConfig, PromptTuningConfig, create_arrow_model, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from test_command_line import command
from transformers import MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments, default_data_collator

from helpers.adapter.diagnosis import diagnose_adapter
from helpers.adapter.size import linear_shapes, lora_map, lora_size
from helpers.adapter.state import lora_layers
from helpers.training.saving import RECORD_FILE, keep_record, supervised_tokens

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]


def test_a_router_that_works_in_another_way_is_not_called_untrained(tmp_path):
    folders = [str(save(trained_model(), tmp_path / name, "")) for name in ("one", "two")]
    result = diagnose(create_arrow_model(base_model(), folders, ArrowConfig(top_k=2)))
    assert result.verdict == "not examined" and found(result, "logits differ").ok


@pytest.mark.parametrize(("moved", "verdict", "parts"), [("gate_up", "partly trained", "4 of 6"), ("down", "partly trained", "4 of 6"), ("", "trained", "6 of 6")])
def test_two_parameters_of_one_module_are_two_parts(moved, verdict, parts):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    base = MixtralForCausalLM(MixtralConfig(vocab_size=64, eos_token_id=1, pad_token_id=1, **sizes))
    base.lm_head.weight.data *= 40
    model = get_peft_model(base, config(target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]))
    set_b(model, 0.5)
    for layer in lora_layers(model).values():
        if moved and hasattr(layer, "parameter_name") and moved not in layer.parameter_name:
            layer.lora_B["default"].weight.data.zero_()
    result = diagnose(model)
    assert result.verdict in (verdict, "too little to see") and found(result, "every part moved").measured == parts and len(result.update) == 6


@pytest.mark.parametrize("other", [{"modules_to_save": ["lm_head"]}, {"modules_to_save": ["norm"]}])
def test_what_only_another_adapter_retrains_is_passed_over(other):
    model = get_peft_model(base_model(), config())
    model.add_adapter("b", config(**other))
    assert diagnose(set_b(model, 0.5)).verdict == "trained"


def compiled_layer(model):
    model.base_model.model.model.layers[0] = torch.compile(model.base_model.model.model.layers[0], backend="eager")
    return model


def test_a_compiled_layer_or_base_has_the_weights_that_it_had(tmp_path):
    folder = save(trained_model(), tmp_path / "adapter", "")
    model = compiled_layer(trained_model())
    result = diagnose(model, base=base_model())
    assert found(result, "its own base").ok and result.verdict == "trained" and found(result, "answers differ").ok
    assert diagnose(folder, base=torch.compile(base_model(), backend="eager")).verdict == "trained"
    assert diagnose(torch.compile(trained_model(), backend="eager")).verdict == "trained"


def test_a_scale_that_was_changed_after_saving_is_seen_and_one_that_came_another_way_is_right(tmp_path):
    folder = save(model := trained_model(), tmp_path / "one", "")
    for layer in lora_layers(model).values():
        layer.set_scale("default", 3.0)
    assert diagnose(model, saved=folder).verdict == "damaged copy"
    other = set_b(get_peft_model(base_model(), config(r=4, lora_alpha=16)), 0.2)
    hotswap_adapter(swapped := trained_model(), save(other, tmp_path / "two", ""), "default")
    assert found(diagnose(swapped, saved=tmp_path / "two"), "saved copy").ok


@pytest.mark.parametrize("kind", [
    LoHaConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")], ids=lambda kind: kind.peft_type.value)
def test_a_base_with_an_adapter_of_another_kind_is_no_base(tmp_path, kind):
    base = get_peft_model(base_model(), kind)
    for adapter in (trained_model(), save(trained_model(), tmp_path / "adapter", "")):
        with pytest.raises(ValueError, match="base holds adapter layers already"):
            diagnose(adapter, base=base)


def test_kasa_changes_what_its_merge_changes():
    model = set_b(get_peft_model(base_model(), config(kasa_config=KasaConfig())), 0.5)
    update, first = diagnose(model).update, dict(base_model().named_parameters())
    merged = dict(model.merge_and_unload().named_parameters())
    for name, size in update.items():
        assert size == pytest.approx(((merged[f"{name}.weight"] - first[f"{name}.weight"]).norm() / first[f"{name}.weight"].norm()).item(), rel=1e-2)  # a decomposition, each time anew


def stream_trainer(folder, rows, steps):
    data = Dataset.from_list([{"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 5, 6]}] * rows).to_iterable_dataset()
    args = TrainingArguments(str(folder), max_steps=steps, per_device_train_batch_size=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(get_peft_model(base_model(), config()), args, train_dataset=data, data_collator=default_data_collator)
    trainer.train()
    return trainer


@pytest.mark.parametrize(("rows", "steps"), [(100, 10), (1, 3)])
def test_of_a_stream_the_rows_that_were_read_are_counted(tmp_path, rows, steps):
    assert supervised_tokens(stream_trainer(tmp_path, rows, steps)) == 2 * steps


def test_a_head_of_an_adapter_is_no_layer_for_another_and_bad_ranks_are_refused_everywhere():
    shapes = linear_shapes(base_model())
    assert linear_shapes(get_peft_model(base_model(), config(modules_to_save=["lm_head"]))) == shapes
    for size in (lora_map, lambda shapes, r, targets: lora_size(shapes, r, 8, targets)):
        with pytest.raises(ValueError, match="rank 1"):
            size(shapes, 0, ["q_proj"])
    assert lora_size(shapes, 4, 8, (name for name in ["q_proj"])).layers == 2


@pytest.mark.parametrize(("text", "sentence"), [('{"r": 4}', "is not as PEFT writes it"), ('{"peft_type": "LORA", "task_type": "WEIRD"}', "is not as PEFT writes it"), ("{", "is not as PEFT writes it")])
def test_a_broken_config_of_a_saved_copy_is_named(tmp_path, text, sentence):
    folder = save(model := trained_model(), tmp_path / "adapter", "")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        diagnose(model, saved=folder)
    assert str(folder) in str(error.value)


def test_wrong_arguments_are_a_sentence(tmp_path):
    folder = save(model := trained_model(), tmp_path / "adapter", "")
    for call, sentence in ((lambda: diagnose(model, saved=5), "of type int"), (lambda: keep_record(None, folder), "no trainer"), (lambda: keep_record(object(), folder), "no trainer"),
                           (lambda: diagnose_adapter(model, "gpt2"), "tokenizer is a text"), (lambda: diagnose(model, trainer="t"), "pass the trainer")):
        with pytest.raises(ValueError, match=sentence):
            call()
    assert diagnose_adapter(model, questions=None).verdict == "not asked"


def test_nothing_is_left_changed_not_even_the_random_numbers_to_come(tmp_path):
    folder, base = save(trained_model(), tmp_path / "adapter", ""), base_model()
    before, state = fingerprint(base), torch.get_rng_state()
    diagnose(folder, base=base)
    assert fingerprint(base) == before and torch.equal(torch.get_rng_state(), state)


def test_a_base_that_lacks_weights_a_tokenizer_or_a_record_that_names_none_is_wrong_use(tmp_path):
    folder = save(trained_model(), tmp_path / "adapter", "")
    base_model().save_pretrained(tmp_path / "base")
    status, _, complaint = command("diagnose", folder, "--base", tmp_path / "base", "--question", "Where?")
    assert status == 2 and "holds a tokenizer" in complaint
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    status, printed, complaint = command("diagnose", folder, "--base", tmp_path / "base")
    assert status == 2 and "which would be drawn at random" in complaint and not printed
    (folder / RECORD_FILE).write_text('{"base_sha256": "x", "base_dtype": "float17", "steps": 1, "supervised_tokens": 1}')
    status, _, complaint = command("diagnose", folder, "--base", tmp_path / "base")
    assert status == 2 and "float17" in complaint
