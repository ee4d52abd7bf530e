"""What does the model answer, and is it right."""
from helpers.ask.answers import compare_answers, generate_answers, score_answers

__all__ = ["compare_answers", "generate_answers", "score_answers"]
