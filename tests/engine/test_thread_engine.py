"""Training and sampling side by side: order, shares of time, snapshots, failures."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput
from tinker_async.data.params import AdamParams, LoraConfig, SamplingParams
from tinker_async.data.results import (
    ForwardBackwardOutput,
    OptimStepResponse,
    SampleResponse,
)
from tinker_async.data.tensors import TensorLike
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine import jobs
from tinker_async.local.engine.engine import MAX_DECODING_STEPS, Engine
from tinker_async.local.engine.failures import SampleCancelledError
from tinker_async.local.tiny import build_tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LORA = LoraConfig(rank=4, seed=1)
ROWS = 6
"""data of `training`, each of which fills a micro-batch"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    build_tiny("tiny-llama", path)
    return path


def datum(tokens: list[int]) -> Datum:
    weights = [1.0] * (len(tokens) - 1)
    inputs: dict[str, TensorLike] = {"target_tokens": tokens[1:], "weights": weights}
    return Datum(ModelInput.from_ints(tokens[:-1]), inputs)


def training(*, rows: int = ROWS, forward_only: bool = False) -> jobs.ForwardBackward:
    return jobs.ForwardBackward(
        model_id="m",
        data=[datum([5 + row, *range(10, 40)]) for row in range(rows)],
        loss_fn="cross_entropy",
        loss_fn_config={},
        forward_only=forward_only,
    )


def sample(max_tokens: int = 8, **more: Any) -> jobs.Sample:
    params = SamplingParams(temperature=0, stop=[], max_tokens=max_tokens)
    return jobs.Sample(np.arange(9, 15, dtype=np.int32), params, **more)


class Desk:
    """An engine, and what it answered in which order. One call of its clock is one second."""

    def __init__(self, folder: Path, clock: Iterator[float] | None = None) -> None:
        ticks = clock or itertools.count(0.0)
        self.engine = Engine(
            folder, name="tiny", micro_batch_tokens=32, max_rows=4, clock=lambda: next(ticks)
        )
        self.answers: dict[str, Any] = {}

    def submit(self, name: str, job: jobs.Job) -> None:
        def done(result: Any) -> None:
            assert name not in self.answers, "answered twice"
            self.answers[name] = result

        self.engine.submit(job, done)

    def finish(self) -> dict[str, Any]:
        while self.engine.has_work:
            self.engine.turn()
        return self.answers

    def do(self, job: jobs.Job) -> Any:
        name = f"job {len(self.answers)}"
        self.submit(name, job)
        result = self.finish()[name]
        if isinstance(result, BaseException):
            raise result
        return result


@pytest.fixture
def desk(folder: Path) -> Desk:
    desk = Desk(folder)
    desk.do(jobs.CreateModel("m", LORA))
    return desk


@pytest.fixture
def trained(desk: Desk) -> Desk:
    """A model that differs from the base model."""
    desk.do(training())
    desk.do(jobs.OptimStep("m", AdamParams(learning_rate=0.1)))
    return desk


def tokens_of(response: SampleResponse) -> list[int]:
    return [int(token) for token in response.sequences[0].tokens]


def test_each_job_gives_what_its_docstring_says(desk: Desk, tmp_path: Path) -> None:
    """Every kind of job once, with the type of its result."""
    whole, light = tmp_path / "whole", tmp_path / "light"
    whole.mkdir()
    light.mkdir()
    assert isinstance(desk.do(training()), ForwardBackwardOutput)
    assert isinstance(desk.do(jobs.OptimStep("m", AdamParams())), OptimStepResponse)
    assert desk.do(jobs.SaveTraining("m", whole)) == size_of(whole)
    assert desk.do(jobs.SaveSampler("m", light)) == size_of(light)
    assert desk.do(jobs.TakeSnapshot("m", "s1")) is None
    assert desk.do(jobs.LoadSnapshot("s2", whole)) is None
    assert desk.do(jobs.LoadSnapshot("s3", light)) is None
    assert desk.do(jobs.LoadModel("copy", whole, optimizer=True)) == LORA
    assert isinstance(desk.do(sample()), SampleResponse)
    drawn = [tokens_of(desk.do(sample(snapshot_id=key))) for key in ("s1", "s2", "s3")]
    assert drawn[0] == drawn[1] == drawn[2]
    for key in ("s1", "s2", "s3"):
        assert desk.do(jobs.DropSnapshot(key)) is None
    assert desk.do(jobs.DropModel("m")) is None
    assert desk.do(jobs.DropModel("copy")) is None


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_sampled_logprobs_equal_the_trainers(trained: Desk) -> None:
    """To 1e-4, for a prompt and what was drawn after it, on a trained snapshot."""
    trained.do(jobs.TakeSnapshot("m", "s"))
    job = jobs.Sample(
        np.arange(9, 40, dtype=np.int32),
        SamplingParams(seed=5, max_tokens=60, stop=[]),
        snapshot_id="s",
        prompt_logprobs=True,
    )
    response = trained.do(job)
    tokens = [*job.prompt.tolist(), *tokens_of(response)]
    check = jobs.ForwardBackward("m", [datum(tokens)], "cross_entropy", {}, forward_only=True)
    (output,) = trained.do(check).loss_fn_outputs
    found = [*response.prompt_logprobs[1:], *response.sequences[0].logprobs]
    np.testing.assert_allclose(found, output["logprobs"].data, atol=1e-4)


def test_a_snapshot_does_not_change_while_its_model_trains_on(trained: Desk) -> None:
    """Samples before, beside and after further training are the same."""
    trained.do(jobs.TakeSnapshot("m", "old"))
    before = tokens_of(trained.do(sample(30, snapshot_id="old")))
    trained.submit("beside", sample(30, snapshot_id="old"))
    trained.submit("train", training())
    trained.submit("step", jobs.OptimStep("m", AdamParams(learning_rate=0.5)))
    trained.finish()
    trained.do(jobs.TakeSnapshot("m", "new"))
    assert before == tokens_of(trained.answers["beside"])
    assert before == tokens_of(trained.do(sample(30, snapshot_id="old")))
    assert before != tokens_of(trained.do(sample(30, snapshot_id="new")))
    assert before != tokens_of(trained.do(sample(30)))


def test_sampling_between_micro_batches_does_not_disturb_training(desk: Desk) -> None:
    """Losses and the weights after a step are bit for bit those of undisturbed training."""

    def train() -> tuple[ForwardBackwardOutput, ForwardBackwardOutput]:
        desk.do(jobs.CreateModel("twin", LORA))
        job = training()
        twin = jobs.ForwardBackward("twin", job.data, job.loss_fn, {}, forward_only=False)
        desk.submit("twin", twin)
        desk.finish()
        output = desk.answers.pop("twin")
        desk.do(jobs.OptimStep("twin", AdamParams(learning_rate=0.1)))
        after = desk.do(jobs.ForwardBackward("twin", job.data, job.loss_fn, {}, forward_only=True))
        desk.do(jobs.DropModel("twin"))
        return output, after

    quiet, quiet_after = train()
    desk.do(jobs.TakeSnapshot("m", "s"))
    for number in range(4):
        desk.submit(f"noise {number}", sample(40, snapshot_id="s" if number % 2 else None))
    noisy, noisy_after = train()
    assert quiet.metrics == noisy.metrics
    assert quiet_after.metrics == noisy_after.metrics


def test_a_sample_ends_in_the_middle_of_a_long_training_job(desk: Desk) -> None:
    """With equal units of work the two take turns: the short one ends first, whichever it is."""
    desk.submit("training", training(rows=20))
    desk.submit("short", sample(5))
    desk.submit("long", sample(100))
    desk.finish()
    assert list(desk.answers)[1:] == ["short", "training", "long"]


def test_training_gets_as_much_time_as_sampling(folder: Path) -> None:
    """A micro-batch of ten seconds is followed by ten decoding steps of one second.

    With both sides fresh, sampling goes first.
    """
    now = 0.0
    turns: list[str] = []
    desk = Desk(folder, clock=iter(lambda: now, None))
    desk.do(jobs.CreateModel("m", LORA))
    desk.submit("training", training(rows=4))
    desk.submit("sample", sample(200))
    while desk.engine.jobs_queued:
        trains = desk.engine._is_trainings_turn()
        turns.append("T" if trains else "s")
        end = now + (10 if trains else 1)
        # The clock is read at the beginning and at the end of a turn.
        reads = iter([now, end])
        desk.engine._clock = lambda reads=reads: next(reads)  # type: ignore[misc]
        desk.engine.turn()
        now = end
    assert "".join(turns) == "sT" + "ssssssssssT" * 4


def test_decoding_steps_in_a_row_are_bounded(folder: Path) -> None:
    """However short they are, training goes on after so many of them."""
    desk = Desk(folder, clock=itertools.repeat(0.0))
    desk.do(jobs.CreateModel("m", LORA))
    desk.submit("training", training(rows=3))
    desk.submit("sample", sample(1000))
    turns = 0
    while desk.engine.jobs_queued:
        desk.engine.turn()
        turns += 1
    assert turns == 4 + 4 * MAX_DECODING_STEPS


def test_a_sample_waits_for_one_micro_batch_at_most(desk: Desk) -> None:
    """Training that was alone does not go on first once a sample has come."""
    desk.submit("training", training(rows=5))
    for name in ("first", "second"):
        desk.engine.turn()
        desk.submit(name, sample(1))
        desk.engine.turn()
        assert name in desk.answers
    assert "training" not in desk.answers


def test_a_sample_that_finds_the_batch_full_waits_for_room(desk: Desk) -> None:
    """Not while it has only not been looked at, and not once it has begun."""
    late, later = sample(1, key="late"), sample(1, key="later")
    many = sample(20, num_samples=5, key="many")
    desk.submit("many", many)
    desk.submit("late", late)
    assert desk.engine.waits_for_room(late) is None
    for _ in range(2):  # the prompt of the many is read, then they fill all rows
        desk.engine.turn()
    desk.submit("later", later)
    says = "4 samples are being drawn, as many as have room at once"
    assert [None, says, says] == [desk.engine.waits_for_room(job) for job in (many, late, later)]
    desk.engine.cancel("later")
    assert desk.engine.waits_for_room(later) is None
    while "many" not in desk.answers:
        desk.engine.turn()
    desk.engine.turn()
    assert desk.engine.waits_for_room(late) is None
    assert isinstance(desk.finish()["late"], SampleResponse)


def test_a_short_queue_is_no_want_of_room(desk: Desk) -> None:
    """Prompts that are read one step later wait for their turn only."""
    waiting = [sample(3, key=str(number)) for number in range(3)]
    desk.submit("pair", sample(3, num_samples=2))  # those behind it wait until both have begun
    for job in waiting:
        desk.submit(job.key, job)
    while desk.engine.has_work:
        full = desk.engine.rows_active == 4
        assert full or not any(desk.engine.waits_for_room(job) for job in waiting)
        desk.engine.turn()


def test_a_training_job_waits_for_room_while_another_is_under_way(desk: Desk) -> None:
    """The engine does them one at a time; the one that is under way does not wait."""
    first, second = training(), training(forward_only=True)
    desk.submit("first", first)
    desk.submit("second", second)
    assert [None, None] == [desk.engine.waits_for_room(job) for job in (first, second)]
    desk.engine.turn()
    assert desk.engine.waits_for_room(first) is None
    assert "one at a time" in str(desk.engine.waits_for_room(second))
    while "first" not in desk.answers:
        desk.engine.turn()
    desk.engine.turn()
    assert desk.engine.waits_for_room(second) is None
    desk.finish()


def test_training_jobs_keep_their_order(desk: Desk) -> None:
    """First submitted, first answered; also across models and kinds."""
    desk.submit("a", training())
    desk.submit("b", jobs.OptimStep("m", AdamParams()))
    desk.submit("c", jobs.CreateModel("other", LORA))
    desk.submit("d", training(forward_only=True))
    desk.submit("e", jobs.DropModel("other"))
    assert list(desk.finish())[1:] == ["a", "b", "c", "d", "e"]


def test_a_sample_waits_for_its_snapshot_to_be_made(trained: Desk) -> None:
    """Submitted together, the sample finds the snapshot, and one after the drop does not."""
    trained.submit("train", training())
    trained.submit("take", jobs.TakeSnapshot("m", "s"))
    trained.submit("sample", sample(snapshot_id="s"))
    trained.submit("drop", jobs.DropSnapshot("s"))
    trained.submit("late", sample(snapshot_id="s"))
    trained.submit("base", sample(3))
    answers = trained.finish()
    assert isinstance(answers["sample"], SampleResponse)
    assert isinstance(answers["late"], InvalidInputError)
    assert list(answers).index("base") < list(answers).index("train")


def test_a_dropped_snapshot_is_freed_when_its_last_sample_ends(trained: Desk) -> None:
    """Samples already running finish on it; new ones are refused."""
    trained.do(jobs.TakeSnapshot("m", "s"))
    before = len(trained.engine._lane._base.peft.peft_config)
    alone = tokens_of(trained.do(sample(30, snapshot_id="s")))
    trained.submit("running", sample(30, snapshot_id="s"))
    for _ in range(5):
        trained.engine.turn()
    trained.submit("drop", jobs.DropSnapshot("s"))
    while "drop" not in trained.answers:
        trained.engine.turn()
    assert "running" not in trained.answers
    assert before == len(trained.engine._lane._base.peft.peft_config)
    with pytest.raises(InvalidInputError, match="no snapshot"):
        trained.do(sample(snapshot_id="s"))
    assert alone == tokens_of(trained.finish()["running"])
    assert before - 1 == len(trained.engine._lane._base.peft.peft_config)


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (jobs.OptimStep("nobody", AdamParams()), "model_id"),
        (jobs.DropModel("nobody"), "model_id"),
        (jobs.TakeSnapshot("nobody", "s"), "model_id"),
        (jobs.CreateModel("m", LORA), "model_id"),
        (jobs.DropSnapshot("nothing"), "snapshot_id"),
        (sample(snapshot_id="nothing"), "snapshot_id"),
        (jobs.Sample(np.zeros(0, dtype=np.int32), SamplingParams()), "prompt"),
        (jobs.ForwardBackward("m", [datum([1, 2])], "nonsense", {}, forward_only=False), None),
    ],
)
def test_what_cannot_be_done_is_the_users_error_and_the_engine_goes_on(
    desk: Desk, job: jobs.Job, field: str | None
) -> None:
    """The error names the field; the next job works."""
    with pytest.raises(InvalidInputError) as caught:
        desk.do(job)
    if field:
        assert caught.value.field == field
    assert isinstance(desk.do(training()), ForwardBackwardOutput)


def test_a_failed_load_leaves_the_model_as_it_was(trained: Desk, tmp_path: Path) -> None:
    """Loading into an existing model replaces it only when the checkpoint is whole."""
    good = trained.do(training(forward_only=True)).metrics
    with pytest.raises(InvalidInputError):
        trained.do(jobs.LoadModel("m", tmp_path / "missing", optimizer=True))
    assert good == trained.do(training(forward_only=True)).metrics


def test_loading_into_an_existing_model_replaces_it(trained: Desk, tmp_path: Path) -> None:
    """The old adapter is freed, the loaded one has the saved weights."""
    count = len(trained.engine._lane._base.peft.peft_config)
    saved = trained.do(training(forward_only=True)).metrics
    trained.do(jobs.SaveTraining("m", tmp_path))
    trained.do(training())
    trained.do(jobs.OptimStep("m", AdamParams(learning_rate=0.5)))
    assert saved != trained.do(training(forward_only=True)).metrics
    assert trained.do(jobs.LoadModel("m", tmp_path, optimizer=True)) == LORA
    assert saved == trained.do(training(forward_only=True)).metrics
    assert count == len(trained.engine._lane._base.peft.peft_config)


def test_cancelled_samples_end_wherever_they_wait(desk: Desk) -> None:
    """Drawing, or in the queue for their snapshot; others with another key go on."""
    desk.submit("train", training())
    desk.submit("take", jobs.TakeSnapshot("m", "s"))
    desk.submit("queued", sample(snapshot_id="s", key="k"))
    desk.submit("drawing", sample(100, key="k"))
    desk.submit("other", sample(key="o"))
    desk.engine.turn()
    desk.engine.cancel("k")
    assert isinstance(desk.answers["queued"], SampleCancelledError)
    assert isinstance(desk.answers["drawing"], SampleCancelledError)
    answers = desk.finish()
    assert isinstance(answers["other"], SampleResponse)
    assert isinstance(desk.do(sample(snapshot_id="s")), SampleResponse)


def test_fail_all_answers_everything_and_leaves_no_gradients(desk: Desk) -> None:
    """Running, queued and drawing jobs get the error, once; the model is as before."""
    work: dict[str, jobs.Job] = {
        "running": training(),
        "queued": training(),
        "drawing": sample(100),
        "waiting": sample(100, num_samples=50),
    }
    for name, job in work.items():
        desk.submit(name, job)
    for _ in range(6):
        desk.engine.turn()
    error = RuntimeError("over")
    desk.engine.fail_all(error)
    assert [error] * 4 == [desk.answers[n] for n in ("running", "queued", "drawing", "waiting")]
    assert not desk.engine.has_work
    metrics = desk.do(jobs.OptimStep("m", AdamParams())).metrics
    assert metrics["grad_norm"] == 0


def test_the_counters_tell_what_is_queued_waiting_and_drawing(folder: Path) -> None:
    """They are 0 again when all is done."""
    desk = Desk(folder)
    desk.submit("model", jobs.CreateModel("m", LORA))
    desk.submit("train", training())
    desk.submit("sample", sample(num_samples=3))
    engine = desk.engine
    assert (engine.jobs_queued, engine.requests_waiting, engine.rows_active) == (2, 1, 0)
    while not engine.rows_active:
        engine.turn()
    assert engine.requests_waiting == 0
    desk.finish()
    assert (engine.jobs_queued, engine.requests_waiting, engine.rows_active) == (0, 0, 0)
