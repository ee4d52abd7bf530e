"""Is my data what I think it is."""
from helpers.data.dataset import DatasetError, leaked_questions, load_sft_jsonl, said
from helpers.data.own_data import suggest_settings, suggest_split
from helpers.data.supervision import supervision_report
from helpers.data.tokens import show_record, show_tokens, token_kinds

__all__ = ["DatasetError", "leaked_questions", "load_sft_jsonl", "said", "show_record", "show_tokens", "suggest_settings",
           "suggest_split", "supervision_report", "token_kinds"]
