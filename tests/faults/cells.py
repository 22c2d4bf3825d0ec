"""One cell of the matrix: a session, a call that meets a fault, and a look at everything after it."""

from __future__ import annotations

import asyncio
import math
import pickle
from contextlib import nullcontext

import anyio
import msgspec
import sniffio
import trio
from faults.calls import ADAM, Call, World, service_for
from faults.reasons import ATTEMPTS, BILLING_PAUSE_S, Case, Expected, Stage, expected
from support.listed import all_listed

from tinker_async import (
    ModelPoisonedError,
    RequestFailedError,
    RetryPolicy,
    SessionLostError,
    TinkerError,
)
from tinker_async.testing import FakeService, Rule, faults

TIMEOUT_S = 700.0
"""The sessions' `timeout`: what a call may take at most."""
SOON_S = 300.0
"""What else ends a call, ends it well before: three silences of 60 s, and the pauses."""
POLICY = RetryPolicy(max_attempts=ATTEMPTS)


class Cell(msgspec.Struct, frozen=True):
    """One call that meets one fault in one of its requests."""

    call: Call
    stage: Stage
    case: Case
    always: bool

    def __str__(self) -> str:
        when = "always" if self.always else "once"
        return f"{self.call}: {self.case} {when} at {self.stage.endpoint}"

    @property
    def expected(self) -> Expected:
        """What it must come to."""
        found = expected(self.stage, self.case, always=self.always)
        if self.stage.kind == "make" and self.stage.endpoint == "load_weights":
            return _older_way(self, found)
        return found


def _older_way(cell: Cell, found: Expected) -> Expected:
    """A server that refuses to load into a new model is asked to make one first."""
    status = getattr(cell.case.fault, "status", None)
    if found.error is None or status not in {400, 422}:
        return found
    return Expected(
        error=found.error if cell.always else None,
        sent=2 * found.sent if cell.always and found.sent is not None else 2,
        effects=0 if cell.always else 1,
    )


def cells_of(call: Call, cases: tuple[Case, ...]) -> list[Cell]:
    """Return all cells of a call."""
    return [
        Cell(call, stage, case, always)
        for stage in call.stages
        for case in cases
        if case.fault.fits(stage.endpoint)
        for always in (False, True)
        if always or not _depends(call, case)
    ]


def _depends(call: Call, case: Case) -> bool:
    """Two results, of which only one is protobuf, are polled in an order that is not promised."""
    return call.method == "train_step" and isinstance(case.fault, faults.WrongContentType)


class _Seen:
    """What came of the call."""

    def __init__(self) -> None:
        self.error: TinkerError | None = None
        self.took_s = 0.0
        self.sent = 0
        """Requests of the stage."""
        self.submitted = 0
        """Requests of the call that are no polls."""
        self.effects = 0


async def run_cell(cell: Cell) -> None:
    """Run a cell.

    Raises:
        AssertionError: It came to something else.
    """
    with all_listed() if cell.call.polls_together else nullcontext():
        await _run_cell(cell)


async def _run_cell(cell: Cell) -> None:
    service = service_for(polls_together=cell.call.polls_together)
    want = cell.expected
    before = tasks_of_the_loop()
    pause_s = BILLING_PAUSE_S if cell.case.group == "billing pause" else 0.0
    lost, own = False, ""
    with anyio.fail_after(10 * TIMEOUT_S):
        try:
            async with service.session(
                timeout=TIMEOUT_S, retry=POLICY, billing_pause_s=pause_s
            ) as session:
                own = session.session_id
                world = World(service, session)
                if cell.call.prepare is not None:
                    await cell.call.prepare(world)
                await _call_and_look(cell, world, want)
                if want.again == "gone":
                    await anyio.sleep(60)
                    raise AssertionError("the session goes on, though the server ended it")
        except SessionLostError:
            lost = True
    assert lost == (want.again == "gone")
    assert before == tasks_of_the_loop(), "tasks are left"
    assert service.ledger.pending() == []
    finished = [one.status for one in service.ledger.of("finish") if one.session_id == own]
    assert lost or finished == [200]


async def _call_and_look(cell: Cell, world: World, want: Expected) -> None:
    service = world.service
    seen, rule, first = _Seen(), _rule(cell, service), len(service.ledger.entries)
    carried_out = _effects(service, cell.stage)
    started = anyio.current_time()
    try:
        await cell.call.run(world, 1)
    except TinkerError as error:
        seen.error = error
    seen.took_s = anyio.current_time() - started
    rule.remove()
    await _cancels_are_told()
    entries = service.ledger.entries[first:]
    seen.sent = sum(entry.endpoint == cell.stage.endpoint for entry in entries)
    seen.submitted = sum(entry.endpoint not in _NOT_COUNTED for entry in entries)
    told = service.ledger.cancels()
    assert want.told == len(told), f"told of {told}"
    seen.effects = _effects(service, cell.stage) - carried_out
    assert rule.hits >= 1
    _check(cell, want, seen)
    if seen.error is not None:
        _check_error(cell, seen.error, seen)
    if want.again != "gone":
        await _call_again(cell, world, want)


_NOT_COUNTED = {
    "retrieve_future",
    "retrieve_futures",
    "session_heartbeat",
    "client/dynamic_config",
    "cancel_future",
    "get_server_capabilities",
    "run_checkpoints",
}
"""Requests that are no attempts of a call: polls, what the session does itself, look-ups."""
_POLLS = {"retrieve_future", "retrieve_futures"}


async def _cancels_are_told() -> None:
    """Abandoned samples are told of by a task of the session's own."""
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


def _rule(cell: Cell, service: FakeService) -> Rule:
    return service.faults.on(cell.stage.endpoint, cell.case.fault, times=None if cell.always else 1)


def _effects(service: FakeService, stage: Stage) -> int:
    if stage.effect == "sample":
        return len(service.ledger.samples)
    return sum(one.name == stage.effect for one in service.ledger.executed)


def _check(cell: Cell, want: Expected, seen: _Seen) -> None:
    found = type(seen.error) if seen.error is not None else None
    assert want.error is found, f"{_name(want.error)} was due, and {seen.error!r} came"
    if want.held:
        assert math.isclose(TIMEOUT_S, seen.took_s, abs_tol=0.01), f"took {seen.took_s} s"
    else:
        assert seen.took_s < SOON_S, f"took {seen.took_s} s"
    if want.sent is not None and cell.stage.kind != "poll":
        assert want.sent == seen.sent, f"{want.sent} requests were due, and {seen.sent} came"
    elif want.sent is not None:
        # Polls that find nothing may come in between; parts of an operation poll each for itself.
        polled = want.sent, want.sent + (ATTEMPTS if cell.call.method in _TWOFOLD else 0)
        assert polled[0] <= seen.sent <= polled[1], f"{seen.sent} polls, not {polled}"
    if want.effects is not None and cell.stage.effect is not None:
        assert want.effects == seen.effects, f"carried out {seen.effects} times"


_TWOFOLD = {"train_step", "forward_backward_custom", "create_training_client_from_state"}


def _check_error(cell: Cell, error: TinkerError, seen: _Seen) -> None:
    """It says what happened, to what, after how many attempts, and what to do."""
    assert cell.call.method == error.operation
    assert error.hint, f"{error!r} has no hint"
    if not {stage.endpoint for stage in cell.call.stages} & _NOT_COUNTED - _POLLS:
        # A tokenizer's errors are of the request for it, not of that for its name.
        sent = seen.sent if cell.stage.kind == "file" else seen.submitted
        assert sent == error.attempts, f"{error.attempts} attempts, not {sent}"
    if cell.stage.kind == "poll":
        assert error.request_id
    same = pickle.loads(pickle.dumps(error))
    assert (type(error), str(error)) == (type(same), str(same))
    assert (error.operation, error.request_id) == (same.operation, same.request_id)


async def _call_again(cell: Cell, world: World, want: Expected) -> None:
    """The model is poisoned, or as good as new; then no number is missing."""
    entries = world.service.ledger.entries
    if want.poisoned:
        before = len(entries)
        poison: ModelPoisonedError | None = None
        try:
            await world.trainer.optim_step(ADAM)
        except ModelPoisonedError as error:
            poison = error
        assert poison is not None, "the model is not poisoned"
        assert cell.call.method == poison.lost_operation
        assert poison.hint
        assert before == len(entries), "something was sent to a poisoned model"
        return
    try:
        await cell.call.run(world, 2)
    except RequestFailedError:
        assert want.again == "fails"
    else:
        assert want.again == "works"
    for model_id in {one.model_id for one in world.service.ledger.executed}:
        assert world.service.ledger.gaps(model_id) == []


def _name(error: type[TinkerError] | None) -> str:
    return "the result" if error is None else error.__name__


def tasks_of_the_loop() -> int:
    """Tasks of this event loop."""
    if sniffio.current_async_library() == "trio":
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())
