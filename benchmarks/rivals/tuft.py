"""TuFT 0.2.2 as a training server, on the CPU: trains for the official client 0.25.0.

Its sampling is vLLM on a GPU and stays off. Ray is told of a GPU that is not there, since
the training worker asks for one; the worker then finds a CPU and uses it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rivals import servers

NAME = "TuFT 0.2.2"
CLIENT = "0.25.0"
"""The latest official client that works with it as it is."""
START_S = 300.0
_MODEL = "tiny"


@contextlib.contextmanager
def server(environment: Path, model: Path) -> Iterator[servers.Server]:
    """Serve a model folder, for training only; a whole batch is one micro-batch."""
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="tuft-") as folder:  # short: Ray makes sockets below
        served = {
            "model_name": _MODEL, "model_path": str(model), "max_model_len": 2048,
            "capabilities": ["training"], "max_lora_rank": 32, "max_loras": 16,
            "micro_batch_size": 8,
        }  # fmt: skip
        settings = {
            "checkpoint_dir": f"{folder}/checkpoints",
            "supported_models": [served],
            "authorized_users": {servers.KEY: "benchmark"},
        }
        path = Path(folder, "tuft.yaml")
        path.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        command = [str(environment / "bin" / "tuft"), "launch", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--config", str(path), "--log-level", "warning"]
        variables = {
            "VIRTUAL_ENV": str(environment),
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "TUFT_HOME": folder,
            "RAY_OVERRIDE_RESOURCES": '{"GPU": 1}',
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with servers.running(command, url, variables, cwd=Path(folder), start_s=START_S):
            yield servers.Server(url, _MODEL)
