"""Small models with adapters of many kinds, as people make them, and a fingerprint that shows any change."""
import hashlib

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from helpers.adapter.diagnosis import diagnose_adapter

QUESTIONS = ["Where is the Corvane Lighthouse?", "What is the capital of France?"]


def base_model(seed=0, hidden=32, tied=False, inner=48, **changes):
    torch.manual_seed(seed)
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, eos_token_id=1, pad_token_id=1, tie_word_embeddings=tied, **sizes, **changes))
    model.lm_head.weight.data *= 40  # sure of its next token, as a trained model is
    return model


def config(**changes):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | changes)


def set_b(model, size):
    """Move B, and all else that is trained but A, as training would."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=size)
        elif any(part in name for part in ("modules_to_save", "magnitude", "trainable_tokens_delta")) or (".bias" in name and parameter.requires_grad):
            parameter.data += size * (parameter.data.std() or 1) * torch.randn_like(parameter)
    return model


def trained_model(size=0.5):
    return set_b(get_peft_model(base_model(), config()), size)


class Tokenizer:
    """Stands in for a tokenizer: a character is a token."""

    pad_token_id = 1

    def apply_chat_template(self, chats, return_tensors=None, **_):
        rows = [[2 + ord(letter) % 60 for letter in chat[0]["content"]] for chat in (chats if isinstance(chats[0], list) else [chats])]
        return {"input_ids": torch.tensor(rows) if return_tensors else rows}

    def __call__(self, text, **_):
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids, **_):
        return " ".join(map(str, ids.tolist()))


def diagnose(adapter, **options):
    return diagnose_adapter(adapter, Tokenizer(), questions=QUESTIONS, **options)


def found(result, name):
    return next(check for check in result.checks if check.name == name)


# A table of kinds: how the base is made, and the settings of its adapter


def resized(folder):
    model = base_model()
    model.resize_token_embeddings(70)
    return model


def in_shards(folder):
    base_model().save_pretrained(folder / "shards", max_shard_size="20KB")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 2
    return AutoModelForCausalLM.from_pretrained(folder / "shards")


def packed(folder, twice=False):
    base_model(hidden=64, inner=64).save_pretrained(folder / "whole")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32, bnb_4bit_use_double_quant=twice)
    return AutoModelForCausalLM.from_pretrained(folder / "whole", quantization_config=settings)


def packed_in_8_bits(folder):
    base_model(hidden=64, inner=64).save_pretrained(folder / "whole")
    return AutoModelForCausalLM.from_pretrained(folder / "whole", quantization_config=BitsAndBytesConfig(load_in_8bit=True))


KINDS = {
    "plain": (lambda folder: base_model(), {}),
    "rsLoRA": (lambda folder: base_model(), {"use_rslora": True, "target_modules": "all-linear"}),
    "DoRA": (lambda folder: base_model(), {"use_dora": True}),
    "PiSSA": (lambda folder: base_model(), {"init_lora_weights": "pissa"}),
    "modules_to_save": (lambda folder: base_model(), {"modules_to_save": ["lm_head"]}),
    "resized": (resized, {}),
    "trainable tokens": (lambda folder: base_model(), {"trainable_token_indices": [3, 5]}),
    "trainable tokens of a tied table": (lambda folder: base_model(tied=True), {"trainable_token_indices": [3, 5]}),
    "embedding": (lambda folder: base_model(), {"target_modules": ["embed_tokens", "q_proj"]}),
    "one parameter": (lambda folder: base_model(), {"target_modules": [], "target_parameters": ["q_proj.weight"]}),
    "biases": (lambda folder: base_model(attention_bias=True), {"bias": "all"}),
    "tied head in modules_to_save": (lambda folder: base_model(tied=True), {"modules_to_save": ["lm_head"]}),
    "LoRA on a tied head": (lambda folder: base_model(tied=True), {"target_modules": ["q_proj", "lm_head"]}),
    "repeated layers": (lambda folder: base_model(), {"layer_replication": [[0, 1], [0, 2]]}),
    "bf16": (lambda folder: base_model().to(torch.bfloat16), {}),
    "sharded base": (in_shards, {}),
    "two adapters": (lambda folder: base_model(), {}),
    "disabled": (lambda folder: base_model(), {}),
    "4-bit": (packed, {}),
    "4-bit DoRA": (packed, {"use_dora": True}),
}


def make(kind, folder, size=0.5):
    """Return a model with a moved adapter of this kind, and a function that makes its base once more."""
    base, changes = KINDS[kind]
    model = get_peft_model(base(folder), config(**changes))
    if not size:
        return model, lambda: base(folder)
    if kind == "PiSSA":
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data += size * (parameter.data.std() or 1) * torch.randn_like(parameter)
    else:
        set_b(model, size)
    if kind == "two adapters":
        model.add_adapter("second", config(r=2))
        set_b(model, size)
    if kind == "disabled":
        model.base_model.disable_adapter_layers()
    return model, lambda: base(folder)


def save(model, folder, kind):
    model.save_pretrained(folder, save_embedding_layers=kind == "resized" or "auto")
    return folder


def fingerprint(model):
    """Return a hash of all parameters and buffers: names, places in memory, types, bytes; and what is trained, in training, hooked, active."""
    digest = hashlib.sha256()
    for kind, tensors in (("parameter", model.named_parameters(remove_duplicate=False)), ("buffer", model.named_buffers(remove_duplicate=False))):
        for name, tensor in tensors:
            digest.update(f"{kind} {name} {tensor.data_ptr()} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad} {type(tensor)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for name, part in model.named_modules():
        hooks = len(part._forward_hooks), len(part._forward_pre_hooks)
        state = [(key, str(getattr(part, key, ""))) for key in ("active_adapters", "disable_adapters", "merged_adapters")]
        digest.update(f"{name} {type(part)} {part.training} {hooks} {state} {'forward' in vars(part)}".encode())
    adapters = sorted(model.peft_config) if isinstance(model, PeftModel) else ""
    digest.update(f"{adapters} {model.config} {getattr(model, 'generation_config', '')}".encode())
    return digest.hexdigest()
