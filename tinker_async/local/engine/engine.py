"""Training and sampling side by side on one base model, synchronously.

Training jobs run one at a time in the order they came; samples are drawn beside them. The
rule: `turn` does one short unit of work, a micro-batch or a decoding step, and while
both sides have work each gets as much of the time as the other.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from tinker_async.local.engine.base import BaseModel
from tinker_async.local.engine.decoding import Decoder
from tinker_async.local.engine.failures import SampleCancelledError, explained
from tinker_async.local.engine.jobs import Job, ModelCard, Result, Sample
from tinker_async.local.engine.lane import Lane, Work
from tinker_async.local.engine.stopping import StopRules
from tinker_async.local.engine.training import MICRO_BATCH_TOKENS

Done: TypeAlias = Callable[[Result], None]

MAX_DECODING_STEPS = 64
"""Most decoding steps between two micro-batches, however short they are."""


class Engine:
    """Takes jobs, and does them in short turns. Not thread-safe.

    Args:
        folder: The base model: a Hugging Face folder.
        name: What users call it.
        dtype: Of the base weights: `float32` or `bfloat16`.
        micro_batch_tokens: Most padded tokens computed at once in training; a longer datum is
            computed whole. A sample that comes waits for so much.
        max_rows: Most samples drawn in one forward pass.
        max_cache_tokens: Most tokens in the attention cache; see `Decoder`.
        clock: Seconds, for the shares of time.

    Raises:
        ConfigError: The model cannot be loaded or served.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        dtype: str = "float32",
        micro_batch_tokens: int = MICRO_BATCH_TOKENS,
        max_rows: int = 64,
        max_cache_tokens: int = 65_536,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        base = BaseModel.load(folder, name=name, dtype=dtype)
        self.card: ModelCard = base.card
        self._parameters = base.parameters
        self._clock = clock
        self._decoder = Decoder(
            base,
            StopRules(base.card, folder),
            max_rows=max_rows,
            max_cache_tokens=max_cache_tokens,
        )
        self._lane = Lane(base, micro_batch_tokens=micro_batch_tokens, in_use=self._decoder.uses)
        self._queue: deque[tuple[Job, Done]] = deque()
        self._queued: set[int] = set()  # the identities of the queue's jobs
        self._queued_snapshots: Counter[str] = Counter()
        self._running: tuple[Work, Job, Done] | None = None
        self._lead_s = 0.0  # by how much training is ahead of sampling
        self._steps_in_a_row = 0

    @property
    def parameters(self) -> int:
        """How many weights the base model has."""
        return self._parameters

    @property
    def has_work(self) -> bool:
        """Whether `turn` has something to do."""
        return self._has_lane_work or self._decoder.has_work

    @property
    def jobs_queued(self) -> int:
        """Training jobs that are not done, the running one included."""
        return len(self._queue) + (self._running is not None)

    @property
    def rows_active(self) -> int:
        """Samples being drawn."""
        return self._decoder.rows_active

    @property
    def requests_waiting(self) -> int:
        """Sample requests whose prompt has not been read."""
        return self._decoder.requests_waiting

    def waits_for_room(self, job: Job) -> str | None:
        """Return why a job has not begun, if it is for want of room, else None.

        May be asked from other threads: a moment's view.
        """
        if isinstance(job, Sample) and self._decoder.waits_for_room(job.key):
            return f"{self.rows_active} samples are being drawn, as many as have room at once"
        if id(job) in self._queued and self._running is not None:
            return "training jobs are done one at a time, and another one is under way"
        return None

    def submit(self, job: Job, done: Done) -> None:
        """Take a job; `done` is called exactly once, here or from a later call.

        A sample starts at once, beside training; only if jobs on its snapshot are queued
        does it wait for them, so that jobs on a snapshot happen in the order they came.
        """
        snapshot = _snapshot_id(job)
        if isinstance(job, Sample) and not (snapshot and self._queued_snapshots[snapshot]):
            self._admit(job, done)
            return
        self._queue.append((job, done))
        self._queued.add(id(job))
        if snapshot:
            self._queued_snapshots[snapshot] += 1

    def cancel(self, key: str) -> None:
        """Give up the samples with this key, with `SampleCancelledError`."""
        self._decoder.cancel(key)
        self._lane.free_retired()
        queued = [*self._queue]
        self._queue.clear()
        for job, done in queued:
            if key and isinstance(job, Sample) and job.key == key:
                self._queued.discard(id(job))
                self._forget(job)
                done(SampleCancelledError(f"sample {key} was cancelled"))
            else:
                self._queue.append((job, done))

    def turn(self) -> None:
        """Do a micro-batch, or a whole job of another kind, or a decoding step.

        With training and sampling both at work, a micro-batch is followed by decoding
        steps that take as long together: at least one, at most `MAX_DECODING_STEPS`. Who has been
        waiting for the other to be alone at work goes first if it is sampling: its turns are short.
        """
        began = self._clock()
        if self._is_trainings_turn():
            self._train()
            self._lead_s += max(self._clock() - began, 1e-9)
            self._steps_in_a_row = 0
        else:
            self._decoder.step()
            self._lane.free_retired()
            self._lead_s -= self._clock() - began
            self._steps_in_a_row += 1
        if not (self._has_lane_work and self._decoder.has_work):
            self._lead_s = 0.0  # who was alone owes nothing

    def fail_all(self, error: BaseException) -> None:
        """Give up everything that is not done, with this error."""
        self._decoder.fail_all(error)
        if self._running:
            work, _, done = self._running
            self._running = None
            work.close()
            done(error)
        while self._queue:
            job, done = self._queue.popleft()
            self._queued.discard(id(job))
            done(error)

    @property
    def _has_lane_work(self) -> bool:
        return self._running is not None or bool(self._queue)

    def _is_trainings_turn(self) -> bool:
        if not (self._has_lane_work and self._decoder.has_work):
            return self._has_lane_work
        return self._lead_s < 0 or self._steps_in_a_row >= MAX_DECODING_STEPS

    def _train(self) -> None:
        """Go on with the running job until it pauses, or start the next."""
        if self._running is None:
            job, done = self._queue.popleft()
            self._queued.discard(id(job))
            if isinstance(job, Sample):
                self._forget(job)
                self._admit(job, done)
                return
            self._running = (self._lane.work(job), job, done)
        work, job, done = self._running
        try:
            next(work)
        except StopIteration as stop:
            result = stop.value
        except Exception as error:  # noqa: BLE001  # the boundary between jobs and engine
            result = explained(error)
        else:
            return
        self._running = None
        self._forget(job)
        done(result)

    def _forget(self, job: Job) -> None:
        snapshot = _snapshot_id(job)
        if snapshot:
            self._queued_snapshots[snapshot] -= 1
            if not self._queued_snapshots[snapshot]:
                del self._queued_snapshots[snapshot]  # or each snapshot would leave a zero behind

    def _admit(self, job: Sample, done: Done) -> None:
        try:
            self._decoder.admit(job, self._lane.adapter_name(job.snapshot_id), done)
        except Exception as error:  # noqa: BLE001  # as in `_train`
            done(explained(error))


def _snapshot_id(job: Job) -> str | None:
    return getattr(job, "snapshot_id", None)
