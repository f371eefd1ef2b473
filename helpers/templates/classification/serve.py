"""Answers programs of this machine over HTTP, as the classification API of vLLM and SGLang does.

python serve.py                          # then POST to http://127.0.0.1:8000/v1/classify
python serve.py other.yaml --port 8001   # another run; port 0 is one that is free

A request is {"model": "main", "input": "a text"}, or a list of texts; the model's name is the run's, such as main. For
other machines put a proxy with a password and encryption before it.
"""

import argparse
import time
from pathlib import Path

import predict
import service
from service import Refused

MOST_TEXTS = 256


class Classifier:
    path, needed = "/v1/classify", ("model", "input")
    fields = (*needed, "user")

    def __init__(self, config):
        self.config, self.tokenizer, self.model = predict.load(config)
        self.names = [Path(self.config["training"]["output_dir"]).name]

    def understood(self, asked):
        texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
        if not isinstance(texts, list) or not 1 <= len(texts) <= MOST_TEXTS:
            raise Refused(400, f"input should be a text, or a list of 1 to {MOST_TEXTS} texts.")
        for number, text in enumerate(texts, 1):
            if not isinstance(text, str) or not text.strip():
                raise Refused(400, f"Text {number} is {text!r}, and should be a text with something in it.")
            length, most = len(self.tokenizer(text)["input_ids"]), self.config["data"]["max_length"]
            if length > most and not self.config["data"].get("stride"):
                raise Refused(400, f"Text {number} is {length} tokens, at most {most} are read (max_length, stride).")
        return service.job(asked["model"], texts=texts)

    def answer(self, jobs):
        rows = [{"text": text} for job in jobs for text in job.texts]
        found = iter(predict.answers(self.model, self.tokenizer, self.config, rows, batch_size=16))
        for job in jobs:
            for _ in job.texts:
                job.out.put(next(found))

    def reply(self, job):
        data = [
            {"index": place, "label": one["predicted"], "probs": list(one["probabilities"].values())}
            | {"num_classes": len(one["probabilities"]), "probabilities": one["probabilities"]}
            for place, one in enumerate(service.coming(job))
        ]
        return {"object": "list", "created": int(time.time()), "model": job.name, "data": data}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="config.yaml")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    service.serve(Classifier(options.config), options.port)
