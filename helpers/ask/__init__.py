"""What does the model answer, and is it right."""
from helpers.ask.answers import compare_answers, generate_answers
from helpers.ask.exam import load_exam, nearest_records
from helpers.ask.scores import compare_scores, right_of, score_answers

__all__ = ["compare_answers", "compare_scores", "generate_answers", "load_exam", "nearest_records", "right_of", "score_answers"]
