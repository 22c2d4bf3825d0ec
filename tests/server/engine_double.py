"""An engine whose jobs the test finishes by hand, and one that finishes them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import numpy as np

from tinker_async.data.results import (
    ForwardBackwardOutput,
    OptimStepResponse,
    SampledSequence,
    SampleResponse,
)
from tinker_async.data.tensors import TensorData
from tinker_async.local.engine import jobs
from tinker_async.local.engine.jobs import Job, ModelCard

CARD = ModelCard("tiny", "LlamaForCausalLM", 320, 2048, (2,))

Done = Callable[[Any], None]


class HandEngine:
    """Keeps what was submitted; jobs are answered when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Job, Done]] = []
        self.submitted: list[Job] = []
        self.cancelled: list[str] = []
        self.crowded: str | None = None
        """Why what waits has not begun, if it is for want of room."""
        self._news = anyio.Event()

    def submit(self, job: Job, done: Done) -> None:
        self._note(job)
        self.waiting.append((job, done))

    def _note(self, job: Job) -> None:
        self.submitted.append(job)
        self._news.set()
        self._news = anyio.Event()

    async def until(self, kind: type[Job]) -> Job:
        """Return the newest job of a kind, waiting for one if need be."""
        while True:
            for job in reversed(self.submitted):
                if isinstance(job, kind):
                    return job
            await self._news.wait()

    def cancel_sample(self, key: str) -> None:
        self.cancelled.append(key)

    def waits_for_room(self, job: Job) -> str | None:
        return self.crowded if any(one is job for one, _ in self.waiting) else None

    def finish(self, result: Any = None) -> Job:
        """Answer the oldest waiting job."""
        job, done = self.waiting.pop(0)
        done(result)
        return job


class QuickEngine(HandEngine):
    """Answers each job at once: `answers` by type first, else something plausible."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[type, Any] = {}

    def submit(self, job: Job, done: Done) -> None:
        self._note(job)
        answer = self.answers[type(job)] if type(job) in self.answers else plausible(job)
        done(answer)

    def kinds(self) -> list[str]:
        """Return the types of the jobs so far."""
        return [type(job).__name__ for job in self.submitted]


def plausible(job: Job) -> Any:
    if isinstance(job, jobs.ForwardBackward):
        outputs = [
            {"logprobs": TensorData.from_numpy(np.full(datum.model_input.length, -1.0))}
            for datum in job.data
        ]
        return ForwardBackwardOutput("ArrayRecord", outputs, {"loss:sum": 1.0})
    if isinstance(job, jobs.OptimStep):
        return OptimStepResponse(metrics={"lr": job.adam.learning_rate})
    if isinstance(job, jobs.SaveTraining | jobs.SaveSampler):
        (job.folder / "weights.bin").write_bytes(b"12345")
        return 5
    if isinstance(job, jobs.Sample):
        return sampled(job)
    return None


def sampled(job: jobs.Sample) -> SampleResponse:
    sequence = SampledSequence(
        tokens=np.array([7, 8], np.int32),
        logprobs=np.array([-0.5, -0.25], np.float32),
        stop_reason="length",
    )
    prompt = np.arange(job.prompt.size, dtype=np.float32) * -1.0
    prompt[:1] = np.nan
    return SampleResponse(
        [sequence] * job.num_samples, prompt_logprobs=prompt if job.prompt_logprobs else None
    )
