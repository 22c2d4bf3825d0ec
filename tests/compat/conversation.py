"""The main loop as a user of the official client writes it, whatever the client's age.

Runs in an environment of an official client from 0.4.1 on, where this library need not be.
Usage: python conversation.py URL KEY [--no-gap]. Prints one JSON object. An old client refuses
a loss that it does not know, and skips the request's number; `--no-gap` leaves that out.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
import warnings
from typing import Any

import tinker
from tinker import types

warnings.simplefilter("ignore")  # deprecations of the official client's own names

TEXT = [17, 230, 5, 99, 41, 180, 7, 66, 254, 12, 133, 78, 201, 31, 150, 88]
INPUT = types.ModelInput.from_ints(TEXT[:-1])
WHOLE = types.ModelInput.from_ints(TEXT)
ADAM = types.AdamParams(learning_rate=5e-3)
GREEDY = types.SamplingParams(max_tokens=len(TEXT) - 1, temperature=0.0, stop=[])
MANY = 130
"""More examples than the 0.4 era puts into a request."""
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


def there(promised: Any) -> Any:
    """Return what newer clients promise and older ones gave at once."""
    return promised.result() if hasattr(promised, "result") else promised


def datum() -> types.Datum:
    return types.Datum(
        model_input=INPUT,
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=TEXT[1:], dtype="int64", shape=[15]),
            "weights": types.TensorData(data=[1.0] * 15, dtype="float32", shape=[15]),
        },
    )


def policy_datum(logprobs: list[float]) -> types.Datum:
    lists: Any = {"target_tokens": TEXT[1:], "logprobs": logprobs, "advantages": [1.0] * 15}
    return types.Datum(model_input=INPUT, loss_fn_inputs=lists)


def step(trainer: Any) -> float:
    forward = trainer.forward_backward([datum()], "cross_entropy")
    optim = trainer.optim_step(ADAM)
    loss = forward.result().metrics["loss:sum"]
    optim.result()
    return float(loss)


def tokens(sampler: Any) -> list[int]:
    prompt = types.ModelInput.from_ints(TEXT[:1])
    response = sampler.sample(prompt=prompt, num_samples=1, sampling_params=GREEDY).result()
    return [int(token) for token in response.sequences[0].tokens]


def outputs(result: Any) -> list[list[float]]:
    return [one["logprobs"].to_numpy().ravel().tolist() for one in result.loss_fn_outputs]


def train(service: Any, found: dict[str, Any]) -> Any:
    found["served"] = [
        model.model_name for model in there(service.get_server_capabilities()).supported_models
    ]
    model = found["served"][0]
    trainer = there(service.create_lora_training_client(base_model=model, rank=8, seed=1))
    found["info"] = there(trainer.get_info()).model_data.model_name
    found["losses"] = [step(trainer) for _ in range(40)]
    found["forward"] = outputs(trainer.forward([datum()] * 3, "cross_entropy").result())
    many = trainer.forward_backward([datum()] * MANY, "cross_entropy").result()
    found["many"] = [len(many.loss_fn_outputs), many.metrics["loss:sum"]]
    for name in ("importance_sampling", "ppo"):
        said = trainer.forward_backward([policy_datum(found["forward"][0])], name).result()
        found[name] = said.metrics["loss:sum"]
    trainer.optim_step(types.AdamParams(learning_rate=0.0)).result()
    return trainer


def weights(service: Any, trainer: Any, found: dict[str, Any]) -> None:
    found["state_path"] = path = trainer.save_state("trained").result().path
    found["next"] = [step(trainer) for _ in range(3)]
    resume = getattr(
        service,
        "create_training_client_from_state_with_optimizer",
        service.create_training_client_from_state,
    )
    again = there(resume(path))
    found["resumed"] = [step(again) for _ in range(3)]
    model = found["served"][0]
    loaded = there(service.create_lora_training_client(base_model=model, rank=8))
    load = getattr(loaded, "load_state_with_optimizer", loaded.load_state)
    load(path).result()
    found["loaded"] = [step(loaded) for _ in range(3)]


def sampling(service: Any, trainer: Any, found: dict[str, Any]) -> None:
    found["sampler_path"] = path = trainer.save_weights_for_sampler("fixed").result().path
    named = there(service.create_sampling_client(model_path=path))
    found["recalled"] = tokens(named)
    found["recalled_by_ephemeral"] = tokens(
        there(trainer.save_weights_and_get_sampling_client("x"))
    )
    base = there(service.create_sampling_client(base_model=found["served"][0]))
    found["base_says"] = tokens(base)
    found["prompt_logprobs"] = named.compute_logprobs(WHOLE).result()
    response = named.sample(
        prompt=WHOLE,
        num_samples=3,
        sampling_params=types.SamplingParams(max_tokens=4, seed=7),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=2,
    ).result()
    found["topk"] = response.topk_prompt_logprobs
    found["sequences"] = [list(one.tokens) for one in response.sequences]
    found["sample_logprobs"] = [list(one.logprobs) for one in response.sequences]
    under_way = [
        base.sample(prompt=INPUT, num_samples=2, sampling_params=types.SamplingParams(max_tokens=3))
        for _ in range(24)
    ]
    found["at_once"] = [len(one.result().sequences) for one in under_way]


def custom_loss(trainer: Any, found: dict[str, Any]) -> None:
    import torch  # newer clients do without

    def loss(_data: Any, logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
        total = -torch.cat([part.flatten() for part in logprobs]).sum()
        return total, {"my_metric": 1.5}

    output = trainer.forward_backward_custom([datum()], loss).result()
    trainer.optim_step(ADAM).result()
    found["custom"] = dict(output.metrics)


def bad_loss(trainer: Any, found: dict[str, Any]) -> None:
    try:
        trainer.forward_backward([datum()], "no_such_loss").result()
    except Exception as error:  # noqa: BLE001  # its class depends on the client's age
        found["bad_loss"] = f"{type(error).__name__}: {error}"
    found["after_the_error"] = step(trainer)


def image(service: Any, found: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"data": PIXEL, "format": "png", "height": 1, "width": 1, "tokens": 1}
    known = types.ImageChunk.model_fields
    pixel = types.ImageChunk(**{name: value for name, value in fields.items() if name in known})
    seen = types.ModelInput(chunks=[pixel, *INPUT.chunks])
    base = there(service.create_sampling_client(base_model=found["served"][0]))
    try:
        base.sample(prompt=seen, num_samples=1, sampling_params=GREEDY).result()
    except Exception as error:  # noqa: BLE001  # as above
        found["image"] = f"{type(error).__name__}: {error}"


def management(service: Any, found: dict[str, Any]) -> None:
    rest = there(service.create_rest_client())
    run_id = found["state_path"].split("/")[2]
    found["runs"] = [
        run.training_run_id for run in rest.list_training_runs().result().training_runs
    ]
    found["rank"] = rest.get_training_run(run_id).result().lora_rank
    listed = rest.list_checkpoints(run_id).result().checkpoints
    found["listed"] = [[c.checkpoint_id, c.checkpoint_type, c.tinker_path] for c in listed]
    found["of_user"] = [c.tinker_path for c in rest.list_user_checkpoints().result().checkpoints]
    if hasattr(rest, "get_checkpoint_archive_url_from_tinker_path"):
        archive = rest.get_checkpoint_archive_url_from_tinker_path(found["sampler_path"]).result()
        found["archive_url"] = archive.url
    rest.publish_checkpoint_from_tinker_path(found["state_path"]).result()
    found["public"] = [c.public for c in rest.list_checkpoints(run_id).result().checkpoints]
    rest.unpublish_checkpoint_from_tinker_path(found["state_path"]).result()
    rest.delete_checkpoint_from_tinker_path(found["sampler_path"]).result()
    rest.delete_checkpoint(run_id, "weights/trained").result()
    found["left"] = len(rest.list_checkpoints(run_id).result().checkpoints)


def main() -> None:
    url, key, *options = sys.argv[1:]
    found: dict[str, Any] = {"version": importlib.metadata.version("tinker")}
    with contextlib.ExitStack() as stack:
        service = tinker.ServiceClient(base_url=url, api_key=key)
        if hasattr(service, "__exit__"):
            stack.enter_context(service)
        trainer = train(service, found)
        weights(service, trainer, found)
        sampling(service, trainer, found)
        custom_loss(trainer, found)
        if "--no-gap" not in options:
            bad_loss(trainer, found)
        image(service, found)
        management(service, found)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
