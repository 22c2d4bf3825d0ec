"""SkyRL 0.3.0, its JAX backend on the CPU: trains and samples for the official client 0.24.1.

It starts its engine as a second process through `uv run` with the flags of its own command
line, so it must be started so, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rivals import servers

NAME = "SkyRL 0.3.0"
CLIENT = "0.24.1"
"""The latest official client that works with it as it is."""
START_S = 180.0


@contextlib.contextmanager
def server(environment: Path, model: Path) -> Iterator[servers.Server]:
    """Serve a model folder with the settings that were fastest on two cores."""
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "max_lora_adapters": 16,
        "max_lora_rank": 32,
        "train_micro_batch_size": 8,
        "sample_max_num_sequences": 64,  # batches are filled up to it; 256 is slower throughout
    }
    with tempfile.TemporaryDirectory(prefix="tinker-async-skyrl-") as folder:
        command = [
            str(environment / "bin" / "uv"), "run", "--no-project", "-m", "skyrl.tinker.api",
            "--base-model", str(model), "--backend", "jax",
            "--backend-config", json.dumps(settings),
            "--checkpoints-base", f"{folder}/checkpoints",
            "--database-url", f"sqlite:///{folder}/tinker.db",
            "--host", "127.0.0.1", "--port", str(port),
        ]  # fmt: skip
        variables = {
            "VIRTUAL_ENV": str(environment),
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "UV_OFFLINE": "1",
            "UV_NO_CONFIG": "1",
            "HF_HUB_OFFLINE": "1",
            "JAX_PLATFORMS": "cpu",
        }
        with servers.running(command, url, variables, cwd=Path(folder), start_s=START_S):
            yield servers.Server(url, str(model))
