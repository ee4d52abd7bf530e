"""Where answers stop: generation_config decides it, which is no part of an adapter."""
from pathlib import Path

from jinja2 import TemplateError
from transformers import GenerationConfig

from helpers.adapter.faults import Check, check
from helpers.data.chat import encode_chat, end_ids
from helpers.training.saving import GENERATION_FILE


def check_stop(model, tokenizer, saved: Path | None, base, answers: list) -> Check:
    """Compare the end of the chat template, or of answers that were asked for and stopped, with the ends that stop them now and after reloading."""
    end = _turn_end(tokenizer)
    settings = getattr(model, "generation_config", None)
    if end is None or settings is None:
        return check("stops", None, "no tokenizer, its chat template ends an answer with no token of its own, or the model has no generation_config")
    now, stopped = end_ids(settings), sum(answer.stopped for answer in answers)
    ends = now if end not in now and answers and stopped == len(answers) else {end}  # what it was trained with need not be the template
    sign = " or ".join(f'"{tokenizer.decode([each])}"' for each in sorted(ends))
    kept = end_ids(kept_settings(saved)) if saved and (saved / GENERATION_FILE).is_file() else None  # else transformers looks into config.json
    first = kept_settings(model.get_base_model().name_or_path) if base is None else getattr(base, "generation_config", None)
    after = kept if kept is not None else end_ids(first)
    if not ends <= now:
        where = f"; {GENERATION_FILE} beside the adapter names it, but this model does not use it" if kept and end in kept else ""
        seen = f"; {stopped} of {len(answers)} answers stop elsewhere" if answers else "; ask questions, to see whether they stop elsewhere"
        return check("stops", False if answers else None, f"the template ends an answer with {sign}, and answers do not stop there{where or seen}")
    if saved is None or not after:
        return check("stops", None if saved else True, f"answers stop at {sign}; whether they will after reloading was not examined")
    if not ends & after:
        return check("stops", False, f"answers stop at {sign} now and will not after reloading: neither the base nor a file beside the adapter names it")
    place = "beside the adapter names it, so load it too" if kept else "of the base names it"
    return check("stops", True, f"answers stop at {sign}; {GENERATION_FILE} {place}")


def _turn_end(tokenizer) -> int | None:
    """Return the token with which the chat template ends an answer, white space apart; None if it is an ordinary one."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        ids = encode_chat(tokenizer, [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}])["input_ids"]
    except (TemplateError, ValueError, TypeError):  # a template of somebody's own, which may hold anything
        return None
    last = next((token for token in reversed(ids) if tokenizer.decode([token]).strip()), None)
    return last if last in tokenizer.added_tokens_decoder and last != tokenizer.unk_token_id else None


def kept_settings(place: str | Path) -> GenerationConfig | None:
    """Return the settings in a folder, or in the hub's cache; None if there are none."""
    try:
        return GenerationConfig.from_pretrained(str(place), local_files_only=True) if str(place) else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None
