"""Real server processes, and plain HTTP to them: no code of the client."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from support.forks import Forked, zygote

KEY = "tml-secret-of-the-tests"
START_S = 120
STOP_S = 30


class RunningServer:
    """A process of `tinker-async serve`, and one connection at a time to it."""

    def __init__(
        self, process: subprocess.Popen[bytes] | Forked, ready: dict[str, Any], data_dir: Path
    ) -> None:
        self.process = process
        self.data_dir = data_dir
        self.url: str = ready["url"]
        self.models: list[str] = ready["models"]
        self.api_key: str = ready["api_key"]
        self.port = int(self.url.rpartition(":")[2])

    def send(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {"x-api-key": self.api_key, "content-type": "application/json"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, "/api/v1" + path, raw, named)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, response.read()
        finally:
            connection.close()

    def begin(self, path: str, body: Any) -> http.client.HTTPConnection:
        """Send a post whose answer is read later, from the connection returned."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"x-api-key": self.api_key, "content-type": "application/json"}
        connection.request("POST", "/api/v1" + path, json.dumps(body).encode(), headers)
        return connection

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        """Post, and return the JSON of a success."""
        status, _, content = self.send("POST", path, body, **headers)
        assert status == 200, (status, content)
        return json.loads(content)

    def result(self, promise: Any) -> Any:
        """Return the JSON result of a promise."""
        while True:
            found = self.post("/retrieve_future", {"request_id": promise["request_id"]})
            if found.get("type") != "try_again":
                return found

    def model(self, rank: int = 4) -> str:
        """Make a session and a model in it; return the model's id."""
        session = self.post(
            "/create_session", {"tags": [], "user_metadata": {}, "sdk_version": "0"}
        )
        body = {"session_id": session["session_id"], "model_seq_id": 0}
        body |= {"base_model": self.models[0], "lora_config": {"rank": rank, "seed": 3}}
        return str(self.result(self.post("/create_model", body))["model_id"])

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask the process to end; return its status."""
        self.process.send_signal(how)
        return self.process.wait(STOP_S)


def command(data_dir: Path, *more: str, model: str = "tiny-llama") -> list[str]:
    line = [sys.executable, "-m", "tinker_async.cli", "serve", "--model", model]
    return [*line, "--threads", "1", "--data-dir", str(data_dir), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "TINKER_API_KEY": KEY}


@contextmanager
def start_server(data_dir: Path, *more: str, model: str = "tiny-llama") -> Iterator[RunningServer]:
    """Start a process, wait until it is ready, and end it in any case.

    Where there are forks it has torch already: what a start does is not looked at here.
    """
    line = command(data_dir, "--json", *more, model=model)
    process: subprocess.Popen[bytes] | Forked
    if hasattr(os, "fork"):
        process = zygote(KEY).serve(line[line.index("serve") + 1 :])
    else:
        process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
        )
    watchdog = threading.Timer(START_S, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        ready = msgspec.json.decode(process.stdout.readline())
        watchdog.cancel()
        yield RunningServer(process, ready, data_dir)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait(STOP_S)
        if process.stdout is not None:
            process.stdout.close()
