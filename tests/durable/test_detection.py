"""Signs of a lost run: which failures are any, and what the server says to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from cancellation.scene import DATUM, opened

from tinker_async import AdamParams, Datum, ModelInput, RetryPolicy, Session, TrainingClient
from tinker_async import errors as e
from tinker_async.durable.detection import Detector, Source, source_of
from tinker_async.local.process import local_engine
from tinker_async.renewal import RenewalPolicy, SessionLoss
from tinker_async.testing import FakeService, faults

WAYS = ("in process", "HTTP/1.1", "HTTP/2")
AT_ONCE = RenewalPolicy(backoff_s=0.001, max_backoff_s=0.002)
ONCE = RetryPolicy(max_attempts=1)


def status(
    cls: type[e.APIStatusError], code: int, endpoint: str = "/api/v1/optim_step"
) -> e.TinkerError:
    return cls("x", status=code, endpoint=endpoint, detail="d")


def failed(category: str, cause: BaseException | None = None) -> e.TinkerError:
    error = e.RequestFailedError("x", category=category, request_id="r")
    error.__cause__ = cause
    return error


def in_doubt(error: e.TinkerError) -> e.TinkerError:
    error.delivery_in_doubt = True
    return error


def of_operation(name: str, error: e.TinkerError) -> e.TinkerError:
    error.operation = name
    return error


LOAD = "/api/v1/load_weights"
CASES: list[tuple[BaseException, Source | None]] = [
    (e.SessionLostError("x"), "session"),
    (in_doubt(e.ProtocolError("x")), "poisoned"),
    (in_doubt(status(e.BadRequestError, 400)), "poisoned"),
    (failed("server"), "operation"),
    (failed("unknown"), "operation"),
    (failed("unknown", status(e.NotFoundError, 404)), "operation"),
    (e.PromiseLostError("x", request_id="r"), "operation"),
    (status(e.GoneError, 410), "operation"),
    (status(e.GoneError, 410, LOAD), "operation"),
    (status(e.NotFoundError, 404), "operation"),
    (status(e.InternalServerError, 500), "operation"),
    (status(e.RateLimitError, 429), "operation"),
    (e.ConnectError("x"), "operation"),
    (e.RequestTimeoutError("x"), "operation"),
    (e.ResponseError("x", endpoint="e"), "operation"),
    # The user's
    (e.InvalidInputError("x", field="data"), None),
    (failed("user"), None),
    (failed("unknown", status(e.BadRequestError, 400)), None),
    (of_operation("load_state", failed("unknown", status(e.NotFoundError, 404))), None),
    (status(e.NotFoundError, 404, LOAD), None),
    (status(e.BadRequestError, 400), None),
    (status(e.ConflictError, 409), None),
    (status(e.UnprocessableEntityError, 422), None),
    (status(e.AuthenticationError, 401), None),
    (status(e.BillingError, 402), None),
    (status(e.PermissionDeniedError, 403), None),
    (e.OperationWithdrawnError("x"), None),
    (e.SessionClosedError("x"), None),
    (e.CredentialError("x"), None),
    (ZeroDivisionError("of the user's loss"), None),
]


@pytest.mark.parametrize(("error", "source"), CASES, ids=[repr(one)[:60] for one, _ in CASES])
def test_a_failure_is_a_sign_only_if_a_new_run_can_help(
    error: BaseException, source: Source | None
) -> None:
    """The user's errors never are."""
    assert source == source_of(error)


@asynccontextmanager
async def watched(
    service: FakeService, way: str = "in process", poll_s: float = 30.0
) -> AsyncGenerator[tuple[Session, TrainingClient, Detector]]:
    """A session, a model of it, and its detector."""
    async with opened(way, service, retry=ONCE) as session:
        renewal, caller = session._renewal, session._any_parts().caller
        assert renewal is not None
        detectors: list[Detector] = []

        def lost(loss: SessionLoss) -> None:
            detectors[0].note_loss(loss)

        with renewal.seat(AT_ONCE, lost) as seat:
            trainer = await session.create_lora_training_client("toy", rank=4)
            detector = Detector(trainer.model_id, caller=caller, seat=seat, poll_interval_s=poll_s)
            detectors.append(detector)
            yield session, trainer, detector


async def failure_of(trainer: TrainingClient) -> BaseException:
    """What the next operation fails with."""
    with pytest.raises(e.TinkerError) as caught:
        await trainer.optim_step(AdamParams())
    return caught.value


@pytest.mark.parametrize("way", WAYS)
async def test_a_corrupted_run_is_found_by_its_failing_operation(way: str) -> None:
    """One operation fails, one read confirms it."""
    service = FakeService(hold_s=0.01)
    service.faults.on("optim_step", faults.Corrupts())
    with anyio.fail_after(10):
        async with watched(service, way) as (_, trainer, detector):
            assert detector.note_failure(await failure_of(trainer))
            suspicion = await detector.suspected()
            finding = await detector.confirm(suspicion)

    assert ("operation", "optim_step") == (suspicion.source, suspicion.operation)
    assert ("lost", "corrupted") == (finding.state, finding.source)
    assert 1 == len(service.ledger.of("training_run"))


async def test_a_corrupted_run_that_does_nothing_is_found_by_polling() -> None:
    """The backstop."""
    service = FakeService(hold_s=0.01)
    with anyio.fail_after(10):
        async with watched(service, poll_s=0.001) as (_, trainer, detector):
            service.corrupt(trainer.model_id)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(detector.poll)
                suspicion = await detector.suspected()
                tasks.cancel_scope.cancel()
            finding = await detector.confirm(suspicion)

    assert "corrupted" == suspicion.source
    assert "lost" == finding.state


async def test_a_poll_that_fails_is_told_and_means_nothing() -> None:
    """The next one is made all the same."""
    service = FakeService(hold_s=0.01)
    told: list[str] = []
    with anyio.fail_after(10):
        async with watched(service, poll_s=0.001) as (_, trainer, detector):
            service.faults.on("training_run", faults.Status(503), times=2)
            service.corrupt(trainer.model_id)
            detector._on_poll_error = lambda error: told.append(type(error).__name__)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(detector.poll)
                await detector.suspected()
                tasks.cancel_scope.cancel()

    assert 2 * ["InternalServerError"] == told


async def test_a_false_alarm_is_cleared() -> None:
    """The operation failed, the run is well: later signs count again."""
    service = FakeService(hold_s=0.01)
    service.faults.on("optim_step", faults.OperationFails(), times=1)
    with anyio.fail_after(10):
        async with watched(service) as (_, trainer, detector):
            assert detector.note_failure(await failure_of(trainer))
            assert "healthy" == (await detector.confirm(await detector.suspected())).state
            detector.all_clear()
            assert detector.suspicion is None
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(detector.suspected)
                await anyio.wait_all_tasks_blocked()  # it waits, and does not spin
                tasks.cancel_scope.cancel()
            await trainer.optim_step(AdamParams())
            service.corrupt(trainer.model_id)
            assert detector.note_failure(await failure_of(trainer))
            assert "lost" == (await detector.confirm(await detector.suspected())).state


async def test_a_poisoned_lane_is_certain() -> None:
    """The server says that the run is well, which helps nobody: its order is lost here."""
    service = FakeService(hold_s=0.01)
    service.faults.on("optim_step", faults.DropReply())
    with anyio.fail_after(10):
        async with watched(service) as (_, trainer, detector):
            assert detector.note_failure(await failure_of(trainer))
            suspicion = await detector.suspected()
            finding = await detector.confirm(suspicion)

    assert ("poisoned", True) == (suspicion.source, suspicion.is_certain)
    assert ("lost", "poisoned") == (finding.state, finding.source)
    assert [] == service.ledger.of("get_info")


@pytest.mark.parametrize("way", WAYS)
async def test_an_operation_refused_with_the_session_leads_to_its_renewal(way: str) -> None:
    """410: the confirmation finds that the session is over, and it is being renewed."""
    service = FakeService(hold_s=0.01)
    service.faults.on("optim_step", faults.EndsSession(), times=1)
    with anyio.fail_after(10):
        async with watched(service, way) as (session, trainer, detector):
            old = session.session_id
            assert detector.note_failure(await failure_of(trainer))
            finding = await detector.confirm(await detector.suspected())
            assert ("lost", "session") == (finding.state, finding.source)
            assert "session" == (await detector.suspected()).source
            await detector._seat.usable()
            assert old != session.session_id


async def test_a_model_that_is_gone_without_its_session_is_lost() -> None:
    """Another one can be made in the same session."""
    service = FakeService(hold_s=0.01)
    with anyio.fail_after(10):
        async with watched(service) as (session, trainer, detector):
            await trainer.unload_model()
            assert detector.note_failure(await failure_of(trainer))
            finding = await detector.confirm(await detector.suspected())
            assert await session.create_lora_training_client("toy", rank=4)

    assert ("lost", "operation") == (finding.state, finding.source)
    assert 1 == len(service.ledger.of("create_session"))


async def test_a_server_that_says_nothing_leaves_it_open() -> None:
    """Ask again later."""
    service = FakeService(hold_s=0.01)
    service.faults.on("optim_step", faults.OperationFails())
    service.faults.on("get_info", faults.Reset(), times=1)
    with anyio.fail_after(10):
        async with watched(service) as (_, trainer, detector):
            assert detector.note_failure(await failure_of(trainer))
            suspicion = await detector.suspected()
            assert "unreachable" == (await detector.confirm(suspicion)).state
            assert "healthy" == (await detector.confirm(suspicion)).state


async def test_a_users_error_asks_nobody() -> None:
    """Refused here, or by the server: no sign, no read."""
    service = FakeService(hold_s=0.01)
    wrong = Datum(ModelInput.from_ints([1]), {"target_tokens": [1, 2]})
    service.faults.on("forward_backward", faults.OperationFails(category="user"))
    with anyio.fail_after(10):
        async with watched(service) as (_, trainer, detector):
            with pytest.raises(e.InvalidInputError) as here:
                trainer.forward_backward([wrong], "cross_entropy")
            with pytest.raises(e.RequestFailedError) as there:
                await trainer.forward_backward([DATUM], "cross_entropy")
            assert not detector.note_failure(here.value)
            assert not detector.note_failure(there.value)
            assert detector.suspicion is None

    assert [] == service.ledger.of("get_info") + service.ledger.of("training_run")


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_server_that_was_killed_and_started_again_is_found_out(tmp_path: Path) -> None:
    """A real one, over its socket: the operation fails, the session is over, and goes on anew."""
    losses: list[SessionLoss] = []
    patient = RetryPolicy(base_s=0.05, max_s=0.2)
    with anyio.fail_after(180):
        async with (
            local_engine(model="tiny-llama", data_dir=tmp_path, threads=1) as engine,
            Session(engine.url, engine.api_key, retry=patient) as session,
        ):
            renewal = session._renewal
            assert renewal is not None
            with renewal.seat(AT_ONCE, losses.append) as seat:
                trainer = await session.create_lora_training_client("tiny-llama", rank=4)
                saved = await trainer.save_state("a")
                detector = Detector(trainer.model_id, caller=session._any_parts().caller, seat=seat)
                engine.process.kill()
                await engine.process.wait()
                step = trainer.optim_step(AdamParams())
                await engine.start_again()
                with pytest.raises(e.TinkerError) as caught:
                    await step
                assert detector.note_failure(caught.value)
                finding = await detector.confirm(await detector.suspected())
                await seat.usable()
                again = await session.create_training_client_from_state_with_optimizer(saved.path)
                await again.optim_step(AdamParams())

    assert ("lost", "session") == (finding.state, finding.source)
    assert ["ended"] == [one.cause for one in losses]
