"""A project's serve.py, asked by clients that nobody here wrote, curl and openai's package: many at once, and badly."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from new_projects import QUICK, QUICK_TO_WRITE, environment, load, small_file

from helpers import new

openai = pytest.importorskip("openai", reason="pip install -c constraints.txt -e '.[more]'")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
ONE_STEP = {"training.max_steps": 1, "training.save_strategy": "no", "data.max_length": 64}
ONE_STEP |= {"training.learning_rate": 0.05, "training.warmup_steps": 0}  # a large one, so that answers change


def trained(folder, monkeypatch, task, file, **options):
    """A project after one step: what it answers does not matter here."""
    settings = (QUICK_TO_WRITE if task == "generation" else QUICK) | ONE_STEP
    place = new.project(task, folder / task, data=small_file(file, folder), settings=settings, **options)
    monkeypatch.chdir(place)
    load(place).main()
    return place


def launched(folder, port=0):
    """serve.py in a process of its own."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    command = [sys.executable, "serve.py", "--port", str(port)]
    return subprocess.Popen(command, cwd=folder, env=environment(PYTHONUNBUFFERED="1"), **pipes)


def address(process):
    """The address and the port that it prints when it is ready."""
    told = []
    for line in process.stdout:
        told.append(line)
        if found := re.search(r"(http://127\.0\.0\.1:(\d+))/v1", line):
            return found[1], int(found[2])
    raise AssertionError("".join(told))


def curl(url, body, kind="application/json"):
    """The status and the JSON that curl gets; `body` is a text as it is, or what becomes JSON."""
    body = body if isinstance(body, str) else json.dumps(body)
    given = ["curl", "-s", "-m", "30", "-w", "\n%{http_code}", "-H", f"Content-Type: {kind}"]
    done = subprocess.run([*given, "-d", "@-", url], input=body, capture_output=True, text=True, timeout=60)
    answer, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(answer)


def listens_on(process):
    """The addresses on which a process and its children wait for others."""
    both = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return {one.laddr.ip for p in both for one in p.net_connections("inet") if one.status == "LISTEN"}


@pytest.mark.skipif(not shutil.which("curl") or os.name == "nt", reason="needs curl and SIGKILL")
@pytest.mark.timeout(600)
def test_a_project_is_served_to_clients_that_nobody_here_wrote(tmp_path, monkeypatch):
    chat = trained(tmp_path, monkeypatch, "generation", "chat/validation.jsonl")
    sorter = trained(tmp_path, monkeypatch, "classification", "reviews/validation.csv")
    process, other = launched(chat), launched(sorter)
    try:
        (url, port), (other_url, _) = address(process), address(other)
        asked = {"model": "main", "messages": [{"role": "user", "content": "Do you have books on skiing?"}]}
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
        assert [one.id for one in client.models.list()] == ["main", "base"]
        said = {name: client.chat.completions.create(**asked | {"model": name}) for name in ("main", "base")}
        whole = said["main"].choices[0].message.content
        assert said["base"].model == "base"
        assert said["base"].choices[0].message.content != whole, "by name, the adapter on or off"
        assert said["main"].usage.completion_tokens == 6, "QUICK_TO_WRITE has six tokens"
        assert said["main"].choices[0].finish_reason == "length"
        pieces = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
        assert "".join(piece.delta.content or "" for piece in pieces) == whole
        assert len([piece for piece in pieces if piece.delta.content]) > 1
        assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["length"]
        assert curl(f"{url}/v1/chat/completions", asked)[1]["choices"][0]["message"]["content"] == whole

        with ThreadPoolExecutor(8) as pool:  # eight at once, for both names
            names = ["main", "base"] * 4
            at_once = list(pool.map(lambda name: client.chat.completions.create(**asked | {"model": name}), names))
        assert [one.choices[0].message.content for one in at_once] == [
            said[name].choices[0].message.content for name in names
        ]

        path = f"{url}/v1/chat/completions"
        long = asked | {"messages": [{"role": "user", "content": "word " * 600}]}
        for body, status, message in [
            ("{model: main}", 400, "no JSON"),
            ("[1]", 400, "list"),
            ({"model": "main"}, 400, "no messages"),
            (asked | {"model": "poems"}, 404, "there is main and base"),
            (asked | {"model": ["main"]}, 404, "no model"),
            (asked | {"max_tokns": 3}, 400, "max_tokns"),
            (asked | {"max_tokens": 0}, 400, "1 to 6"),
            (asked | {"temperature": 0.7}, 400, "temperature"),
            (asked | {"messages": "Hello"}, 400, "list"),
            (asked | {"messages": [{"role": "user", "content": 3}]}, 400, "Message 1"),
            (asked | {"messages": [{"role": "assistant", "content": "Hello"}]}, 400, "user's"),
            (long, 400, "there is room for"),
            (asked | {"user": "x" * 1_000_001}, 413, "bytes"),
        ]:
            found, answer = curl(path, body)
            assert (found, message in answer["error"]["message"]) == (status, True), (body, answer)
        assert curl(path, asked, kind="text/plain")[0] == 415
        assert curl(f"{url}/v1/embeddings", asked)[0] == 404
        with pytest.raises(openai.NotFoundError, match="there is main and base"):
            client.chat.completions.create(**asked | {"model": "poems"})

        sorted_ = {"model": "main", "input": ["Good.", "It broke."]}
        status, answer = curl(f"{other_url}/v1/classify", sorted_)
        assert status == 200
        assert [one["index"] for one in answer["data"]] == [0, 1]
        assert all(sum(one["probs"]) == pytest.approx(1, abs=1e-3) for one in answer["data"])
        assert {one["label"] for one in answer["data"]} <= {"negative", "neutral", "positive"}
        by_package = openai.OpenAI(base_url=f"{other_url}/v1", api_key="none", max_retries=0)
        with ThreadPoolExecutor(8) as pool:
            told = pool.map(lambda _: by_package.post("/classify", body=sorted_, cast_to=object), range(8))
            assert all(one["data"] == answer["data"] for one in told)
        for body, status, message in [
            (sorted_ | {"input": []}, 400, "1 to 256"),
            (sorted_ | {"input": ["Good.", " "]}, 400, "Text 2"),
            (sorted_ | {"input": "word " * 300}, 400, "at most 64"),
            (sorted_ | {"model": "base"}, 404, "there is main"),
        ]:
            found, answer = curl(f"{other_url}/v1/classify", body)
            assert (found, message in answer["error"]["message"]) == (status, True), (body, answer)

        assert listens_on(process) == listens_on(other) == {"127.0.0.1"}
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        with pytest.raises(openai.APIConnectionError):
            client.chat.completions.create(**asked)
        process = launched(chat, port)  # the same port, at once
        assert address(process) == (url, port)
        assert client.chat.completions.create(**asked).choices[0].message.content == whole
    finally:
        for one in (process, other):
            one.kill()
            one.wait(30)
            one.stdout.close()
