"""Check what a lesson claims, with a margin that was set for the embedded model."""
from helpers.model.base_model import is_embedded


def check_lesson(holds: bool, measured: str) -> None:
    """Print what was measured, and whether the lesson holds.

    Raises AssertionError if it does not hold on the embedded model. With another BASE_MODEL, for which no margin was
    set, it says so and goes on.
    """
    if holds:
        print(f"✓ {measured}")
    elif is_embedded():
        raise AssertionError(f"measured: {measured}; that is outside the margin of this lesson")
    else:
        print(f"✗ {measured} (outside a margin that was set for the course's default model, not for yours)")
