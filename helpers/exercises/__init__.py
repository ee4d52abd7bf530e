"""The checks behind the exercises: each takes an answer, prints one line about it, and changes nothing."""
from helpers.exercises.basics import (
    check_counted_twice,
    check_labels,
    check_loading_peak,
    check_lora_parameters,
    check_padding,
    check_split,
    check_start,
    check_survivors,
    check_system_prompt,
)
from helpers.exercises.results import (
    check_best_epoch,
    check_comparable,
    check_disk,
    check_fair,
    check_guessing,
    check_is_right,
    check_lost,
    check_merged_weight,
    check_minutes,
    check_one_lever,
    check_probability,
    check_to_share,
)
from helpers.exercises.settings import (
    check_accumulation,
    check_budget,
    check_logging_steps,
    check_max_length,
    check_rank_parameters,
    check_scaling,
    check_split_by_fact,
    check_steps,
    check_supervised,
)

__all__ = [
    "check_accumulation", "check_best_epoch", "check_budget", "check_comparable", "check_counted_twice", "check_disk",
    "check_fair", "check_guessing", "check_is_right", "check_labels", "check_loading_peak", "check_logging_steps",
    "check_lora_parameters", "check_lost", "check_max_length", "check_merged_weight", "check_minutes",
    "check_one_lever", "check_padding", "check_probability", "check_rank_parameters", "check_scaling", "check_split",
    "check_split_by_fact", "check_start", "check_steps", "check_supervised", "check_survivors", "check_system_prompt",
    "check_to_share",
]
