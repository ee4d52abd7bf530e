"""What is in an adapter, and did it change anything."""
from helpers.adapter.diagnosis import diagnose_adapter
from helpers.adapter.faults import FAULTS
from helpers.adapter.size import linear_shapes, lora_map, lora_size, select_layers

__all__ = ["FAULTS", "diagnose_adapter", "linear_shapes", "lora_map", "lora_size", "select_layers"]
