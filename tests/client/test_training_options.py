"""What a training client can be asked for besides its main loop: optimizers, saves, images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest
from support.bodies import Bodies

import tinker_async as ta

BOUND_S = 30
DATUM = ta.Datum(ta.ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4]})
PICTURE = ta.ImageChunk(b"\x89PNG" + b"0" * 9000, "png", expected_tokens=2)
AUDIO = ta.DmelChunk(bytes([3, 2, 5, 80]) + b"rows")


@pytest.fixture
def bodies() -> Bodies:
    return Bodies()


# Optimizers


async def test_a_model_is_trained_by_the_optimizer_that_it_was_made_with(bodies: Bodies) -> None:
    """Dimuon's parameters go under their own name, with their type; the model learns."""
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            trainer = await session.create_lora_training_client(
                "toy", rank=4, optimizer=ta.DimuonOptimizerConfig()
            )
            assert {"type": "dimuon", "version": 1} == (await trainer.get_info()).optimizer_config
            losses = []
            for _ in range(5):
                step = trainer.train_step([DATUM], "cross_entropy", ta.DimuonParams(1e-2))
                losses.append((await step).metrics["loss:sum"])
    assert losses[-1] < losses[0]
    assert {"type": "dimuon", "version": 1} == bodies.sent["create_model"][0]["optimizer_config"]
    step_body = bodies.sent["optim_step"][0]
    assert {"type": "dimuon", "learning_rate": 0.01, "grad_clip_norm": 0.0, "beta1": 0.9} == (
        step_body["optimizer_params"]
    )
    assert "adam_params" not in step_body


async def test_a_model_of_adam_says_nothing_of_it(bodies: Bodies) -> None:
    """Older servers do not know the field; for them the default is meant."""
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            for config in (None, ta.AdamOptimizerConfig(), {"type": "adamw"}):
                trainer = await session.create_lora_training_client("toy", 4, optimizer=config)
            await trainer.optim_step(adam_params=ta.AdamParams())
    assert not any("optimizer_config" in body for body in bodies.sent["create_model"])
    assert {"adam_params", "model_id", "seq_id", "type"} == bodies.sent["optim_step"][0].keys()


@pytest.mark.parametrize(
    ("config", "params", "field"),
    [
        (None, ta.DimuonParams(0.1), "optim_params"),
        (ta.DimuonOptimizerConfig(), ta.AdamParams(), "optim_params"),
        ({"type": "dimuon"}, {"type": "lion"}, "optim_params"),
        (None, {"learning_rate": 1}, "optim_params"),
        (None, {"type": "x", "rate": object()}, "optim_params"),
        (None, 1e-4, "optim_params"),
        (None, None, "optim_params"),
    ],
)
async def test_parameters_of_another_optimizer_are_refused_before_they_are_sent(
    bodies: Bodies, config: Any, params: Any, field: str
) -> None:
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            trainer = await session.create_lora_training_client("toy", 4, optimizer=config)
            with pytest.raises(ta.InvalidInputError) as caught:
                trainer.optim_step(params)
    assert field == caught.value.field
    assert "optim_step" not in bodies.sent


@pytest.mark.parametrize(
    "config", ["adamw", {"type": ""}, {"rate": 1}, {"type": "x", "y": object()}]
)
async def test_what_is_no_optimizer_is_refused_before_it_is_sent(
    bodies: Bodies, config: Any
) -> None:
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            with pytest.raises(ta.InvalidInputError) as caught:
                await session.create_lora_training_client("toy", 4, optimizer=config)
            assert "optimizer" == caught.value.field
            with pytest.raises(ta.InvalidInputError):
                await session.create_training_client_from_state(
                    "tinker://r/weights/x", optimizer=config
                )
    assert "create_model" not in bodies.sent


async def test_an_unknown_family_is_the_servers_to_judge(bodies: Bodies) -> None:
    """It is sent as it is."""
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            with pytest.raises(ta.BadRequestError, match="lion"):
                await session.create_lora_training_client(
                    "toy", 4, optimizer={"type": "lion", "version": 7}
                )
    assert {"type": "lion", "version": 7} == bodies.sent["create_model"][0]["optimizer_config"]


# From a state


async def test_a_model_from_a_state_takes_base_model_optimizer_and_token(bodies: Bodies) -> None:
    """With a fresh optimizer; with the checkpoint's own it needs none."""
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            trainer = await session.create_lora_training_client("toy", 4)
            path = (await trainer.save_state("one")).path
            fresh = await session.create_training_client_from_state(
                path,
                "toy",
                {"k": "v"},
                "token",
                ta.DimuonOptimizerConfig(),
            )
            await fresh.train_step([DATUM], "cross_entropy", ta.DimuonParams(0.1))
            again = await session.create_training_client_from_state_with_optimizer(
                (await fresh.save_state("two")).path
            )
            await again.train_step([DATUM], "cross_entropy", ta.DimuonParams(0.1))
            await again.load_state(path, "token")
    first, second, third = bodies.sent["load_weights"]
    assert ("toy", "token", {"k": "v"}, False) == (
        first["base_model"],
        first["weights_access_token"],
        first["user_metadata"],
        first["optimizer"],
    )
    assert {"type": "dimuon", "version": 1} == first["optimizer_config"]
    assert {"type", "path", "optimizer", "session_id", "model_seq_id"} == second.keys()
    assert "token" == third["weights_access_token"]


# Saves


async def test_saves_send_what_is_asked_and_leave_out_what_is_not(bodies: Bodies) -> None:
    key = "age1" + "q" * 20
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            trainer = await session.create_lora_training_client("toy", 4)
            await trainer.save_state("a", 3600, True, {"k": "v"})
            await trainer.save_state("b")
            await trainer.save_weights_for_sampler("c", 7200, {"k": "w"})
            external = await trainer.save_weights_external("d", 3600, [key])
            await trainer.save_weights_external("e")
            listed = [one async for one in session.rest.list_checkpoints(trainer.model_id)]
    a, b = bodies.sent["save_weights"]
    assert (3600, True, {"k": "v"}) == (a["ttl_seconds"], a["overwrite"], a["user_metadata"])
    assert {"type", "model_id", "path", "seq_id"} == b.keys()
    (c,) = bodies.sent["save_weights_for_sampler"]
    assert (7200, {"k": "w"}) == (c["ttl_seconds"], c["user_metadata"])
    assert "kind" not in c
    d, e = bodies.sent["save_weights_external"]
    assert ("d", 3600, [key]) == (d["path"], d["ttl_seconds"], d["age_encryption_recipients"])
    assert {"type", "model_id", "path", "seq_id"} == e.keys()
    assert f"tinker://{trainer.model_id}/external_weights/d" == external.path
    assert external.size_bytes
    assert {"training", "sampler", "external"} == {one.checkpoint_type for one in listed}
    assert ["a", "c", "d"] == [
        one.checkpoint_id.partition("/")[2] for one in listed if one.expires_at is not None
    ]


@pytest.mark.parametrize(
    ("save", "field"),
    [
        (lambda t: t.save_state(""), "name"),
        (lambda t: t.save_state("a/b"), "name"),
        (lambda t: t.save_state("a", 3599), "ttl_seconds"),
        (lambda t: t.save_state("a", 10**9), "ttl_seconds"),
        (lambda t: t.save_state("a", user_metadata={"k": 1}), "user_metadata['k']"),
        (lambda t: t.save_weights_for_sampler("a", user_metadata={1: "v"}), "user_metadata[1]"),
        (lambda t: t.save_weights_external("a", 1), "ttl_seconds"),
        (lambda t: t.save_weights_external("a", None, "age1x"), "age_encryption_recipients"),
        (lambda t: t.save_weights_external("a", None, ["x"]), "age_encryption_recipients[0]"),
        (
            lambda t: t.save_weights_external("a", None, ["age1x"] * 11),
            "age_encryption_recipients",
        ),
        (lambda t: t.save_weights_and_get_sampling_client(kind="live"), "kind"),
    ],
)
async def test_saves_that_cannot_be_right_are_refused_before_they_are_sent(
    bodies: Bodies, save: Callable[[Any], Any], field: str
) -> None:
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            trainer = await session.create_lora_training_client("toy", 4)
            with pytest.raises(ta.InvalidInputError) as caught:
                save(trainer)
    assert field == caught.value.field
    assert not [name for name in bodies.sent if name.startswith("save")]


async def test_inflight_samplers_share_the_newest_weights(bodies: Bodies) -> None:
    """Those of a snapshot stay as they are."""
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            trainer = await session.create_lora_training_client("toy", 4)
            fixed = await trainer.save_weights_and_get_sampling_client()
            first = await trainer.save_weights_and_get_sampling_client(kind="inflight")
            await trainer.train_step([DATUM], "cross_entropy", ta.AdamParams(1e-1))
            second = await trainer.save_weights_and_get_sampling_client(
                kind="inflight", record_stability_info=True
            )
            weights = bodies.fake.weights_of
            assert {} == weights(fixed.sampling_session_id)
            assert (
                weights(trainer.model_id).keys()
                == weights(first.sampling_session_id).keys()
                == weights(second.sampling_session_id).keys()
                != set()
            )
            for sampler in (first, second):
                await sampler.sample(ta.ModelInput.from_ints([1]), ta.SamplingParams(max_tokens=1))
    assert [None, "inflight", "inflight"] == [
        body.get("kind") for body in bodies.sent["save_weights_for_sampler"]
    ]
    assert [None, True] == [body.get("record_stability_info") for body in bodies.sent["asample"]]


async def test_an_unloaded_model_is_gone_and_its_checkpoints_stay(bodies: Bodies) -> None:
    """In the order of the queue."""
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            trainer = await session.create_lora_training_client("toy", 4)
            saved = trainer.save_state("last")
            unloaded = await trainer.unload_model()
            assert trainer.model_id == unloaded.model_id
            with pytest.raises(ta.GoneError):
                await trainer.forward([DATUM], "cross_entropy")
            path = (await saved).path
            again = await session.create_training_client_from_state(path)
            assert (await again.forward([DATUM], "cross_entropy")).metrics["loss:sum"] > 0
    assert [{"model_id": trainer.model_id, "type": "unload_model"}] == bodies.sent["unload_model"]


# Data


async def test_images_and_audio_are_trained_on(bodies: Bodies) -> None:
    """Alone and between text, large ones too; the loss goes down."""
    targets = list(range(10, 21))
    mixed = ta.ModelInput.from_ints([1, 2]).append(PICTURE).append_int(3).append(AUDIO)
    datum = ta.Datum(mixed.append_int(4), {"target_tokens": targets})
    span = ta.SampledProvenanceSpan(sequence_id="s", length=len(targets))
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            trainer = await session.create_lora_training_client("toy", 4)
            losses = []
            for one in (datum, datum.with_provenance([span], [span]), datum):
                step = trainer.train_step([one], "cross_entropy", ta.AdamParams(1e-2))
                losses.append((await step).metrics["loss:sum"])
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize(
    ("chunk", "field"),
    [
        (ta.ImageAssetPointerChunk("png", "s3://x", 1), "data[0].model_input.chunks[1]"),
        (ta.DmelChunk(b"\xff"), "data[0].model_input.chunks[1]"),
        (PICTURE, "data[0].loss_fn_inputs['target_tokens']"),
    ],
)
async def test_inputs_that_cannot_be_trained_on_are_refused_before_they_are_sent(
    bodies: Bodies, chunk: Any, field: str
) -> None:
    """A pointer, damaged audio, and a number of tokens that does not fit the targets."""
    datum = ta.Datum(ta.ModelInput.from_ints([1]).append(chunk), {"target_tokens": [1, 2]})
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            trainer = await session.create_lora_training_client("toy", 4)
            with pytest.raises(ta.InvalidInputError) as caught:
                trainer.forward_backward([datum], "cross_entropy")
    assert field == caught.value.field
    assert bodies.fake.ledger.count("forward_backward") == 0


async def test_a_pointer_is_refused_without_checks_too(bodies: Bodies) -> None:
    """It has no form in which it could be sent; the queue goes on."""
    pointer = ta.ImageAssetPointerChunk("png", "s3://x", 1)
    datum = ta.Datum(ta.ModelInput.from_ints([1]).append(pointer), {"target_tokens": [1, 2]})
    with anyio.fail_after(BOUND_S):
        async with bodies.session(check_inputs=False) as session:
            trainer = await session.create_lora_training_client("toy", 4)
            with pytest.raises(ta.InvalidInputError, match="give the image itself"):
                await trainer.forward_backward([datum], "cross_entropy")
            await trainer.forward_backward([DATUM], "cross_entropy")


async def test_an_image_that_does_not_say_its_tokens_leaves_shapes_to_the_server(
    bodies: Bodies,
) -> None:
    """Targets are still held against each other."""
    image = ta.ImageChunk(b"\x89PNG", "png")
    prompt = ta.ModelInput.from_ints([1]).append(image)
    ids = list(range(5))  # the toy makes 4 tokens of it
    uneven: dict[str, Any] = {"target_tokens": ids, "weights": [1.0]}
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            trainer = await session.create_lora_training_client("toy", 4)
            await trainer.forward([ta.Datum(prompt, {"target_tokens": ids})], "cross_entropy")
            with pytest.raises(ta.InvalidInputError) as caught:
                trainer.forward([ta.Datum(prompt, uneven)], "cross_entropy")
    assert caught.value.field == "data[0].loss_fn_inputs['weights']"


async def test_an_unknown_loss_is_passed_on_with_texts_and_numbers(bodies: Bodies) -> None:
    """Which losses there are, only the server knows; it says so itself."""
    config: dict[str, float | str] = {"kl_coeff": 0.5, "mode": "token"}
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            trainer = await session.create_lora_training_client("toy", 4)
            with pytest.raises(ta.RequestFailedError, match="stable_reinforce"):
                await trainer.forward_backward([DATUM], "stable_reinforce", config)
            for value in (None, [1], float("nan"), 10**400):
                with pytest.raises(ta.InvalidInputError) as caught:
                    trainer.forward_backward([DATUM], "gspo", {"mode": value})  # type: ignore[dict-item]  # the mistake
                assert caught.value.field == "loss_fn_config['mode']"
    assert bodies.fake.ledger.count("forward_backward") == 1


async def test_sparse_targets_are_trained_on_as_dense_ones(bodies: Bodies) -> None:
    """The same weights come of both."""
    torch = pytest.importorskip("torch")
    weights = torch.zeros(3, 8)
    weights[0, 1] = 1.0
    targets = torch.zeros(3, 8, dtype=torch.int64)
    targets[0, 1] = 9
    prompt = ta.ModelInput.from_ints([1, 2, 3])
    sparse = ta.Datum(prompt, {"target_tokens": targets, "weights": weights.bfloat16()})
    dense = ta.Datum(
        prompt,
        {
            "target_tokens": ta.TensorData.from_torch(targets),
            "weights": ta.TensorData.from_torch(weights),
        },
    )
    assert sparse.loss_fn_inputs["weights"].is_sparse
    learnt = []
    with anyio.fail_after(BOUND_S):
        async with bodies.session() as session:
            for datum in (sparse, dense):
                trainer = await session.create_lora_training_client("toy", 4)
                await trainer.train_step([datum], "cross_entropy", ta.AdamParams(1e-2))
                learnt.append(bodies.fake.weights_of(trainer.model_id))
    assert learnt[0].keys() == learnt[1].keys()
    for token, row in learnt[0].items():
        np.testing.assert_array_equal(row, learnt[1][token])
