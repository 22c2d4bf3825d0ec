"""A lost session is opened again under its block, for those who asked for it, and for nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from cancellation.cut import Cut, When
from cancellation.scene import DATUM, QUICK, opened, tasks_of_the_client, until
from support.scripted import scripted_server

from tinker_async import (
    AdamParams,
    ModelInput,
    RetryPolicy,
    SamplingParams,
    Session,
    SessionClosedError,
    SessionLostError,
    TinkerError,
)
from tinker_async.renewal import Renewal, RenewalPolicy, SessionLoss
from tinker_async.testing import FakeService, faults
from tinker_async.wire.messages import ClientConfigResponse

WAYS = ("in process", "HTTP/1.1", "HTTP/2")
AT_ONCE = RenewalPolicy(max_attempts=3, backoff_s=0.001, max_backoff_s=0.002)
PROMPT = ModelInput.from_ints([1, 2])
PARAMS = SamplingParams(max_tokens=2, seed=1, stop=[])


def renewal_of(session: Session) -> Renewal:
    """What durable runs are given."""
    assert session._renewal is not None
    return session._renewal


@pytest.fixture
def fast_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats that notice at once."""
    monkeypatch.setattr("tinker_async.session._HEARTBEAT_S", 0.01)


@pytest.fixture
def service() -> FakeService:
    """A server of this test's own."""
    return FakeService(hold_s=0.01)


class Ear:
    """What a seat was told."""

    def __init__(self) -> None:
        self.losses: list[SessionLoss] = []
        self._told = anyio.Event()

    def hear(self, loss: SessionLoss) -> None:
        self.losses.append(loss)
        self._told.set()

    async def next(self) -> SessionLoss:
        """Wait for a loss that was not waited for before."""
        await self._told.wait()
        self._told = anyio.Event()
        return self.losses[-1]


@pytest.mark.usefixtures("fast_beats")
@pytest.mark.parametrize("way", WAYS)
async def test_a_session_that_the_server_ended_goes_on_under_a_new_id(
    service: FakeService, way: str
) -> None:
    """The block is not disturbed; the seat hears of the loss, then that it can go on."""
    ear = Ear()
    with anyio.fail_after(10):
        async with opened(way, service) as session:
            with renewal_of(session).seat(AT_ONCE, ear.hear) as seat, session.events() as told:
                old = session.session_id
                trainer = await session.create_lora_training_client("toy", rank=4)
                path = (await trainer.save_state("a")).path
                service.end_session(old)
                loss = await ear.next()
                assert 1 == await seat.usable()
                again = await session.create_training_client_from_state_with_optimizer(path)
                await again.optim_step(AdamParams())
                new = session.session_id
                async for event in told:
                    if type(event).__name__ == "SessionRenewed":
                        break

    assert new != old
    assert [loss] == ear.losses
    assert (old, "ended") == (loss.session_id, loss.cause)
    assert (event.lost_session_id, event.session_id, event.attempts) == (old, new, 1)  # type: ignore[union-attr]  # it is that event
    finished = {one.session_id: one.status for one in service.ledger.of("finish")}
    assert finished[new] == 200
    assert service.state.sessions[new].ended == "success"


@pytest.mark.usefixtures("fast_beats")
async def test_without_a_seat_the_loss_ends_the_block(service: FakeService) -> None:
    """As it always did; also when there was a seat, whose owner has left."""
    with anyio.fail_after(10), pytest.raises(SessionLostError, match="ended by the test"):
        async with service.session(retry=QUICK) as session:
            with renewal_of(session).seat():
                pass
            service.end_session(session.session_id)
            await anyio.sleep_forever()

    assert 1 == len(service.ledger.of("create_session"))


@pytest.mark.parametrize("way", WAYS)
async def test_clients_of_the_lost_session_fail_as_such(service: FakeService, way: str) -> None:
    """What was queued, what is asked for later, and what is created meanwhile."""
    for endpoint in ("forward_backward", "asample"):
        service.faults.on(endpoint, faults.Stall())
    with anyio.fail_after(10):
        async with opened(way, service) as session:
            with renewal_of(session).seat(AT_ONCE) as seat:
                create = session.create_lora_training_client
                trainer = await create("toy", rank=4)
                sampler = await session.create_sampling_client(base_model="toy")
                queued = trainer.forward_backward([DATUM], "cross_entropy")
                drawn = sampler.submit_sample(PROMPT, PARAMS)
                with anyio.move_on_after(0.05):
                    await drawn  # long enough for both to arrive
                service.faults.on("create_session", faults.Stall(seconds=0.05))
                service.end_session(session.session_id)
                assert not await seat.confirm()
                assert session.health().state == "lost"
                with pytest.raises(SessionLostError):
                    await create("toy", rank=4)
                await seat.usable()
                for future in (queued, drawn):
                    with pytest.raises(SessionLostError, match="is over"):
                        await future
                with pytest.raises(SessionLostError, match="make other clients anew"):
                    trainer.optim_step(AdamParams())
                with pytest.raises(SessionLostError):
                    await sampler.sample(PROMPT, PARAMS)
                with pytest.raises(SessionLostError):
                    sampler.submit_sample(PROMPT, PARAMS)
                assert session.health().state == "ok"


async def test_a_client_that_was_being_made_meanwhile_is_one_of_the_lost_session(
    service: FakeService,
) -> None:
    """Its model was made, and its result came when the session was over."""
    caught: list[BaseException] = []
    with anyio.fail_after(10):
        async with service.session(retry=QUICK) as session:
            with renewal_of(session).seat(AT_ONCE) as seat:
                service.faults.on("retrieve_future", faults.Stall(seconds=0.05, commit=True))

                async def make() -> None:
                    with pytest.raises(SessionLostError) as error:
                        await session.create_lora_training_client("toy", rank=4)
                    caught.append(error.value)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(make)
                    with anyio.move_on_after(0.02):
                        await anyio.sleep_forever()
                    service.end_session(session.session_id)
                    assert not await seat.confirm()
                    await seat.usable()
                assert {} == session.statistics().lanes

    assert 1 == len(caught)


async def test_a_failure_that_nobody_saw_is_raised_at_the_end(service: FakeService) -> None:
    """A loss that was survived hides no operation of somebody else."""
    service.faults.on("optim_step", faults.Stall())
    with anyio.fail_after(10), pytest.raises(SessionLostError, match="is over"):
        async with service.session(retry=QUICK) as session:
            with renewal_of(session).seat(AT_ONCE) as seat:
                trainer = await session.create_lora_training_client("toy", rank=4)
                trainer.optim_step(AdamParams())
                service.end_session(session.session_id)
                assert not await seat.confirm()
                await seat.usable()


async def test_a_session_that_lives_is_confirmed(service: FakeService) -> None:
    """One heartbeat, now; and a server that says nothing raises what it said instead."""
    with anyio.fail_after(10):
        async with service.session(retry=QUICK) as session:
            with renewal_of(session).seat(AT_ONCE) as seat:
                assert await seat.confirm()
                service.faults.on("session_heartbeat", faults.Status(503))
                with pytest.raises(TinkerError, match="503"):
                    await seat.confirm()
                assert (0, None) == (await seat.usable(), seat.loss)

    assert 2 == len(service.ledger.of("session_heartbeat"))


async def test_a_server_that_forgot_the_session_has_lost_it(service: FakeService) -> None:
    """404 after a restart without a memory, but not where there is no such endpoint."""
    service.faults.on("session_heartbeat", faults.Status(404, detail="Not Found"), times=1)
    with anyio.fail_after(10):
        async with service.session(retry=QUICK) as session:
            with renewal_of(session).seat(AT_ONCE) as seat:
                with pytest.raises(TinkerError, match="404"):
                    await seat.confirm()
                assert await seat.confirm()
                service.faults.on("session_heartbeat", faults.Status(404, detail="Not Found"))
                assert not await seat.confirm()
                loss = seat.loss
                assert 1 == await seat.usable()

    assert loss is not None
    assert loss.cause == "unknown"


async def test_openings_that_fail_are_tried_again(service: FakeService) -> None:
    """As often as the policy says, and each once."""
    once = RetryPolicy(max_attempts=1)
    with anyio.fail_after(10):
        async with service.session(retry=once) as session:
            with renewal_of(session).seat(AT_ONCE) as seat:
                service.faults.on("create_session", faults.Status(503), times=2)
                service.end_session(session.session_id)
                assert not await seat.confirm()
                assert 1 == await seat.usable()

    assert [200, 503, 503, 200] == [one.status for one in service.ledger.of("create_session")]


@pytest.mark.parametrize("fault", [faults.Status(503), faults.Status(401)])
async def test_who_waits_hears_that_it_cannot_be_opened_again(
    service: FakeService, fault: faults.Status
) -> None:
    """And the block goes on: what to raise is the waiter's business. 401 is not tried again."""
    once = RetryPolicy(max_attempts=1)
    with anyio.fail_after(10):
        async with service.session(retry=once) as session:
            renewal = renewal_of(session)
            with renewal.seat(AT_ONCE) as seat:
                service.faults.on("create_session", fault)
                service.end_session(session.session_id)
                assert not await seat.confirm()
                with pytest.raises(SessionLostError, match="could not be opened again") as caught:
                    await seat.usable()
            with pytest.raises(SessionLostError), renewal.seat():
                pass
            with pytest.raises(SessionLostError):
                await session.create_sampling_client(base_model="toy")
            assert session.health().state == "lost"

    assert str(fault.status) in str(caught.value.__cause__)
    assert 1 + (3 if fault.status == 503 else 1) == len(service.ledger.of("create_session"))


async def test_where_nobody_waits_the_block_ends(service: FakeService) -> None:
    """Silence would be the worst result."""
    once = RetryPolicy(max_attempts=1)
    with anyio.fail_after(10), pytest.raises(SessionLostError, match="could not be opened again"):
        async with service.session(retry=once) as session:
            with renewal_of(session).seat(AT_ONCE) as seat:
                service.faults.on("create_session", faults.Status(503))
                service.end_session(session.session_id)
                assert not await seat.confirm()
                await anyio.sleep_forever()


async def test_a_cancelled_session_is_not_brought_back(service: FakeService) -> None:
    """Who cancels a session from the console means it."""
    with anyio.fail_after(10):
        async with service.session(retry=QUICK) as session:
            with renewal_of(session).seat(AT_ONCE) as seat:
                service.end_session(session.session_id, "cancelled")
                assert not await seat.confirm()
                with pytest.raises(SessionLostError, match="cancelled from the console"):
                    await seat.usable()

    assert 1 == len(service.ledger.of("create_session"))


async def test_an_id_is_never_used_twice() -> None:
    """A server that counts from the beginning again would mix old requests with new ones."""
    gone = (410, {"content-type": "application/json"}, b'{"detail": "gone"}')
    with anyio.fail_after(10):
        async with scripted_server() as server, Session(server.url, "tml-x") as session:
            server.on("session_heartbeat", lambda _: gone)
            with renewal_of(session).seat(AT_ONCE) as seat:
                assert not await seat.confirm()
                with pytest.raises(SessionLostError, match="id of a lost session again: s1"):
                    await seat.usable()

    assert 1 + AT_ONCE.max_attempts == len(server.seen("create_session"))


@pytest.mark.usefixtures("fast_beats")
async def test_a_refused_credential_ends_the_block(service: FakeService) -> None:
    """A new session would be refused as well."""
    with anyio.fail_after(10), pytest.raises(SessionLostError, match="credential"):
        async with service.session(retry=QUICK) as session:
            with renewal_of(session).seat(AT_ONCE):
                service.faults.on("session_heartbeat", faults.Status(401))
                await anyio.sleep_forever()


async def test_a_session_survives_again_and_again(service: FakeService) -> None:
    """No id twice, and no task of those before is left."""
    with anyio.fail_after(10):
        async with service.session(retry=QUICK) as session:
            with renewal_of(session).seat(AT_ONCE) as seat:
                await anyio.wait_all_tasks_blocked()
                tasks = tasks_of_the_client()
                ids = [session.session_id]
                for number in range(1, 6):
                    service.end_session(session.session_id)
                    assert not await seat.confirm()
                    assert number == await seat.usable()
                    ids.append(session.session_id)
                await anyio.wait_all_tasks_blocked()
                assert tasks == tasks_of_the_client()

    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("uploads", [True, False])
async def test_a_traced_loss_can_be_adopted_by_the_new_session(uploads: bool) -> None:
    """It is sent again, where the server runs it, and not traced again."""
    pytest.importorskip("torch")
    config = ClientConfigResponse(parallel_fwdbwd_chunks=True, custom_loss_server_side=uploads)
    service, calls = FakeService(hold_s=0.01, config=config), []

    def loss(logprobs: Any) -> Any:
        calls.append(logprobs)
        return -logprobs.sum(), {}

    with anyio.fail_after(20):
        async with service.session(retry=QUICK) as session:
            with renewal_of(session).seat(AT_ONCE) as seat:
                old = await session.create_custom_loss(loss, {"logprobs": 1})
                traced = len(calls)
                service.end_session(session.session_id)
                assert not await seat.confirm()
                await seat.usable()
                new = await session._open_parts().custom_losses.adopt(old)
                again = await session._open_parts().custom_losses.adopt(new)
                trainer = await session.create_lora_training_client("toy", rank=4)
                await trainer.forward_backward_custom([DATUM], new)

    assert again is new
    assert new.session_id != old.session_id
    assert 2 * uploads == service.ledger.count("create_custom_loss")
    assert traced == len(calls)


# Cut short


MOST_WAITS = 60


@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("way", ["in process", "HTTP/2"])
async def test_a_renewal_can_be_cut_short_at_each_of_its_waits(when: When, way: str) -> None:
    """The block is cancelled at every wait of the renewal; nothing is left behind."""
    service = FakeService(hold_s=0.01)
    with anyio.fail_after(60):
        async with service.serve() as url:
            await anyio.wait_all_tasks_blocked()
            tasks = tasks_of_the_client()
            for at in range(1, MOST_WAITS):
                cut = Cut(at, when)
                with anyio.CancelScope() as scope:
                    if way == "in process":
                        session = service.session(retry=QUICK)
                    else:
                        session = Session(url, service.api_key, http2=True, retry=QUICK)
                    async with session:
                        await _renewed(session, service, cut, scope)
                await until(lambda: tasks == tasks_of_the_client(), tasks_of_the_client)
                live = [one for one in service.state.sessions.values() if one.ended is None]
                # One whose opening was cut before its answer came is the server's to forget.
                assert len(live) <= 1
                for one in live:
                    service.end_session(one.id)
                if not cut.happened:
                    break
            else:
                pytest.fail("the renewal does not come to an end")
    assert at > 3


async def _renewed(
    session: Session, service: FakeService, cut: Cut, scope: anyio.CancelScope
) -> None:
    """Lose a session, and wait for the next one, or for the cut."""
    renewal = renewal_of(session)
    renewal._renew = _driven(renewal._renew, cut, scope)  # type: ignore[method-assign,assignment]  # the same, but counted
    with renewal.seat(AT_ONCE) as seat:
        service.end_session(session.session_id)
        assert not await seat.confirm()
        await seat.usable()


def _driven(
    work: Callable[[SessionLoss], Awaitable[None]], cut: Cut, scope: anyio.CancelScope
) -> Callable[[SessionLoss], Any]:
    cut.scope = scope

    async def counted(loss: SessionLoss) -> None:
        await cut.drive(work(loss))

    return counted


# The embedded engine: its start takes seconds, so each test has one event loop or two in all


on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])
on_trio = pytest.mark.parametrize("anyio_backend", ["trio"])


def children() -> set[int]:
    """Ids of this process's children, zombies included."""
    tasks = Path(f"/proc/{os.getpid()}/task")
    return {
        int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()
    }


def kill_engine(session: Session) -> None:
    """End the engine's process as a crash does."""
    engine = renewal_of(session)._engine
    assert engine is not None
    os.kill(engine.process.pid, signal.SIGKILL)


@on_asyncio
async def test_a_killed_engine_is_started_again_in_its_place(tmp_path: Path) -> None:
    """Same address and folder: a checkpoint of before is there, with its optimizer."""
    before, ear = children(), Ear()
    datum = DATUM
    with anyio.fail_after(120):
        async with Session.local("tiny-llama", threads=1, data_dir=tmp_path) as session:
            url = session.server.base_url
            with renewal_of(session).seat(AT_ONCE, ear.hear) as seat:
                trainer = await session.create_lora_training_client("tiny-llama", rank=4, seed=1)
                await trainer.train_step([datum], "cross_entropy", AdamParams(learning_rate=1e-2))
                path = (await trainer.save_state("a")).path
                wanted = (await trainer.forward([datum], "cross_entropy")).metrics["loss:sum"]
                kill_engine(session)
                assert "process" == (await ear.next()).cause
                assert 1 == await seat.usable()
                again = await session.create_training_client_from_state_with_optimizer(path)
                found = (await again.forward([datum], "cross_entropy")).metrics["loss:sum"]
                assert wanted == found
                assert url == session.server.base_url
                assert 1 == len(children() - before)
    assert before == children()


@on_trio
async def test_an_engine_without_a_folder_is_not_started_again() -> None:
    """Its checkpoints ended with it: the error says what to do."""
    with anyio.fail_after(120), pytest.raises(SessionLostError, match="data_dir"):
        async with Session.local("tiny-llama", threads=1) as session:
            with renewal_of(session).seat(AT_ONCE):
                kill_engine(session)
                await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("anyio_backend", "moment"), [("asyncio", "loading tiny-llama"), ("trio", "opened")]
)
async def test_an_engine_that_is_being_started_again_ends_with_the_block(
    tmp_path: Path, moment: str
) -> None:
    """Cancelled while it loads: no process is left, and no task."""
    before, tasks, ear = children(), tasks_of_the_client(), Ear()
    lines: list[str] = []
    with anyio.fail_after(120), anyio.CancelScope() as scope:

        def heard(line: str) -> None:
            lines.append(line)
            if lines.count(moment) == 2:
                scope.cancel()

        async with Session.local(
            "tiny-llama", threads=1, data_dir=tmp_path, progress=heard
        ) as session:
            with renewal_of(session).seat(AT_ONCE, ear.hear) as seat:
                kill_engine(session)
                await ear.next()
                if moment == "opened":
                    scope.cancel()
                await seat.usable()
    assert scope.cancelled_caught
    assert before == children()
    assert tasks == tasks_of_the_client()


SCRIPT = """
import os, signal, sys, anyio, tinker_async as ta
from tinker_async.renewal import RenewalPolicy

def heard(line):
    seen.append(line)
    if seen.count("loading tiny-llama") == 2:
        print("again", flush=True)

seen = []

async def main():
    local = ta.Session.local("tiny-llama", threads=1, data_dir=sys.argv[1], progress=heard)
    async with local as session:
        with session._renewal.seat(RenewalPolicy()) as seat:
            os.kill(session._renewal._engine.process.pid, signal.SIGKILL)
            while seat.loss is None:
                await anyio.sleep(0.01)
            await seat.usable()
            await anyio.sleep_forever()

anyio.run(main, backend="BACKEND")
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_while_the_engine_is_started_again_leaves_nothing(
    tmp_path: Path, backend: str
) -> None:
    """SIGINT to the whole foreground group, as a terminal sends it."""
    script = SCRIPT.replace("BACKEND", backend)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert "again\n" in process.stdout  # reads up to it: logs come before
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)

    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of its group is alive


async def test_a_seat_outside_the_block_is_refused(service: FakeService) -> None:
    """As every other use of a session that is over."""
    async with service.session() as session:
        pass
    with pytest.raises(SessionClosedError):
        await session.create_sampling_client(base_model="toy")
