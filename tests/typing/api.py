"""Code as users write it, checked by mypy and never run: the types that they see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_type

import numpy as np
import numpy.typing as npt

import tinker_async as ta

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer


async def sessions() -> None:
    async with ta.Session() as session:
        assert_type(session, ta.Session)
        assert_type(session.session_id, str)
        assert_type(session.rest, ta.RestClient)
        assert_type(session.server.features[ta.Feature.CANCEL].supported, bool | None)
        assert_type(session.server.features.missing, tuple[ta.Feature, ...])
        capabilities = await session.get_server_capabilities()
        assert_type(capabilities, ta.GetServerCapabilitiesResponse)
        assert_type(capabilities.supported_models, list[ta.SupportedModel])
    async with ta.Session.local("tiny-llama", data_dir="here", progress=print) as local:
        assert_type(local, ta.Session)
    ta.Session("https://host", "key", retry=ta.RetryPolicy(max_attempts=3), http2=True)
    ta.Session(timeout=3, max_samples_in_flight=100, billing_pause_s=60, on_event=print)
    ta.Session(patience=3)  # type: ignore[call-arg]  # there is no such option


async def looking(session: ta.Session) -> None:
    assert_type(session.health(), ta.SessionHealth)
    assert_type(session.statistics(), ta.SessionStatistics)
    with session.events() as stream:
        assert_type(stream, ta.EventStream)
        async for event in stream:
            assert_type(event, ta.Event)
            if isinstance(event, ta.QueueStateChanged):
                assert_type(event.reason, str | None)


async def training(session: ta.Session) -> None:
    trainer = await session.create_lora_training_client("model", rank=8, seed=1, train_mlp=False)
    assert_type(trainer, ta.TrainingClient)
    assert_type(await session.create_training_client_from_state("tinker://"), ta.TrainingClient)
    data = [ta.Datum(ta.ModelInput.from_ints([1, 2]), {"target_tokens": [2, 3]})]

    assert_type(
        trainer.forward_backward(data, "cross_entropy"), ta.APIFuture[ta.ForwardBackwardOutput]
    )
    assert_type(trainer.forward(data, "a-new-loss"), ta.APIFuture[ta.ForwardBackwardOutput])
    assert_type(trainer.optim_step(ta.AdamParams()), ta.APIFuture[ta.OptimStepResponse])
    step = trainer.train_step(data, "ppo", ta.AdamParams(), {"clip_low_threshold": 0.9})
    assert_type(step, ta.APIFuture[ta.TrainStepResponse])
    assert_type((await step).metrics, dict[str, float])
    assert_type(trainer.save_state("name"), ta.APIFuture[ta.SaveWeightsResponse])
    assert_type(trainer.load_state("tinker://"), ta.APIFuture[ta.LoadWeightsResponse])
    assert_type(
        trainer.save_weights_for_sampler("name"), ta.APIFuture[ta.SaveWeightsForSamplerResponse]
    )
    assert_type(
        await trainer.save_weights_and_get_sampling_client(),
        ta.SamplingClient,
    )
    assert_type(await trainer.get_info(), ta.GetInfoResponse)
    assert_type(trainer.save_weights_external("name"), ta.APIFuture[ta.SaveWeightsExternalResponse])
    assert_type(trainer.unload_model(), ta.APIFuture[ta.UnloadModelResponse])
    assert_type(
        await trainer.create_sampling_client("tinker://r/sampler_weights/a"), ta.SamplingClient
    )
    assert_type(trainer.get_console_url(), str)
    trainer.optim_step(ta.DimuonParams(0.1))
    trainer.optim_step({"type": "lion", "rate": 0.1})
    trainer.optim_step(adam_params=ta.AdamParams())
    handle = await session.create_custom_loss(lambda logprobs: (logprobs, {}), {"logprobs": 1})
    assert_type(handle, ta.LossHandle)
    assert_type(
        trainer.forward_backward_custom(data, handle), ta.APIFuture[ta.ForwardBackwardOutput]
    )
    mixed = ta.ModelInput.from_ints([1]).append(ta.ImageChunk(b"x", "png")).append_int(2)
    assert_type(mixed, ta.ModelInput)
    ta.ImageChunk(b"x", "gif")  # type: ignore[arg-type]  # no such format
    trainer.optim_step(1e-4)  # type: ignore[arg-type]  # parameters, not a number


async def futures(trainer: ta.TrainingClient) -> None:
    future = trainer.save_state("name", ttl_seconds=3600)
    assert_type(await future, ta.SaveWeightsResponse)
    assert_type(await future.result(timeout=1.5), ta.SaveWeightsResponse)
    assert_type(future.cancel(), bool)
    assert_type(future.done, bool)
    assert_type(future.queue_state, str | None)
    async for state in future.queue_states():
        assert_type(state, ta.QueueState)
    trainer.optim_step(ta.AdamParams(), timeout=None, retry=ta.RetryPolicy(max_attempts=1))
    trainer.optim_step(ta.AdamParams(), timeout="soon")  # type: ignore[arg-type]  # seconds
    assert_type(await trainer.get_info(timeout=1), ta.GetInfoResponse)
    assert_type(future.request_id, str | None)


async def sampling(session: ta.Session, prompt: ta.ModelInput) -> None:
    sampler = await session.create_sampling_client(base_model="model")
    assert_type(sampler, ta.SamplingClient)
    response = await sampler.sample(prompt, ta.SamplingParams(stop=["."]), num_samples=2, timeout=3)
    assert_type(response, ta.SampleResponse)
    for sequence in response.sequences:
        assert_type(sequence, ta.SampledSequence)
        assert_type(sequence.tokens, npt.NDArray[np.int32])
        assert_type(sequence.logprobs, npt.NDArray[np.float32] | None)
    assert_type(await sampler.compute_logprobs(prompt), npt.NDArray[np.float32])
    assert_type(sampler.submit_sample(prompt), ta.APIFuture[ta.SampleResponse])
    group = await sampler.sample_group(prompt, 8, ta.SamplingParams(seed=1), least=6, timeout=60)
    assert_type(group, list[ta.SampleResponse])
    requests: list[ta.SampleTask | ta.ModelInput]
    requests = [ta.SampleTask(prompt, ta.SamplingParams(), tag="mine"), prompt]
    policy = ta.RetryPolicy(max_attempts=3)
    async with sampler.map(requests, max_in_flight=32, timeout=None, retry=policy) as outcomes:
        async for outcome in outcomes:
            assert_type(outcome, ta.SampleOutcome)
            assert_type(outcome.error, ta.TinkerError | None)
            assert_type(outcome.result(), ta.SampleResponse)
    handle = ta.SamplerHandle.from_json(sampler.handle().to_json())
    assert_type(handle, ta.SamplerHandle)
    assert_type(await session.create_sampling_client_from_handle(handle), ta.SamplingClient)
    tokenizer = await sampler.get_tokenizer()
    takes_tokenizer(tokenizer)


def takes_tokenizer(tokenizer: Tokenizer) -> None:
    del tokenizer


async def managing(rest: ta.RestClient) -> None:
    async for run in rest.list_training_runs():
        assert_type(run, ta.TrainingRun)
    async for checkpoint in rest.list_checkpoints("run"):
        assert_type(checkpoint, ta.Checkpoint)
    assert_type(await rest.get_weights_info_by_tinker_path("tinker://"), ta.WeightsInfoResponse)


def custom_loss(
    data: Sequence[ta.Datum], logprobs: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    return -logprobs[0].sum() * len(data), {"n:sum": 1.0}


def losses(trainer: ta.TrainingClient, data: list[ta.Datum]) -> None:
    future = trainer.forward_backward_custom(data, custom_loss)
    assert_type(future, ta.APIFuture[ta.ForwardBackwardOutput])


def data_types(array: npt.NDArray[np.float32], tensor: torch.Tensor) -> None:
    datum = ta.Datum(
        model_input=ta.ModelInput.from_ints(np.arange(3)),
        loss_fn_inputs={"weights": array, "advantages": tensor, "logprobs": [0.0, 1.0]},
    )
    assert_type(datum.loss_fn_inputs, dict[str, ta.TensorData])
    assert_type(datum.model_input.length, int)
    assert_type(datum.model_input.to_ints(), list[int])
    assert_type(ta.parse_path("tinker://a/weights/b"), ta.CheckpointPath)


def errors(error: ta.TinkerError) -> None:
    assert_type(error.hint, str | None)
    if isinstance(error, ta.APIStatusError):
        assert_type(error.status, int)
        assert_type(error.retry_after_s, float | None)
    if isinstance(error, ta.InvalidInputError):
        assert_type(error.field, str)
