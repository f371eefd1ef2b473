"""Answers programs of this machine over HTTP, as OpenAI's chat API does: curl, the openai package and others can ask.

python serve.py                          # then POST to http://127.0.0.1:8000/v1/chat/completions
python serve.py other.yaml --port 8001   # another run; port 0 is one that is free

The model's name is the run's, such as main; with an adapter, base is the model without it. Settings of writing are
those of config.yaml; a request sets max_tokens and stream. For other machines put a proxy with a password and
encryption before it.
"""

import argparse
import contextlib
import json
import time
from pathlib import Path

import torch
from transformers.generation.streamers import BaseStreamer

import predict
import service
import train
from service import Refused

ROLES = ("system", "user", "assistant")


class Streamer(BaseStreamer):
    """Gives each request of a batch its tokens as they are written."""

    def __init__(self, jobs):
        self.jobs, self.is_prompt = jobs, True

    def put(self, tokens):
        for job, token in zip(self.jobs, [] if self.is_prompt else tokens.tolist(), strict=False):
            job.out.put(token)
        self.is_prompt = False  # the prompt comes first

    def end(self):
        """The worker says when it is the end."""


class Chat:
    path, needed = "/v1/chat/completions", ("model", "messages")
    fields = (*needed, "max_tokens", "max_completion_tokens", "stream", "temperature", "user")

    def __init__(self, config):
        self.config, self.tokenizer, self.model = predict.load(config)
        self.settings = train.generation_config(self.model, self.tokenizer, self.config)
        self.to_encoder, self.places = train.is_encoder_decoder(self.config), train.longest(self.config, self.tokenizer)
        self.names = [Path(self.config["training"]["output_dir"]).name] + ["base"] * ("peft" in self.config)

    def understood(self, asked):
        talk, most = asked["messages"], self.settings.max_new_tokens or 64
        if not isinstance(talk, list) or not talk:
            raise Refused(400, "messages should be a list with at least one message.")
        for number, one in enumerate(talk, 1):
            fine = isinstance(one, dict) and one.get("role") in ROLES and isinstance(one.get("content"), str)
            if not fine or not one["content"].strip():
                raise Refused(400, f"Message {number} should have a role ({', '.join(ROLES)}) and a content, a text.")
        if talk[-1]["role"] != "user":
            raise Refused(400, "The last message should be the user's.")
        fixed = (self.settings.temperature or 1.0) if self.settings.do_sample else 0
        if asked.get("temperature", fixed) not in (None, fixed):
            raise Refused(400, f"temperature is {fixed} here (do_sample in config.yaml): send that, or none.")
        wanted = asked.get("max_completion_tokens", asked.get("max_tokens", most))
        if type(wanted) is not int or not 1 <= wanted <= most:
            raise Refused(400, f"max_tokens is {wanted!r}; 1 to {most} can be written (max_new_tokens in config.yaml).")
        try:
            ids = train.prompt_ids(talk, self.tokenizer, self.to_encoder)
        except train.ConfigError as error:
            raise Refused(400, str(error)) from None
        room = self.places - (0 if self.to_encoder else wanted)
        if len(ids) > room:
            raise Refused(400, f"The messages are {len(ids)} tokens; with {wanted} to write there is room for {room}.")
        return service.job(asked["model"], ids=ids, most=wanted)

    @torch.no_grad()
    def answer(self, jobs):
        batch = self.tokenizer.pad({"input_ids": [job.ids for job in jobs]}, padding_side="left", return_tensors="pt")
        options = {"max_new_tokens": max(job.most for job in jobs), "generation_config": self.settings}
        if self.settings.num_beams == 1:  # beams change their minds: their answer comes at the end
            options["streamer"] = Streamer(jobs)
        with self.model.disable_adapter() if jobs[0].name == "base" else contextlib.nullcontext():
            ids = self.model.generate(**batch.to(self.model.device), **options)
        if "streamer" not in options:
            for job, row in zip(jobs, ids[:, 1 if self.to_encoder else batch["input_ids"].shape[1] :], strict=True):
                for token in row.tolist():
                    job.out.put(token)

    def pieces(self, job):
        """The answer's text, piece by piece; how it ended is noted in the job."""
        tokens, told, last, job.why = [], "", "", "length"
        for token in service.coming(job):
            if token in self.settings.eos_token_id:
                job.why = "stop"
            if job.why == "stop" or len(tokens) == job.most:  # the others of the batch may go on
                continue
            tokens.append(token)
            now = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
            sure = last.rstrip("\ufffd")
            while not now.startswith(sure):  # the rest may change with the next token
                sure = sure[:-1]
            if len(sure) > len(told):
                yield sure[len(told) :]
                told = sure
            last = now
        job.used = {"prompt_tokens": len(job.ids), "completion_tokens": len(tokens)}
        if len(last) > len(told):
            yield last[len(told) :]

    def reply(self, job):
        message = {"role": "assistant", "content": "".join(self.pieces(job))}
        choice = {"index": 0, "message": message, "finish_reason": job.why}
        used = job.used | {"total_tokens": sum(job.used.values())}
        return named(job, "chat.completion", choice) | {"usage": used}

    def chunks(self, job):
        delta = {"role": "assistant"}
        for piece in self.pieces(job):
            delta = delta | {"content": piece}
            yield json.dumps(named(job, "chat.completion.chunk", {"index": 0, "delta": delta, "finish_reason": None}))
            delta = {}
        yield json.dumps(named(job, "chat.completion.chunk", {"index": 0, "delta": delta, "finish_reason": job.why}))
        yield "[DONE]"


def named(job, kind, choice):
    same = {"id": f"chatcmpl-{id(job):x}", "object": kind, "created": int(time.time()), "model": job.name}
    return same | {"choices": [choice]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="config.yaml")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    service.serve(Chat(options.config), options.port)
