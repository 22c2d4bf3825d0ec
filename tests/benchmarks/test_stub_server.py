"""The stub answers what the clients ask, over both protocols, at the time it says."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest

import tinker_async as ta

if TYPE_CHECKING:
    from .conftest import Stub

BOUND_S = 30


def session_with(stub: Stub, way: str) -> ta.Session:
    if way == "tls":
        context = ssl.create_default_context(cafile=stub.authority)
        return ta.Session(f"https://127.0.0.1:{stub.tls}", "tml-key", ssl_context=context)
    return ta.Session(f"http://127.0.0.1:{stub.plain}", "tml-key", http2=way == "h2c")


@pytest.mark.parametrize("way", ["tls", "h2c", "http1"])
async def test_it_serves_samples_and_large_training_calls(stub: Stub, way: str) -> None:
    """The answer is larger than the windows of a stream and of a frame."""
    with anyio.fail_after(BOUND_S):
        async with session_with(stub, way) as session:
            sampler = await session.create_sampling_client(base_model="stub-7-tokens-20-ms")
            response = await sampler.sample(ta.ModelInput.from_ints([1, 2, 3]))
            trainer = await session.create_lora_training_client("stub")
            tokens = np.arange(40_000, dtype=np.int32)
            inputs = {"target_tokens": tokens.astype(np.int64), "weights": np.ones(40_000)}
            datum = ta.Datum(ta.ModelInput.from_ints(tokens), inputs)
            output = await trainer.forward_backward([datum] * 2, "cross_entropy")
            await trainer.optim_step(ta.AdamParams())
    assert [7] == [len(sequence.tokens) for sequence in response.sequences]
    assert [(40_000,)] * 2 == [o["logprobs"].to_numpy().shape for o in output.loss_fn_outputs]


async def test_it_serves_durable_training(stub: Stub, tmp_path: Path) -> None:
    """Checkpoints with their probes, the deletion of older ones, and what is asked of the run."""
    policy = ta.CheckpointPolicy(save_every=2, keep_last=1, on_exit=False)
    recovery = ta.RecoveryPolicy(enabled=True, poll_interval_s=0.001, fallback=0)
    inputs: dict[str, Any] = {"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]}
    datum = ta.Datum(ta.ModelInput.from_ints([1, 2, 3]), inputs)
    with anyio.fail_after(BOUND_S):
        async with (
            session_with(stub, "tls") as session,
            session.durable_training(
                tmp_path, base_model="stub", checkpoints=policy, recovery=recovery
            ) as trainer,
        ):
            for step in trainer.steps(6):
                trainer.forward_backward([datum], "cross_entropy")
                await trainer.optim_step(ta.AdamParams())
                if step % 2:
                    await trainer.saved()
            run = await session.rest.get_training_run(trainer.model_id)
    account = ta.Ledger.read(tmp_path)
    assert ["deleted", "deleted", "confirmed"] == [entry.status for entry in account.entries]
    assert account.confirmed[-1].fingerprint is not None
    assert not run.corrupted
    assert () == account.recoveries
