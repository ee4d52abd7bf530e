"""Is my data what I think it is."""
from helpers.data.dataset import DatasetError, load_sft_jsonl
from helpers.data.own_data import one_row_a_reply, suggest_settings, suggest_split
from helpers.data.phrases import phrases_of
from helpers.data.supervision import supervision_report
from helpers.data.tokens import show_record, show_tokens, token_kinds
from helpers.data.wording import leaked_questions, said

__all__ = ["DatasetError", "leaked_questions", "load_sft_jsonl", "one_row_a_reply", "phrases_of", "said", "show_record", "show_tokens",
           "suggest_settings", "suggest_split", "supervision_report", "token_kinds"]
