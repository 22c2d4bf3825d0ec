"""Which checkpoints may be loaded, and whether what was loaded is what was saved."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import anyio
import msgspec
import numpy as np
import pytest
from cancellation.scene import DATUM, opened
from hypothesis import given
from hypothesis import strategies as st

from tinker_async import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    InternalServerError,
    ModelInput,
    ResponseError,
    RetryPolicy,
    TensorData,
)
from tinker_async.durable.validation import (
    Probe,
    Wanted,
    fingerprint,
    largest_difference,
    objection_to,
    weights_objection,
)
from tinker_async.testing import FakeService, faults

WAYS = ("in process", "HTTP/1.1", "HTTP/2")
ONCE = RetryPolicy(max_attempts=1)
LATER = timedelta(hours=2)


@pytest.mark.parametrize("way", WAYS)
async def test_a_checkpoint_of_the_run_is_fit_and_others_are_not(way: str) -> None:
    """Each fault by itself, the facts being the server's."""
    service = FakeService(hold_s=0.01)
    fits = Wanted(base_model="toy", rank=4, optimizer="adamw")
    with anyio.fail_after(10):
        async with opened(way, service) as session:
            caller = session._any_parts().caller
            trainer = await session.create_lora_training_client("toy", rank=4)
            path = (await trainer.save_state("a")).path
            sampler = (await trainer.save_weights_for_sampler("b")).path
            going = (await trainer.save_state("c")).path
            await session.rest.set_checkpoint_ttl_from_tinker_path(going, 3600)
            listed = (await session.rest.list_checkpoints_page(trainer.model_id)).checkpoints
            assert listed[-1].time is not None
            now: datetime = listed[-1].time  # by the server's own clock
            asked = [
                (path, fits, now, None),
                ("tinker://nonsense", fits, now, "path"),
                (sampler, fits, now, "kind"),
                (f"{path}x", fits, now, "missing"),
                (path, Wanted(base_model="other", rank=4), now, "base_model"),
                (path, Wanted(base_model="toy", rank=8), now, "rank"),
                (path, Wanted(base_model="toy", rank=4, optimizer="dimuon"), now, "optimizer"),
                (going, fits, now, None),
                (going, fits, now + LATER, "expired"),
            ]
            for which, wanted, at, fault in asked:
                found = await objection_to(which, wanted, caller=caller, now=at)
                assert fault == (None if found is None else found.fault), which
                assert found is None or which in str(found)


async def test_what_a_server_does_not_say_is_not_held_against_a_checkpoint() -> None:
    """Without the two endpoints all that is left is the path."""
    service = FakeService(hold_s=0.01)
    for endpoint in ("weights_info", "run_checkpoints"):
        service.faults.on(endpoint, faults.Status(404, detail="Not Found"))
    with anyio.fail_after(10):
        async with service.session(retry=ONCE) as session:
            caller = session._any_parts().caller
            wanted = Wanted(base_model="other", rank=4)
            found = await objection_to(
                "tinker://s1:train:0/weights/a", wanted, caller=caller, now=datetime.now(UTC)
            )

    assert found is None


async def test_a_server_that_cannot_be_asked_is_no_objection() -> None:
    """It is no checkpoint's fault: the error leaves."""
    service = FakeService(hold_s=0.01)
    service.faults.on("weights_info", faults.Status(503))
    with anyio.fail_after(10):
        async with service.session(retry=ONCE) as session:
            caller = session._any_parts().caller
            with pytest.raises(InternalServerError):
                await objection_to(
                    "tinker://s1:train:0/weights/a",
                    Wanted(base_model="toy", rank=4),
                    caller=caller,
                    now=datetime.now(UTC),
                )


@pytest.mark.parametrize("way", WAYS)
async def test_a_probe_tells_whether_the_weights_came_back(way: str) -> None:
    """Bit for bit with the checkpoint's, and not with other weights."""
    service = FakeService(hold_s=0.01)
    with anyio.fail_after(10):
        async with opened(way, service) as session:
            trainer = await session.create_lora_training_client("toy", rank=4)
            await trainer.train_step([DATUM], "cross_entropy", AdamParams(learning_rate=0.1))
            probe = Probe.of([DATUM])
            assert probe is not None
            asked, saved = probe.ask(trainer), trainer.save_state("a")
            recorded, path = fingerprint(await asked), (await saved).path
            kept = msgspec.json.decode(msgspec.json.encode(probe), type=Probe)
            again = await session.create_training_client_from_state_with_optimizer(path)
            found = fingerprint(await kept.ask(again))
            await again.train_step([DATUM], "cross_entropy", AdamParams(learning_rate=0.1))
            other = fingerprint(await kept.ask(again))

    assert recorded == found
    assert weights_objection(path, recorded, found, tolerance=0.0) is None
    objection = weights_objection(path, recorded, other)
    assert objection is not None
    assert "weights" == objection.fault


def test_a_probe_is_of_the_first_datum_that_is_plain_text() -> None:
    """Cut to size; None where there is no such datum."""
    two = Datum(
        ModelInput.from_ints([1, 2]), {"target_tokens": np.array([[1, 2], [3, 4]], dtype=np.int64)}
    )
    sparse = Datum(
        ModelInput.from_ints([1, 2]),
        {"target_tokens": TensorData.from_numpy(np.array([[0, 1], [0, 0]])).compressed()},
    )
    plain = Datum(ModelInput.from_ints(list(range(100))), {"target_tokens": list(range(1, 101))})

    assert Probe((0, 1, 2), (1, 2, 3)) == Probe.of([two, sparse, plain], most_tokens=3)
    assert Probe.of([two, sparse]) is None
    assert Probe.of([]) is None


def test_an_answer_without_log_probs_is_no_fingerprint() -> None:
    """A server that gives none cannot be compared with."""
    answer = ForwardBackwardOutput(loss_fn_output_type="x", loss_fn_outputs=[{}], metrics={})

    with pytest.raises(ResponseError, match="no log-probs"):
        fingerprint(answer)


FLOATS = st.lists(st.floats(width=32), max_size=8)


@given(FLOATS, FLOATS)
def test_rows_that_differ_are_told_apart(left: list[float], right: list[float]) -> None:
    """Zero for the same row, whatever is in it; never NaN; the same both ways."""
    found = largest_difference(left, right)

    assert 0.0 == largest_difference(left, list(left))
    assert found == largest_difference(right, left)
    assert found >= 0.0
    if len(left) != len(right):
        assert math.inf == found


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_an_infinite_difference(value: float) -> None:
    """Weights that blew up are not those of the save."""
    assert math.inf == largest_difference([1.0, 1.0], [1.0, value])
