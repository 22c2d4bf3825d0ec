"""No disk, no permission, no memory: the request fails with the reason, the server lives on."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from crash.lives import Life, Zygote

from tinker_async import (
    AdamParams,
    Datum,
    GoneError,
    ModelInput,
    ModelPoisonedError,
    PromiseLostError,
    RetryPolicy,
    Session,
    SessionLostError,
)


def step(life: Life, model_id: str, seq_id: int) -> Any:
    body = {"model_id": model_id, "seq_id": seq_id, "adam_params": {"learning_rate": 0.1}}
    return life.result(life.post("/optim_step", body))


def save(life: Life, model_id: str, seq_id: int, name: str, **more: Any) -> Any:
    body = {"model_id": model_id, "path": name, "seq_id": seq_id, **more}
    return life.result(life.post("/save_weights", body))


def names(life: Life) -> list[str]:
    rows = json.loads(life.send("GET", "/checkpoints")[2])["checkpoints"]
    return sorted(row["checkpoint_id"] for row in rows)


SPARE_BYTES = 20_000_000
"""Of address space, for the process as it is: enough to serve, not for large caches."""
FULL = "EngineStorageError: the disk of the data directory is full: nothing was stored"


def test_a_file_that_may_not_grow_fails_its_save_only(forks: Zygote, tmp_path: Path) -> None:
    """The system refuses to write more (RLIMIT_FSIZE); smaller things are saved as before."""
    with forks.life(tmp_path, file_limit_bytes=250_000) as life:
        small, large = life.model(rank=1), life.model(rank=64)
        assert save(life, small, 1, "fits")["type"] == "save_weights"
        failed = save(life, large, 1, "does-not-fit")
        assert (failed["error"].partition(" (")[0], failed["category"]) == (FULL, "server")
        assert str(tmp_path) not in failed["error"]
        assert "metrics" in step(life, large, 2)
        assert save(life, small, 2, "fits-too")["type"] == "save_weights"
        assert names(life) == ["weights/fits", "weights/fits-too"]
    assert [] == list((tmp_path / "aside").iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB of its own, where the system lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=3m", "none", str(folder)]
    if (
        not mount
        or os.geteuid()
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_fails_what_needs_it_until_there_is_room(
    forks: Zygote, small_disk: Path
) -> None:
    """Saves and new sessions say so; training goes on; a deletion makes room again."""
    data = small_disk / "data"
    with forks.life(data) as life:
        model = life.model(rank=8)
        saved, seq_id = [], 1
        while "path" in (found := save(life, model, seq_id, f"n{seq_id}")):
            saved.append(f"weights/n{seq_id}")
            seq_id += 1
        assert found["error"].startswith(FULL)
        assert sorted(saved) == names(life)
        with (small_disk / "filler").open("wb", buffering=0) as filler:  # to the last byte
            try:
                while filler.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        # The journal of the database has room of its own for a while; then it is full too.
        new = {"tags": ["x" * 50_000], "user_metadata": {}, "sdk_version": "0"}
        for _ in range(100):
            status, headers, body = life.send("POST", "/create_session", new)
            if status != 200:
                break
        assert (status, headers["retry-after"]) == (507, "1")
        assert json.loads(body)["detail"].startswith("the disk of the data directory is full")
        assert "metrics" in step(life, model, seq_id + 1)
        beat = {"session_id": model.partition(":")[0]}
        assert life.post("/session_heartbeat", beat)["type"] == "session_heartbeat"

        for name in saved[:3]:
            assert life.send("DELETE", f"/training_runs/{model}/checkpoints/{name}")[0] == 204
        again = save(life, model, seq_id + 2, "again")
        assert again.get("type") == "save_weights", again
        assert names(life) == sorted([*saved[3:], "weights/again"])
    (small_disk / "filler").unlink()
    with forks.life(data) as life:
        assert names(life) == sorted([*saved[3:], "weights/again"])


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root may do all")
def test_a_folder_that_becomes_unwritable_fails_saves_only(forks: Zygote, tmp_path: Path) -> None:
    """With the permission back the next save works. A new server does not start without it."""
    data = tmp_path / "data"
    with forks.life(data, obey_permissions=True) as life:
        model = life.model()
        assert "path" in save(life, model, 1, "before")
        (data / "aside").chmod(0o555)
        failed = save(life, model, 2, "while")
        assert failed["error"].startswith("EngineStorageError: the data directory cannot be writ")
        assert "metrics" in step(life, model, 3)
        (data / "aside").chmod(0o755)
        assert "path" in save(life, model, 4, "after")
        assert names(life) == ["weights/after", "weights/before"]

    data.chmod(0o555)
    status, says = forks.failed(data, obey_permissions=True)
    data.chmod(0o755)
    assert (status, "Traceback" in says) == (2, False)
    assert f"the data directory {data} cannot be used" in says
    with forks.life(data) as life:
        assert names(life) == ["weights/after", "weights/before"]


def sample(life: Life, sampler_id: str, seq_id: int, tokens: int, num_samples: int) -> Any:
    body = {
        "sampling_session_id": sampler_id,
        "seq_id": seq_id,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5] * tokens}]},
        "sampling_params": {"max_tokens": 4, "seed": 1},
        "num_samples": num_samples,
    }
    return life.result(life.post("/asample", body))


@contextmanager
def no_more_memory(life: Life) -> Iterator[None]:
    """Refuse the process more address space than it has, inside the block."""
    import resource

    pages = int(Path(f"/proc/{life.pid}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + SPARE_BYTES
    before = resource.prlimit(life.pid, resource.RLIMIT_AS)
    resource.prlimit(life.pid, resource.RLIMIT_AS, (limit, before[1]))
    yield
    resource.prlimit(life.pid, resource.RLIMIT_AS, before)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits")
def test_a_request_for_which_there_is_no_memory_fails_alone(forks: Zygote, tmp_path: Path) -> None:
    """The system gives no more; what is smaller goes on, and later the same request does."""
    with forks.life(tmp_path) as life:
        model = life.model()
        body = {"session_id": model.partition(":")[0], "sampling_session_seq_id": 0}
        body = life.post("/create_sampling_session", {**body, "base_model": "tiny-llama"})
        sampler_id = body["sampling_session_id"]
        small, large = (8, 1), (1000, 64)  # the large one needs 34 MB for its attention cache

        assert "sequences" in sample(life, sampler_id, 0, *small)
        with no_more_memory(life):
            failed = sample(life, sampler_id, 1, *large)
            assert failed.get("error", "").startswith("EngineMemoryError: the engine ran out of")
            assert failed["category"] == "server"
            assert "sequences" in sample(life, sampler_id, 2, *small)
            assert "metrics" in step(life, model, 1)
        assert "sequences" in sample(life, sampler_id, 3, *large)
        assert "path" in save(life, model, 2, "still-works")


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


async def replaced(forks: Zygote, data: Path) -> None:
    """Train in a session whose server is replaced by a new one at the same address."""
    port = free_port()
    datum = Datum(ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4]})
    with forks.life(data, "--port", port) as life:
        session = Session(life.url, life.api_key, retry=RetryPolicy(base_s=0.05, max_s=0.1))
        with anyio.fail_after(60), pytest.raises(SessionLostError):
            async with session:
                trainer = await session.create_lora_training_client("tiny-llama", rank=4)
                path = (await trainer.save_state("kept")).path
                # Number 3 waits for 2, which never comes: its promise is held, not settled.
                gap = {"model_id": trainer.model_id, "seq_id": 3, "adam_params": {}}
                gap = life.post("/optim_step", gap)
                life.kill()
                life.ended()
                with forks.life(data, "--port", port) as second:
                    status, _, _ = second.send("POST", "/retrieve_future", gap)
                    assert status == 410
                    lost = (PromiseLostError, GoneError, ModelPoisonedError)
                    for future in (
                        trainer.forward_backward([datum], "cross_entropy"),
                        trainer.optim_step(AdamParams()),
                        trainer.save_weights_and_get_sampling_client(),
                    ):
                        with pytest.raises(lost):
                            await future
                    listed = [item.tinker_path async for item in session.rest.list_checkpoints()]
                    assert [path] == listed
                    await anyio.sleep_forever()


def test_a_restart_is_told_to_the_client_as_a_lost_model_and_a_lost_session(
    forks: Zygote, tmp_path: Path
) -> None:
    """Nothing hangs: operations fail at once, the block ends with the next heartbeat."""
    anyio.run(replaced, forks, tmp_path)
