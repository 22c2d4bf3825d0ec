"""What a user of the official client does, in order; run as a process of its own.

The official client keeps a thread with an event loop for ever: a process ends it.
Usage: python conversation.py URL KEY. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import noting  # type: ignore[import-not-found]  # beside this program
import tinker
import torch
from tinker import types

warnings.simplefilter("ignore")  # deprecations of the official client's own names

TEXT = [17, 230, 5, 99, 41, 180, 7, 66, 254, 12, 133, 78, 201, 31, 150, 88]
INPUT = types.ModelInput.from_ints(TEXT[:-1])
ADAM = types.AdamParams(learning_rate=5e-3)
GREEDY = types.SamplingParams(max_tokens=len(TEXT) - 1, temperature=0.0, stop=[])


def datum() -> types.Datum:
    return types.Datum(
        model_input=INPUT,
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=TEXT[1:], dtype="int64"),
            "weights": types.TensorData(data=[1.0] * (len(TEXT) - 1), dtype="float32"),
        },
    )


def step(trainer: Any) -> float:
    forward = trainer.forward_backward([datum()], "cross_entropy")
    optim = trainer.optim_step(ADAM)
    loss = forward.result().metrics["loss:sum"]
    optim.result()
    return float(loss)


def tokens(sampler: Any) -> list[int]:
    prompt = types.ModelInput.from_ints(TEXT[:1])
    response = sampler.sample(prompt, num_samples=1, sampling_params=GREEDY).result()
    return [int(token) for token in response.sequences[0].tokens]


def train(service: Any, found: dict[str, Any]) -> Any:
    model = found["served"][0]
    trainer = service.create_lora_training_client(base_model=model, rank=8, seed=1).result()
    found["info"] = trainer.get_info().model_data.model_name
    found["losses"] = [step(trainer) for _ in range(60)]
    output = trainer.forward([datum()] * 3, "cross_entropy").result()
    found["forward"] = [o["logprobs"].to_numpy().tolist() for o in output.loss_fn_outputs]
    return trainer


def weights(service: Any, trainer: Any, found: dict[str, Any]) -> None:
    path = trainer.save_state("trained").result().path
    found["state_path"] = path
    found["next"] = [step(trainer) for _ in range(3)]
    again = service.create_training_client_from_state_with_optimizer(path).result()
    found["next_with_optimizer"] = [step(again) for _ in range(3)]
    fresh = service.create_training_client_from_state(path).result()
    found["next_without_optimizer"] = [step(fresh) for _ in range(3)]


def sampling(service: Any, trainer: Any, found: dict[str, Any]) -> None:
    path = trainer.save_weights_for_sampler("fixed").result().path
    found["sampler_path"] = path
    named = service.create_sampling_client(model_path=path).result()
    found["base_of_sampler"] = named.get_base_model()
    found["recalled"] = tokens(named)
    ephemeral = trainer.save_weights_and_get_sampling_client().result()
    for _ in range(5):
        trainer.forward_backward([datum()], "cross_entropy", None).result()
        trainer.optim_step(types.AdamParams(learning_rate=1.0)).result()
    found["recalled_by_ephemeral"] = tokens(ephemeral)
    base = service.create_sampling_client(base_model=found["served"][0]).result()
    found["base_says"] = tokens(base)

    whole = types.ModelInput.from_ints(TEXT)
    found["prompt_logprobs"] = named.compute_logprobs(whole).result()
    response = named.sample(
        whole,
        num_samples=3,
        sampling_params=types.SamplingParams(max_tokens=4, seed=7),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=2,
    ).result()
    found["topk"] = response.topk_prompt_logprobs
    found["sequences"] = [list(s.tokens) for s in response.sequences]
    found["sequence_ids"] = [s.sequence_id for s in response.sequences]
    found["sample_logprobs"] = [list(s.logprobs) for s in response.sequences]


def custom_loss(service: Any, found: dict[str, Any]) -> None:
    def loss(_data: Any, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        total = -torch.cat([part.flatten() for part in logprobs]).sum()
        return total, {"my_metric": 1.5}

    name = found["served"][0]
    plain = service.create_lora_training_client(base_model=name, rank=8, seed=2).result()
    found["plain_losses"] = [step(plain) for _ in range(3)]
    custom = service.create_lora_training_client(base_model=name, rank=8, seed=2).result()
    found["custom_losses"] = []
    for _ in range(3):
        output = custom.forward_backward_custom([datum()], loss).result()
        custom.optim_step(ADAM).result()
        found["custom_losses"].append(output.metrics["loss:sum"])
        found["custom_metric"] = output.metrics["my_metric"]


def errors(trainer: Any, found: dict[str, Any]) -> None:
    try:
        trainer.forward_backward([datum()], "no_such_loss").result()
    except tinker.RequestFailedError as error:
        found["bad_loss"] = [str(error.category).lower(), str(error)]
    found["after_the_error"] = step(trainer)


def management(rest: Any, found: dict[str, Any]) -> None:
    run_id = found["state_path"].split("/")[2]
    found["runs"] = [
        run.training_run_id for run in rest.list_training_runs().result().training_runs
    ]
    found["rank"] = rest.get_training_run(run_id).result().lora_rank
    listed = rest.list_checkpoints(run_id).result().checkpoints
    found["listed"] = [[c.checkpoint_id, c.checkpoint_type, c.tinker_path] for c in listed]
    rest.delete_checkpoint_from_tinker_path(found["sampler_path"]).result()
    rest.delete_checkpoint(run_id, "weights/trained").result()
    found["left"] = len(rest.list_checkpoints(run_id).result().checkpoints)


def main() -> None:
    url, key = sys.argv[1:]
    noting.begin()
    found: dict[str, Any] = {}
    rest = tinker.RestClient(base_url=url, api_key=key)
    capabilities = rest.get_server_capabilities().result()
    found["served"] = [model.model_name for model in capabilities.supported_models]
    with tinker.ServiceClient(base_url=url, api_key=key) as service:
        trainer = train(service, found)
        weights(service, trainer, found)
        sampling(service, trainer, found)
        custom_loss(service, found)
        errors(trainer, found)
        management(rest, found)
    found["answered"] = noting.told()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
