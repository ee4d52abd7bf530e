"""The checks behind the exercises: each takes an answer, prints one line about it, and changes nothing."""
from helpers.exercises.model_and_data import *  # noqa: F403
from helpers.exercises.training_and_scores import *  # noqa: F403

__all__ = [name for name in dir() if name.startswith("check_")]
