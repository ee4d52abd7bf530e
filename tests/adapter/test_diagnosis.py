"""The diagnosis against PEFT itself: each fault is made on purpose, and must get its own verdict."""
import json

import pytest
import torch
from adapters import QUESTIONS, Tokenizer, base_model, config, diagnose, found, set_b, trained_model
from peft import LoraConfig, PeftModel, get_peft_model
from real_failures import no_file_can_grow
from transformers import Trainer, TrainingArguments, default_data_collator

from helpers.adapter.diagnosis import Diagnosis, diagnose_adapter
from helpers.adapter.effect import _check_answers
from helpers.adapter.faults import FAULTS, OTHER_MENDS, Check
from helpers.adapter.state import lora_layers, relative_update
from helpers.ask.answers import Answer
from helpers.model.weights import base_hash
from helpers.training.saving import GENERATION_FILE, RECORD_FILE, keep_record, read_record, supervised_tokens

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]
def make_trainer(folder, model, steps=3, labels=(-100, -100, 5, 6), **settings):
    rows = [{"input_ids": [1, 2, 3, 4], "labels": list(labels)}, {"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, -100]}]
    args = TrainingArguments(str(folder), max_steps=steps, per_device_train_batch_size=1, learning_rate=0.01, save_strategy="no",
                             report_to="none", use_cpu=True, disable_tqdm=True, **settings)
    return Trainer(model, args, train_dataset=rows, data_collator=default_data_collator)


@pytest.fixture
def saved(tmp_path):
    """A trained adapter: model in memory, folder with its record."""
    model = get_peft_model(base_model(), config())
    trainer = make_trainer(tmp_path / "run", model)
    trainer.train()
    set_b(model, 0.5)
    model.save_pretrained(tmp_path / "adapter")
    keep_record(trainer, tmp_path / "adapter")
    return model, tmp_path / "adapter"


# Verdicts


def test_trained():
    result = diagnose(trained_model())
    assert result.verdict == "trained"
    assert found(result, "answers differ").ok and found(result, "logits differ").ok


def test_too_little_to_see():
    result = diagnose(trained_model(1e-5))
    assert result.verdict == "too little to see" and "learning rate" in result.sentence
    assert found(result, "B is not zero").ok and found(result, "answers differ").ok is False


def test_one_answer_tipped_by_a_coins_fall_is_too_little_to_see(monkeypatch):
    answers = iter([[Answer("5 6", True), Answer("7", True)], [Answer("5 6", True), Answer("8", True)]])
    monkeypatch.setattr("helpers.adapter.effect.generate_answers", lambda *_: next(answers))
    result = diagnose(trained_model(1e-5))
    assert result.verdict == "too little to see" and found(result, "answers differ").measured.startswith("1 of 2")


@pytest.mark.parametrize(("before", "ok"), [(9, True), (0.01, False)])
def test_certain_answers_that_turn_at_one_token_are_seen_and_a_coins_fall_is_not(before, ok):
    off, answers = torch.zeros(30, 8), [[Answer("3 3", True)] * 2, [Answer("5 3", True)] * 2]
    off[:, 3] = 9
    off[0] = torch.tensor([before, 0, 0, 0, 0, 0, 0, 0])
    on = off.clone()
    on[0] = off[0].roll(1)  # another token
    result = _check_answers(*answers, on, off)
    assert result.ok is ok and result.measured.startswith("2 of 2")


def test_answers_that_stay_the_same_are_too_little_to_see(monkeypatch):
    monkeypatch.setattr("helpers.adapter.effect.generate_answers", lambda *_: [Answer("5 6", True), Answer("7", True)])
    assert diagnose(trained_model()).verdict == "too little to see"


def test_never_trained():
    result = diagnose(get_peft_model(base_model(), config()))
    assert result.verdict == "never trained" and set(result.update.values()) == {0.0}


def test_not_asked():
    assert diagnose_adapter(trained_model()).verdict == "not asked"
    assert diagnose_adapter(trained_model(), Tokenizer()).verdict == "not asked"


def test_not_a_number():
    model = trained_model()
    next(layer for layer in lora_layers(model).values()).lora_B["default"].weight.data[0, 0] = float("nan")
    assert diagnose(model).verdict == "not a number"


def wrap_a_peft_model():
    return get_peft_model(trained_model(), config())


def wrap_its_base_again():
    return get_peft_model(trained_model().get_base_model(), config())


def wrap_under_another_name():
    return get_peft_model(trained_model().get_base_model(), config(), adapter_name="second")


def load_onto_an_adapter(folder):
    trained_model().save_pretrained(folder)
    return PeftModel.from_pretrained(trained_model(), folder)


@pytest.mark.parametrize("wrap", [wrap_a_peft_model, wrap_its_base_again, wrap_under_another_name])
@pytest.mark.parametrize("size", [0, 0.5])
def test_wrapped_twice(wrap, size):
    assert diagnose(set_b(wrap(), size)).verdict == "wrapped twice"


def test_wrapped_twice_by_loading(tmp_path):
    assert diagnose(load_onto_an_adapter(tmp_path)).verdict == "wrapped twice"


def test_saved_after_wrapping_twice(tmp_path):
    set_b(wrap_a_peft_model(), 0.5).save_pretrained(tmp_path)
    assert diagnose(tmp_path, base=base_model()).verdict == "wrapped twice"


def test_wrapping_again_after_unload_or_a_second_adapter_is_no_fault(tmp_path):
    model = get_peft_model(trained_model().unload(), config())
    assert diagnose(set_b(model, 0.5)).verdict == "trained"
    model = get_peft_model(trained_model().merge_and_unload(), config())
    assert diagnose(set_b(model, 0.5)).verdict == "trained"
    trained_model().save_pretrained(tmp_path)
    model.load_adapter(tmp_path, adapter_name="second")
    assert diagnose(set_b(model, 0.5)).verdict == "trained"


def test_disabled():
    model = trained_model()
    with model.disable_adapter():
        result = diagnose(model)
    assert result.verdict == "disabled" and found(result, "answers differ").ok
    assert diagnose(model).verdict == "trained"
    model.base_model.disable_adapter_layers()
    assert diagnose(model).verdict == "disabled"
    assert all(layer.disable_adapters for layer in lora_layers(model).values())


def test_wrong_base(saved):
    _, folder = saved
    assert diagnose(folder, base=base_model(seed=0)).verdict == "trained"
    result = diagnose(folder, base=base_model(seed=1))
    assert result.verdict == "wrong base" and "Mend" in found(result, "its own base").mend
    assert diagnose(PeftModel.from_pretrained(base_model(seed=1), folder), saved=folder).verdict == "wrong base"
    assert diagnose(saved[0], saved=folder, base=base_model(seed=1)).verdict == "wrong base"
    for other in (base_model(inner=40), base_model(hidden=16)):
        assert diagnose(trained_model(), base=other).verdict == "wrong base"


def test_base_in_another_precision_is_no_wrong_base(saved):
    result = diagnose(saved[1], base=base_model().to(torch.bfloat16))
    assert found(result, "its own base").ok is None and "bfloat16" in found(result, "its own base").measured
    assert result.verdict == "trained"


def test_base_weights_are_untouched():
    model = trained_model()
    assert found(diagnose(model, base=base_model()), "its own base").ok
    lora_layers(model)["base_model.model.model.layers.1.self_attn.q_proj"].get_base_layer().weight.data[3, 3] += 1e-3
    assert diagnose(model, base=base_model()).verdict == "wrong base"


def test_saved_copy(saved):
    model, folder = saved
    result = diagnose(model, saved=folder)
    assert result.verdict == "trained"
    assert found(result, "saved copy").ok and found(result, "merged model").ok
    lora_layers(model)["base_model.model.model.layers.1.self_attn.q_proj"].lora_A["default"].weight.data[0, 0] += 1e-6
    result = diagnose(model, saved=folder)
    assert result.verdict == "damaged copy" and found(result, "saved copy").measured.startswith("7 of 8")


def test_saved_copy_with_another_alpha(saved):
    model, folder = saved
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 9}))
    assert diagnose(model, saved=folder).verdict == "damaged copy"


# Measures, with PEFT and PyTorch as the oracle


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"target_modules": "all-linear", "r": 3}])
def test_update_is_the_norm_of_the_product(changes):
    model = set_b(get_peft_model(base_model(), config(**changes)), 0.5)
    update = diagnose(model).update
    for name, layer in lora_layers(model).items():
        expected = layer.get_delta_weight("default").norm() / layer.get_base_layer().weight.norm()
        assert update[name.removeprefix("base_model.model.")] == pytest.approx(expected.item(), rel=1e-5)


def test_update_of_two_adapters_is_that_of_their_sum():
    model = trained_model()
    model.add_adapter("second", config(r=2))
    model.base_model.set_adapter(["default", "second"])
    set_b(model, 0.5)
    for layer in lora_layers(model).values():
        delta = layer.get_delta_weight("default") + layer.get_delta_weight("second")
        assert relative_update(layer, ["default", "second"]) == pytest.approx((delta.norm() / layer.get_base_layer().weight.norm()).item(), rel=1e-5)


def test_a_merge_that_rounds_is_reported(saved):
    model, folder = saved
    model = PeftModel.from_pretrained(base_model().to(torch.bfloat16), folder)
    check = found(diagnose(model, saved=folder), "merged model")
    assert check.ok is False and "float32" in check.mend


def test_nothing_is_changed(saved):
    model, folder = saved
    model.train()
    before = {name: (value.clone(), value.data_ptr()) for name, value in model.named_parameters()}
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    diagnose(model, saved=folder, base=base_model())
    assert all(torch.equal(value, before[name][0]) and value.data_ptr() == before[name][1] for name, value in model.named_parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable and any(trainable)
    assert all(part.training for part in model.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_base_is_left_as_it_was(saved):
    base = base_model().train()
    state = base_hash(base)
    names = [name for name, _ in base.named_modules()]
    for _ in range(2):
        assert diagnose(saved[1], base=base).verdict == "trained"
    assert [name for name, _ in base.named_modules()] == names and base_hash(base) == state
    assert all(parameter.requires_grad for parameter in base.parameters()) and all(part.training for part in base.modules())


# The record


def test_hash_does_not_see_the_adapter_but_every_weight():
    plain, adapted = base_model(), trained_model()
    assert base_hash(plain) == base_hash(adapted) == base_hash(get_peft_model(adapted, config()))
    assert base_hash(base_model(seed=1)) != base_hash(plain)
    plain.lm_head.weight.data[0, 0] = torch.nextafter(plain.lm_head.weight.data[0, 0], torch.tensor(9.0))
    assert base_hash(plain) != base_hash(adapted)


def test_tokens_are_those_that_the_loss_counts(tmp_path):
    model, counted = get_peft_model(base_model(), config()), []
    trainer = make_trainer(tmp_path, model, steps=4)
    compute_loss = trainer.compute_loss

    def watch(model, inputs, **options):
        logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(logits, inputs["labels"][:, 1:].flatten(), ignore_index=-100, reduction="none")
        counted.append(int((losses > 0).sum()))
        return compute_loss(model, inputs, **options)

    trainer.compute_loss = watch
    trainer.train()
    assert supervised_tokens(trainer) == sum(counted) == 8  # 2 and 2 a row; the first label of a row is never predicted


def test_record_holds_what_the_run_did_and_nothing_private(saved, tmp_path):
    _, folder = saved
    text = (folder / RECORD_FILE).read_text()
    assert json.loads(text) == {"base_sha256": base_hash(base_model()), "base_dtype": "float32", "steps": 3, "supervised_tokens": 6}
    assert str(tmp_path) not in text
    assert not list(folder.glob("*.part*"))
    result = diagnose(folder, base=base_model())
    assert found(result, "steps").measured == "3 taken" and found(result, "tokens with loss").measured.startswith("6")


def test_a_failed_write_keeps_the_old_record(saved, tmp_path):
    model, folder = saved
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    longer = make_trainer(tmp_path, model, steps=5)
    longer.train()
    longer.model.generation_config.max_new_tokens = 7
    with no_file_can_grow(), pytest.raises(OSError):
        keep_record(longer, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    keep_record(longer, folder)
    assert read_record(folder)["steps"] == 5 and '"max_new_tokens": 7' in (folder / GENERATION_FILE).read_text()


def test_a_trainer_that_never_trained(tmp_path):
    model = get_peft_model(base_model(), config())
    result = diagnose(model, trainer=make_trainer(tmp_path, model))
    assert result.verdict == "never trained"
    assert found(result, "steps").ok is False and found(result, "tokens with loss").ok is False


def test_no_token_with_loss(tmp_path):
    model = get_peft_model(base_model(), config())
    trainer = make_trainer(tmp_path, model, steps=2)
    trainer.train_dataset = [row | {"labels": [7, -100, -100, -100]} for row in trainer.train_dataset]
    trainer.train()
    result = diagnose(model, trainer=trainer)
    assert found(result, "steps").ok and "max_length" in found(result, "tokens with loss").mend


def test_mixed_precision_in_training_is_no_rounding_of_the_weights(tmp_path):
    """The trainer leaves the model computing in 16 bits; the weights, and a merged model, are what they were."""
    model, ids = trained_model(), torch.tensor([[1, 2, 3, 4]])
    trainer = make_trainer(tmp_path / "run", model, bf16=True)
    trainer.train()
    rounded, whole = trainer.model(input_ids=ids).logits, trainer.model.base_model(input_ids=ids).logits
    assert (rounded - whole).abs().max() > 2e-3 * whole.abs().max(), "the trainer does not compute in 16 bits here"
    model.save_pretrained(tmp_path / "adapter")
    result = diagnose(trainer.model, saved=tmp_path / "adapter")
    assert found(result, "merged model").ok and found(result, "saved copy").ok, result


# Bad input


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda model, folder: diagnose(folder.parent, base=base_model()), "adapter_config.json is missing"),
    (lambda model, folder: diagnose(model, saved=folder.parent), "adapter_config.json is missing"),
    (lambda model, folder: keep_record(None, folder.parent), "adapter_config.json is missing"),
    (lambda model, folder: diagnose(folder), "base=model"),
    (lambda model, folder: diagnose(folder, base=model), "LoRA layers already"),
    (lambda model, folder: diagnose(folder, base=base_model(hidden=16)), "does not load"),
    (lambda model, folder: diagnose(base_model()), "LlamaForCausalLM is no PeftModel"),
    (lambda model, folder: (model.merge_adapter(), diagnose(model)), "unmerge_adapter"),
    (lambda model, folder: ((folder / "adapter_model.safetensors").write_bytes(b"short"), diagnose(model, saved=folder)), "not whole"),
    (lambda model, folder: ((folder / "adapter_model.safetensors").write_bytes(b"short"), diagnose(folder, base=base_model())), "whole"),
    (lambda model, folder: ((folder / "adapter_config.json").write_text("{"), diagnose(folder, base=base_model())), "does not load"),
    (lambda model, folder: ((folder / RECORD_FILE).write_text("[]"), diagnose(model, saved=folder)), "no record that keep_record wrote"),
])
def test_bad_input_gets_one_sentence(saved, make, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        make(*saved)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


# What is shown


def test_table_is_escaped_and_signs_need_no_colour():
    shown = Diagnosis("trained", "a <b>", [Check("x", True, "<i>"), Check("y", False, "b", "<u>"), Check("z", None, "c")], {})._repr_html_()
    assert "<b>trained</b>" in shown and "&lt;b&gt;" in shown and "<i>" not in shown and "<u>" not in shown
    assert all(f">{sign}</td>" in shown for sign in "✓!–")
    assert "color" not in shown


def test_what_failed_and_what_moved_stands_open_and_the_rest_is_folded():
    shown = diagnose(trained_model(1e-5))._repr_html_()
    opened, folded = shown.split("<details>")
    assert all(f">{name}</td>" in opened for name in ("B is not zero", "answers differ")) and "Usual cause" in opened
    assert ">finite numbers</td>" in folded and "<td" in folded and ">!</td>" not in folded
    assert f"{folded.count('<tr>') - 1} more checks" in folded


def test_text_has_the_verdict_and_a_line_for_each_check():
    lines = str(diagnose(trained_model(1e-5))).splitlines()
    assert lines[0].startswith("too little to see: ") and any(line.startswith("! answers differ") for line in lines)


def test_every_fault_names_cause_and_mend():
    texts = [mend for _, _, mend in FAULTS.values()] + list(OTHER_MENDS.values())
    assert all("Usual cause: " in text and "Mend: " in text for text in texts)


# The real thing


def test_two_records_with_the_articles_settings(tokenizer, tmp_path):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from helpers.model.base_model import base_model_path
    from helpers.model.hardware import training_precision

    data = load_dataset("json", data_files="data/two_examples.jsonl", split="train")
    args = SFTConfig(str(tmp_path), per_device_train_batch_size=1, num_train_epochs=2, learning_rate=2e-4, max_length=512, report_to="none",
                     logging_steps=10, save_strategy="no", optim="adamw_torch", disable_tqdm=True, **training_precision())
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(base_model_path(), dtype=torch.float32)
    trainer = SFTTrainer(model=model, args=args, train_dataset=data, peft_config=lora, processing_class=tokenizer)
    trainer.train()
    result = diagnose_adapter(trainer.model, tokenizer, questions=QUESTIONS, trainer=trainer)
    assert result.verdict == "too little to see"
    assert found(result, "steps").measured == "4 taken"
    assert 0 < max(result.update.values()) < 0.01
    expected = 2 * sum(len(tokenizer.apply_chat_template(row["messages"])["input_ids"]) - 1 for row in data)  # every token but the first, two epochs
    assert found(result, "tokens with loss").measured.startswith(str(expected))
