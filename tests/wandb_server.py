"""A stand-in for Weights & Biases' server that can vanish."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RUN = {
    "id": "run", "name": "run", "displayName": "run", "config": "{}", "historyLineCount": 0,
    "project": {"id": "project", "name": "project", "entity": {"id": "somebody", "name": "somebody"}},
}  # fmt: skip
USER = {
    "id": "somebody", "entity": "somebody", "username": "somebody", "flags": "{}", "teams": {"edges": []},
    "apiKeys": {"edges": []},
}  # fmt: skip


class WandbServer(ThreadingHTTPServer):
    """Answers what a run asks for, and vanishes when the run has started to send its files.

    Attributes:
        vanished: set from then on.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.vanished = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What makes wandb talk to this server."""
        address = f"http://127.0.0.1:{self.server_port}"
        return {"WANDB_BASE_URL": address, "WANDB_API_KEY": 40 * "0", "WANDB_MODE": "online"}

    def vanish(self) -> None:
        """Take no connection from now on."""
        self.vanished.set()
        self.shutdown()
        self.server_close()


class _Answers(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            content = gzip.decompress(content)
        asked = json.loads(content)
        if self.server.vanished.is_set():
            self.close_connection = True
            return
        answer: dict[str, Any] = {"data": {}}
        if "upsertBucket" in asked.get("query", ""):
            answer = {"data": {"upsertBucket": {"bucket": RUN, "inserted": True}}}
        elif "viewer" in asked.get("query", "").lower():
            answer = {"data": {"viewer": USER}}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if self.path.endswith("/file_stream"):
            self.server.vanish()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
