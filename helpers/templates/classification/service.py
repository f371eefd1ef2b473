"""HTTP for serve.py, the same whatever the task: this machine only, requests that wait together, and what is refused.

An app, which serve.py makes, has `names` (of its models), a `path`, the `fields` that a request may have and the
`needed` ones; `understood(asked)` gives a job or raises `Refused`, `answer(jobs)` puts into each job's `out` what comes
of it, and `reply(job)` is that as JSON, `chunks(job)` as a stream.
"""

import contextlib
import itertools
import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

MOST_TOGETHER, MOST_WAITING, MOST_BYTES = 8, 64, 1_000_000


class Refused(Exception):
    """A request that is not answered: its HTTP status, and a sentence that says why."""


def job(name, **what):
    """A request that waits; what comes of it is put into `out`, and None when that is all, or an exception."""
    return SimpleNamespace(name=name, out=queue.Queue(), **what)


def coming(job):
    """What comes of a job, one after the other."""
    while (one := job.out.get()) is not None:
        if isinstance(one, Exception):
            raise one
        yield one


class Worker(threading.Thread):
    """The one thread that computes: it takes together what waits for the same model."""

    def __init__(self, app):
        super().__init__(daemon=True)
        self.app, self.waiting, self.changed = app, [], threading.Condition()
        self.start()

    def add(self, job):
        with self.changed:
            if len(self.waiting) >= MOST_WAITING:
                raise Refused(429, f"{MOST_WAITING} requests wait already: ask again later.")
            self.waiting.append(job)
            self.changed.notify()

    def run(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting)
                batch = [job for job in self.waiting if job.name == self.waiting[0].name][:MOST_TOGETHER]
                self.waiting = [job for job in self.waiting if job not in batch]
            try:
                self.app.answer(batch)
                end = None
            except Exception as error:  # whoever waits has to hear of it
                end = error
            for job in batch:
                job.out.put(end)


class Handler(BaseHTTPRequestHandler):
    app = worker = None
    timeout = 60  # seconds for a request to arrive

    def do_GET(self):
        models = [{"id": name, "object": "model", "owned_by": "you"} for name in self.app.names]
        found = {"/v1/models": {"object": "list", "data": models}, "/health": {"status": "ok"}}.get(self.path)
        self.say(200, found) if found else self.refuse(404, f"There is no GET {self.path}.")

    def do_POST(self):
        try:
            asked = self.asked()
            job = self.app.understood(asked)
            self.worker.add(job)
        except Refused as error:
            return self.refuse(*error.args)
        with contextlib.suppress(ConnectionError):  # who asked is gone
            try:
                self.stream(self.app.chunks(job)) if asked.get("stream") else self.say(200, self.app.reply(job))
            except ConnectionError:
                raise
            except Exception as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                self.refuse(500, f"The model failed: {type(error).__name__}.")

    def asked(self):
        """What was sent, when it is a request of this API for a model that is here."""
        length, app = self.headers.get("Content-Length", ""), self.app
        if self.path != app.path:
            raise Refused(404, f"There is no POST {self.path}; there is {app.path}.")
        if self.headers.get_content_type() != "application/json":  # which no page in a browser sends unasked
            raise Refused(415, "Send JSON, with the header Content-Type: application/json.")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.rfile.read(min(int(length), 10 * MOST_BYTES) if length.isdecimal() else 0)  # else it hears nothing
            raise Refused(413, f"The body has {length or 'no'} bytes; at most {MOST_BYTES} are read.")
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise Refused(400, f"The body is no JSON: {error}.") from None
        if not isinstance(asked, dict):
            raise Refused(400, f"The body is a {type(asked).__name__}, not an object with {', '.join(app.needed)}.")
        if missing := [name for name in app.needed if name not in asked]:
            raise Refused(400, f"The request has no {' and no '.join(missing)}.")
        if unknown := sorted(asked.keys() - set(app.fields)):
            raise Refused(400, f"Not known here: {', '.join(unknown)}. A request has {', '.join(app.fields)}.")
        if asked["model"] not in app.names:
            raise Refused(404, f"There is no model {asked['model']!r}; there is {' and '.join(app.names)}.")
        return asked

    def say(self, status, body):
        self.begin(status, "application/json")
        self.wfile.write(json.dumps(body).encode())

    def refuse(self, status, message):
        self.say(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}})

    def stream(self, chunks):
        first = next(chunks)  # if that fails, the status can still say so
        self.begin(200, "text/event-stream")
        for chunk in itertools.chain([first], chunks):
            self.wfile.write(f"data: {chunk}\n\n".encode())

    def begin(self, status, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def log_message(self, *told):
        """A line for each request would hide what matters."""


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128  # how many may knock at once


def serve(app, port):
    """Answers until it is interrupted; port 0 is one that is free."""
    Handler.app, Handler.worker = app, Worker(app)
    with Server(("127.0.0.1", port), Handler) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"{' and '.join(app.names)}: http://127.0.0.1:{server.server_port}{app.path}", flush=True)
        server.serve_forever()
