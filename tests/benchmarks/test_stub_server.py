"""The stub answers what the clients ask, over both protocols, at the time it says."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

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
