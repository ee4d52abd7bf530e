"""What can be wrong with an adapter: each check's verdict, what it means, its usual cause and its mend."""
from helpers.findings import Check

FAULTS = {  # name of the check that fails -> its verdict, what that means, its cause and mend; the first that fails gives the verdict
    "wrapped once": ("wrapped twice", "One adapter was put on top of another.",
                     "Usual cause: a cell with get_peft_model was run twice, or a model that has an adapter got a new one. "
                     "Mend: load the base model afresh and wrap it once."),
    "finite base": ("not a number", "The base model below the adapter holds values that are no numbers (NaN or infinite).",
                    "Usual cause: its file is damaged, or its weights overflowed in fp16. Mend: fetch it again, and load it with dtype=torch.float32."),
    "finite numbers": ("not a number", "The adapter holds values that are no numbers (NaN or infinite).",
                       "Usual cause: the learning rate was far too high, or fp16 overflowed. Mend: train again with a lower rate, or without fp16."),
    "finite logits": ("not a number", "With the adapter, the model's scores are no numbers (NaN or infinite).",
                      "Usual cause: the update is far too large, or overflows in 16 bits. Mend: train again with a lower rate, or load the base "
                      "with dtype=torch.float32."),
    "file fits": ("file does not fit", "What is in the saved file finds no place in the model, or leaves places empty.",
                  "Usual cause: a compiled or wrapped model was saved (names with _orig_mod. or module.), or the file is of another tool, "
                  "or of another base. Mend: save the model below the wrapper, model._orig_mod.save_pretrained(folder), or take that part out "
                  "of the names; or load the base that it was trained on."),
    "B is not zero": ("never trained", "The adapter does nothing: it is as it was before the first step.",
                      "Usual cause: train() was not run, or a fresh adapter took the place of the trained one. Mend: train, or load the saved adapter."),
    "adds something": ("no effect", "The adapter holds trained numbers, and adds nothing to the weights.",
                       "Usual cause: lora_alpha or the scale is 0, or A is all zeros. Mend: set lora_alpha as in training, or train again."),
    "its own base": ("wrong base", "The base weights below the adapter are not those it was trained on.",
                     "Usual cause: another model of the same shape, or base weights changed by a merge or by training. "
                     "Mend: load the base model that it was trained on, then the adapter."),
    "active adapter": ("another adapter", "Another adapter than the saved one is active, and it answers.",
                       "Usual cause: load_adapter or add_adapter gave the model a second one. Mend: model.set_adapter(name)."),
    "switched on": ("disabled", "The adapter is there but switched off, so the base model answers.",
                    "Usual cause: disable_adapter_layers() was called, or this runs inside disable_adapter(). "
                    "Mend: call model.base_model.enable_adapter_layers(), or leave the with block."),
    "saved copy": ("damaged copy", "The saved adapter is not the one in memory.",
                   "Usual cause: training went on after saving, or another run wrote into the folder. Mend: save again with trainer.save_model(folder)."),
    "every part moved": ("partly trained", "Some parts of the adapter are as they were before the first step.",
                         "Usual cause: these parts were frozen or lost, or no training text reaches them. Mend: look at the list update for the "
                         "zeros; train them, or leave them out of target_modules."),
    "logits differ": ("no effect", "The adapter holds numbers, and moves the model's scores by no more than rounding does.",
                      "Usual cause: no step or hardly one was taken (an adapter converted from PiSSA or OLoRA begins like this), or lora_alpha is next to 0. "
                      "Mend: train for more steps, or with a higher rate, and set lora_alpha as in training."),
    "answers differ": ("too little to see", "Training moved the adapter, but so little that the answers are the same, or turn where two tokens were about as likely.",
                       "Usual cause: too few steps, or a learning rate that is too low. Mend: more records or epochs, or a higher rate."),
    "stops": ("does not stop", "Training moved the adapter, but answers do not stop, or will not after reloading: where they stop is no part of it.",
              "Usual cause: the base's generation_config names another end than the chat template. Mend: keep_record(trainer, folder) keeps it "
              "beside the adapter; after loading, model.generation_config = GenerationConfig.from_pretrained(folder)."),
}
OTHER_MENDS = {  # checks that do not decide the verdict
    "steps": "Usual cause: train() was not run with this trainer. Mend: run it.",
    "tokens with loss": "Usual cause: max_length cut the answers off, or the labels mask everything. Mend: look at one row with show_tokens.",
    "merged model": "Usual cause: 16-bit weights, of the base or of the adapter, which round the merged numbers. Mend: merge an adapter in float32 "
                    "into a float32 copy of the base and keep it so, or keep the adapter apart.",
    "merged table": "Usual cause: two parts share a weight, so a merge into one changes both: the output head shares its table with the embedding, "
                    "or layer_replication repeats a layer. Mend: do not merge this adapter, or train with the head in modules_to_save.",
}


def check(name: str, ok: bool | None, measured: str, mend: str = "") -> Check:
    """Make a check, with cause and mend if it failed; mend names those of another check."""
    texts = {key: fault[2] for key, fault in FAULTS.items()} | OTHER_MENDS
    return Check(name, ok, measured, texts[mend or name] if ok is False else "")
