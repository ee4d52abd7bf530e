"""Build a tiny Qwen3 with random weights: `python tests/tiny_qwen3.py FOLDER`; BASE_MODEL=FOLDER then runs the course on it.

What differs from the default model is Qwen3's own: the architecture, the tokenizer's class, special tokens and pieces, the
chat template with its thinking block, end-of-turn beside end-of-text, the settings for generation, bfloat16 in the file.
"""
import json
import sys
from pathlib import Path

from helpers.data.dataset import load_sft_jsonl

ROOT = Path(__file__).resolve().parents[1]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"]
NOT_SPECIAL = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
SHAPE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 32}  # as in Qwen3, the heads together are wider than the model


def build_tiny_qwen3(folder: Path) -> Path:
    """Fill the folder with model and tokenizer; return it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    tokenizer = make_tokenizer()
    end, text_end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    published = json.loads((ROOT / "data" / "model_configs" / "Qwen3-0.6B.json").read_text(encoding="utf-8"))
    sizes = {"vocab_size": len(tokenizer) + 11, "initializer_range": 0.1, "bos_token_id": text_end, "eos_token_id": end}
    config = AutoConfig.for_model(**published | SHAPE | sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_k=20, top_p=0.95, bos_token_id=text_end,
                                               eos_token_id=[end, text_end], pad_token_id=text_end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer():
    """Train Qwen's tokenizer, byte-level BPE, on the texts of the course."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer
    from trl.chat_template_utils import qwen3_chat_template

    texts = [message["content"] for path in sorted((ROOT / "data").glob("*.jsonl")) for record in load_sft_jsonl(path, convert=True)
             for message in record["messages"]]
    empty = Qwen2Tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=SPECIAL)
    tokenizer = empty.train_new_from_iterator(texts, vocab_size=1200, show_progress=False)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in NOT_SPECIAL])
    tokenizer.chat_template = qwen3_chat_template
    return tokenizer


if __name__ == "__main__":
    print(build_tiny_qwen3(Path(sys.argv[1])))
