"""What a user of the official client does with the rarer types; run as a process of its own.

Usage: python types_conversation.py URL KEY. Prints one JSON object. `test_types.py` makes the same
calls with our client, in the same order.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import tinker
import torch
from tinker import types

warnings.simplefilter("ignore")  # deprecations of the official client's own names

PICTURE = b"\x89PNG" + bytes(range(256)) * 40
AUDIO = bytes([3, 2, 5, 80]) + b"rows"
TEXT = [1, 2, 3]
ONE = types.SamplingParams(max_tokens=1, seed=3)


def inputs(**tensors: Any) -> Any:
    """The official types say that lists and arrays are no inputs; the code takes them."""
    return tensors


def mixed() -> types.ModelInput:
    return (
        types.ModelInput.from_ints(TEXT)
        .append(types.ImageChunk(data=PICTURE, format="png", expected_tokens=2))
        .append_int(4)
        .append(types.DmelChunk(dmel=AUDIO))
    )


def marked() -> types.Datum:
    span = types.SampledProvenanceSpan(sequence_id="s1:sample:0:0:0", offset=2, length=9)
    prompt = types.PromptProvenanceSpan(sequence_id="s1:sample:0:0:0", length=2)
    datum = types.Datum(
        model_input=mixed(),
        loss_fn_inputs=inputs(target_tokens=list(range(11)), weights=[1.0] * 11),
    )
    return datum.with_provenance([prompt, span], [prompt, span])


def sparse() -> types.Datum:
    targets = torch.zeros(3, 8, dtype=torch.int64)
    targets[0, 1] = 9
    weights = torch.zeros(3, 8)
    weights[0, 1] = 0.5
    return types.Datum(
        model_input=types.ModelInput.from_ints(TEXT),
        loss_fn_inputs=inputs(target_tokens=targets, weights=weights),
    )


def plain() -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints(TEXT),
        loss_fn_inputs=inputs(target_tokens=[2, 3, 4], weights=[1.0, 0.5, 0.0]),
    )


def weighted(logprobs: Any, weights: Any) -> Any:
    loss = -(logprobs * weights).sum()
    return loss, {"custom/loss:sum": loss, "custom/mean:mean": logprobs.mean()}


def training(service: Any, found: dict[str, Any]) -> Any:
    trainer = service.create_lora_training_client(
        "toy", rank=4, seed=1, optimizer=types.DimuonOptimizerConfig()
    ).result()
    found["optimizer"] = trainer.get_info().optimizer_config.model_dump()
    output = trainer.forward_backward([marked(), sparse()], "cross_entropy").result()
    found["loss"] = output.metrics["loss:sum"]
    found["shapes"] = [one["logprobs"].shape for one in output.loss_fn_outputs]
    trainer.optim_step(types.DimuonParams(learning_rate=0.01, beta1=0.5)).result()
    handle = service.create_custom_loss(weighted, {"logprobs": 1, "weights": 1}).result()
    found["loss_id"] = handle.loss_id
    custom = trainer.forward_backward_custom([plain()], handle).result()
    found["custom"] = dict(sorted(custom.metrics.items()))
    found["ppo"] = trainer.forward([plain()], "ppo_x", {"mode": "x", "eps": 0.5})
    try:
        found["ppo"] = found["ppo"].result().metrics
    except tinker.RequestFailedError as error:
        found["ppo"] = str(error.category).lower().rpartition(".")[2]
    return trainer


def weights(service: Any, trainer: Any, found: dict[str, Any]) -> None:
    path = trainer.save_state("a", 3600, True, {"k": "v"}).result().path
    trainer.save_weights_for_sampler("b", 3600, {"k": "w"}).result()
    found["external"] = trainer.save_weights_external("c", 7200, ["age1q"]).result().path
    again = service.create_training_client_from_state_with_optimizer(
        path, "toy", {"m": "n"}, "token"
    ).result()
    again.optim_step(types.DimuonParams(learning_rate=0.01)).result()
    fresh = service.create_training_client_from_state(
        path, None, None, None, types.DimuonOptimizerConfig()
    ).result()
    fresh.optim_step(types.DimuonParams(learning_rate=0.01)).result()


def sampling(service: Any, trainer: Any, found: dict[str, Any]) -> None:
    sampler = trainer.save_weights_and_get_sampling_client(
        kind="inflight", record_stability_info=True
    ).result()
    prompt = types.ModelInput.from_ints([*TEXT, 4])
    ids = torch.full((3, 9), -1)
    ids[2, 4] = 7
    target = types.TensorData.from_torch_sparse(ids, pad_value=-1)
    response = sampler.sample(
        prompt,
        1,
        ONE,
        include_prompt_logprobs=True,
        topk_sample_logprobs=2,
        target_prompt_logprobs=target,
        prompt_alt_tokens_k=2,
        prompt_logprobs_last_n=2,
    ).result()
    found["prompt_logprobs"] = response.prompt_logprobs
    found["target"] = response.target_prompt_logprobs.to_numpy().tolist()
    found["alternatives"] = response.prompt_alt_tokens.tokens.to_numpy().tolist()
    found["alternative_logprobs"] = response.prompt_alt_tokens.logprobs.to_numpy().tolist()
    found["topk"] = response.sequences[0].topk_logprobs
    pointer = types.ImageAssetPointerChunk(format="jpeg", location="s3://x", expected_tokens=3)
    whole = sampler.compute_logprobs(mixed().append(pointer)).result()
    found["of_images"] = whole
    base = service.create_sampling_client(base_model="toy").result()
    found["text"] = list(base.sample(prompt, 1, ONE).result().sequences[0].tokens)


def main() -> None:
    url, key = sys.argv[1:]
    found: dict[str, Any] = {}
    with tinker.ServiceClient(base_url=url, api_key=key) as service:
        trainer = training(service, found)
        weights(service, trainer, found)
        sampling(service, trainer, found)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
