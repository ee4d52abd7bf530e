import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config, Qwen3MoeConfig, RobertaConfig, RobertaForSequenceClassification

from helpers.adapter.size import linear_shapes, lora_map, lora_size, select_layers

SMALL = {"hidden_size": 24, "intermediate_size": 56, "num_hidden_layers": 11, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 6, "vocab_size": 50}
CONFIGS = {"llama": LlamaConfig(**SMALL, tie_word_embeddings=True), "qwen3": Qwen3Config(**SMALL, tie_word_embeddings=False)}
TARGETS = [["q_proj", "v_proj"], ["down_proj"], ["self_attn.k_proj", "up_proj"], "all-linear"]


@pytest.fixture(params=CONFIGS)
def model(request):
    return AutoModelForCausalLM.from_config(CONFIGS[request.param])


@pytest.mark.parametrize("target_modules", TARGETS, ids=str)
@pytest.mark.parametrize("r", [1, 3, 16])
def test_predicts_what_peft_builds_and_saves(model, r, target_modules, tmp_path):
    size = lora_size(linear_shapes(model), r, 2 * r + 1, target_modules)
    adapted = get_peft_model(model, LoraConfig(r=r, lora_alpha=2 * r + 1, target_modules=target_modules, task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path)
    assert size.parameters == adapted.get_nb_trainable_parameters()[0]
    assert size.layers == len(adapted.targeted_module_names)
    assert size.file_bytes == (tmp_path / "adapter_model.safetensors").stat().st_size
    layer = adapted.get_submodule("base_model.model." + adapted.targeted_module_names[0])
    assert size.scaling == layer.scaling["default"]


@pytest.mark.parametrize("target_modules", [["c_attn"], ["c_fc", "attn.c_proj"], "all-linear"], ids=str)
def test_gpt_2_keeps_its_weights_the_other_way_round(target_modules):
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=50))
    size = lora_size(linear_shapes(model), 3, 6, target_modules)
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules=target_modules, task_type="CAUSAL_LM"))
    assert (size.layers, size.parameters) == (len(adapted.targeted_module_names), adapted.get_nb_trainable_parameters()[0])


@pytest.mark.parametrize("target_modules", [*TARGETS, []], ids=str)
def test_the_map_shows_where_peft_puts_adapters(model, target_modules):
    places = lora_map(linear_shapes(model), 3, target_modules)
    assert list(places.index) == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert list(places.columns) == list(range(SMALL["num_hidden_layers"]))
    if not target_modules:  # PEFT refuses an adapter without layers
        assert not places.to_numpy().any()
        return
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules=target_modules, task_type="CAUSAL_LM"))
    for kind, row in places.iterrows():
        for stage, predicted in row.items():
            names = [name for name, p in adapted.named_parameters() if p.requires_grad and f".{stage}." in name and f".{kind}." in name]
            assert predicted == sum(adapted.get_parameter(name).numel() for name in names)


def test_training_bytes_are_what_adamw_holds(model):
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    tokens = torch.arange(12).reshape(1, 12)
    adapted(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    held = [*trained, *(p.grad for p in trained), *(t for state in optimizer.state.values() for t in state.values() if t.dim())]
    size = lora_size(linear_shapes(adapted.unload()), 4, 8, ["q_proj"])
    assert size.training_bytes == sum(t.numel() * t.element_size() for t in held)


def test_a_wrong_name_is_named_even_beside_a_right_one(model):
    shapes = linear_shapes(model)
    with pytest.raises(ValueError, match="v_porj.*this model has q_proj, k_proj"):
        select_layers(shapes, ["q_proj", "v_porj"])
    with pytest.raises(ValueError, match="all-linear"):
        select_layers(shapes, "all_linear")
    with pytest.raises(ValueError, match="_proj"):  # the end of a name counts in whole parts only
        select_layers(shapes, ["_proj"])


def test_an_adapter_that_is_there_already_is_not_counted(model):
    shapes = linear_shapes(model)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert linear_shapes(model) == shapes == linear_shapes(adapted)


def test_experts_are_not_passed_over_in_silence():
    def build():
        return AutoModelForCausalLM.from_config(Qwen3MoeConfig(**SMALL | {"num_hidden_layers": 2}, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=1))

    shapes = linear_shapes(build())
    for targets in ("all-linear", ["down_proj"]):
        for size in (lora_map, lambda shapes, r, targets: lora_size(shapes, r, 8, targets)):
            with pytest.raises(ValueError, match="mixture of experts"):
                size(shapes, 4, targets)
    adapted = get_peft_model(build(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    assert lora_size(shapes, 4, 8, ["q_proj", "v_proj"]).parameters == adapted.get_nb_trainable_parameters()[0]


def test_a_head_of_two_layers_is_no_part_and_what_has_no_head_is_counted():
    model = RobertaForSequenceClassification(RobertaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32))
    size = lora_size(linear_shapes(model), 4, 8, "all-linear")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS"))
    assert size.parameters == sum(parameter.numel() for name, parameter in adapted.named_parameters() if "lora_" in name)
    assert linear_shapes(torch.nn.Sequential(torch.nn.Linear(4, 5))) == {"0": (4, 5)}


def test_rank_zero_is_refused(model):
    with pytest.raises(ValueError, match="r is 0"):
        lora_size(linear_shapes(model), 0, 16, "all-linear")


def test_a_second_get_peft_model_loses_what_was_learned_and_keeps_other_layers(model):
    """As notebook 04 says: it only warns."""
    first = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    layer = model.get_submodule(first.targeted_module_names[0])
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    old_a = layer.lora_A["default"].weight.detach().clone()
    with pytest.warns(UserWarning, match="second time"):
        second = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    layer = model.get_submodule(first.targeted_module_names[0])
    assert not layer.lora_B["default"].weight.any() and not torch.equal(layer.lora_A["default"].weight, old_a)
    assert any("v_proj" in name for name, p in second.named_parameters() if p.requires_grad)
