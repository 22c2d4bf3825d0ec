"""The embedded engine as a child process: started, watched, started again, ended by its user.

Whatever way the block is left, the process is gone when it has been left. The child
also ends by itself when its parent dies, since its standard input is a pipe from here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import msgspec
from anyio.abc import ByteReceiveStream, Process, TaskGroup

from tinker_async.errors import ConfigError, EngineStartError
from tinker_async.local.server.announcement import Announcement
from tinker_async.lone_errors import lone_errors

_STOP_S = 15.0
"""How long the child may take to end after SIGTERM: a training step cannot be interrupted."""
_TAIL_LINES = 40

Line = Callable[[str], None]


class EngineAddress:
    """Where the engine is. `process` ends when the engine does; `await process.wait()` notices.

    Args:
        command: What runs it.
        environment: Of the process.
        keeps_data: Whether its checkpoints are still there for a process that comes after it.
        startup_timeout_s: How long it may take until it is ready.
        progress: Called with each line that it writes.
    """

    url: str
    api_key: str
    models: list[str]
    process: Process

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        *,
        keeps_data: bool,
        startup_timeout_s: float,
        progress: Line | None,
    ) -> None:
        self.keeps_data = keeps_data
        """Whether `start_again` finds the checkpoints of before."""
        self._command = command
        self._environment = environment
        self._startup_timeout_s = startup_timeout_s
        self._progress = progress
        self._tasks: TaskGroup | None = None
        self._said: _Said | None = None

    async def _open(self, *more: str) -> None:
        self.process = await anyio.open_process([*self._command, *more], env=self._environment)

    async def _listen(self, tasks: TaskGroup) -> None:
        """Read what the process writes, in `tasks`, and wait until it is ready."""
        self._tasks, self._said = tasks, _Said(self._progress)
        tasks.start_soon(self._said.listen, _given(self.process.stderr))
        ready = await _until_ready(self.process, self._said, self._startup_timeout_s)
        self.url, self.api_key, self.models = ready.url, ready.api_key, ready.models

    async def start_again(self) -> None:
        """Start the engine again, at the same address and with the same key and data directory.

        What is left of the process before is ended first. Cancelled, or when it fails, whatever
        runs by then is ended with the block (or by the next call).

        Raises:
            ConfigError, EngineStartError: It cannot be started, or its port was taken meanwhile.
        """
        if self._tasks is None or self._said is None:
            raise RuntimeError("the engine was not started yet")
        await self._said.stop()
        await _end(self.process)
        try:
            await self._open("--port", str(urlsplit(self.url).port))
        except OSError as error:
            raise EngineStartError(f"the engine's process could not be started: {error}") from error
        await self._listen(self._tasks)


@contextlib.asynccontextmanager
async def local_engine(
    *,
    model: str,
    data_dir: Path | None = None,
    api_key: str | None = None,
    dtype: str = "float32",
    threads: int | None = None,
    startup_timeout_s: float = 600.0,
    progress: Line | None = None,
) -> AsyncIterator[EngineAddress]:
    """Run `tinker-async serve` for as long as the block lasts.

    Args:
        model: What `tinker-async serve --model` takes.
        data_dir: Where checkpoints are kept; None keeps them until the block is left.
        api_key: The key that clients must send; None makes one.
        dtype: Of the base model, `float32` or `bfloat16`.
        threads: Of torch; None lets the engine choose.
        startup_timeout_s: How long the engine may take until it is ready; the first use of
            a model may download it.
        progress: Called with each line that the engine writes, such as its loading progress.

    Raises:
        ConfigError: An option cannot be right, or the extra `local` is missing.
        EngineStartError: The engine ended or took too long; `detail` has its last lines.
    """
    key = api_key or f"tml-{secrets.token_urlsafe(24)}"
    command = _command(model, data_dir, dtype, threads)
    # The key travels by environment: arguments are visible to every user of the machine.
    environment = {**os.environ, "TINKER_API_KEY": key, "PYTHONUNBUFFERED": "1"}
    engine = EngineAddress(
        command,
        environment,
        keeps_data=data_dir is not None,
        startup_timeout_s=startup_timeout_s,
        progress=progress,
    )
    await engine._open()  # noqa: SLF001  # its other half
    try:
        with lone_errors():
            async with anyio.create_task_group() as tasks:
                await engine._listen(tasks)  # noqa: SLF001  # as above
                yield engine
                tasks.cancel_scope.cancel()
    finally:
        await _end(engine.process)


def _command(model: str, data_dir: Path | None, dtype: str, threads: int | None) -> list[str]:
    command = [sys.executable, "-m", "tinker_async.cli", "serve", "--model", model]
    command += ["--dtype", dtype, "--json", "--exit-on-stdin-eof"]
    command += ["--temporary"] if data_dir is None else ["--data-dir", str(data_dir)]
    return command if threads is None else [*command, "--threads", str(threads)]


class _Said:
    """The last lines of the child's standard error."""

    def __init__(self, progress: Line | None) -> None:
        self._progress = progress
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._over = anyio.Event()
        self._reading = anyio.CancelScope()

    async def listen(self, stream: ByteReceiveStream) -> None:
        """Read to the end: a full pipe would stop the child."""
        lines = _Lines()
        try:
            with self._reading:
                async for part in stream:
                    for line in lines.feed(part):
                        self._tail.append(line)
                        if self._progress is not None:
                            self._progress(line)
        finally:
            self._over.set()

    async def stop(self) -> None:
        """Read no further, so that the stream can be closed."""
        self._reading.cancel()
        await self._over.wait()

    async def tail(self) -> list[str]:
        """Return the last lines, once the child has closed the stream (or a moment later)."""
        with anyio.move_on_after(2.0):
            await self._over.wait()
        return list(self._tail)


class _Lines:
    """Cuts a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, part: bytes) -> list[str]:
        """Return the lines that are complete now."""
        *whole, self._rest = (self._rest + part).split(b"\n")
        return [line.decode(errors="replace").rstrip("\r") for line in whole]


async def _until_ready(process: Process, said: _Said, timeout_s: float) -> Announcement:
    lines = _Lines()
    with anyio.move_on_after(timeout_s):
        async for part in _given(process.stdout):
            for line in lines.feed(part):
                return msgspec.json.decode(line, type=Announcement)
        raise _start_error(await process.wait(), await said.tail())
    raise EngineStartError(
        f"the engine was not ready after {timeout_s:g} s",
        detail="\n".join(await said.tail()),
        hint="the first use of a model downloads it: give more time with startup_timeout_s",
    )


def _start_error(status: int, tail: list[str]) -> ConfigError | EngineStartError:
    message = next((line[7:] for line in reversed(tail) if line.startswith("error: ")), None)
    hint = next((line[6:] for line in reversed(tail) if line.startswith("hint: ")), None)
    if status == 2 and message is not None:  # the CLI's status for a wrong setting
        return ConfigError(message, hint=hint)
    return EngineStartError(
        message or f"the engine ended with status {status} before it was ready",
        detail="\n".join(tail),
        hint=hint,
    )


async def _end(process: Process) -> None:
    """End the child and wait for it, by force when it does not listen."""
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            with anyio.move_on_after(_STOP_S):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.aclose()  # closes the pipes and waits


def _given(stream: ByteReceiveStream | None) -> ByteReceiveStream:
    if stream is None:
        raise RuntimeError("the process was not started with pipes")
    return stream
