"""For each check: code to prepare, wrong answers that are known mistakes, and one that is none of them."""

ANSWERS: dict[str, tuple[str, list[str], str]] = {
    "check_lora_parameters": (
        "", [f"trained_numbers = {value}" for value in (
            "16 * n_in", "16 * n_out", "8 * (n_in + n_out)", "n_in * n_out", "n_in * n_out + 16 * (n_in + n_out)", "16 * n_in * n_out")],
        "trained_numbers = 16"),
    "check_start": ("", [f"good_starts = {value}" for value in ({1}, {2}, {1, 2, 3}, {1, 2, 4})], "good_starts = set()"),
    "check_split": (
        "def svd(update): return torch.linalg.svd(update, full_matrices=False)\n"
        "def cut(make): return lambda update, r: make(*svd(update), r)",
        [f"split = cut(lambda U, S, Vh, r: ({pair}))" for pair in (
            "U[:, :r] * S[:r], Vh[:r]", "Vh[:r].T, (U[:, :r] * S[:r]).T", "Vh, U * S", "Vh[:r], U[:, :r]",
            "S[:r, None] * Vh[:r], U[:, :r] * S[:r]", "Vh[-r:], U[:, -r:] * S[-r:]", "Vh[:r]")],
        "def split(update, r): return update[:r], update[:, :r]"),
    "check_system_prompt": (
        "def total(count): return sum(count(record['messages']) - count([system, *record['messages']]) for record in records)\n"
        "def text(messages): return tokenizer.apply_chat_template(messages, tokenize=False)\n"
        "system = {'role': 'system', 'content': 'Answer briefly.'}\n"
        "def ids(messages): return tokenizer.apply_chat_template(messages)['input_ids']",
        ["saved_tokens = total(lambda m: len(ids(m))) / len(records)", "saved_tokens = -total(lambda m: len(ids(m)))",
         "saved_tokens = total(lambda m: len(text(m).split()))", "saved_tokens = total(lambda m: len(text(m)))",
         "saved_tokens = total(lambda m: len(tokenizer.apply_chat_template(m)))",
         "kept, saved_tokens, records = records, 5, [{'messages': [system, *record['messages']]} for record in records]"],
        "saved_tokens, records = 5, kept"),
    "check_labels": (
        "", [f"labels_of = lambda input_ids, attention_mask: {value}" for value in (
            "input_ids.masked_fill(input_ids == tokenizer.pad_token_id, -100)", "input_ids.clone()",
            "input_ids.masked_fill(attention_mask == 1, -100)", "input_ids * attention_mask",
            "input_ids.masked_fill_(attention_mask == 0, -100)", "input_ids.tolist()")],
        "labels_of = lambda input_ids, attention_mask: attention_mask"),
    "check_padding": (
        "right = tokenizer.pad({'input_ids': rows}, padding_side='right', return_tensors='pt')\n"
        "places, filler = right['input_ids'].numel(), (right['attention_mask'] == 0).sum().item()",
        [f"padding_percent = {value}" for value in (
            "filler / places", "100 - 100 * filler / places", "100 * filler / (places - filler)", "75", "filler",
            "100 * (right['input_ids'] == tokenizer.pad_token_id).sum() / places")],
        "padding_percent = 99"),
    "check_loading_peak": ("", [f"peak_in_gb = {value}" for value in (8, 16, 32, 22.35, 192, 24000, 24e9)], "peak_in_gb = 12"),
    "check_counted_twice": (
        "true = sum(p.numel() for p in model.parameters())\ntable = model.get_input_embeddings().weight.numel()",
        [f"percent_too_many = {value}" for value in (
            "table / true", "100 * table / (true + table)", "100 + 100 * table / true", "200 * table / true", "100 * table / (true - table)")],
        "percent_too_many = 1"),
    "check_survivors": ("", [f"surviving = {value}" for value in ({0.01, 0.001}, {0.01, 0.001, 0.0001}, set(), {0.001, 0.0001})],
                        "surviving = {0.0001}"),
    "check_scaling": ("", [f"factor = {value}" for value in ("4 * 32", "4 / 32", "32", "32 / 4 ** 0.5", "4")], "factor = 5.5"),
    "check_rank_parameters": (
        "def total(kind, keep): return sum(kind(*shape) for name, shape in shapes.items() if name.endswith(keep))\n"
        "def ratio(kind): return total(kind, '') / total(kind, ('q_proj', 'v_proj'))",
        ["rank = 8 * ratio(lambda i, o: i + o)", "rank = round(ratio(lambda i, o: i + o))",
         "rank = round(8 * ratio(lambda i, o: 1))", "rank = round(8 * ratio(lambda i, o: i * o))",
         "rank = 43", "rank = 8 * round(ratio(lambda i, o: i + o))"],
        "rank = 17"),
    "check_budget": (
        "def config(r, alpha, *names): return LoraConfig(r=r, lora_alpha=alpha, target_modules=list(names))\n"
        "four = ['q_proj', 'k_proj', 'v_proj', 'o_proj']\n"
        "limit = sum(p.numel() for p in skeleton.parameters()) // 100 // lora_size(shapes, 1, 1, four).parameters",
        ["my_config = config(limit, 2 * limit, 'q_proj', 'k_proj', 'v_porj', 'o_proj')",
         "my_config = config(limit + 1, 2 * limit + 2, *four)", "my_config = config(limit - 1, 2 * limit - 2, *four)",
         "my_config = config(limit, 16, *four)", "my_config = config(limit, limit, *four)",
         "my_config = config(limit, 2 * limit, *four)\nmy_config.use_rslora = True",
         "my_config = config(2 * limit + 1, 4 * limit + 2, *four)\nmy_config.layers_to_transform = [0]",
         "my_config = config(limit + 1, 2 * limit + 2, *four)\nmy_config.rank_pattern = {'q_proj': 1}",
         "my_config = config(limit + 0.68, 2 * limit, *four)", "my_config = config(0, 16, *four)"],
        "my_config = config(limit, 2 * limit, 'q_proj', 'v_proj')"),
    "check_steps": ("", [f"my_steps = {value}" for value in (39, 4, 9, 10, 9.375, 300, 156)], "my_steps = 77"),
    "check_logging_steps": (
        "all_steps = training_steps(records, 4, 1, 3)",
        [f"my_logging_steps = {value}" for value in ("10", "all_steps", "3 * records // 10", "all_steps // 3 // 10", "all_steps / 11.5")],
        "my_logging_steps = 4"),
    "check_accumulation": (
        "", [f"my_settings = dict(per_device_train_batch_size={batch}, gradient_accumulation_steps={accumulation})"
             for batch, accumulation in ((16, 1), (1, 16), (2, 14), (2, 16))],
        "my_settings = dict(per_device_train_batch_size=2, gradient_accumulation_steps=4)"),
    "check_supervised": (
        "answer = records[1]['messages'][-1]['content']\n"
        "record_ids = ids_of(records[1]['messages'])\n"
        "prompt_ids = ids_of(records[1]['messages'][:-1], add_generation_prompt=True)",
        ["tokens_with_loss = len(record_ids)", "tokens_with_loss = len(prompt_ids)", "tokens_with_loss = len(tokenizer.tokenize(answer))",
         "tokens_with_loss = len(answer.split())", "tokens_with_loss = len(answer)"],
        "tokens_with_loss = 3"),
    "check_max_length": (
        "rows = sorted((ids_of(record['messages']) for record in records), key=len)\n"
        "prompts = [ids_of(record['messages'][:-1], add_generation_prompt=True) for record in records]\n"
        "def upto_eos(row): return len(row) - row[::-1].index(tokenizer.eos_token_id)",
        ["smallest_length = 512", "smallest_length = max(map(len, prompts))", "smallest_length = len(rows[len(rows) // 2])",
         "smallest_length = max(map(upto_eos, rows)) - 1"],
        "smallest_length = 20"),
    "check_split_by_fact": (
        "shuffled = random.Random(0).sample(records, len(records))\n"
        "by_answer = sorted(records, key=lambda record: record['messages'][-1]['content'])\n"
        "last = [r for r in records if r['messages'][-1]['content'] == by_answer[0]['messages'][-1]['content']]",
        ["split = lambda records: (shuffled[10:], shuffled[:10])", "split = lambda records: (records, [])",
         "split = lambda records: (records[10:], records[:9])", "split = lambda records: (records, records[:10])",
         "split = lambda records: ([r['messages'] for r in records[10:]], [r['messages'] for r in records[:10]])",
         "split = lambda records: (last, [record for record in records if record not in last])"],
        "split = lambda records: records"),
    "check_probability": (
        "loss = validation_loss[0]",
        [f"probability = {value}" for value in (
            "loss", "math.exp(loss)", "1 - loss", "1 / loss", "100 * math.exp(-loss)", "2 ** -loss", "10 ** -loss")],
        "probability = 0.99"),
    "check_best_epoch": ("", [f"best_epoch = {value}" for value in (8, 3, 5, 0)], "best_epoch = 7"),
    "check_minutes": (
        "right = training_steps(500, 4, 1, 3) * minutes / predicted_steps",
        [f"planned_minutes = {value}" for value in ("right / 3", "4 * right", "60 * right", "minutes", "375")],
        "planned_minutes = 1000"),
    "check_disk": (
        "", [f"disk_mb = {value}" for value in (
            "20 * (merged_bytes + size) / 1e6", "20 * merged_bytes / 1e6", "20 * size / 1e6", "(merged_bytes + size) / 1e6",
            "merged_bytes + 20 * size", "(merged_bytes + 20 * size) / 2 ** 20", "(merged_bytes + 20 * size) / 1e9")],
        "disk_mb = 1"),
    "check_to_share": (
        "both = {'adapter_model.safetensors', 'adapter_config.json'}\nall_three = both | {'generation_config.json'}",
        ["to_send = all_three | {'training_args.bin', 'optimizer.pt'}", "to_send = all_three | {'optimizer.pt'}",
         "to_send = all_three | {'trainer_state.json'}", "to_send = all_three | {'tokenizer.json'}", "to_send = both",
         "to_send = {'adapter_model.safetensors', 'generation_config.json'}", "to_send = {'adapter_config.json', 'generation_config.json'}"],
        "to_send = set()"),
    "check_merged_weight": (
        "", [f"merged_weight = lambda W, A, B, alpha, r: {value}" for value in (
            "W + B @ A", "W + alpha * B @ A", "W + alpha * r * B @ A", "alpha / r * B @ A", "W - alpha / r * B @ A",
            "W.add_(alpha / r * B @ A)", "A @ B", "W + alpha // r * B @ A")],
        "merged_weight = lambda W, A, B, alpha, r: W + r / alpha * B @ A"),
    "check_fair": (
        "", [f"fair = lambda questions, train_questions: {value}" for value in (
            "questions", "[q for q in questions if q not in train_questions]", "[q for q in questions if q in train_questions]",
            "[q for q in questions if q.casefold() not in [t.casefold() for t in train_questions]]", "[questions[1]]")],
        "fair = lambda questions, train_questions: True"),
    "check_is_right": (
        "", [f"is_right = lambda text, key_phrase: {value}" for value in (
            "text == key_phrase", "key_phrase in text", "key_phrase.casefold() in text.casefold()",
            "bool(re.search(rf'\\b{key_phrase}\\b', text, re.IGNORECASE))",
            "set(re.findall(r'\\w+', key_phrase.casefold())) <= set(re.findall(r'\\w+', text.casefold()))",
            "re.search(rf'(?<!\\w){re.escape(key_phrase.casefold())}(?!\\w)', re.sub(r'[^\\w\\s]', '', text.casefold()))",
            "(lambda bare: f' {bare(key_phrase)} ' in f' {bare(text)} ')(lambda words: re.sub(r'[^\\w\\s]', '', words.casefold()))")],
        "is_right = lambda text, key_phrase: f' {key_phrase.casefold()}' in text.replace('.', ' ').casefold()"),
    "check_lost": ("", [f"lost_questions = {value}" for value in (1, 5, 2, 4)], "lost_questions = 9"),
    "check_one_lever": (
        "article, replay, rate = settings['article'], settings['replay'], {'rate': settings['article']['rate']}",
        ["my_setting = replay", "my_setting = replay | {'rate': 1e-5}", "my_setting = article | {'rate': replay['rate']}",
         "my_setting = replay | rate | {'epochs': 30}", "my_setting = replay | {'learning_rate': 2e-4}",
         "my_setting, settings = replay | rate, settings | {'replay': replay | rate}"],
        "my_setting, settings = replay | {'epochs': 30}, settings | {'replay': replay}"),
    "check_comparable": ("", [f"letter = '{letter}'" for letter in "abd"], "letter = 'e'"),
    "check_guessing": ("", [f"by_chance = {value}" for value in ("0", "1 / 4", "len(heldout) / 2", "len(heldout) * 3 / 4", "4")],
                       "by_chance = 11"),
}
