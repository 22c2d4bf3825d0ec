"""zstd and the embedded server: it takes compressed data, though it never asks for them."""

from __future__ import annotations

import anyio
import numpy as np
import zstandard
from support.embedded_engine import Engine

from tinker_async import Datum, ModelInput
from tinker_async.background.compression import Compression


async def test_compressed_data_give_the_same_result(engine: Engine) -> None:
    """Log-probs and loss of the same batch, once in zstd and once not."""
    tokens = np.arange(64) % 50
    batch = [Datum(ModelInput.from_ints(tokens), {"target_tokens": tokens})] * 3
    with anyio.fail_after(60):
        async with engine.session() as session:
            trainer = await session.create_lora_training_client(engine.model, rank=4, seed=1)
            plain = await trainer.forward(batch, "cross_entropy")
            compression = Compression(zstandard, least_bytes=0)
            trainer._lane.compression = compression
            compressed = await trainer.forward(batch, "cross_entropy")

    assert plain.loss_fn_outputs == compressed.loss_fn_outputs
    assert plain.metrics["loss:sum"] == compressed.metrics["loss:sum"]
