"""The process that serves the embedded engine: bind, load, say that it is ready, serve, stop.

Standard output carries one line, when requests are accepted and not before. The process
ends with status 0 on SIGINT and SIGTERM and, as the child of a session, with its parent.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskStatus

from tinker_async.errors import EngineStartError, MissingExtraError, TinkerError
from tinker_async.local.engine.jobs import ModelCard
from tinker_async.local.engine.thread import EngineThread
from tinker_async.local.models import ModelFolder, resolve_model
from tinker_async.local.server.announcement import Announcement
from tinker_async.local.server.ownership import lock_folder

if TYPE_CHECKING:
    from tinker_async.local.server.flags import Flags
    from tinker_async.local.server.limits import Limits

_JOIN_S = 10.0
"""How long the engine thread may go on with the job it is at."""

_MODULES = ("torch", "transformers", "peft", "safetensors", "starlette", "hypercorn", "zstandard")
"""What the extra `local` brings and serving needs."""

T = TypeVar("T")


class ServeOptions(msgspec.Struct, frozen=True):
    """What to serve, and where."""

    model: str = "smollm2-135m"
    host: str = "127.0.0.1"
    port: int = 0
    data_dir: Path | None = None
    """Where checkpoints are; None takes the user's data folder."""
    temporary: bool = False
    """Keep checkpoints only until the end, whatever `data_dir` says."""
    api_key: str | None = None
    """None makes one."""
    as_json: bool = False
    dtype: str = "float32"
    threads: int | None = None
    exit_on_stdin_eof: bool = False
    switches: Mapping[str, str] = {}
    """What clients are told in `client/config` and `client/dynamic_config`, by name."""
    limits: Mapping[str, str] = {}
    """How much the server takes and how long it waits, by the names of `server.limits.Limits`."""


def run_server(options: ServeOptions) -> None:
    """Serve until told to stop. Blocks; the entry point of the process.

    Raises:
        ConfigError: An option cannot be right, or the extra `local` is missing.
        EngineStartError: The model could not be loaded.
    """
    _check_extra()
    # Before torch starts its threads: spinning ones would take the cores from each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _quiet_stdout() as out:
        server = _Server(options, out)
        failure = anyio.run(server.run)
    if failure is not None:
        raise failure
    if server.left_loading or options.exit_on_stdin_eof:
        # A thread that still loads or downloads would be waited for, and torch takes a
        # second to tear down what the system takes back anyway: the parent waits for us.
        sys.stderr.flush()
        os._exit(0)


def _check_extra() -> None:
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"the embedded engine needs {', '.join(missing)}",
            hint="pip install 'tinker-async[local]'",
        )


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[IO[str]]:
    """Give the real standard output; whatever libraries print goes to standard error."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        try:
            yield out
        finally:
            sys.stdout.flush()
            os.dup2(out.fileno(), 1)


class _Stop:
    """The wish to end. Interrupts what is marked as interruptible; the rest looks at `event`."""

    def __init__(self) -> None:
        self.event = anyio.Event()
        self._scope: anyio.CancelScope | None = None

    def set(self) -> None:
        self.event.set()
        if self._scope is not None:
            self._scope.cancel()

    @contextlib.contextmanager
    def interrupts(self) -> Iterator[None]:
        with anyio.CancelScope() as self._scope:
            if self.event.is_set():
                self._scope.cancel()
            yield
        self._scope = None


class _Server:
    """One life of the process."""

    def __init__(self, options: ServeOptions, out: IO[str]) -> None:
        self._options = options
        self._out = out
        self._stop: _Stop
        self.left_loading = False
        """Whether it was told to stop before the model was loaded."""

    async def run(self) -> TinkerError | None:
        """Serve until told to stop; return what went wrong."""
        self._stop = _Stop()
        failure: TinkerError | None = None
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._watch_signals)
            if self._options.exit_on_stdin_eof:
                tasks.start_soon(self._watch_stdin)
            try:
                await self._serve()
            except TinkerError as error:
                failure = error  # returned, so that no group of exceptions is made of it
            tasks.cancel_scope.cancel()
        return failure

    async def _watch_signals(
        self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            # To the end: a terminal sends SIGINT to parent and child, and the parent then
            # SIGTERM; the second one must not end a shutdown that is under way.
            async for _ in signals:
                self._stop.set()

    async def _watch_stdin(self) -> None:
        stdin = sys.stdin.fileno()
        while True:
            await anyio.wait_readable(stdin)
            if not os.read(stdin, 4096):
                self._stop.set()
                return

    async def _serve(self) -> None:
        # Imported here, after `_check_extra` has spoken: it needs the extra.
        from tinker_async.local.server.flags import read_flags  # noqa: PLC0415
        from tinker_async.local.server.hosting import bind  # noqa: PLC0415
        from tinker_async.local.server.limits import read_limits  # noqa: PLC0415

        options = self._options
        told = (read_limits(options.limits), read_flags(options.switches))
        with (
            contextlib.closing(bind(options.host, options.port)) as listener,
            contextlib.ExitStack() as stack,
        ):
            self.left_loading = True
            with self._stop.interrupts():
                model = await _in_thread(lambda: resolve_model(options.model, progress=_progress))
                # Before the model is loaded: a wrong directory is told at once.
                data_dir = stack.enter_context(_data_dir(options, model.name))
                engine, card = await self._load(model)
                self.left_loading = False
            if self.left_loading:
                return
            try:
                await self._host(engine, card, model, data_dir, listener, *told)
            finally:
                engine.stop()
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(engine.join, _JOIN_S)

    async def _load(self, model: ModelFolder) -> tuple[EngineThread, ModelCard]:
        from tinker_async.local.server.port import poster  # noqa: PLC0415  # as in `_serve`

        engine = EngineThread(
            model.folder,
            name=model.name,
            dtype=self._options.dtype,
            threads=self._options.threads,
        )
        _say(f"loading {model.name}")
        post, ready = poster(), anyio.Event()
        results: list[Any] = []

        def done(result: Any) -> None:
            results.append(result)
            ready.set()

        engine.start(lambda result: post(done, result))
        await ready.wait()
        if isinstance(results[0], BaseException):
            raise _start_error(results[0], model)
        return engine, results[0]

    async def _host(
        self,
        engine: EngineThread,
        card: ModelCard,
        model: ModelFolder,
        data_dir: Path,
        listener: socket.socket,
        limits: Limits,
        flags: Flags,
    ) -> None:
        from tinker_async.local.server.hosting import Site, host, url_of  # noqa: PLC0415  # as in `_serve`

        key = self._options.api_key or f"tml-{secrets.token_urlsafe(24)}"
        announcement = Announcement(url_of(listener), key, [card.name])
        await host(
            Site(engine, card, model.folder, data_dir, key, limits, flags),
            listener,
            stopping=self._stop.event,
            ready=lambda: self._announce(announcement),
        )

    def _announce(self, announcement: Announcement) -> None:
        if self._options.as_json:
            line = msgspec.json.encode(announcement).decode()
        else:
            line = f"ready {announcement.url}"
            if self._options.api_key is None:
                _say(f"API key: {announcement.api_key}")
        self._out.write(line + "\n")
        self._out.flush()


async def _in_thread(work: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)


def _start_error(error: BaseException, model: ModelFolder) -> TinkerError:
    if isinstance(error, TinkerError):
        return error
    failure = EngineStartError(
        f"the model {model.name} could not be loaded: {error}",
        detail=f"{type(error).__name__}: {error}",
    )
    failure.__cause__ = error
    return failure


@contextlib.contextmanager
def _data_dir(options: ServeOptions, model_name: str) -> Iterator[Path]:
    """Own the data directory inside the block."""
    if options.temporary:
        with tempfile.TemporaryDirectory(prefix="tinker-async-") as name:
            yield Path(name)
        return
    folder = (options.data_dir or default_data_dir() / model_name).absolute()
    with lock_folder(folder):
        yield folder


def default_data_dir() -> Path:
    """Return the folder for this program's data of the user."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (
            (Path(base) if base else Path.home() / "AppData" / "Local") / "tinker-async" / "engine"
        )
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "tinker-async" / "engine"
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "tinker-async" / "engine"


def _progress(stage: str, done: int, total: int | None) -> None:
    share = f" {100 * done // total}%" if total else ""
    _say(f"{stage}{share}")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
