"""A session cancelled at each wait of its way in, of what it does, and of its way out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio
import pytest
from cancellation.cut import Cut, When
from cancellation.scene import DATUM, PARAMS, PROMPT, QUICK, WAYS, opened, tasks_of_the_client

from tinker_async import AdamParams, Session
from tinker_async.testing import FakeService

MOST_WAITS = 300


async def nothing(session: Session) -> None:
    """Only the way in and out."""


async def train_and_leave(session: Session) -> None:
    """Operations are still queued when the block ends: leaving waits for them."""
    trainer = await session.create_lora_training_client("toy", rank=4)
    for _ in range(2):
        trainer.forward_backward([DATUM], "cross_entropy")
        trainer.optim_step(AdamParams())
    trainer.save_state("end")


async def sample_and_leave(session: Session) -> None:
    """As above, with samples."""
    sampler = await session.create_sampling_client(base_model="toy")
    for _ in range(3):
        sampler.submit_sample(PROMPT, PARAMS)


async def fail(session: Session) -> None:
    """The block's own error ends it, while an operation is under way."""
    trainer = await session.create_lora_training_client("toy", rank=4)
    trainer.forward([DATUM], "cross_entropy")
    raise ZeroDivisionError


Program: TypeAlias = Callable[[Session], Awaitable[None]]
PROGRAMS: tuple[Program, ...] = (nothing, train_and_leave, sample_and_leave, fail)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", PROGRAMS, ids=["nothing", "train", "sample", "fail"])
@pytest.mark.parametrize("when", ["early", "late"])
async def test_a_session_can_be_cancelled_at_each_of_its_waits(
    program: Program, when: When, way: str
) -> None:
    """No task and no socket is left; the server hears how each session ended, and has no gap."""
    service = FakeService(hold_s=0.01)

    async def live(session: Session) -> None:
        async with session:
            await program(session)

    with anyio.fail_after(60):
        async with opened(way, service) as witness:
            tasks = tasks_of_the_client()
            url, http2 = witness._open_parts().samplers._base_url, way == "HTTP/2"
            for at in range(1, MOST_WAITS):
                if way == "in process":
                    session = service.session(retry=QUICK)
                else:
                    session = Session(url, service.api_key, http2=http2, retry=QUICK)
                cut = Cut(at, when)
                try:
                    with cut.scope:
                        await cut.drive(live(session))
                except* ZeroDivisionError:  # in a group when the cancellation came with it
                    assert program is fail
                assert tasks == tasks_of_the_client()
                check(service, alive=witness.session_id)
                if not cut.happened:
                    break
            else:
                pytest.fail("the session never ended")
    assert cut.waits > 3


def check(service: FakeService, *, alive: str) -> None:
    """What the server must have seen."""
    ledger = service.ledger
    finished = {entry.path.split("/")[-2] for entry in ledger.of("finish")}
    for entry in ledger.entries:
        # A session whose id never reached the client is nobody's; the server lets it go by itself.
        if entry.endpoint != "create_session":
            owner = entry.session_id or entry.model_id or entry.sampler_id or alive
            assert {alive, *finished} >= {owner.partition(":")[0]}, entry
    for model_id in {one.model_id for one in ledger.executed}:
        assert [] == ledger.gaps(model_id)
    numbers = Counter((one.model_id, one.seq_id) for one in ledger.executed)
    assert not numbers or {*numbers.values()} == {1}
    cancels = Counter(ledger.cancels())
    assert not cancels or {*cancels.values()} == {1}
