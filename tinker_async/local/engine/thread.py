"""The engine in a thread of its own: what the async server talks to.

Importable without torch, which is loaded in the thread. The rule: whatever is submitted is
answered exactly once, also when the engine fails to start or is stopped.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import structlog

from tinker_async.local.engine.failures import EngineStoppedError, explained
from tinker_async.local.engine.jobs import Job, ModelCard, Result

if TYPE_CHECKING:
    from tinker_async.local.engine.engine import Engine

log = structlog.get_logger("tinker_async")

Done: TypeAlias = Callable[[Result], None]


_ONE_THREAD_PARAMETERS = 10_000_000


class EngineStatistics(msgspec.Struct, frozen=True):
    """What the engine is busy with; a moment's view, not synchronised."""

    rows_active: int
    """samples being drawn"""
    requests_waiting: int
    """sample requests whose prompt has not been read"""
    jobs_queued: int
    """jobs not looked at yet, and training jobs not done"""


class _Submission(msgspec.Struct, frozen=True):
    job: Job
    done: Done


class _Cancellation(msgspec.Struct, frozen=True):
    key: str


class EngineThread:
    """Runs an engine in a daemon thread. All methods may be called from any thread.

    Args:
        folder: The base model: a Hugging Face folder.
        name: What users call it.
        dtype: Of the base weights: `float32` or `bfloat16`.
        threads: Torch's threads, for the process; None is one for a tiny model, whose
            operations are shorter than waking a second thread, else torch's choice.
        micro_batch_tokens: Most padded tokens computed at once in training.
        max_rows: Most samples drawn in one forward pass.
        max_cache_tokens: Most tokens in the attention cache, rows times the longest one;
            SmolLM2-135M takes 46 kB for each in float32.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        dtype: str = "float32",
        threads: int | None = None,
        micro_batch_tokens: int = 256,
        max_rows: int = 64,
        max_cache_tokens: int = 65_536,
    ) -> None:
        self._folder = folder
        self._name = name
        self._dtype = dtype
        self._threads = threads
        self._micro_batch_tokens = micro_batch_tokens
        self._max_rows = max_rows
        self._max_cache_tokens = max_cache_tokens
        self._inbox: queue.SimpleQueue[_Submission | _Cancellation | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # over _thread and _closed
        self._closed = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._engine: Engine | None = None

    def start(self, on_ready: Callable[[ModelCard | BaseException], None]) -> None:
        """Start the thread, which loads the model.

        Args:
            on_ready: Called once, in the engine's thread, with the model's card, or with why
                it could not be loaded; the thread then ends.

        Raises:
            RuntimeError: It was started or stopped before.
        """
        with self._lock:
            if self._thread or self._closed:
                raise RuntimeError("an engine thread starts once")
            self._thread = threading.Thread(
                target=self._run, args=(on_ready,), name="tinker-engine", daemon=True
            )
            self._thread.start()

    def submit(self, job: Job, done: Done) -> None:
        """Hand over a job; never blocks.

        Jobs on a model are done in the order they were submitted. `done` is called exactly
        once with the result or an exception instance, in the engine's thread; if the
        engine has ended already, in this one with `EngineStoppedError`.
        """
        with self._lock:
            if not self._closed:
                self._inbox.put(_Submission(job, done))
                return
        _answer(done, _stopped())

    def cancel_sample(self, key: str) -> None:
        """Ask to give up the samples with this key; they end with `SampleCancelledError`."""
        self._inbox.put(_Cancellation(key))

    def waits_for_room(self, job: Job) -> str | None:
        """Return why a job has not begun, if it is for want of room, else None.

        A moment's view. A job that was not looked at yet waits for nothing that is known.
        """
        engine = self._engine
        return None if engine is None else engine.waits_for_room(job)

    def stop(self) -> None:
        """Ask the thread to end; never blocks.

        The running micro-batch or decoding step is finished, everything outstanding fails with
        `EngineStoppedError`. May be called again.
        """
        self._stopping.set()
        self._inbox.put(None)
        with self._lock:
            never_started = self._thread is None
        if never_started:
            self._close(_stopped())

    def join(self, timeout_s: float | None = None) -> bool:
        """Block until the thread has ended; return whether it has."""
        thread = self._thread
        if thread is None:
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    def statistics(self) -> EngineStatistics:
        """Return what the engine is busy with."""
        engine = self._engine
        unread = self._inbox.qsize()
        if engine is None:
            return EngineStatistics(rows_active=0, requests_waiting=0, jobs_queued=unread)
        return EngineStatistics(
            rows_active=engine.rows_active,
            requests_waiting=engine.requests_waiting,
            jobs_queued=unread + engine.jobs_queued,
        )

    def _run(self, on_ready: Callable[[ModelCard | BaseException], None]) -> None:
        try:
            engine = self._load()
        except Exception as error:  # noqa: BLE001  # whatever it is, the server must hear of it
            self._close(_stopped(f"the engine could not start: {error}"))
            _answer(on_ready, explained(error))
            return
        self._engine = engine
        _answer(on_ready, engine.card)
        try:
            while not self._stopping.is_set():
                self._take(engine)
                if engine.has_work:
                    engine.turn()
        finally:
            engine.fail_all(_stopped())
            self._engine = None
            self._close(_stopped())

    def _load(self) -> Engine:
        # Read once, when torch is imported: spinning threads starve each other and the
        # server on a busy machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch  # noqa: PLC0415  # heavy, and only for this thread

        from tinker_async.local.engine.engine import Engine  # noqa: PLC0415  # imports torch

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        engine = Engine(
            self._folder,
            name=self._name,
            dtype=self._dtype,
            micro_batch_tokens=self._micro_batch_tokens,
            max_rows=self._max_rows,
            max_cache_tokens=self._max_cache_tokens,
        )
        if self._threads is None and engine.parameters < _ONE_THREAD_PARAMETERS:
            torch.set_num_threads(1)
        return engine

    def _take(self, engine: Engine) -> None:
        """Hand on what has come in; wait for something if there is nothing to do."""
        wait = not engine.has_work
        while wait or not self._inbox.empty():
            message = self._inbox.get()
            wait = False
            if message is None:
                return
            if isinstance(message, _Cancellation):
                engine.cancel(message.key)
            else:
                engine.submit(message.job, _guarded(message.done))

    def _close(self, error: EngineStoppedError) -> None:
        """Refuse what comes from now on, and answer what was not looked at."""
        with self._lock:
            self._closed = True
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, _Submission):
                _answer(message.done, error)


def _guarded(done: Done) -> Done:
    return lambda result: _answer(done, result)


def _answer(done: Callable[..., None], result: Result) -> None:
    """Call back. A callback that fails must not take the engine down with it."""
    try:
        done(result)
    except Exception:
        log.exception("engine_callback_failed")


def _stopped(says: str = "the engine was stopped") -> EngineStoppedError:
    return EngineStoppedError(says)
