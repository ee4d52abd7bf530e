"""Answer questions with a fine-tuned model over HTTP.

In this folder: MODEL=FOLDER uvicorn server:app --limit-concurrency 64
(in PowerShell first $env:MODEL="FOLDER")
"""
import asyncio
import os
import threading

import torch
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, field_validator
from transformers import AsyncTextIteratorStreamer, AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(os.environ["MODEL"])
# loaded once, for all requests
model = AutoModelForCausalLM.from_pretrained(os.environ["MODEL"], dtype=torch.float32)
added = [token.content for token in tokenizer.added_tokens_decoder.values()]
control_tokens = [token for token in added if token.strip()]  # some add a line break
app, one_at_a_time = FastAPI(), threading.Lock()


class Question(BaseModel, str_strip_whitespace=True, extra="forbid"):
    question: str = Field(min_length=1, max_length=2000)
    max_new_tokens: int = Field(40, ge=1, le=200)

    @field_validator("question")
    def is_text_alone(cls, text):  # else it could end its turn and begin a system message
        if any(token in text for token in control_tokens):
            raise ValueError("no control tokens of the model, please")
        return text


@app.get("/health")
async def health():
    return {"model": "loaded"}


@app.exception_handler(RequestValidationError)
async def refuse(request, error):  # one sentence; FastAPI's own answer would repeat the question
    fault = error.errors()[0]
    name = str(fault["loc"][-1])[:40]
    return JSONResponse({"detail": f"{name}: {fault['msg']}"}, status_code=422)


@app.post("/answer")
async def answer(asked: Question):
    chat = [{"role": "user", "content": asked.question}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, enable_thinking=False, return_dict=True,
        return_tensors="pt")
    return StreamingResponse(
        pieces(prompt, asked.max_new_tokens), media_type="text/plain; charset=utf-8",
        headers={"X-Accel-Buffering": "no"})  # else nginx would collect the pieces first


async def pieces(prompt, max_new_tokens):
    gone = threading.Event()  # set when the client has all of it, or has left
    streamer = AsyncTextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    work = asyncio.create_task(
        asyncio.to_thread(generate, prompt, max_new_tokens, streamer, gone))
    try:
        async for text in streamer:
            yield text
        # an error in it breaks the connection off, so that the client sees it
        await work
    finally:
        gone.set()


def generate(prompt, max_new_tokens, streamer, gone):
    def left(ids, scores, **_):
        return torch.tensor([gone.is_set()])

    try:
        with one_at_a_time:  # until this thread has ended, whether or not its client is there
            model.generate(
                **prompt, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer,
                pad_token_id=tokenizer.pad_token_id, stopping_criteria=[left])
    finally:
        streamer.end()
