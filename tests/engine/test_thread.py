"""The engine's thread: each job answered exactly once, whatever happens to the engine."""

from __future__ import annotations

import functools
import queue
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import structlog

from tinker_async.data.params import LoraConfig, SamplingParams
from tinker_async.data.results import SampleResponse
from tinker_async.errors import ConfigError, InvalidInputError
from tinker_async.local.engine import jobs
from tinker_async.local.engine.failures import (
    EngineMemoryError,
    EngineStoppedError,
    SampleCancelledError,
    explained,
)
from tinker_async.local.engine.thread import EngineThread
from tinker_async.local.tiny import build_tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAIT_S = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    build_tiny("tiny-llama", path)
    return path


def sample(max_tokens: int = 5, **more: Any) -> jobs.Sample:
    params = SamplingParams(temperature=0, stop=[], max_tokens=max_tokens)
    return jobs.Sample(np.arange(9, 15, dtype=np.int32), params, **more)


class Answers:
    """Collects answers, with the thread each came from."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[tuple[str, Any, threading.Thread]] = queue.SimpleQueue()

    def __call__(self, name: str) -> Any:
        return lambda result: self.queue.put((name, result, threading.current_thread()))

    def next(self) -> tuple[str, Any, threading.Thread]:
        return self.queue.get(timeout=WAIT_S)

    def result(self) -> Any:
        return self.next()[1]


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def engine(folder: Path, answers: Answers) -> Iterator[EngineThread]:
    """A thread that is ready, and stopped in the end."""
    thread = EngineThread(folder, name="tiny", threads=1, max_rows=4)
    thread.start(answers("ready"))
    card = answers.result()
    assert isinstance(card, jobs.ModelCard), card
    yield thread
    thread.stop()
    assert thread.join(WAIT_S)


def test_it_says_what_it_serves_and_does_jobs_in_its_own_thread(
    folder: Path, answers: Answers
) -> None:
    """The card comes first; results come from the engine's thread, in order."""
    thread = EngineThread(folder, name="tiny", threads=1)
    thread.submit(jobs.CreateModel("m", LoraConfig(rank=2)), answers("early"))
    thread.start(answers("ready"))
    name, card, first = answers.next()
    assert name == "ready"
    assert (
        card.name,
        card.vocab_size,
        card.max_context_length,
        card.eos_token_ids,
    ) == ("tiny", 259, 2048, (2,))
    name, result, second = answers.next()
    assert (name, result) == ("early", None)
    assert first is second is not threading.current_thread()
    thread.stop()
    assert thread.join(WAIT_S)
    assert not first.is_alive()


def _tell_threads(seen: Any, _: Any) -> None:
    import torch

    seen(torch.get_num_threads())


def test_a_tiny_model_gets_one_thread_unless_told_otherwise(folder: Path, answers: Answers) -> None:
    """Waking a second thread takes longer than a tiny model's operations."""
    for threads, expected in ((2, 2), (None, 1)):
        seen = answers("threads")
        thread = EngineThread(folder, name="tiny", threads=threads)
        # Called in the engine's thread; torch counts for each thread by itself.
        thread.start(functools.partial(_tell_threads, seen))
        assert expected == answers.result()
        thread.stop()
        assert thread.join(WAIT_S)


def test_samples_and_statistics(engine: EngineThread, answers: Answers) -> None:
    """A sample comes back; at rest all counters are 0."""
    engine.submit(sample(), answers("sample"))
    assert isinstance(answers.result(), SampleResponse)
    engine.submit(jobs.DropModel("nobody"), answers("after"))
    assert isinstance(answers.result(), InvalidInputError)
    statistics = engine.statistics()
    assert (
        statistics.rows_active,
        statistics.requests_waiting,
        statistics.jobs_queued,
    ) == (0, 0, 0)


def test_stopping_fails_what_is_outstanding_exactly_once(
    engine: EngineThread, answers: Answers
) -> None:
    """Running, waiting and later jobs all end with EngineStoppedError, and nothing twice."""
    names = {f"sample {number}" for number in range(12)}
    for name in names:
        engine.submit(sample(2000, num_samples=3), answers(name))
    engine.stop()
    engine.stop()
    assert engine.join(WAIT_S)
    found = {}
    while not answers.queue.empty():
        name, result, _ = answers.next()
        assert name not in found
        found[name] = result
    assert names == set(found)
    assert all(isinstance(result, EngineStoppedError) for result in found.values())
    engine.submit(sample(), answers("late"))
    name, result, where = answers.next()
    assert name == "late"
    assert isinstance(result, EngineStoppedError)
    assert where is threading.current_thread()
    assert answers.queue.empty()


def test_a_sample_can_be_cancelled_while_it_runs(engine: EngineThread, answers: Answers) -> None:
    """It ends with SampleCancelledError, others go on."""
    engine.submit(sample(2000, key="k", num_samples=50), answers("long"))
    engine.submit(sample(key="other"), answers("short"))
    engine.cancel_sample("k")
    found = dict(answers.next()[:2] for _ in range(2))
    assert isinstance(found["long"], SampleCancelledError)
    assert isinstance(found["short"], SampleResponse)


def test_a_callback_that_fails_is_logged_and_the_engine_lives(
    engine: EngineThread, answers: Answers
) -> None:
    """The server's trouble is not the engine's, nor that of other requests in the batch."""

    def broken(_result: Any) -> None:
        raise RuntimeError("the server is gone")

    with structlog.testing.capture_logs() as logs:
        engine.submit(sample(5), broken)
        engine.submit(sample(9), answers("mate"))
        engine.submit(jobs.DropModel("nobody"), broken)
        assert isinstance(answers.result(), SampleResponse)
        engine.submit(sample(), answers("later"))
        assert isinstance(answers.result(), SampleResponse)
    assert [entry["event"] for entry in logs] == ["engine_callback_failed"] * 2


def test_a_model_that_cannot_be_loaded_is_reported_and_the_thread_ends(
    tmp_path: Path, answers: Answers
) -> None:
    """The reason goes to on_ready, jobs get EngineStoppedError."""
    thread = EngineThread(tmp_path, name="empty")
    thread.submit(sample(), answers("early"))
    thread.start(answers("ready"))
    found = dict(answers.next()[:2] for _ in range(2))
    assert isinstance(found["ready"], ConfigError)
    assert isinstance(found["early"], EngineStoppedError)
    assert thread.join(WAIT_S)
    thread.submit(sample(), answers("late"))
    assert isinstance(answers.result(), EngineStoppedError)


def test_a_thread_that_never_started_can_be_stopped(folder: Path, answers: Answers) -> None:
    """What was submitted is answered; it cannot start any more."""
    thread = EngineThread(folder, name="tiny")
    thread.submit(sample(), answers("early"))
    assert thread.statistics().jobs_queued == 1
    thread.stop()
    assert thread.join(WAIT_S)
    assert isinstance(answers.result(), EngineStoppedError)
    with pytest.raises(RuntimeError, match="once"):
        thread.start(answers("ready"))


def test_stopping_while_the_model_loads(folder: Path, answers: Answers) -> None:
    """The thread ends after loading, without looking at the jobs."""
    thread = EngineThread(folder, name="tiny", threads=1)
    thread.start(answers("ready"))
    thread.submit(sample(), answers("job"))
    thread.stop()
    assert thread.join(WAIT_S)
    found = dict(answers.next()[:2] for _ in range(2))
    assert isinstance(found["ready"], jobs.ModelCard)
    assert isinstance(found["job"], EngineStoppedError)


def test_importing_it_does_not_load_torch() -> None:
    """The server imports this module, and stays light until the engine starts."""
    code = (
        "import sys, tinker_async.local.engine.thread, tinker_async.local.engine.jobs;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_running_out_of_memory_is_renamed() -> None:
    """Python's and torch's ways of saying it become EngineMemoryError; others stay."""
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.int8)
    for error in (MemoryError("no room"), torch.OutOfMemoryError("full"), caught.value):
        renamed = explained(error)
        assert isinstance(renamed, EngineMemoryError)
        assert renamed.__cause__ is error
    for other in (ValueError("out of memory"), RuntimeError("shape mismatch"), KeyError("x")):
        assert explained(other) is other
