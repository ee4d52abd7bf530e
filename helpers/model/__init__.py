"""Which model, and on what machine."""
from helpers.model.base_model import base_model_path
from helpers.model.hardware import best_device, describe_hardware, score_supervised_only, training_precision, use_free_cores

__all__ = ["base_model_path", "best_device", "describe_hardware", "score_supervised_only", "training_precision", "use_free_cores"]
