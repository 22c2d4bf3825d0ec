"""A server's content for the tests of the commands: a session, its run and its checkpoints."""

from __future__ import annotations

from typing import NamedTuple

import anyio

import tinker_async as ta
from tinker_async.testing import FakeService

DATUM = ta.Datum(ta.ModelInput.from_ints([5, 6]), {"target_tokens": [6, 7]})


class Seeded(NamedTuple):
    """What is there."""

    session_id: str
    run: str
    training: list[str]
    """Paths, oldest first."""
    sampler: str
    external: str

    @property
    def paths(self) -> list[str]:
        """Of all, oldest first."""
        return [*self.training, self.sampler, self.external]


def seed(url: str, key: str, model: str = FakeService().base_model) -> Seeded:
    """Train a little and save: three checkpoints for training, one for sampling, one external."""

    async def work() -> Seeded:
        async with ta.Session(
            url, key, display_name="Alpha one", user_metadata={"who": "me"}
        ) as session:
            trainer = await session.create_lora_training_client(model, rank=4)
            training = []
            for name in "abc":
                await trainer.train_step([DATUM], "cross_entropy", ta.AdamParams())
                training.append((await trainer.save_state(name)).path)
            sampler = (await trainer.save_weights_for_sampler("s")).path
            external = (await trainer.save_weights_external("e")).path
            return Seeded(session.session_id, trainer.model_id, training, sampler, external)

    return anyio.run(work)
