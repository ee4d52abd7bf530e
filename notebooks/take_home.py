"""Fine-tune a chat model: python take_home.py FILE.jsonl --base MODEL --output FOLDER

Each line of the file is a JSON object: messages; prompt, completion; or instruction, input, output.
"""
import argparse
import json
import random
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

FORMS = [{"messages"}, {"prompt", "completion"}, {"instruction", "output"},
         {"instruction", "input", "output"}]
IGNORED = {"id", "key_phrase", "wrong_phrase"}  # add keys of yours that the model need not see
QUIET = {"enable_thinking": False}  # for models that think aloud; the others pass over it


def said(thing):  # the keys that say something
    return {key for key in thing.keys() - IGNORED
            if thing[key] not in (None, [], {}, QUIET, "<noinput>") and str(thing[key]).strip()}


def to_row(record):
    if not isinstance(record, dict) or (keys := said(record)) not in FORMS:
        raise ValueError(f"no object with keys that are read together: {str(record)[:90]}")
    texts = [record[key] for key in ("prompt", "instruction", "input") if key in keys]
    answer = record.get("completion" if "prompt" in keys else "output")
    if "messages" in keys:
        turns = record["messages"]
    elif "prompt" in keys and isinstance(texts[0], list) and isinstance(answer, list):
        turns = texts[0] + answer  # as TRL has them
    else:
        asked = "\n\n".join(texts) if all(isinstance(text, str) for text in texts) else None
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    for turn in turns:
        text = isinstance(turn, dict) and said(turn) == {"role", "content"} and turn["content"]
        if (not isinstance(text, str) or not {*filter(str.isprintable, text)} - {*" \u2800\u3164"}
                or text.lstrip()[:2] == "[{" and "role" in text and "content" in text):
            raise ValueError("a message has a role, a text (no list written as one), no other key")
        text.encode()  # an emoji cut in two is no text
    roles = [turn["role"] for turn in turns][turns[0]["role"] == "system":]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError("questions and answers must come in turn; the last is an answer")
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    return {"prompt": turns[:-1], "completion": turns[-1:], "chat_template_kwargs": QUIET}


def unique(pairs):
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return made


def read(path):
    rows, place = [], 1
    try:
        for line in Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"):
            if line.strip():
                rows.append(to_row(json.loads(line.decode(), object_pairs_hook=unique)))
            place += 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        sys.exit(f"{path}:{place}: {type(error).__name__}: {error}")
    return rows


def split(rows):  # a fifth of the questions is held out, each with all of its rows
    questions = sorted({str(row["prompt"]) for row in rows})
    heldout = set(random.Random(0).sample(questions, len(questions) // 5))
    return ([row for row in rows if str(row["prompt"]) not in heldout],
            [row for row in rows if str(row["prompt"]) in heldout])


def ask(model, tokenizer, prompt):
    ids = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt", **QUIET)
    out = model.eval().generate(**ids.to(model.device), max_new_tokens=100, do_sample=False)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="your records, one JSON object a line")
    parser.add_argument("--base", required=True, help="a chat model: its folder, or its hub name")
    parser.add_argument("--output", required=True, help="the folder to write the adapter to")
    args = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8")

    train, heldout = split(read(args.file))
    if not heldout:
        sys.exit(f"{args.file}: it needs 5 different questions at the least, better 30")
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    settings = SFTConfig(
        f"{Path(args.output)}_run", num_train_epochs=4, learning_rate=1e-3,  # a larger model: 2e-4
        per_device_train_batch_size=2, per_device_eval_batch_size=2, max_length=512,
        warmup_steps=0.1, eval_strategy="epoch", save_strategy="epoch", save_total_limit=1,
        load_best_model_at_end=True, report_to="none", activation_checkpointing=False,
        bf16=torch.cuda.is_bf16_supported(including_emulation=False))
    trainer = SFTTrainer(
        model, settings, train_dataset=Dataset.from_list(train), processing_class=tokenizer,
        eval_dataset=Dataset.from_list(heldout), peft_config=lora)
    whole = [tokenizer.eos_token_id in row["labels"]
             for rows in (trainer.train_dataset, trainer.eval_dataset) for row in rows]
    if lost := len(train) + len(heldout) - sum(whole):
        sys.exit(f"{lost} answers lack their end: raise max_length, or the template has another")

    Path(args.output).mkdir(parents=True, exist_ok=True)  # now, not after an hour of training
    before = [ask(trainer.model, tokenizer, row["prompt"]) for row in heldout[:20]]
    trainer.train()  # and go back to the epoch with the lowest loss on what is held out
    for row, answer in zip(heldout[:20], before, strict=True):
        print("\nasked: ", row["prompt"][-1]["content"])
        print("wanted:", row["completion"][0]["content"], "\nbefore:", answer)
        print("after: ", ask(trainer.model, tokenizer, row["prompt"]))
    trainer.save_model(args.output)
    trainer.model.generation_config.save_pretrained(args.output)  # which tokens end an answer


if __name__ == "__main__":
    main()
