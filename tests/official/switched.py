"""What the official client does when the server's switches are on; run as a process of its own.

Usage: python switched.py URL KEY. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
import time
import warnings
from typing import Any

import noting  # type: ignore[import-not-found]  # beside this program
import tinker
from tinker import types
from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

warnings.simplefilter("ignore")  # deprecations of the official client's own names

PROMPT = types.ModelInput.from_ints([17, 230, 5, 99, 41, 180, 7, 66])
FEW = types.SamplingParams(max_tokens=3)
FOREVER = types.SamplingParams(max_tokens=2000, stop=[])


def many(sampler: Any) -> list[int]:
    under_way = [
        sampler.sample(prompt=PROMPT, num_samples=2, sampling_params=FEW) for _ in range(40)
    ]
    return [len(one.result().sequences) for one in under_way]


def failing(sampler: Any) -> str:
    wrong = types.SamplingParams(max_tokens=3, stop=[9999])
    try:
        sampler.sample(prompt=PROMPT, num_samples=1, sampling_params=wrong).result()
    except tinker.RequestFailedError as error:
        return f"{error.category}: {error}"
    return "nothing failed"


async def abandoned(sampler: Any) -> float:
    """Give up samples that would take minutes; return how long a short one takes after that."""

    async def draw() -> None:
        await sampler.sample_async(prompt=PROMPT, num_samples=16, sampling_params=FOREVER)

    tasks = [asyncio.ensure_future(draw()) for _ in range(4)]
    await asyncio.sleep(1.0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    start = time.monotonic()
    await sampler.sample_async(prompt=PROMPT, num_samples=1, sampling_params=FEW)
    return time.monotonic() - start


def about_prompts(sampler: Any) -> dict[str, Any]:
    """Ask for everything about a prompt at once."""
    wanted = types.TensorData(data=[3, -1] * 7, dtype="int64", shape=[7, 2])
    response = sampler.sample(
        prompt=PROMPT,
        num_samples=1,
        sampling_params=FEW,
        include_prompt_logprobs=True,
        topk_prompt_logprobs=259,
        topk_sample_logprobs=3,
        target_prompt_logprobs=wanted,
        prompt_alt_tokens_k=4,
        prompt_logprobs_last_n=2,
    ).result()
    alternatives = response.prompt_alt_tokens
    whole = sampler.sample(
        prompt=PROMPT, num_samples=1, sampling_params=FEW,
        include_prompt_logprobs=True, topk_prompt_logprobs=259,
    ).result()  # fmt: skip
    return {
        "named": response.target_prompt_logprobs.to_numpy().tolist(),
        "of_3": [dict(row)[3] for row in whole.topk_prompt_logprobs[1:]],
        "alternatives": list(alternatives.tokens.to_numpy().shape),
        "alternative_logprobs": float(alternatives.logprobs.to_numpy().max()),
        "prompt_logprobs": response.prompt_logprobs,
        "topk_of_samples": [len(row) for row in response.sequences[0].topk_logprobs],
    }


def datum() -> types.Datum:
    inputs: Any = {"target_tokens": [230, 5, 99, 41, 180, 7, 66], "weights": [1.0] * 7}
    text = types.ModelInput.from_ints([17, 230, 5, 99, 41, 180, 7])
    return types.Datum(model_input=text, loss_fn_inputs=inputs)


def weighted(logprobs: Any, weights: Any) -> Any:
    loss = -(logprobs * weights).sum()
    return loss, {"custom/shortfall:sum": loss, "custom/lowest:mean": logprobs.min()}


def custom_loss(service: Any, served: str | None) -> dict[str, Any]:
    """Train with an uploaded loss, and beside it with the built-in one that it equals."""
    handle = service.create_custom_loss(weighted, {"logprobs": 1, "weights": 1}).result()
    found: dict[str, Any] = {"loss_id": handle.loss_id, "custom": [], "plain": []}
    trainers = [
        service.create_lora_training_client(base_model=served, rank=4, seed=5).result()
        for _ in range(2)
    ]
    for _ in range(3):
        output = trainers[0].forward_backward_custom([datum()] * 2, handle).result()
        found["custom"].append(output.metrics["loss:sum"])
        found["metrics"] = sorted(output.metrics)
        found["plain"].append(
            trainers[1]
            .forward_backward([datum()] * 2, "cross_entropy")
            .result()
            .metrics["loss:sum"]
        )
        for trainer in trainers:
            trainer.optim_step(types.AdamParams(learning_rate=1e-2)).result()
    return found


async def healthz(holder: Any) -> str:
    with holder.aclient(ClientConnectionPoolType.TRAIN) as client:
        return str((await client.service.health_check()).status)


def main() -> None:
    url, key = sys.argv[1:]
    noting.begin()
    found: dict[str, Any] = {}
    with tinker.ServiceClient(base_url=url, api_key=key) as service:
        served = service.get_server_capabilities().supported_models[0].model_name
        sampler = service.create_sampling_client(base_model=served).result()
        found["many"] = many(sampler)
        found["failing"] = failing(sampler)
        found["logprobs"] = len(sampler.compute_logprobs(PROMPT).result())
        found["after_abandoning_s"] = asyncio.run(abandoned(sampler))
        clones = [pickle.loads(pickle.dumps(sampler)) for _ in range(2)]
        found["about_prompts"] = about_prompts(sampler)
        found["custom_loss"] = custom_loss(service, served)
        found["clones"] = [many(clone) for clone in clones]
        found["health"] = service.holder.run_coroutine_threadsafe(healthz(service.holder)).result()
    found["answered"] = noting.told()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
