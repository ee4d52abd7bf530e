"""Predict the size of a LoRA adapter from the shapes of the model's layers, before anything is built."""
import json
from numbers import Integral
from typing import NamedTuple

import pandas as pd
from torch import nn
from transformers.pytorch_utils import Conv1D  # GPT-2's, which keeps its weight as [inputs, outputs]

from helpers.model.weights import plain_name

BYTES = 4  # of one float32 number
TRAINING_NUMBERS = 4  # for each trained parameter: itself, its gradient, and two that AdamW keeps
Shapes = dict[str, tuple[int, ...]]


class LoraSize(NamedTuple):
    """What a LoraConfig costs: layers with an adapter, numbers in it, bytes of its file and of training, and its scaling."""

    layers: int
    parameters: int
    file_bytes: int
    training_bytes: int
    scaling: float


def linear_shapes(model: nn.Module) -> Shapes:
    """Return name -> (inputs, outputs) of each linear layer, without the output head, which "all-linear" leaves out too; of a table of experts, its three sizes."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None and type(model).__name__.endswith("ForSequenceClassification"):  # PEFT leaves out such heads too, by the adapter's task
        head = getattr(model, "score", getattr(model, "classifier", None))
    head = getattr(head, "original_module", getattr(head, "base_layer", head))
    inside = {*head.modules()} if head is not None else ()  # some have two layers
    layers = {plain_name(name): layer for name, layer in model.named_modules()  # an adapter that is there already is left out
              if isinstance(layer, (nn.Linear, Conv1D)) and layer not in inside and not any(part in name for part in (".lora_", ".modules_to_save."))}
    shapes = {name: tuple(layer.weight.shape) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features) for name, layer in layers.items()}
    return shapes | {plain_name(name): tuple(table.shape) for name, table in model.named_parameters() if "experts" in name and table.dim() == 3}


def select_layers(shapes: Shapes, target_modules: str | list[str]) -> Shapes:
    """Return those of `shapes` that target_modules names, by "all-linear" or by the ends of their names, as PEFT does.

    Raises ValueError when a name matches no layer: PEFT itself raises only when none of them does.
    """
    if target_modules == "all-linear":
        return shapes
    if isinstance(target_modules, str) or target_modules is None:
        raise ValueError(f'target_modules is {target_modules!r}: give "all-linear" or a list of names')
    target_modules = list(target_modules)
    unknown = [name for name in target_modules if not any(ends_with(layer, name) for layer in shapes)]
    if unknown:
        known = ", ".join(dict.fromkeys(layer.rsplit(".", 1)[-1] for layer in shapes))
        raise ValueError(f"target_modules: no linear layer is called {', '.join(unknown)}; this model has {known}")
    return {layer: shape for layer, shape in shapes.items() if any(ends_with(layer, name) for name in target_modules)}


def lora_size(shapes: Shapes, r: int, lora_alpha: float, target_modules: str | list[str]) -> LoraSize:
    """Return the LoraSize of an adapter of rank r, in float32 and with bias="none", on those layers of `shapes`.

    Raises ValueError when r is below 1 or a name of target_modules matches no layer.
    """
    chosen = _chosen(shapes, r, target_modules)
    parameters = sum(r * (inputs + outputs) for inputs, outputs in chosen.values())
    return LoraSize(layers=len(chosen), parameters=parameters, file_bytes=_header_bytes(chosen, r) + BYTES * parameters,
                    training_bytes=TRAINING_NUMBERS * BYTES * parameters, scaling=lora_alpha / r)


def lora_map(shapes: Shapes, r: int, target_modules: str | list[str]) -> pd.DataFrame:
    """Return the trained parameters of each layer: a row for each kind of layer, a column for each stage; 0 where no adapter sits.

    Kinds are the last parts of the names, stages the first numbers in them; NaN where a stage has no layer of the kind. Raises as lora_size does.
    """
    chosen = _chosen(shapes, r, target_modules)
    table = pd.DataFrame({"kind": [name.rsplit(".", 1)[-1] for name in shapes],
                          "stage": [int(next(filter(str.isdigit, name.split(".")), 0)) for name in shapes],
                          "parameters": [r * sum(shape) if name in chosen else 0 for name, shape in shapes.items()]})
    return table.pivot_table(index="kind", columns="stage", values="parameters", aggfunc="sum", sort=False)


def _chosen(shapes: Shapes, r: int, target_modules: str | list[str]) -> Shapes:
    if not isinstance(r, Integral) or isinstance(r, bool) or r < 1:
        raise ValueError(f"r is {r!r}, but a matrix has at least rank 1: give a whole number, 1 or more")
    chosen = select_layers(shapes, target_modules)
    if any(len(shape) > 2 for shape in chosen.values()):
        raise ValueError("this model is a mixture of experts: an adapter on these names may hold the experts too, which can't be predicted here; name layers outside them, such as q_proj")
    return chosen


def ends_with(layer: str, name: str) -> bool:
    """Say whether a layer is called so, by its whole name or by the end of it, as PEFT does."""
    return layer == name or layer.endswith("." + name)


def _header_bytes(shapes: Shapes, r: int) -> int:
    """Return the length of the file's header: a list of all matrices, filled up to a multiple of 8, and its own length (8)."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for layer in sorted(shapes):  # the order in the file, so that the offsets have as many digits
        inputs, outputs = shapes[layer]
        for matrix, shape in (("A", [r, inputs]), ("B", [outputs, r])):
            start, end = end, end + BYTES * shape[0] * shape[1]
            header[f"base_model.model.{layer}.lora_{matrix}.weight"] = {
                "dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8
