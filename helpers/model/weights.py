"""Tell base weights apart: their SHA-256 and their number format, the same with and without an adapter on top."""
import hashlib

import torch


def plain_name(name: str) -> str:
    """Return the name that a base parameter has without PEFT, and without torch.compile."""
    for part in ("base_model.model.", ".base_layer", ".original_module", ".token_adapter", "_orig_mod."):
        name = name.replace(part, "")
    return name


def base_parameters(model) -> dict[str, torch.Tensor]:
    """Return the base model's parameters by the names that they have without PEFT; what an adapter added is left out."""
    added = ("lora_", "modules_to_save", "trainable_tokens_")
    return {plain_name(name): parameter.detach() for name, parameter in model.named_parameters() if not any(part in name for part in added)}


def four_bit_layers(model) -> list[torch.nn.Module]:
    """Return the layers of bitsandbytes with 4-bit weights, which it rearranges to compute, where the processor has bfloat16."""
    return [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]


def as_stored(model) -> None:
    """Put back the 4-bit weights that were rearranged; their scales stay rounded."""
    for layer in four_bit_layers(model):
        layer.state_dict()  # this is what undoes it


def replaced_names(model) -> set[str]:
    """Return the names of the base parameters in whose place an adapter has its own (modules_to_save, trainable tokens)."""
    return {plain_name(name) for name, _ in model.named_parameters() if ".original_module" in name or ".token_adapter" in name}


def base_hash(model, without=()) -> str:
    """Return the SHA-256 of the base weights (names, types, shapes, bytes), as they are stored; without: names that are left out."""
    as_stored(model)
    digest = hashlib.sha256()
    for name, weight in sorted(base_parameters(model).items()):
        if name in without:
            continue
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def base_dtype(model) -> str:
    """Return the number format of the base weights, for example "float32"; several are joined by a comma."""
    return ", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in base_parameters(model).values()}))
