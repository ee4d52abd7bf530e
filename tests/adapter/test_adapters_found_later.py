"""What an adversary found in a diagnosis that had passed all other tests: each adapter with its right verdict."""
import json

import pytest
import torch
from adapters import base_model, config, diagnose, fingerprint, found, save, set_b, trained_model
from datasets import Dataset
from peft import ArrowConfig, IA3Config, KasaConfig, LoHaConfig, LoraConfig, PromptTuningConfig, create_arrow_model, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from test_command_line import command
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from helpers.adapter.diagnosis import diagnose_adapter
from helpers.adapter.size import linear_shapes, lora_map, lora_size
from helpers.adapter.state import lora_layers
from helpers.model.weights import base_hash
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


def grown():
    model = base_model()
    torch.seed()  # new rows are drawn at random, as in a process of their own
    model.resize_token_embeddings(70)
    return model


def trained_with(trainer_args, model, rows=None):
    rows = rows or [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 4
    args = TrainingArguments(**{"max_steps": 2, "per_device_train_batch_size": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True} | trainer_args)
    trainer = Trainer(model, args, train_dataset=rows, data_collator=default_data_collator)
    trainer.train()
    return trainer


@pytest.mark.parametrize("trained", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": {"embed_tokens": [64, 65], "lm_head": [64, 65]}}, {}])
def test_new_tokens_whose_first_numbers_were_drawn_are_no_wrong_base(tmp_path, trained):
    trainer = trained_with({"output_dir": str(tmp_path / "run")}, model := get_peft_model(grown(), config(**trained)))
    set_b(model, 0.5).save_pretrained(folder := tmp_path / "adapter", save_embedding_layers="auto" if trained else True)
    keep_record(trainer, folder)
    assert diagnose(folder, base=grown()).verdict == diagnose(model, base=base_model()).verdict == "trained"  # in memory too, with the base as it was published
    if "trainable_token_indices" not in trained:
        assert diagnose(folder, base=base_model()).verdict == "trained"  # it is given as many tokens
    if not trained:
        assert found(diagnose(folder, base=grown()), "its own base").ok


@pytest.mark.parametrize("trained", [{}, {"modules_to_save": ["norm"]}, {"modules_to_save": ["embed_tokens", "lm_head"]}, {"trainable_token_indices": [3, 5]}])
def test_another_base_is_a_wrong_one_whatever_else_is_trained(tmp_path, trained):
    trainer = trained_with({"output_dir": str(tmp_path / "run")}, model := get_peft_model(base_model(), config(**trained)))
    keep_record(trainer, folder := save(set_b(model, 0.5), tmp_path / "adapter", ""))
    assert found(diagnose(folder, base=base_model()), "its own base").ok
    assert diagnose(folder, base=base_model(seed=1)).verdict == "wrong base"
    assert diagnose(model, base=base_model()).verdict == "trained" and diagnose(model, base=base_model(seed=1)).verdict == "wrong base"
    record = json.loads((folder / RECORD_FILE).read_text())
    (folder / RECORD_FILE).write_text(json.dumps(record | {"base_sha256": base_hash(model)}))  # as older versions kept it
    assert found(diagnose(folder, base=base_model()), "its own base").ok


def test_a_base_without_a_table_of_tokens_is_examined(tmp_path):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.q_proj(x)

    model = set_b(get_peft_model(Plain(), LoraConfig(target_modules=["q_proj"])), 0.5)
    model.save_pretrained(tmp_path / "adapter")
    assert diagnose_adapter(tmp_path / "adapter", base=Plain()).verdict == "not asked"


def test_new_tokens_that_can_not_be_added_here_are_named(tmp_path):
    model = set_b(get_peft_model(grown(), config(trainable_token_indices=[64, 65])), 0.5)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ValueError, match=r"resize_token_embeddings\(len\(tokenizer\)\) first"):
        diagnose(tmp_path / "adapter", base=base_model())


@pytest.mark.parametrize("changes", [
    {"rank_pattern": {"^model.layers.0.self_attn.q_proj": 2}}, {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 2}},
    {"target_modules": [], "target_parameters": ["q_proj.weight", "v_proj.weight"], "rank_pattern": {"q_proj.weight": 2}}])
def test_a_pattern_names_layers_and_parameters_as_peft_does(tmp_path, changes):
    folder = save(model := set_b(get_peft_model(base_model(), config(**changes)), 0.5), tmp_path / "adapter", "")
    for result in (diagnose(model, saved=folder), diagnose(folder, base=base_model())):
        assert found(result, "saved copy").ok and result.verdict in ("trained", "too little to see")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_dora_that_16_bits_round_was_never_trained(tmp_path, dtype):
    folder = save(model := get_peft_model(base_model().to(dtype), config(use_dora=True)), tmp_path / "adapter", "")
    assert diagnose(model).verdict == diagnose(folder, base=base_model().to(dtype)).verdict == "never trained"
    assert diagnose(folder, base=base_model()).verdict == diagnose_adapter(folder, base=base_model()).verdict == "never trained"
    assert diagnose(set_b(model, 0.5)).verdict == "trained"
    for layer in lora_layers(model).values():
        layer.lora_B["default"].weight.data.zero_()
    assert diagnose(model).verdict != "never trained"  # its magnitudes have moved


def test_magnitudes_that_moved_a_little_in_float32_are_no_rounding():
    model = get_peft_model(base_model(), config(use_dora=True))
    for layer in lora_layers(model).values():
        layer.lora_magnitude_vector["default"].weight.data *= 1.005
    assert diagnose(model).verdict == "too little to see"


def test_an_adapter_that_peft_converted_is_no_damaged_copy(tmp_path):
    model = get_peft_model(base_model(), config(init_lora_weights="pissa"))
    own = model.peft_config["default"]
    own.init_lora_weights = True
    model.save_pretrained(tmp_path / "first")
    own.init_lora_weights = "pissa"
    set_b(model, 0.5)
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "first"))
    assert found(diagnose(model, saved=tmp_path / "converted"), "saved copy").ok is None
    assert diagnose(tmp_path / "converted", base=base_model()).verdict == "trained"


def test_an_adapter_of_the_eyes_is_not_judged_by_text(tmp_path):
    text = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64, "eos_token_id": 1, "pad_token_id": 1}
    eyes = {"model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 16}
    base = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=eyes, image_token_index=63))
    model = get_peft_model(base, config(target_modules=r".*vision_tower.*q_proj"))
    assert diagnose(model).verdict == diagnose(model, saved=save(model, tmp_path / "fresh", "")).verdict == "never trained"
    set_b(model, 0.5)
    for saved in (None, save(model, tmp_path / "adapter", "")):
        result = diagnose(model, saved=saved)
        assert result.verdict == "not asked" and "more than text" in found(result, "logits differ").measured and (not saved or found(result, "merged model").ok)
    words = set_b(get_peft_model(LlavaForConditionalGeneration(base.config), config(target_modules=r".*language_model.*q_proj")), 1e-9)
    assert diagnose(words).verdict == "no effect"


def test_a_base_in_a_wrapper_of_pytorch_is_the_base(tmp_path):
    folder = save(model := trained_model(), tmp_path / "adapter", "")
    wrapped = torch.nn.DataParallel(base_model())
    assert found(diagnose(model, base=wrapped), "its own base").ok and diagnose(folder, base=wrapped).verdict == "trained"


def test_a_training_without_a_label_for_each_token_is_not_judged_by_them(tmp_path):
    classifier = get_peft_model(LlamaForSequenceClassification(base_model().config), config(task_type="SEQ_CLS"))
    trainer = trained_with({"output_dir": str(tmp_path / "run")}, classifier, [{"input_ids": [1, 2, 3], "labels": 1}] * 4)
    assert supervised_tokens(trainer) is None and found(diagnose(classifier, trainer=trainer), "tokens with loss").ok is None
    keep_record(trainer, folder := save(classifier, tmp_path / "adapter", ""))
    assert found(diagnose(folder, base=LlamaForSequenceClassification(base_model().config)), "steps").ok
    for rows in ([{"chosen": [1, 2], "rejected": [3]}], [{"input_ids": [1, 2, 3], "labels": [1.0, 0.0]}]):  # preferences, several labels
        trainer.train_dataset = rows
        assert supervised_tokens(trainer) is None


class MapStyle(torch.utils.data.Dataset):
    """As people write it: it raises no IndexError behind its end."""

    def __len__(self):
        return 4

    def __getitem__(self, place):
        return {"input_ids": torch.tensor([1, 2, 3, 4]), "labels": torch.tensor([1, 2, 3, 4])}


def test_counting_comes_to_an_end(tmp_path):
    trainer = trained_with({"output_dir": str(tmp_path / "run")}, get_peft_model(base_model(), config()), MapStyle())
    assert supervised_tokens(trainer) == round(3 * 4 * trainer.state.epoch)
    stream = stream_trainer(tmp_path, 5, 3)
    stream.train_dataset = iter(())  # a generator that is used up
    assert supervised_tokens(stream) == 0


def test_the_command_line_takes_the_class_and_the_tokens_that_the_adapter_was_made_for(tmp_path, tiny_qwen3):
    features = set_b(get_peft_model(AutoModel.from_pretrained(tiny_qwen3), config(target_modules="all-linear", task_type="FEATURE_EXTRACTION")), 0.5)
    status, printed, complaint = command("diagnose", save(features, tmp_path / "features", ""), "--base", tiny_qwen3)
    assert status == 0 and "not asked" in printed and "Traceback" not in complaint
    tokenizer, base = AutoTokenizer.from_pretrained(tiny_qwen3), AutoModelForCausalLM.from_pretrained(tiny_qwen3)
    tokenizer.add_tokens([f"<n{number}>" for number in range(40)])
    base.resize_token_embeddings(len(tokenizer))
    folder = save(set_b(get_peft_model(base, config(target_modules="all-linear")), 0.5), tmp_path / "grown", "")
    tokenizer.save_pretrained(folder)
    status, printed, complaint = command("diagnose", folder, "--base", tiny_qwen3, "--question", "x")
    assert status == 0 and printed.startswith("trained") and "Traceback" not in complaint


def test_the_command_line_gives_a_classifier_its_labels(tmp_path):
    base = LlamaForSequenceClassification(base_model().config)
    base.save_pretrained(tmp_path / "base")
    base.config.num_labels = 3
    model = set_b(get_peft_model(LlamaForSequenceClassification(base.config), config(task_type="SEQ_CLS")), 0.5)
    status, printed, complaint = command("diagnose", save(model, tmp_path / "adapter", ""), "--base", tmp_path / "base")
    assert status == (2 if "mismatch" in complaint else 0), complaint
    base_model().save_pretrained(tmp_path / "headless")  # its head is trained, and saved
    status, printed, complaint = command("diagnose", tmp_path / "adapter", "--base", tmp_path / "headless")
    assert status == 0 and "not asked" in printed, complaint


def test_a_folder_around_the_adapter_names_it(tmp_path):
    model = set_b(get_peft_model(base_model(), config(), adapter_name="sft"), 0.5)
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"give the folder in it that holds one \(sft\)"):
        diagnose(tmp_path / "saved", base=base_model())
    assert diagnose(tmp_path / "saved" / "sft", base=base_model()).verdict == "trained"


def test_the_head_of_a_classifier_is_no_layer_for_all_linear():
    classifier = LlamaForSequenceClassification(base_model().config)
    predicted = lora_size(linear_shapes(classifier), 4, 8, "all-linear")
    made = get_peft_model(classifier, config(target_modules="all-linear", task_type="SEQ_CLS"))
    layers = lora_layers(made).values()
    assert (predicted.layers, predicted.parameters) == (len(layers), sum(layer.lora_A["default"].weight.numel() + layer.lora_B["default"].weight.numel() for layer in layers))
    for r, targets in ((8.0, "all-linear"), (8, None)):
        with pytest.raises(ValueError, match="whole number|target_modules is None"):
            lora_size(linear_shapes(base_model()), r, 8, targets)
