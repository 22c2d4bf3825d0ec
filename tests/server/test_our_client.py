"""Our client on the embedded server, over a socket: ways of it that the official client does not go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from server.engine_double import QuickEngine
from server.hosted import hosted
from server.saved import HandClock

import tinker_async as ta
from tinker_async.local.engine.jobs import ForwardBackward
from tinker_async.local.server.limits import Limits

DATA = [ta.Datum(ta.ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4]})] * 2


async def test_training_data_may_come_as_json(tmp_path: Path) -> None:
    """Forward passes to an endpoint of their own: the same jobs, and the same results."""
    engine = QuickEngine()
    outputs: list[ta.ForwardBackwardOutput] = []
    async with hosted(tmp_path, engine) as server:
        for as_json in (False, True):
            async with server.session() as session:
                if as_json:
                    assert session._parts is not None
                    features = session._parts.caller.features
                    features.learn(ta.Feature.PROTOBUF_TRAINING, False)
                trainer = await session.create_lora_training_client("tiny", rank=4)
                outputs.append(await trainer.forward(DATA, "cross_entropy"))
                outputs.append(await trainer.forward_backward(DATA, "cross_entropy"))
                await trainer.optim_step(ta.AdamParams())
    sent = [job for job in engine.submitted if isinstance(job, ForwardBackward)]
    assert [True, False, True, False] == [job.forward_only for job in sent]
    assert [DATA] * 4 == [job.data for job in sent]
    for protobuf, text in zip(outputs[:2], outputs[2:], strict=True):
        assert protobuf.metrics == text.metrics == {"loss:sum": 1.0}
        for first, second in zip(protobuf.loss_fn_outputs, text.loss_fn_outputs, strict=True):
            np.testing.assert_array_equal([-1.0] * 3, first["logprobs"].to_numpy())
            np.testing.assert_array_equal([-1.0] * 3, second["logprobs"].to_numpy())


async def test_a_checkpoint_is_gone_for_the_client_when_its_time_is_over(tmp_path: Path) -> None:
    """Listed with the time of its end until then; another one's time can be changed."""
    clock, limits = HandClock(), Limits(housekeeping_s=1000.0)
    async with (
        hosted(tmp_path, QuickEngine(), limits, clock=clock) as server,
        server.session() as session,
    ):
        trainer = await session.create_lora_training_client("tiny", rank=4)
        short = (await trainer.save_state("short", ttl_seconds=3600)).path
        long = (await trainer.save_state("long", ttl_seconds=3600)).path
        found = [one async for one in session.rest.list_checkpoints(trainer.model_id)]
        assert {3600.0} == {(one.expires_at - clock.time).total_seconds() for one in found}  # type: ignore[operator]  # they have one
        await session.rest.set_checkpoint_ttl_from_tinker_path(long, None)
        clock.advance(3600)
        left = [one async for one in session.rest.list_checkpoints(trainer.model_id)]
        assert [(long, None)] == [(one.tinker_path, one.expires_at) for one in left]
        with pytest.raises(ta.NotFoundError):
            await session.rest.get_weights_info_by_tinker_path(short)
