"""What the official client says of itself and its session; run as a process of its own.

Usage: python session_conversation.py URL KEY. Prints one JSON object. `test_session_requests.py`
has our client say the same, in the same order.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
import warnings
from typing import Any

import noting  # type: ignore[import-not-found]  # beside this program
import tinker
from tinker import types
from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

warnings.simplefilter("ignore")  # deprecations of the official client's own names

PROMPT = types.ModelInput.from_ints([1, 2, 3, 4])
UNWANTED = 99
"""The seed of the sample that is given up: the server does not finish it."""


def params(seed: int) -> types.SamplingParams:
    return types.SamplingParams(max_tokens=2, seed=seed)


async def give_up(sampler: Any) -> None:
    async def draw() -> None:
        await sampler.sample(PROMPT, 1, params(UNWANTED))

    task = asyncio.ensure_future(draw())
    await asyncio.sleep(1.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def sampling(service: Any, found: dict[str, Any]) -> None:
    sampler = service.create_sampling_client(base_model="toy").result()
    asyncio.run(give_up(sampler))
    found["tokens"] = list(sampler.sample(PROMPT, 2, params(5)).result().sequences[0].tokens)
    clone = pickle.loads(pickle.dumps(sampler))
    found["of_clone"] = list(clone.sample(PROMPT, 1, params(5)).result().sequences[0].tokens)
    found["scores"] = clone.compute_logprobs(PROMPT).result()[1:]


def training(service: Any, found: dict[str, Any]) -> None:
    trainer = service.create_lora_training_client(
        "toy", rank=4, seed=2, train_unembed=False, user_metadata={"run": "one"}
    ).result()
    found["rank"] = trainer.get_info().lora_rank
    path = trainer.save_state("kept").result().path
    trainer.load_state(path).result()
    trainer.load_state_with_optimizer(path, "a-foreign-token").result()


async def healthz(holder: Any) -> str:
    with holder.aclient(ClientConnectionPoolType.TRAIN) as client:
        return str((await client.service.health_check()).status)


def whole(url: str, key: str, found: dict[str, Any]) -> None:
    """A session with all that can be said of it, which ends badly."""
    service = tinker.ServiceClient(
        user_metadata={"purpose": "test"},
        project_id="project-fake",
        display_name="Night run",
        base_url=url,
        api_key=key,
    )
    sampling(service, found)
    training(service, found)
    found["health"] = service.holder.run_coroutine_threadsafe(healthz(service.holder)).result()
    assert noting.beat.wait(60), "no heartbeat was answered"
    service.close("errored", "ZeroDivisionError: because").result()


def plain(url: str, key: str) -> None:
    """A session of which nothing is said, which ends well."""
    with tinker.ServiceClient(base_url=url, api_key=key) as service:
        service.create_sampling_client(base_model="toy").result()


def main() -> None:
    url, key = sys.argv[1:]
    noting.begin()
    found: dict[str, Any] = {}
    whole(url, key, found)
    plain(url, key)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
