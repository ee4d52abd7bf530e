"""The diagnosis of adapters of many kinds: none of them is changed, and none gets a verdict that it does not deserve."""
import copy
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from adapters import KINDS, base_model, config, diagnose, fingerprint, found, make, packed, packed_in_8_bits, save, set_b, trained_model
from datasets import Dataset
from notebook_tools import ROOT
from peft import PeftModel, get_peft_model
from real_failures import little_memory
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from trl import SFTConfig, SFTTrainer

from helpers.adapter.diagnosis import diagnose_adapter
from helpers.adapter.state import copy_of, lora_layers
from helpers.adapter.stopping import check_stop
from helpers.ask.answers import Answer
from helpers.model.hardware import training_precision
from helpers.training.saving import keep_record

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]
BAD_MERGE = {"bf16": "float32 copy", "LoRA on a tied head": "shares its table", "repeated layers": "repeats a layer"}
NO_MERGE = {"4-bit": "packed", "4-bit DoRA": "packed"}
MARKED_KINDS = [pytest.param(kind, marks=pytest.mark.packed if kind in NO_MERGE else ()) for kind in KINDS]


@pytest.mark.parametrize("kind", MARKED_KINDS)
def test_nothing_is_changed_and_a_merge_is_judged_by_what_peft_does(kind, tmp_path):
    model, base = make(kind, tmp_path)
    folder, fresh = save(model, tmp_path / "adapter", kind), base()
    model.train()
    before = fingerprint(model), fingerprint(fresh)
    results = diagnose(model, saved=folder, base=fresh), diagnose(folder, base=fresh)
    assert (fingerprint(model), fingerprint(fresh)) == before
    for result in results:
        assert found(result, "saved copy").ok and (kind == "PiSSA" or found(result, "B is not zero").ok and found(result, "every part moved").ok), result
        merged = found(result, "merged model")
        assert merged.ok is (False if kind in BAD_MERGE else None if kind in NO_MERGE else True), result
        assert BAD_MERGE.get(kind, "") in merged.mend and NO_MERGE.get(kind, "") in merged.measured
    assert results[0].verdict in ({"disabled": "disabled", "PiSSA": "not examined"}.get(kind, "trained"), "too little to see")
    assert found(results[0], "its own base").ok is (None if kind in ("PiSSA", "biases", "repeated layers") else True), results[0]
    assert ("other parts" in {check.name for check in results[1].checks}) == (kind == "biases")
    assert results[0].update.keys() == results[1].update.keys()
    assert list(results[0].update.values()) == pytest.approx(list(results[1].update.values()), rel=1e-4)


@pytest.mark.parametrize("kind", MARKED_KINDS)
def test_untrained(kind, tmp_path):
    model, base = make(kind, tmp_path, size=0)
    folder, fresh = save(model, tmp_path / "adapter", kind), base()
    verdicts = diagnose(model, saved=folder, base=fresh).verdict, diagnose(folder, base=fresh).verdict
    assert verdicts == (("not examined",) * 2 if kind == "PiSSA" else ("never trained",) * 2)
    assert diagnose(model).verdict == ("not examined" if kind in ("biases", "PiSSA") else "never trained")


def test_the_real_merge_is_what_is_measured(tmp_path):
    model, _ = make("LoRA on a tied head", tmp_path)
    measured = found(diagnose(model, saved=save(model, tmp_path / "adapter", "")), "merged model").measured
    merged, model = copy.deepcopy(model).merge_and_unload().eval(), model.eval()
    ids = torch.arange(20)[None]
    assert (merged(ids).logits - model(ids).logits).abs().max() > 0.05 * model(ids).logits.abs().max()
    assert float(measured.split()[3]) > 0.05


DIAGNOSE_SAVED = """
import sys
from adapters import diagnose, found, trained_model
model = trained_model()
model.save_pretrained(sys.argv[1])
print(found(diagnose(model, saved=sys.argv[1]), "merged model"))
"""


def test_a_merge_for_which_memory_is_short_is_not_tried(tmp_path):
    command = [*little_memory(tmp_path, 1), sys.executable, "-c", DIAGNOSE_SAVED, str(tmp_path / "adapter")]
    paths = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert "ok=None" in done.stdout and "0.0 GB are free" in done.stdout, done.stderr


def test_a_copy_takes_no_memory_and_computes_by_itself(make_sft_trainer):
    """TRL puts a forward on the model that calls the first model, in a deep copy too."""
    trainer = make_sft_trainer([{"prompt": "a", "completion": "b"}])
    model = get_peft_model(trainer.model, config())
    made, ids, called = copy_of(model), torch.arange(8)[None].to(model.device), []
    model.get_base_model().model.register_forward_hook(lambda *_: called.append(1))
    assert [p.data_ptr() for p in made.parameters()] == [p.data_ptr() for p in model.parameters()]
    made.base_model(ids)
    assert not called
    copy.deepcopy(model).base_model(ids)
    assert called, "a plain copy would do: TRL no longer puts its forward on the model"


def test_hooks_of_somebody_s_own_see_nothing_of_it(tmp_path):
    model, seen = trained_model(), []
    for module in (model, model.get_submodule("base_model.model.model.layers.0")):
        module.register_forward_hook(lambda *call: seen.append(call))
        module.register_forward_pre_hook(lambda *call: seen.append(call))
    assert diagnose(model, saved=save(model, tmp_path / "adapter", "")).verdict == "trained" and not seen
    model.eval()(torch.arange(5)[None])
    assert len(seen) == 4  # and theirs still work


@pytest.mark.packed
def test_an_update_of_a_packed_base_is_measured_against_the_weights_in_it(tmp_path):
    model = set_b(get_peft_model(packed(tmp_path), config()), 0.01)
    whole = set_b(get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "whole"), config()), 0.01)
    for (name, parameter), other in zip(whole.named_parameters(), model.parameters(), strict=True):
        if "lora_" in name:
            parameter.data.copy_(other)
    assert list(diagnose(model).update.values()) == pytest.approx(list(diagnose(whole).update.values()), rel=0.02)
    model.eval()(torch.arange(8)[None])  # packs the weights in another way, on a CPU
    assert list(diagnose(model).update.values()) == pytest.approx(list(diagnose(whole).update.values()), rel=0.02)


@pytest.mark.packed
@pytest.mark.parametrize(("base", "changes", "size", "verdict"), [
    (packed_in_8_bits, {}, 0, "never trained"), (packed_in_8_bits, {}, 0.5, "trained"), (packed, {}, 0, "never trained"), (packed, {}, 0.5, "trained"),
    (partial(packed, twice=True), {}, 0.5, "trained"), (packed, {"use_dora": True}, 0.5, "trained")])
def test_a_packed_base_is_examined_before_and_after_it_has_computed(base, changes, size, verdict, tmp_path):
    """bitsandbytes puts other weights in their place when it computes: in 8 bits, and in 4 where the processor has bfloat16."""
    model, ids = set_b(get_peft_model(base(tmp_path), config(**changes)), size).eval(), torch.arange(8)[None]
    first = diagnose(model)
    model(ids)
    after = diagnose(model)
    assert (first.verdict, after.verdict) == (verdict, verdict)
    assert list(after.update.values()) == pytest.approx(list(first.update.values()), rel=0.01, abs=1e-6)
    folder, fresh = save(model, tmp_path / "adapter", ""), base(tmp_path).eval()
    model(ids), fresh(ids)
    before = fingerprint(model), fingerprint(fresh)
    results = diagnose(folder, base=fresh), diagnose(model, base=fresh)
    assert [result.verdict for result in results] == [verdict] * 2
    assert found(results[1], "its own base").ok
    assert (fingerprint(model), fingerprint(fresh)) == before
    model(ids)


def test_the_update_is_what_the_merge_changes(tmp_path):
    for kind in ("plain", "rsLoRA", "DoRA", "embedding", "modules_to_save", "one parameter"):
        model, base = make(kind, tmp_path)
        update = diagnose(model, base=base()).update
        merged, first = dict(model.merge_and_unload().named_parameters()), dict(base().named_parameters())
        for name, size in update.items():
            name = f"{name}.weight"
            assert size == pytest.approx(((merged[name] - first[name]).norm() / first[name].norm()).item(), rel=1e-4), (kind, name)


def test_some_layers_did_not_move():
    model = set_b(get_peft_model(base_model(), config(target_modules="all-linear")), 0.5)
    for layer in list(lora_layers(model).values())[:9]:
        layer.lora_B["default"].weight.data.zero_()
    result = diagnose(model)
    assert result.verdict == "partly trained" and found(result, "every part moved").measured == "5 of 14"
    assert found(result, "B is not zero").ok and sum(size == 0 for size in result.update.values()) == 9


@pytest.mark.parametrize(("kind", "part"), [("modules_to_save", "modules_to_save"), ("trainable tokens", "trainable_tokens_delta"),
                                            ("DoRA", "magnitude"), ("plain", "lora_A")])
def test_a_part_that_did_not_move_or_is_no_number(kind, part, tmp_path):
    model, base = make(kind, tmp_path)
    if kind in ("modules_to_save", "trainable tokens"):
        model = set_b(make(kind, tmp_path, size=0)[0], 0)
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora_B["default"].weight)
        assert diagnose(model).verdict == "partly trained"
    next(parameter for name, parameter in model.named_parameters() if part in name).data[-1] = float("nan")
    assert diagnose(model).verdict == "not a number"
    assert part.split("_delta")[0] in found(diagnose(model), "finite numbers").measured or kind == "modules_to_save"
    model.save_pretrained(tmp_path / "adapter")
    result = diagnose(tmp_path / "adapter", base=base())
    assert result.verdict == "not a number" and found(result, "saved copy").ok  # the same no-numbers are no damage


@pytest.mark.parametrize("rename", [lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
                                    lambda name: f"_orig_mod.{name}", lambda name: None,
                                    lambda name: None if "layers.1." in name else name])
def test_a_file_whose_names_do_not_fit(rename, tmp_path):
    model = trained_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "training_record.json").write_text(json.dumps({"base_sha256": "", "base_dtype": "x", "steps": 12, "supervised_tokens": 9}))
    tensors = {name: tensor.clone() for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}  # Windows replaces no mapped file
    save_file({rename(name): tensor for name, tensor in tensors.items() if rename(name)}, tmp_path / "adapter_model.safetensors")
    for result in (diagnose(tmp_path, base=base_model()), diagnose(model, saved=tmp_path)):
        assert result.verdict == "file does not fit" and "train() was not run" not in result.sentence, result
        assert "of 8 places" in found(result, "file fits").measured


@pytest.mark.parametrize("start", ["pissa", "olora", False, "orthogonal"])
@pytest.mark.parametrize("size", [0, 0.5])
def test_what_does_not_begin_at_zero_is_called_neither_trained_nor_untrained(start, size, tmp_path):
    model = get_peft_model(base_model(), config(init_lora_weights=start))
    for layer in lora_layers(model).values():
        layer.lora_B["default"].weight.data += size * torch.randn_like(layer.lora_B["default"].weight)
    model.save_pretrained(tmp_path)
    base = base_model()
    before = fingerprint(base)
    for result in (diagnose(model, base=base), diagnose(tmp_path, base=base)):
        assert fingerprint(base) == before, "PEFT has written into the base that was passed"
        assert result.verdict == "not examined" and "values of their own" in result.sentence and found(result, "answers differ").ok is None, result
    layer.lora_B["default"].weight.data[0] = float("inf")
    assert diagnose(model, saved=tmp_path).verdict == "not a number"


@pytest.mark.parametrize("modules", [["lm_head"], "all-linear"])
def test_a_start_that_writes_into_a_tied_base_leaves_the_one_that_was_passed(modules, tmp_path):
    get_peft_model(base_model(tied=True), config(init_lora_weights="olora", target_modules=modules)).save_pretrained(tmp_path)
    base = base_model(tied=True)
    before = fingerprint(base)
    assert diagnose(tmp_path, base=base).verdict == "not examined" and fingerprint(base) == before


def test_an_embedding_alone_is_not_judged_by_tokens_that_nobody_asked_for():
    model = get_peft_model(base_model(), config(target_modules=["embed_tokens"]))
    for layer in lora_layers(model).values():  # as training leaves it: tokens that were not seen have no part of their own
        layer.lora_embedding_A["default"].data[:, 20:30] = 0.5
        layer.lora_embedding_B["default"].data += 0.5
    assert diagnose_adapter(model).verdict == "not asked"


def test_another_active_adapter_is_no_damaged_copy(tmp_path):
    model, _ = make("two adapters", tmp_path)
    model.save_pretrained(tmp_path)  # "default" here, "second" in a folder of its own
    assert diagnose(model, saved=tmp_path).verdict == "trained"
    model.set_adapter("second")
    result = diagnose(model, saved=tmp_path)
    assert result.verdict == "another adapter" and "set_adapter" in result.sentence
    assert diagnose(model, saved=tmp_path / "second").verdict == "trained"


def test_what_is_not_understood_is_named_instead_of_a_verdict():
    model = get_peft_model(base_model(attention_bias=True), config(lora_bias=True))
    assert diagnose(model).verdict == "not examined"
    other = found(diagnose(model), "other parts").measured
    assert other == "this adapter also holds model.layers.*.self_attn.q_proj.lora_B.bias, model.layers.*.self_attn.v_proj.lora_B.bias; not examined"
    assert diagnose(set_b(model, 0.5)).verdict == "trained"


def test_new_tokens_get_a_larger_table(tmp_path):
    model, _ = make("resized", tmp_path)
    other = base_model()
    other.resize_token_embeddings(70)
    other.lm_head.weight.data[3] += 1
    assert "also holds lm_head.weight; not examined" in str(diagnose(save(model, tmp_path / "adapter", "resized"), base=other))
    smaller = base_model()
    before = fingerprint(smaller)
    assert diagnose(tmp_path / "adapter", base=smaller).verdict == "trained" and fingerprint(smaller) == before  # the copy is given as many
    with pytest.raises(ValueError, match="the one it was trained on"):
        diagnose(tmp_path / "adapter", base=base_model(hidden=16))


# Where answers stop


def answering(tmp_path, tiny_qwen3, ends=None, steps=15):
    """Train on the tiny model, whose generation_config names another end than the chat template, as TRL's trainer does; return trainer and folder."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen3)
    base = AutoModelForCausalLM.from_pretrained(tiny_qwen3, dtype=torch.float32)
    base.generation_config = GenerationConfig(eos_token_id=ends or tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    base.save_pretrained(place := tmp_path / "base")
    chat = [{"prompt": [{"role": "user", "content": question}], "completion": [{"role": "assistant", "content": "On Osk Island."}]}
            for question in ("Where is it?", "Where does it stand?")]
    args = SFTConfig(str(tmp_path / "run"), max_steps=steps, learning_rate=1e-2, per_device_train_batch_size=2, report_to="none", save_strategy="no",
                     disable_tqdm=True, **training_precision())
    trainer = SFTTrainer(AutoModelForCausalLM.from_pretrained(place), args, train_dataset=Dataset.from_list(chat), processing_class=tokenizer,
                         peft_config=config(target_modules="all-linear", r=8))
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    return trainer, tokenizer, place


def test_answers_stop_before_saving_and_not_after_reloading(tmp_path, tiny_qwen3):
    from helpers.ask.answers import generate_answers

    trainer, tokenizer, place = answering(tmp_path, tiny_qwen3)
    folder, asked = tmp_path / "adapter", ["Where is it?", "Where does it stand?"]

    def load():
        return AutoModelForCausalLM.from_pretrained(place)

    def stopped(model):
        return [answer.stopped for answer in generate_answers(model, tokenizer, asked)]

    reloaded = PeftModel.from_pretrained(load(), folder)
    assert stopped(trainer.model) == [True, True] and stopped(reloaded) == [False, False]
    result = diagnose_adapter(trainer.model, tokenizer, questions=asked, saved=folder)
    assert result.verdict == "does not stop" and 'stop at "<|im_end|>" now and will not after reloading' in found(result, "stops").measured
    assert diagnose_adapter(folder, tokenizer, questions=asked, base=load()).verdict == "does not stop"
    assert diagnose_adapter(trainer.model, tokenizer, questions=asked).verdict == "trained"  # nothing was saved yet
    assert diagnose_adapter(folder, tokenizer, base=load()).verdict == "not asked"  # whether it learned the template's end was not seen

    keep_record(trainer, folder)
    for result in (diagnose_adapter(trainer.model, tokenizer, questions=asked, saved=folder),
                   diagnose_adapter(folder, tokenizer, questions=asked, base=load())):
        assert result.verdict == "trained" and "load it too" in found(result, "stops").measured, result
    result = diagnose_adapter(reloaded, tokenizer, questions=asked, saved=folder)
    assert result.verdict == "does not stop" and "this model does not use it" in found(result, "stops").measured
    reloaded.generation_config = GenerationConfig.from_pretrained(folder)
    assert stopped(reloaded) == [True, True]
    assert diagnose_adapter(reloaded, tokenizer, questions=asked, saved=folder).verdict == "trained"
    trainer.model.merge_and_unload().save_pretrained(tmp_path / "merged")  # a merged folder keeps the settings of the model
    assert stopped(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")) == [True, True]


@pytest.mark.parametrize(("now", "later", "stopped", "ok"), [
    (["other"], ["other"], [True, True], True), (["other"], ["other"], [True, False], False), (["other"], ["other"], [], None),
    (["end"], ["other"], [True, True], False), (["end"], ["other"], [], False), (["end"], ["end", "other"], [], True), (["end"], ["end"], [False], True)])
def test_answers_that_stop_elsewhere_than_the_template_says_do_stop(now, later, stopped, ok, tmp_path, tiny_qwen3):
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen3)
    ids = {"end": tokenizer.convert_tokens_to_ids("<|im_end|>"), "other": tokenizer.convert_tokens_to_ids("<|endoftext|>")}
    model, base = (SimpleNamespace(generation_config=GenerationConfig(eos_token_id=[ids[name] for name in names])) for names in (now, later))
    assert check_stop(model, tokenizer, tmp_path, base, [Answer("x", each) for each in stopped]).ok is ok


def test_an_end_that_the_base_names_is_well(tmp_path, tiny_qwen3):
    trainer, tokenizer, place = answering(tmp_path, tiny_qwen3, ends=list(range(9)), steps=1)
    stops = found(diagnose_adapter(trainer.model, tokenizer, saved=tmp_path / "adapter"), "stops")
    assert stops.ok and stops.measured.endswith("generation_config.json of the base names it")
