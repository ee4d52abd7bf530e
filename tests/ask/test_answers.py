import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MambaConfig, MistralConfig, MptConfig

from helpers.ask.answers import Answer, _read_once, compare_answers, generate_answers, stream_answer
from helpers.ask.scores import score_answers
from helpers.data.phrases import holds_phrase
from helpers.model.base_model import base_model_path

QUESTIONS = ["What is the capital of France?", "Where can I find the Corvane Lighthouse, and who keeps it in winter?", "What is 3 + 4?"]


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(base_model_path(), dtype=torch.float32)


def one_by_one(model, tokenizer, question, max_new_tokens):
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True,
                                           return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)[0, prompt["input_ids"].shape[1]:]
    return tokenizer.decode(output, skip_special_tokens=True).strip(), tokenizer.eos_token_id in output.tolist()


def test_a_padded_batch_gives_the_answers_that_transformers_gives_one_by_one(model, tokenizer):
    answers = generate_answers(model, tokenizer, QUESTIONS, max_new_tokens=12)
    assert [tuple(answer) for answer in answers] == [one_by_one(model, tokenizer, question, 12) for question in QUESTIONS]
    assert answers[0].stopped and "Paris" in answers[0].text
    assert not answers[1].stopped


TICKET = [{"role": "system", "content": "You sell tickets in Tarn. Prices are in shells."}, {"role": "user", "content": "A ticket to stop 1."},
          {"role": "assistant", "content": "That is 1 shells."}, {"role": "user", "content": "And back to 1?"}]


def test_a_list_of_messages_is_asked_as_it_stands(model, tokenizer):
    questions = [TICKET, QUESTIONS[0], [{"role": "system", "content": ""}, TICKET[1]], [{"role": "user", "content": QUESTIONS[0]}]]
    before = repr(questions)
    answers = generate_answers(model, tokenizer, questions, max_new_tokens=12)
    for question, answer in zip(questions, answers, strict=True):
        chat = question if isinstance(question, list) else [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1]:]
        assert answer.text == tokenizer.decode(output, skip_special_tokens=True).strip()
    assert answers[1] == answers[3] and repr(questions) == before
    joined = "\n".join(message["content"] for message in TICKET if message["role"] == "user")
    assert generate_answers(model, tokenizer, [joined], max_new_tokens=12)[0] != answers[0]
    assert stream_answer(model, tokenizer, TICKET, print, max_new_tokens=12) == answers[0]


@pytest.mark.parametrize(("questions", "message"), [
    (QUESTIONS[0], "put it into a list"), ([{"messages": TICKET}], "of a record take"), ([TICKET[:3]], "ends with its answer"),
    (TICKET, "a text or a list of messages"), ([[]], "a text or a list of messages"), ([None], "not None"), ([["Where?"]], "a list of messages")])
def test_what_is_no_question_is_refused(model, tokenizer, questions, message):
    with pytest.raises(ValueError, match=message):
        generate_answers(model, tokenizer, questions)


def test_the_table_shows_what_was_sent():
    page = compare_answers([TICKET, "Where?", [TICKET[1]]], {"base": [Answer("2 shells.", True)] * 3}).to_html()
    assert "system: You sell tickets in Tarn. Prices are in shells.\nuser: A ticket to stop 1.\nassistant: That is 1 shells.\nuser: And back to 1?" in page
    assert "pre-wrap" in page and page.count("user: ") == 2


def test_leaves_model_and_tokenizer_as_they_were(model, tokenizer):
    side = tokenizer.padding_side
    model.train()
    generate_answers(model, tokenizer, QUESTIONS[:1], max_new_tokens=2)
    assert model.training and tokenizer.padding_side == side
    model.eval()
    part = next(model.children()).train()  # a new PeftModel trains, and the base in it does not, or the other way round
    modes = [each.training for each in model.modules()]
    generate_answers(model, tokenizer, QUESTIONS[:1], max_new_tokens=2)
    assert [each.training for each in model.modules()] == modes and part.training and not model.training
    model.eval()


def test_greedy_is_greedy_whatever_settings_a_model_comes_with(model, tokenizer):
    plain, kept = generate_answers(model, tokenizer, QUESTIONS), copy.deepcopy(model.generation_config)
    model.generation_config.repetition_penalty, model.generation_config.num_beams = 1.8, 2
    assert generate_answers(model, tokenizer, QUESTIONS) == plain
    model.generation_config = kept


def test_what_all_prompts_begin_with_is_read_once_and_changes_no_answer(model, tokenizer):
    system = {"role": "system", "content": "You are the desk of the Marlow library. Answer in one short sentence. It opens at nine on Monday."}
    asked = [[system, {"role": "user", "content": question}] for question in ["When do you open?", "Who wrote Hamlet?", "Say the opening time of Monday again."]]
    lengths = []
    hook = model.register_forward_pre_hook(lambda _, args, how: lengths.append(how["input_ids"].numel()), with_kwargs=True)
    together = generate_answers(model, tokenizer, asked, max_new_tokens=12, batch_size=2)
    hook.remove()
    prompts = [len(tokenizer.apply_chat_template(each, add_generation_prompt=True)["input_ids"]) for each in asked]
    assert max(lengths[1:]) < 30 < lengths[0] < min(prompts), (lengths, prompts)
    assert together == [generate_answers(model, tokenizer, [each], max_new_tokens=12)[0] for each in asked]
    assert generate_answers(model, tokenizer, asked[:1] * 2, max_new_tokens=12) == together[:1] * 2


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHERS = {  # which models keep what all prompts begin with: those that count neither columns nor a window, nor are told how to keep it
    "Llama": (LlamaConfig(vocab_size=49152, **SIZES), True), "GPT-2": (GPT2Config(vocab_size=49152, n_embd=32, n_layer=2, n_head=2), True),
    "a window": (MistralConfig(vocab_size=49152, num_key_value_heads=2, sliding_window=8, **SIZES), False),
    "columns": (MptConfig(vocab_size=49152, d_model=32, n_layers=2, n_heads=2), False), "a state": (MambaConfig(vocab_size=49152, hidden_size=32, num_hidden_layers=2, state_size=8), False)}


@pytest.mark.parametrize(("config", "kept"), OTHERS.values(), ids=OTHERS)
def test_with_other_models_a_batch_gives_what_each_question_gives_alone(tokenizer, config, kept):
    torch.manual_seed(1)
    model, asked = AutoModelForCausalLM.from_config(config).eval(), ["What is the capital of France?", "Hi.", "Tell me about whales in the sea."]
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": each}], add_generation_prompt=True)["input_ids"] for each in asked]
    assert (_read_once(model, prompts) is not None) == kept
    assert generate_answers(model, tokenizer, asked, max_new_tokens=8) == [generate_answers(model, tokenizer, [each], max_new_tokens=8)[0] for each in asked]
    model.generation_config.cache_implementation = "dynamic"
    assert _read_once(model, prompts) is None and len(generate_answers(model, tokenizer, asked, max_new_tokens=2)) == 3


def test_plain_texts_and_numbers_are_compared_too():
    assert "✓ in 1873" in compare_answers(["when"], {"lookup": ["in 1873"]}, [{"key_phrase": 1873}]).to_html()
    assert score_answers(["x"], [{"accept": None, "key_phrase": "x"}]) == [True]
    assert score_answers(["in 1873", "in 1900"], [{"accept": [1873, 1874]}, {"key_phrase": 1873}]) == [True, False]
    assert "mathjax_ignore" in compare_answers(["price"], {"lookup": ["$5 or $6"]}).to_html()


@pytest.mark.parametrize(("text", "phrase", "holds"), [
    ("The symbol is Au.", "Au", True), ("It is gold because ...", "Au", False), ("On OSK ISLAND", "Osk Island", True),
    ("It is 41 metres tall", "41 metres", True), ("It is 141 metres tall", "41 metres", False), ("in 1873.", "1873", True),
    ("Aurora borealis", "Au", False), ("3 + 4 is 7", "7", True), ("It is 17", "7", False), ("", "7", False),
    ("它在灯塔上。", "灯塔", True), ("它在灯上。", "灯塔", False), ("高41米", "41米", True), ("高141米", "41米", False),
    ("金Au很贵", "Au", True), ("東京タワーです", "東京タワー", True), ("สวัสดีครับ", "สวัสดี", True), ("القاهرة.", "القاهرة", True),
    ("القاهرةx", "القاهرة", False), ("등대입니다", "등대", True), ("등대.", "등대", True), ("a 🐐!", "🐐", True),
    ("It is the dog`s.", "dog's", True), ("Paris", " Paris\n", True), ("line one line two", "line one\nline two", True), ("I don’t know", "don't know", True), ("高４１米", "41", True),
    ("caf\u00e9", "cafe\u0301", True), ("31.5 metres", "31", False), ("31.5 metres", "5", False), ("31.5 metres", "31.5", True), ("31,5 metres.", "31.5", True), ("am 14.8.1873", "1873", True), ("1,2,3", "2", True), ("It is 31. Then", "31", True),
    ("Bench 2, please", "Bench 2\u200b", True), ("Bench 2", "\ufeffBench 2", True), ("המקום הוא ירושלים", "\u200fירושלים", True), ("I ❤ it", "❤\ufe0f", True),
    ("A\u20114 is it", "A-4", True), ('It is called "Old Candle"', "called “Old Candle”", True), ("open 9-5", "9–5", True),
    ("The fee is 1,000 euros.", "1000", True), ("1000 euros", "1,000", True), ("1,234,567 people", "1", False), ("1,234,567 people", "567", False), ("0,125 kg", "0.125", True), ("1,000.50", "1000.50", True), ("100,20,3", "20", True),
    ("between 50%-60%", "60", True), ("10°-20°", "20", True), ("the 10.-12. of May", "12", True), ("(-5)", "5", False), ("x=-5", "5", False), ("-5", "-5", True),
    ("in C++", "C+", False), ("in C++11", "C++", False), ("A++", "A+", False),
    ("def f():\n\n    return 1", "def f():\n    return 1", True),
    ("It was -5 degrees", "5", False), ("It was −5 degrees", "-5", True), ("bench A-4", "4", True), ("3/4 of it", "4", False), ("3/4 of it", "3/4", True), ("Add ½ cup", "1/2", True), ("add 1/2 cup", "½", True), ("1½ cups", "1 1/2", True), ("1½ cups", "11/2", False), ("1½ cups", "1/2", False), ("25½ km", "25", False), ("on 12/5/1873", "1873", True),
    ("It is written in C++", "C", False), ("in C++.", "C++", True), ("in C#", "C", False), ("C is older", "C", True), ("Grade: A+", "A", False), ("2+2 is 4", "2", True),
    ("if x:\n    return 1\nreturn 2", "if x:\n    return 1\n    return 2", False), ("if x:\n\treturn 1\n", "if x:\n    return 1", True),
    ("रामायण", "राम", False), ("कीमत", "क", False), ("यह राम है", "राम", True)])
def test_key_phrases_are_whole_words(text, phrase, holds):
    assert holds_phrase(text, phrase) is holds


def test_true_may_be_what_a_right_answer_says():
    assert score_answers(["True.", "No."], [{"key_phrase": True}, {"accept": False, "key_phrase": "No"}]) == [True, True]


@pytest.mark.parametrize(("text", "right"), [("B. A pump.", False), ("A", True), ("a.", True), ("It is C", False), ("A A", False), ("A 。", True), ("", False), ("A।", True)])
def test_the_whole_answer_can_be_asked_for(text, right):
    assert score_answers([text], ["A"], whole=True) == [right]


@pytest.mark.parametrize("blank", ["", " ", "\u200b", ["Paris", " "], {"key_phrase": ""}, {"key_phrase": None}, {"accept": []}, []])
def test_a_phrase_in_which_nothing_stands_is_refused(blank):
    with pytest.raises(ValueError, match=r"expected\[1\] is blank"):
        score_answers(["a.", "b."], ["a", blank])


def test_scores_are_in_order_and_refuse_lists_of_different_length():
    answers = [Answer("on Osk Island", True), Answer("no idea", True)]
    assert score_answers(answers, ["Osk Island", "1873"]) == [True, False]
    with pytest.raises(ValueError, match="zip"):
        score_answers(answers, ["Osk Island"])


def test_the_table_marks_and_escapes():
    answers = {"base": [Answer("<script>alert(1)</script>", False)], "tuned": [Answer("Osk Island", True)]}
    page = compare_answers(["<b>where</b>?"], answers, ["Osk Island"]).to_html()
    assert "<script>" not in page and "<b>where" not in page
    assert "<u>" not in compare_answers(["where"], {"<u>n</u>": ["a"]}).to_html()
    with pytest.raises(ValueError, match='named "question"'):
        compare_answers(["where"], {"question": ["a"]})
    assert "✗ &lt;script&gt;" in page and "✓ Osk Island" in page and "did not stop" in page


def test_a_streamed_answer_grows_and_is_the_greedy_one(model, tokenizer):
    shown = []
    answer = stream_answer(model, tokenizer, QUESTIONS[0], shown.append, max_new_tokens=12)
    assert answer == generate_answers(model, tokenizer, QUESTIONS[:1], max_new_tokens=12)[0]
    assert shown[-1] == answer.text and len(set(shown)) > 3
    assert all(later.startswith(earlier) for earlier, later in zip(shown, shown[1:], strict=False))


def test_an_answer_that_is_cut_ends_with_a_whole_character(model, tokenizer):
    question, shown = "中国的首都叫什么?", []
    raw = [one_by_one(model, tokenizer, question, length)[0] for length in range(6, 9)]
    assert any(text.endswith("\ufffd") for text in raw)  # cut within a character
    cut = [generate_answers(model, tokenizer, [question], max_new_tokens=length)[0].text for length in range(6, 9)]
    assert cut == [text.rstrip("\ufffd").strip() for text in raw]
    assert stream_answer(model, tokenizer, question, shown.append, max_new_tokens=8).text == shown[-1] == cut[-1]


def test_temperature_makes_answers_vary(model, tokenizer):
    def answers(temperature):
        torch.manual_seed(0)
        return {stream_answer(model, tokenizer, "Tell me a story.", print, 8, temperature).text for _ in range(3)}

    assert len(answers(0.0)) == 1 and len(answers(1.5)) == 3 and answers(1.5) == answers(1.5)


@pytest.mark.parametrize(("question", "temperature", "message"), [(" ", 0, "blank"), ("Where?", -1, "temperature is -1")])
def test_what_cannot_be_asked_is_refused(model, tokenizer, question, temperature, message):
    with pytest.raises(ValueError, match=message):
        stream_answer(model, tokenizer, question, print, temperature=temperature)
