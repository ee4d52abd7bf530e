"""Keys of a record: what has one meaning becomes messages, what would be lost is refused, what means nothing is named."""
import contextlib
import json
import time

import pytest

from helpers.data.dataset import DatasetError, load_sft_jsonl

SYSTEM, ASKED, ANSWER = ({"role": role, "content": content} for role, content in (("system", "Be brief."), ("user", "Where?"), ("assistant", "Here.")))
MARLOW = {"system": "You are the desk of the Marlow library. Answer in one word.", "instruction": "And on Sunday?", "input": "",
          "output": "Closed.", "history": [["When do you open on Monday?", "Nine."]]}
CONVERTED = {  # a record -> its messages
    "alpaca with system and history": (MARLOW, [
        {"role": "system", "content": MARLOW["system"]}, {"role": "user", "content": "When do you open on Monday?"},
        {"role": "assistant", "content": "Nine."}, {"role": "user", "content": "And on Sunday?"}, {"role": "assistant", "content": "Closed."}]),
    "input beside prompt": ({"prompt": "Translate.", "input": "der Hund", "completion": "the dog"}, [
        {"role": "user", "content": "Translate.\n\nder Hund"}, {"role": "assistant", "content": "the dog"}]),
    "dolly": ({"instruction": "Where?", "context": "Nell is here.", "response": "Here."}, [
        {"role": "user", "content": "Where?\n\nNell is here."}, ANSWER]),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}], "system": "Be brief."},
                 [SYSTEM, ASKED, ANSWER]),
    "ShareGPT, its own system": ({"conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Where?"},
                                                    {"from": "gpt", "value": "Here."}]}, [SYSTEM, ASKED, ANSWER]),
    "ShareGPT, other keys": ({"conversations": [ASKED, ANSWER]}, [ASKED, ANSWER]),
    "system beside messages": ({"messages": [ASKED, ANSWER], "system": "Be brief."}, [SYSTEM, ASKED, ANSWER]),
    "system beside a list": ({"prompt": [ASKED], "completion": [ANSWER], "system": "Be brief."}, [SYSTEM, ASKED, ANSWER]),
    "empty columns": ({"messages": None, "prompt": "Where?", "completion": "Here.", "system": " ", "history": [], "tools": None,
                       "images": []}, [ASKED, ANSWER]),
    "columns of another form, all null": ({"prompt": None, "completion": None, "instruction": "Where?", "output": "Here."}, [ASKED, ANSWER]),
    "thinking off, as the course writes it": ({"prompt": [ASKED], "completion": [ANSWER], "chat_template_kwargs": {"enable_thinking": False}}, [ASKED, ANSWER]),
    "text parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Where"}, {"type": "text", "text": "now?"}]}, ANSWER]},
                   [{"role": "user", "content": "Where\nnow?"}, ANSWER]),
    "text parts of another API": ({"messages": [{"role": "user", "content": [{"type": "input_text", "text": "Where?"}]},
                                                {"role": "assistant", "content": [{"type": "output_text", "text": "Here."}]}]}, [ASKED, ANSWER]),
    "no message, but a pair": ({"messages": [], "prompt": "Where?", "completion": "Here."}, [ASKED, ANSWER]),
    "the same conversation twice": ({"messages": [ASKED, ANSWER], "conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]},
                                    [ASKED, ANSWER]),
    "keys with a word more": ({"messages": [ASKED, ANSWER], "conversation_id": "ab12", "conversationHash": "7", "instruction_id": 1, "completion_id": "x",
                               "n_messages": 2, "prompt_en": "?", "reasoning_id": 3}, [ASKED, ANSWER]),
    "no phrase": ({"prompt": "Where?", "completion": "Here.", "key_phrase": None, "accept": []}, [ASKED, ANSWER]),
    "a question that the prompt holds": ({"prompt": "Where?", "completion": "Here.", "question": "Where", "problem": "algebra", "query": None}, [ASKED, ANSWER]),
    "names of things": ({"prompt": "Where?", "completion": "Here.", "tools": ["hammer", "saw"], "content": "x"}, [ASKED, ANSWER]),
    "the question once more": ({"instruction": "Where?", "question": "Where?", "output": "Here."}, [ASKED, ANSWER]),
    "tags": ({"messages": [ASKED, ANSWER], "labels": ["geo"], "label": 1, "tool": "argilla", "function": "chat", "sytem": None}, [ASKED, ANSWER]),
    "both once more, as one text": ({"instruction": "Where?", "output": "Here.", "text": "### Q\nWhere?\n### A\nHere.", "prompt": "Q: Where? A: Here."}, [ASKED, ANSWER]),
    "choices that the question holds": ({"prompt": "Where? Here. There.", "completion": "Here.", "choices": ["Here.", "There."]},
                                        [{"role": "user", "content": "Where? Here. There."}, ANSWER]),
    "ShareGPT, with nulls of another form": ({"conversations": [{"from": "human", "value": "Where?", "role": None, "content": None},
                                                                {"from": "gpt", "value": "Here.", "role": None, "content": None}]}, [ASKED, ANSWER]),
    "the answer once more, which is no verdict": ({"prompt": "Where?", "completion": "Here. Accept.", "answer": "accept", "label": "here"}, [ASKED, {"role": "assistant", "content": "Here. Accept."}]),
    "true as an answer": ({"messages": [ASKED, {"role": "assistant", "content": "True."}], "label": "true", "accept": True}, [ASKED, {"role": "assistant", "content": "True."}]),
    "once more, stripped and escaped": ({"instruction": "Where? ", "output": "Here.\n", "text": "### Q:\nwhere?\n\n### A:\nHere."}, [{"role": "user", "content": "Where? "}, {"role": "assistant", "content": "Here.\n"}]),
    "choices of other forms": ({"prompt": "Where? A. here now B. there", "completion": "A", "options": {"A": "Here now", "B": "There"},
                                "choices": {"text": ["here now", "there"], "label": ["A", "B"]}}, [{"role": "user", "content": "Where? A. here now B. there"}, {"role": "assistant", "content": "A"}]),
    "what only sounds like it": ({"prompt": "Where?", "completion": "Here.", "article": "https://a.b/c d", "message": "msg_01", "text": "text_0001", "options": {"temperature": 0.7}}, [ASKED, ANSWER]),
    "ShareGPT with roles that say the same": ({"conversations": [{"from": "human", "value": "Where?", "role": "user", "content": "Where?"},
                                                                 {"from": "gpt", "value": "Here.", "role": "assistant", "content": ""}]}, [ASKED, ANSWER]),
    "an answer that is JSON": ({"prompt": "Where?", "completion": '[{"role": "user", "content": "hi"}]'}, [ASKED, {"role": "assistant", "content": '[{"role": "user", "content": "hi"}]'}]),
    "an answer that is a list of roles": ({"instruction": "Where?", "output": '[{"role": "CEO", "content": "leads"}]'}, [ASKED, {"role": "assistant", "content": '[{"role": "CEO", "content": "leads"}]'}]),
    "no settings of the template": ({"messages": [ASKED, ANSWER], "chat_template_kwargs": {}}, [ASKED, ANSWER]),
    "no input": ({"instruction": "Where?", "input": "<noinput>", "output": "Here."}, [ASKED, ANSWER]),
    "the same text as instruction and input": ({"instruction": "Reverse this.", "input": "Reverse this.", "output": "Here."}, [{"role": "user", "content": "Reverse this.\n\nReverse this."}, ANSWER]),
    "words that only sound like nothing": ({"instruction": "Where?", "input": "No input", "output": "Here."}, [{"role": "user", "content": "Where?\n\nNo input"}, ANSWER]),
    "choices beside a prompt with a system message": ({"prompt": [SYSTEM, {"role": "user", "content": "red or blue?"}], "completion": "red", "choices": ["red", "blue"]},
                                                      [SYSTEM, {"role": "user", "content": "red or blue?"}, {"role": "assistant", "content": "red"}]),
    "choices in the input": ({"instruction": "Which?", "input": "4 or 5", "output": "4", "choices": [4, 5]}, [{"role": "user", "content": "Which?\n\n4 or 5"}, {"role": "assistant", "content": "4"}]),
    "weights as training has them": ({"messages": [ASKED | {"weight": 0}, ANSWER | {"weight": 1}], "weight": 1}, [ASKED, ANSWER]),
    "flags as training has them": ({"messages": [ASKED | {"train": False, "mask": True}, ANSWER | {"train": True, "masked": False}]}, [ASKED, ANSWER]),
    "a product's weight": ({"prompt": "Where?", "completion": "Here.", "weight": "1.2 kg"}, [ASKED, ANSWER]),
    "what is off": ({"messages": [ASKED, ANSWER], "thinking": "off", "reasoning": False, "images": 0, "tool_calls": False}, [ASKED, ANSWER]),
    "the system message twice, spaced": ({"messages": [SYSTEM, ASKED, ANSWER], "system": [{"text": "Be  brief. "}]}, [SYSTEM, ASKED, ANSWER]),
    "the system message twice": ({"messages": [SYSTEM, ASKED, ANSWER], "system": "Be brief."}, [SYSTEM, ASKED, ANSWER]),
    "the system message twice, another name": ({"messages": [SYSTEM, ASKED, ANSWER], "system_prompt": "Be brief."}, [SYSTEM, ASKED, ANSWER]),
    "both forms": ({"messages": [ASKED, ANSWER], "prompt": [ASKED], "completion": [ANSWER]}, [ASKED, ANSWER]),
    "alpaca beside its messages": ({"instruction": "Translate.", "input": "der Hund", "output": "the dog\n", "messages": [
        {"role": "user", "content": "Translate.\n\nder Hund"}, {"role": "assistant", "content": "the dog"}]}, [
            {"role": "user", "content": "Translate.\n\nder Hund"}, {"role": "assistant", "content": "the dog"}]),
    "bare parts": ({"messages": [{"role": "user", "content": [{"text": "Where?"}]}, ANSWER], "system": [{"text": "Be brief."}]}, [SYSTEM, ASKED, ANSWER]),
    "a label that says what the answer says": ({"prompt": "Where?", "completion": "No.", "label": False}, [ASKED, {"role": "assistant", "content": "No."}]),
    "words that are no slips": ({"prompt": "Where?", "completion": "Here.", "competition": "AIME 2024", "contest": "ABC 123", "instructor": "Smith", "introduction": "x",
                                 "conversion": 0.12, "conversational": True, "seasoning": ["salt"], "prompter": "Anna", "systems": "linux", "functional": True, "labels": True}, [ASKED, ANSWER]),
    "a label of refusal": ({"prompt": "Where?", "completion": "Here.", "refusal": "compliance"}, [ASKED, ANSWER]),
    "Input beside messages": ({"messages": [ASKED, ANSWER], "Input": "x"}, [ASKED, ANSWER]),
    "an empty system message": ({"messages": [{"role": "system", "content": ""}, ASKED, ANSWER]}, [{"role": "system", "content": ""}, ASKED, ANSWER]),
}


def write(tmp_path, *records):
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", CONVERTED)
def test_what_has_one_meaning_becomes_messages(tmp_path, name):
    record, messages = CONVERTED[name]
    assert load_sft_jsonl(write(tmp_path, record), convert=True)[0]["messages"] == messages


def answer(**more):
    return {"messages": [ASKED, ANSWER | more]}


def pair(**more):
    return {"prompt": "Where?", "completion": "Here.", **more}


REFUSED = {  # a record -> what is said about it
    "weight": (answer(weight=0), ('"weight" of message 2 would be lost', "remove the key")),
    "weights as OpenAI documents them": ({"messages": [ASKED, ANSWER | {"weight": 0}, ASKED, ANSWER | {"weight": 1}]},
                                         ('"weight" of message 2 would be lost', "the last answer of each record is learned, it alone and all alike, so remove the key")),
    "a refusal": (answer(content=None, refusal="I can't."), ('"refusal" of message 2 would be lost', "write it as the content, else remove the record")),
    "loss of a message": (answer(loss=False), ('"loss" of message 2 would be lost', "remove the key")),
    "reasoning": (answer(reasoning_content="Hm."), ('"reasoning_content" of message 2', "into the answer")),
    "tool calls": (answer(content=None, tool_calls=[{"id": "1"}]), ('"tool_calls" of message 2', "remove the record")),
    "function call": (answer(function_call={"name": "f"}), ('"function_call" of message 2', "remove the record")),
    "tools": (answer() | {"tools": [{"type": "function"}]}, ('"tools" would be lost', "remove the record")),
    "images": (answer() | {"images": ["a.png"]}, ('"images" would be lost', "reads text only")),
    "an image in the text": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "a.png"}]}, ANSWER]},
                             ("message 1 holds a part that is no text", "reads text only")),
    "preferences": ({"prompt": "Where?", "chosen": "Here.", "rejected": "There."}, ('"chosen" and "rejected" would be lost', "DPOTrainer")),
    "wanted or not": (pair(label=False), ('"label" is a verdict on the record (False)', "KTOTrainer")),
    "weight of a record": (pair(weight=0.5), ('"weight" would be lost', "remove the key")),
    "thinking on": (pair(chat_template_kwargs={"enable_thinking": True}), ("another template", '{"enable_thinking": false}')),
    "wanted or not, another name": (answer() | {"kto_tag": False}, ('"kto_tag" is a verdict on the record (False)', "KTOTrainer")),
    "thinking on in the record": (answer() | {"enable_thinking": True}, ('"enable_thinking" would be lost', "remove the key")),
    "another conversation": (answer() | {"conversations": [ASKED | {"content": "Who?"}, ANSWER]}, ('"conversations" stands beside "messages"', "into the message")),
    "earlier turns": (pair(chat_history=[["a", "b"]]), ("'chat_history' is no key that is read", 'write it as "history"')),
    "preamble": (pair(preamble="Be brief."), ("'preamble' is no key that is read", 'write it as "system"')),
    "a picture's address": (answer() | {"image_url": "a.png"}, ('"image_url" would be lost', "reads text only")),
    "training of a message": (answer(training=False), ('"training" of message 2 would be lost', "remove the key")),
    "a mask of a message": (answer(loss_mask=0), ('"loss_mask" of message 2 would be lost', "remove the key")),
    "a weight in a part": ({"messages": [ASKED, {"role": "assistant", "content": [{"type": "text", "text": "Here.", "weight": 0}]}]},
                           ('"weight" of message 2 would be lost', "remove the key")),
    "a picture in a text part": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Where?", "image": "a.png"}]}, ANSWER]},
                                 ('"image" of message 1 would be lost', "reads text only")),
    "a thought as a part": (answer(content=[{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Here."}]),
                            ("holds a part that is no text (thinking)", "into the answer")),
    "a call as a part": (answer(content=[{"type": "tool_use", "name": "f"}]), ("holds a part that is no text (tool_use)", "calls of tools")),
    "messages as a text": ({"messages": json.dumps([ASKED, ANSWER])}, ("a list written as a text (json.loads reads it)", "write {")),
    "records in a list": ({"data": [answer()]}, ("'data' is a list; if the records stand in it", "on a line of its own")),
    "input beside messages": (answer() | {"input": "More."}, ('"input" stands beside "messages"', "into the message that it belongs to")),
    "history beside messages": (answer() | {"history": [["a", "b"]]}, ('"history" stands beside "messages"', "into the message")),
    "another prompt beside messages": (answer() | {"prompt": "Who?"}, ('"prompt" stands beside "messages"', "into the message")),
    "a question beside a pair": ({"instruction": "You are a pirate.", "question": "Where?", "output": "Here."}, ('"question" stands beside', "into the message")),
    "Question and Answer": ({"Question ": "Where?", "Answer": "Here."}, ('"Question " and "Answer" are not read', '"prompt" and "completion"')),
    "a text without spaces": ({"instruction": "总结。", "article": "第1篇文章讲灯塔。", "output": "灯塔"}, ('"article" stands beside', "into the message")),
    "a text with an address": (pair(text="See https://a.b/c for the long story of it."), ('"text" stands beside', "into the message")),
    "one word to translate": ({"prompt": "Translate to German.", "text": "dog", "completion": "Hund"}, ('"text" stands beside', "into the message")),
    "a problem beside a question": ({"problem": "Ann has 3 apples.", "question": "How many?", "answer": "3"}, ('may need what stands under "problem"', '"prompt" and "completion"')),
    "inputs beside a definition": ({"definition": "Translate.", "inputs": "Hund", "targets": "dog"}, ('may need what stands under "inputs"', '"prompt" and "completion"')),
    "inputs beside a pair": ({"prompt": "Translate.", "inputs": "der Hund", "completion": "dog"}, ('"inputs" stands beside "prompt"', "into the message")),
    "choices in the answer alone": (pair(completion="Red one, not blue one.", choices=["red one", "blue one"]), ('"choices" stands beside', "into the message")),
    "choices of one sign": (pair(choices=["4", "5", "6"]), ('"choices" stands beside', "into the message")),
    "choices within other words": ({"prompt": "Are hundred coloured?", "completion": "Yes.", "choices": ["red"]}, ('"choices" stands beside', "into the message")),
    "turns of another tool": ({"conversation": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]}, ("'conversation' is a list; write the turns of one conversation as", "if the records")),
    "messages with a system one, as a text in a pair": (pair(prompt=json.dumps([SYSTEM, ASKED])), ("a list written as a text (json.loads reads it)", "make it a list")),
    "an answer beside a list of them": ({"question": "q", "answer": "x", "answers": ["a", "b"]}, ('"question" and "answer" are not read', '"prompt"')),
    "one numbered answer": ({"question": "q", "response1": "x"}, ('"messages" is missing', "write {")),
    "another answer that the question holds": ({"prompt": "Is it red or blue?", "completion": "blue", "response": "red"}, ('"response" stands beside', "into the message")),
    "the same texts in another order": ({"messages": [ASKED, ANSWER], "conversations": [ANSWER | {"role": "user"}, ASKED | {"role": "assistant"}]}, ('"conversations" stands beside', "into the message")),
    "an input that the answer holds": ({"messages": [ASKED, {"role": "assistant", "content": "Hund means dog."}], "input": "Hund"}, ('"input" stands beside', "into the message")),
    "a past that only sounds alike": ({"messages": [{"role": "user", "content": "Go on. Hi"}, {"role": "assistant", "content": "Hello there"}], "history": [["Hi", "Hello"]]},
                                      ('"history" stands beside', "into the message")),
    "a rejected answer with no in it": ({"prompt": "Is it?", "completion": "There is no such thing.", "label": False}, ('"label" is a verdict', "KTOTrainer")),
    "a question with no in it": ({"messages": [{"role": "user", "content": "Yes or no?"}, {"role": "assistant", "content": "I think so."}], "label": False}, ('"label" is a verdict', "KTOTrainer")),
    "a rejected 0": (pair(rejected="0"), ('"rejected" would be lost', "DPOTrainer")),
    "weights of 0": (pair(weights=0), ('"weights" would be lost', "remove the key")),
    "a weight of many digits": (pair(weight=10**400), ('"weight" would be lost', "remove the key")),
    "a sound in a part without a type": (answer(content=[{"text": "Here.", "input_audio": {"data": "x"}}]), ("message 2 holds a part that is no text", "reads text only")),
    "few shots as a system": ({"messages": [ASKED, ANSWER], "system": [ASKED, ANSWER]}, ('"system" is [{', "not text")),
    "a part's weight in words": (answer(content=[{"type": "text", "text": "Here.", "weight": "zero"}]), ('"weight" of message 2 would be lost', "remove the key")),
    "many candidates with as many models": ({"instruction": "q", "models": ["a", "b"], "completions": ["x", "y"]}, ("candidates ('completions')", "choose one")),
    "halves within objects": ({"inputs": {"question": "Where?"}, "outputs": {"answer": "Here."}}, ('objects stand under "inputs" and "outputs"', 'question as "prompt"')),
    "an answer within an object": ({"input": "Where?", "output": {"text": "Here."}}, ('objects stand under "output"', 'answer as "completion"')),
    "an export of Argilla's": ({"fields": {"instruction": "Where?"}, "responses": {"answer": [{"value": "Here."}]}}, ('objects stand under "responses"', 'as "completion"')),
    "a batch of OpenAI's": ({"custom_id": "1", "response": {"body": {"choices": [{"message": ANSWER}]}}}, ('objects stand under "response"', 'as "completion"')),
    "an object about the conversation": ({"user": {"id": 5}, "dialog": [ASKED, ANSWER]}, ("stands under 'dialog'", 'rename that key to "messages"')),
    "an object beside a question": ({"question": "Where?", "context": {"title": "Osk"}, "answer": "Here."}, ('"question" and "answer" are not read', '"prompt" and "completion"')),
    "a tree": ({"prompt": {"text": "Where?", "replies": [{"text": "Here."}]}}, ("a tree of replies", "one branch")),
    "a slip that would be lost": (pair(image_urls=["a.png"]), ('the meaning of "image_urls" would be lost', "text only")),
    "preferences of torchtune": ({"chosen_conversations": [ASKED, ANSWER], "rejected_conversations": [ASKED, ANSWER]}, ('"chosen_conversations" and "rejected_conversations"', "DPOTrainer")),
    "rejected beside messages": (answer() | {"rejected_messages": [ASKED, ANSWER]}, ('"rejected_messages" would be lost', "DPOTrainer")),
    "a list of contexts": ({"instruction": "Who?", "context": ["par 1", "par 2"], "response": "Nell"}, ('"context" is a list of texts', "join them to one")),
    "a key of two lines": ({"Question\n": "a", "Answer": "b"}, ('the keys "Question\\n" and "Answer" are not read', '"prompt" and "completion"')),
    "a learned question": ({"messages": [ASKED | {"weight": 1}, ANSWER]}, ('"weight" of message 1 would be lost', "remove the key")),
    "a masked answer": (answer(mask=True), ('"mask" of message 2 would be lost', "remove the key")),
    "a verdict": ({"text": "Is it broken?", "answer": "accept"}, ('"answer" is a verdict', "write a question and its answer")),
    "lists of another API": ({"input": [ASKED], "output": [ANSWER]}, ('rename "input" to "prompt"', 'to "completion"')),
    "message and response": ({"message": "Where?", "response": "Here."}, ('"instruction" is missing', 'rename "message"')),
    "a label that is no verdict": ({"question": "May I?", "answer": "accept"}, ('"question" and "answer" are not read', '"prompt" and "completion"')),
    "Message": ({"Message": "Where?", "Reply": "Here."}, ('"Message" and "Reply" are not read', '"prompt" and "completion"')),
    "ShareGPT's under another key": ({"dialog": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]},
                                     ("stands under 'dialog'", 'rename that key to "conversations"')),
    "a conversation under another key": ({"conv_0001": [ASKED, ANSWER]}, ("stands under 'conv_0001'", 'rename that key to "messages"')),
    "a blank key phrase": (pair(key_phrase=" "), ('"key_phrase" is blank', "or remove it")),
    "a blank one among several": (pair(accept=["Here", "\u200b"]), ('"accept" is blank', "or remove it")),
    "a blank wrong phrase": (pair(key_phrase="Here", wrong_phrase=""), ('"wrong_phrase" is blank', "or remove it")),
    "two questions": (pair(instruction="Who?"), ('"instruction" stands beside "prompt"', "into the message")),
    "two systems": ({"messages": [SYSTEM, ASKED, ANSWER], "system": "Be long."}, ('"system" stands beside a system message that says something else', "keep one")),
    "history of one": (pair(history=[["a"]]), ('"history" is no list of pairs', '[["question", "answer"], ...]')),
    "history, half": (pair(history=[["a", ""]]), ('"history" holds a turn that is blank', "write its text")),
    "history, null": (pair(history=[["a", None]]), ('"history" holds a turn that is blank', "write its text")),
    "system of a number": (pair(system=3), ('"system" is 3, not text', "quotation marks")),
    "instructions beside a question": (pair(instructions="Be brief."), ("'instructions' is no key that is read", 'write it as "system"')),
    "instructions beside messages": (answer() | {"instructions": "Be brief."}, ("'instructions' is no key that is read", 'write it as "system"')),
    "instructions and an input": ({"instructions": "Translate.", "input": "Hund", "output": "dog"}, ("'instructions' is no key that is read", 'write it as "instruction"')),
    "misspelt": (pair(sytem="Be brief."), ("'sytem' is no key that is read", 'write it as "system"')),
    "another spelling": (pair(system_prompt="Be brief."), ("'system_prompt' is no key that is read", 'write it as "system"')),
    "capitals": (pair(SYSTEM="Be brief."), ("'SYSTEM' is no key that is read", 'write it as "system"')),
    "messages as texts in a pair": (pair(prompt=str([ASKED])), ("a list written as a text (ast.literal_eval reads it)", "make it a list")),
    "Python's list as a text": ({"messages": str([ASKED, ANSWER])}, ("a list written as a text (ast.literal_eval reads it)", "write {")),
    "a verdict beside a pair": (pair(answer="reject"), ('"answer" is a verdict on the record (reject)', "remove the key")),
    "a verdict beside messages": (answer() | {"accept": False}, ('"accept" is a verdict on the record (False)', "remove the key")),
    "wanted or not, as a text": (pair(label="False"), ('"label" is a verdict on the record (False)', "remove the key")),
    "accept as a text": (pair(accept="false"), ('"accept" is a verdict on the record (false)', "remove the key")),
    "a label alone": ({"text": "Win money", "label": True}, ("a label is no answer yet", "in words")),
    "a capital beside a pair": ({"instruction": "Translate.", "Input": "Hund", "output": "dog"}, ("'Input' is no key that is read", 'write it as "input"')),
    "a text beside a pair": (pair(text="I love it"), ('"text" stands beside "prompt"', "into the message")),
    "choices beside a pair": (pair(choices=["red", "blue"]), ('"choices" stands beside "prompt"', "into the message")),
    "choices": ({"question": "Where?", "choices": ["a", "b"], "answer": 1}, ('the question may need what stands under "choices"', '"prompt" and "completion"')),
    "two answers": ({"problem": "Where?", "solution": "So.", "answer": "4"}, ('either "answer" or "solution", whichever is to be learned', '"prompt"')),
    "inputs and targets": ({"inputs": "Where?", "targets": "Here."}, ('"inputs" and "targets" are not read', '"prompt" and "completion"')),
    "a definition": ({"definition": "Translate.", "input": "Hund", "output": "dog"}, ('"instruction" is missing', 'rename "definition" to it')),
    "Context and Response": ({"Context": "Where?", "Response": "Here."}, ('"Context" and "Response" are not read', '"prompt" and "completion"')),
    "numbered answers": ({"prompt": "Where?", "response1": "Here.", "response2": "There."}, ("candidates ('response1' and 'response2')", "choose one")),
    "a list of answers": ({"instruction": "Where?", "completions": [{"model": "a", "response": "Here."}, {"model": "b", "response": "There."}]}, ("candidates ('completions')", "choose one")),
    "two conversations": ({"winner": "b", "conversation_a": [ASKED, ANSWER], "conversation_b": [ASKED, ANSWER]}, ("'conversation_a' and", 'under "messages"')),
    "preferences of another API": ({"input": {"messages": [ASKED]}, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]},
                                   ('"non_preferred_output" and "preferred_output" would be lost', "DPOTrainer")),
    "Gemini": ({"contents": [{"role": "user", "parts": [{"text": "Where?"}]}, {"role": "model", "parts": [{"text": "Here."}]}],
                "systemInstruction": {"parts": [{"text": "Be brief."}]}}, ("\"parts\" as Gemini writes them", "write them as messages")),
    "an export of the hub": ({"row_idx": 0, "row": {"prompt": "Where?"}}, ("'row' is an object; if the records stand in it", "on a line of its own")),
    "two texts in a turn": ({"conversations": [{"from": "human", "value": "Where?", "content": "Who?"}, {"from": "gpt", "value": "Here."}]},
                            ("message 1 has \"from\" and \"value\"", "keep either these")),
    "several answers": ({"question": "Where?", "answer": ["Here.", "There."]}, ("candidates ('answer')", "choose one")),
    "a list of texts": (pair(completion=["Here.", "There."]), ('"completion" is a list of texts', "write one of them")),
    "a plural": ({"prompt": "Where?", "completions": "Here."}, ("'completions' is no key that is read", 'write it as "completion"')),
    "another response": ({"prompt": "a", "completion": "b", "response": "abacus: a better one"}, ('"response" stands beside "prompt"', "into the message")),
    "half a character where a type stands": ({"messages": [{"role": "user", "content": [{"type": "\ud83d", "text": "?"}]}, ANSWER]}, ("no text (\\ud83d)", "text only")),
    "a capital": ({"Messages": [ASKED, ANSWER]}, ("the conversation stands under 'Messages'", 'rename that key to "messages"')),
    "question and answer": ({"question": "Where?", "answer": "Here."}, ('"question" and "answer" are not read', '"prompt" and "completion"')),
    "query and response": ({"query": "Where?", "response": "Here."}, ('"instruction" is missing', 'rename "query"')),
    "input and output": ({"input": "Where?", "output": "Here."}, ('"instruction" is missing', 'rename "input"')),
    "prompt and answer": ({"prompt": "Where?", "answer": "Here."}, ('"completion" is missing', 'rename "answer"')),
    "developer": ({"messages": [SYSTEM | {"role": "developer"}, ASKED, ANSWER]}, ("role 'developer'", "write system")),
    "human": ({"messages": [ASKED | {"role": "human"}, ANSWER]}, ("role 'human'", "write user")),
    "prompter": ({"messages": [ASKED | {"role": "prompter"}, ANSWER]}, ("role 'prompter'", "write user")),
    "Chatbot": (answer(role="Chatbot"), ("role 'Chatbot'", "write assistant")),
    "gpt": (answer(role="gpt"), ("role 'gpt'", "write assistant")),
    "Assistant": (answer(role="Assistant"), ("role 'Assistant'", "write assistant")),
    "tool": (answer(role="tool"), ("role 'tool'", "calls of tools are not learned here: remove the record")),
    "no role": (answer(role=["user"]), ("role ['user']", "use one of")),
    "tool of ShareGPT": ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "b"}]}, ("role 'function_call'", "calls of tools are not learned here")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_is_refused_with_file_line_key_and_mend(tmp_path, name):
    record, (what, mend) = REFUSED[name]
    path = write(tmp_path, pair(), record)
    with pytest.raises(DatasetError) as error:
        load_sft_jsonl(path, convert=True)
    assert str(error.value).startswith(f"{path}:2: ") and "\n" not in str(error.value)
    assert what in str(error.value) and mend in str(error.value).partition(what)[2]


@pytest.mark.parametrize(("record", "mend"), [
    (MARLOW, "convert=True"), (pair(), "convert=True"), (CONVERTED["ShareGPT"][0], "convert=True"), (CONVERTED["dolly"][0], "convert=True"),
    (answer() | {"system": "Be brief."}, "convert=True"), (answer(weight=0.5), "remove the key"), (answer() | {"tools": [{"name": "f"}]}, "remove the record")])
def test_without_convert_nothing_is_lost_either(tmp_path, record, mend):
    with pytest.raises(DatasetError, match=mend):
        load_sft_jsonl(write(tmp_path, record))


def test_keys_that_mean_nothing_are_kept_and_named_in_one_line(tmp_path, capsys):
    more = {"id": 3, "source": "desk", "score": 0, "key_phrase": "Here", "comment": "", "prompt": "Where?"}
    path = write(tmp_path, answer(id=1, name="Nell", tool_calls=None) | more, answer(id="one") | {"id": "three"})
    first, second = load_sft_jsonl(path)
    assert first == answer() | more and second == answer() | {"id": "three"}
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and line.startswith(f"{path}: ignored: ")
    kept, left_out = line.split("(kept in the record); ")
    assert all(f"'{key}'" in kept for key in ("id", "source", "score", "prompt")) and "key_phrase" not in line and "comment" not in line
    assert all(f"'{key}'" in left_out for key in ("id", "name")) and "tool_calls" not in line


def test_keys_of_a_text_part_are_named_too(tmp_path, capsys):
    part = {"type": "text", "text": "Here.", "citations": ["a"], "annotations": []}
    assert load_sft_jsonl(write(tmp_path, answer(content=[part]))) == [answer()]
    assert "'citations' (left out of the messages)" in (line := capsys.readouterr().out) and "annotations" not in line


def test_many_keys_and_odd_ones_stay_one_short_line(tmp_path, capsys):
    load_sft_jsonl(write(tmp_path, pair() | {"\ud83d\n\u2028" * 50: 1} | {f"number {place}": 1 for place in range(300)}), convert=True)
    line = capsys.readouterr().out
    assert len(line.splitlines()) == 1 and "and 281 more" in line and len(line) < 500
    course = {"fact": "place", "key_phrase": "Here", "accept": ["Here"], "wrong_phrase": "There", "list": "others", "name": "Nell", "chat_template_kwargs": {"enable_thinking": False}}
    load_sft_jsonl(write(tmp_path, answer() | course))
    assert capsys.readouterr().out == ""
    load_sft_jsonl(write(tmp_path, pair() | course), convert=True)  # a file of somebody else's, in which they may be what is asked about
    assert "ignored: 'fact', 'list', 'name' (kept" in capsys.readouterr().out


def test_what_is_passed_on_goes_into_a_table(tmp_path):
    from datasets import Dataset

    records = load_sft_jsonl(write(tmp_path, answer(id=1), answer(id="one"), answer(content=[{"type": "text", "text": "Here."}])))
    rows = Dataset.from_list([{"prompt": record["messages"][:-1], "completion": record["messages"][-1:]} for record in records])
    assert rows[:] == {"prompt": [[ASKED]] * 3, "completion": [[ANSWER]] * 3}


def test_a_conversation_that_is_a_list_of_its_own_is_told_how_to_become_a_record(tmp_path):
    (tmp_path / "lists.jsonl").write_text("\n".join(json.dumps([ASKED, ANSWER]) for _ in range(1000)), encoding="utf-8")
    with pytest.raises(DatasetError) as error:
        load_sft_jsonl(tmp_path / "lists.jsonl")
    assert 'put {"messages": before the list and } behind it' in str(error.value) and str(error.value).count("\n") == 3
    (tmp_path / "one.jsonl").write_text(json.dumps([ASKED, ANSWER]), encoding="utf-8")
    with pytest.raises(DatasetError, match='put {"messages": before the list'):
        load_sft_jsonl(tmp_path / "one.jsonl")
    (tmp_path / "one.jsonl").write_text(json.dumps([{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]), encoding="utf-8")
    with pytest.raises(DatasetError, match='put {"conversations": before the list'):
        load_sft_jsonl(tmp_path / "one.jsonl")
    (tmp_path / "by id.jsonl").write_text("\n".join(json.dumps({f"conv_{n}": [ASKED, ANSWER]}) for n in range(1000)), encoding="utf-8")
    with pytest.raises(DatasetError) as error:
        load_sft_jsonl(tmp_path / "by id.jsonl")
    assert str(error.value).count("\n") == 3 and "and 997 more of this sort" in str(error.value)


def test_what_would_score_or_train_otherwise_than_meant_is_said_and_no_fault(tmp_path, capsys):
    good = pair(key_phrase="here")
    assert len(load_sft_jsonl(write(tmp_path, good, good, pair(key_phrase="there"), pair(accept=["nowhere", 3]), good | {"wrong_phrase": "Here."}), convert=True)) == 5
    assert "answers without their own key_phrase or accept, or with their wrong_phrase: 3, the first in line 3" in capsys.readouterr().out
    for text, mark in (("<s>[INST] Where? [/INST]", "[INST]"), ("Do it.\n### Response:", "### Response:"), ("\n\nHuman: Where?", "Human:"), ("Human:Where?", "Human:"), ("<|im_start|>user", "<|im_start|>")):
        load_sft_jsonl(write(tmp_path, good, good | {"prompt": text}), convert=True)
        assert f"marks of a chat template in their text: 1, the first in line 2 ({mark})" in capsys.readouterr().out
    for text, said in (("<image>\nWhat is this?", "a place for a picture or a sound in their text: 1, the first in line 2 (<image>)"), ("<｜User｜>Where?", "marks of a chat template"), ("USER: Where?", "marks of a chat")):
        load_sft_jsonl(write(tmp_path, good, good | {"prompt": text}), convert=True)
        assert said in capsys.readouterr().out
    (path := write(tmp_path, good, pair(key_phrase="there"))).write_text("\n\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    load_sft_jsonl(path, convert=True)
    assert "the first in line 4" in capsys.readouterr().out  # blank lines are counted
    for text, said in (("nan", "a program's word for nothing in place of a text: 1, the first in line 2 (nan)"), ("\n\nHere.", "begins with white space: 1, the first in line 2")):
        load_sft_jsonl(write(tmp_path, pair(), pair(completion=text)), convert=True)
        assert said in capsys.readouterr().out
    load_sft_jsonl(write(tmp_path, {"instruction": "Where?", "output": "Here.", "text": "### Instruction: Where? ### Response: Here."}), convert=True)
    assert capsys.readouterr().out.endswith("ignored: 'text' (kept in the record)\n")
    alpaca = {"instruction": "Translate this word.", "input": "der Hund", "output": "the dog", "text": "### Instruction:\nTranslate this word.\n\n### Input:\nder Hund\n\n### Response:\nthe dog"}
    load_sft_jsonl(write(tmp_path, alpaca), convert=True)
    assert capsys.readouterr().out.endswith("ignored: 'text' (kept in the record)\n")
    load_sft_jsonl(write(tmp_path, pair(document="A long story about Nell.", id="7", source="a b c"), pair(document="here")), convert=True)
    assert "ignored: 'id', 'source' (kept in the record); 'document' (kept in the record; its text stands in no message" in capsys.readouterr().out
    load_sft_jsonl(write(tmp_path, good, pair(completion="# Response times\n<b>a</b> | b"), pair(completion="<|begin_of_thought|> Hm. Here.")), convert=True)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("record", [
    pair(text="1" * 200_000 + "!"), {"prompt": "a" * 200_000, "completion": "b", "text": "a" * 100_000 + "c"},
    {"messages": [ASKED, ANSWER] * 400, "conversations": [ASKED, ANSWER] * 400}, pair(completion="word " * 200_000, **{f"key {n}": "a few words here" for n in range(2000)})],
    ids=["digits", "one letter", "turns", "keys"])
def test_what_is_long_is_compared_in_seconds(tmp_path, record):
    path, start = write(tmp_path, record), time.process_time()
    with contextlib.suppress(DatasetError):
        load_sft_jsonl(path, convert=True)
    assert time.process_time() - start < 5
