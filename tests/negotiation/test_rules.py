"""What a session does where a server lacks something: one test for each rule."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest
from download.file_server import left

from tinker_async import (
    AdamParams,
    APIStatusError,
    AttemptFailed,
    AuthenticationError,
    BadRequestError,
    BillingError,
    Datum,
    DimuonParams,
    DownloadError,
    Feature,
    FeatureSupport,
    InternalServerError,
    ModelInput,
    NotFoundError,
    PromiseLostError,
    RequestFailedError,
    RestClient,
    RetryPolicy,
    SamplingParams,
    Session,
    TensorData,
    UnsupportedByServerError,
)
from tinker_async.data.provenance import PromptProvenanceSpan
from tinker_async.errors import ConfigError
from tinker_async.testing import FakeService, faults, run_in_virtual_time
from tinker_async.testing.likeness import SKYRL_0_3, TINKER_0_4, TUFT_0_2, Likeness
from tinker_async.transport import http1

DATUM = Datum(
    ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]}
)
PROMPT = ModelInput.from_ints([1, 2])
PATH = "tinker://s1:train:0/weights/kept"
QUICK = RetryPolicy(base_s=0.001, max_s=0.01)
CRASH = faults.Status(
    status=500, body=b"Internal Server Error", headers={"content-type": "text/plain"}
)


@asynccontextmanager
async def session_with(service: FakeService) -> AsyncGenerator[Session]:
    with anyio.fail_after(30):
        async with (
            service.serve() as url,
            Session(url, service.api_key, retry=QUICK) as session,
        ):
            yield session


def polled_more_than(service: FakeService, times: int) -> bool:
    return service.ledger.count("retrieve_future") > times


def total(_data: Sequence[Datum], logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
    return -sum(one.sum() for one in logprobs), {}


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  # the fake has no event for it
        await anyio.sleep(0.001)


def statuses(service: FakeService, endpoint: str) -> list[int | None]:
    return [one.status for one in service.ledger.of(endpoint)]


# The form of training data


async def test_a_server_that_crashes_on_protobuf_gets_json_from_then_on() -> None:
    """It is found with the first request, which goes again under its number, and only then."""
    service = FakeService(like="skyrl-0.3.0")
    async with session_with(service) as session:
        for _ in range(2):
            trainer = await session.create_lora_training_client("toy")
            await trainer.forward_backward([DATUM], "cross_entropy")
            await trainer.forward([DATUM], "cross_entropy")
            await trainer.optim_step(AdamParams())
        features = session.server.features

    assert [500, 200, 200] == statuses(service, "forward_backward")
    assert [200, 200] == statuses(service, "forward")
    assert [1, 2, 3, 1, 2, 3] == [one.seq_id for one in service.ledger.executed if one.seq_id]
    assert "500" in features[Feature.PROTOBUF_TRAINING].detail
    assert "answer" == features[Feature.PROTOBUF_TRAINING].learned_from


async def test_a_server_that_cannot_read_protobuf_gets_json() -> None:
    """It says so by 422, as one that takes JSON objects, or by 415."""
    for refusal in (TINKER_0_4.wrong_form, (415, "unsupported media type")):
        service = FakeService(like=msgspec.structs.replace(TINKER_0_4, wrong_form=refusal))
        async with session_with(service) as session:
            trainer = await session.create_lora_training_client("toy")
            await trainer.forward_backward([DATUM], "cross_entropy")
            await trainer.forward([DATUM], "cross_entropy")

        assert [refusal[0], 200] == statuses(service, "forward_backward")
        assert [200] == statuses(service, "forward")


async def test_a_server_of_protobuf_only_never_sees_json() -> None:
    """Nor an endpoint for forward passes."""
    service = FakeService(like="tuft-0.2.2")
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        await trainer.forward([DATUM], "cross_entropy")
        await trainer.forward_backward([DATUM], "cross_entropy")

    assert [202, 202] == statuses(service, "forward_backward")
    assert 0 == service.ledger.count("forward")


async def test_a_passing_crash_is_no_sign_of_the_form() -> None:
    """The server refuses JSON, too, and then takes protobuf after all."""
    service = FakeService(like="tuft-0.2.2")
    service.faults.on("forward_backward", CRASH, occurrence=1)
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        await trainer.forward_backward([DATUM], "cross_entropy")
        features = session.server.features

    assert [500, 415, 202] == statuses(service, "forward_backward")
    assert features[Feature.PROTOBUF_TRAINING].supported


async def test_data_that_a_json_server_refuses_are_told_by_its_refusal() -> None:
    """Not by the crash that protobuf was answered with; and the number is free again."""
    service = FakeService(like="skyrl-0.3.0")
    service.faults.on("forward_backward", faults.Status(status=422, detail="bad"), occurrence=2)
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        with pytest.raises(APIStatusError, match="bad") as caught:
            await trainer.forward_backward([DATUM], "cross_entropy")
        await trainer.optim_step(AdamParams())

    assert 422 == caught.value.status
    assert [500, 422, 500] == statuses(service, "forward_backward")
    assert [1] == [one.seq_id for one in service.ledger.executed if one.seq_id]


async def test_a_server_that_crashes_in_every_form_is_told_by_its_crash() -> None:
    """After as many attempts as the policy allows."""
    service = FakeService()
    service.faults.on("forward_backward", CRASH)
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        few = RetryPolicy(max_attempts=4, base_s=0.001)
        with pytest.raises(InternalServerError):
            await trainer.forward_backward([DATUM], "cross_entropy", retry=few)

    assert 4 + 1 == service.ledger.count("forward_backward")


async def test_sparse_tensors_are_made_dense_for_a_server_that_refuses_them() -> None:
    """Once found, they are never sent again."""
    service = FakeService(like=Likeness(name="dense", dense_only=True))
    targets = np.zeros((3, 40), dtype=np.int64)
    weights = np.zeros((3, 40), dtype=np.float32)
    targets[:, 0], weights[:, 0] = (2, 3, 4), 1.0
    inputs = {
        "target_tokens": TensorData.from_numpy(targets).compressed(),
        "weights": TensorData.from_numpy(weights).compressed(),
    }
    sparse = Datum(ModelInput.from_ints([1, 2, 3]), inputs)
    assert inputs["weights"].is_sparse
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        first = await trainer.forward_backward([sparse], "cross_entropy")
        await trainer.forward_backward([sparse], "cross_entropy")
        plain = await trainer.forward([DATUM], "cross_entropy")
        features = session.server.features

    assert [422, 200, 200, 200] == statuses(service, "forward_backward")
    assert features[Feature.SPARSE_TENSORS].supported is False
    assert plain.metrics["loss:sum"] == pytest.approx(first.metrics["loss:sum"])


async def test_where_tokens_came_from_has_no_place_in_json() -> None:
    """It is refused before anything is sent once the server is known."""
    service = FakeService(like="tinker-0.4")
    span = PromptProvenanceSpan(sequence_id="s:0", offset=0, length=3)
    known = DATUM.with_provenance([span], [span])
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        with pytest.raises(UnsupportedByServerError, match="provenance"):
            await trainer.forward_backward([known], "cross_entropy")
        await trainer.forward_backward([DATUM], "cross_entropy")
        sent = service.ledger.count("forward_backward")
        with pytest.raises(UnsupportedByServerError, match="provenance"):
            trainer.forward_backward([known], "cross_entropy")

        assert sent == service.ledger.count("forward_backward")


async def test_metrics_with_strange_names_do_no_harm() -> None:
    """Without a colon, with two, without `loss:sum`; of one chunk and of several."""
    config = {"fwdbwd_max_chunk_len": 1}
    service = FakeService(
        like=Likeness(name="odd", metrics="strange", json_results=True, config=config)
    )
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        one = await trainer.forward_backward([DATUM], "cross_entropy")
        two = await trainer.forward_backward([DATUM, DATUM], "cross_entropy")
        own = await trainer.forward_backward_custom([DATUM, DATUM], total)

    assert {"total", "by:name:sum", "policy_lr:last"} == set(one.metrics)
    assert 2 * one.metrics["by:name:sum"] == pytest.approx(two.metrics["by:name:sum"])
    assert 2 * one.metrics["total"] == pytest.approx(own.metrics["loss:sum"])


# Fields that older servers do not know


STRICT = {
    "optimizer": Feature.OTHER_OPTIMIZERS,
    "kind": Feature.INFLIGHT_SAMPLERS,
    "metadata": Feature.CHECKPOINT_METADATA,
    "topk": Feature.TOPK_SAMPLE_LOGPROBS,
    "alternatives": Feature.PROMPT_ALT_TOKENS,
    "targets": Feature.TARGET_PROMPT_LOGPROBS,
    "last_n": Feature.PROMPT_LOGPROBS_LAST_N,
    "stability": Feature.STABILITY_INFO,
}


@pytest.mark.parametrize("what", STRICT)
async def test_a_field_that_a_strict_server_does_not_know_names_the_feature(what: str) -> None:
    """When it was asked for: the first time by the server, then before anything is sent."""
    service = FakeService(like="tuft-0.2.2")
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        sampler = await session.create_sampling_client(base_model="toy")

        async def ask() -> None:
            if what == "optimizer":
                await trainer.optim_step({"type": "dimuon", "learning_rate": 0.1})
            elif what == "kind":
                await trainer.save_weights_and_get_sampling_client(kind="inflight")
            elif what == "metadata":
                await trainer.save_state("a", user_metadata={"a": "b"})
            elif what == "topk":
                await sampler.sample(PROMPT, topk_sample_logprobs=2)
            elif what == "alternatives":
                await sampler.sample(PROMPT, prompt_alt_tokens_k=2)
            elif what == "targets":
                await sampler.sample(PROMPT, target_prompt_logprobs=np.array([[1, 2]]))
            elif what == "last_n":
                await sampler.compute_logprobs(PROMPT, 1)
            else:
                sampler.record_stability_info = True
                await sampler.sample(PROMPT)

        if what == "optimizer":
            trainer._requests._optimizer = None
        with pytest.raises(UnsupportedByServerError) as first:
            await ask()
        sent = len(service.ledger.entries)
        with pytest.raises(UnsupportedByServerError) as second:
            await ask()

        assert sent == len(service.ledger.entries)
        assert STRICT[what] == first.value.feature == second.value.feature
        assert (STRICT[what],) == tuple(
            one
            for one in session.server.features.missing
            if one not in CONFIGURED and session.server.features[one].learned_from == "answer"
        )
        sampler.record_stability_info = False
        await trainer.optim_step(AdamParams())
        await sampler.sample(PROMPT)


CONFIGURED = (Feature.DYNAMIC_CONFIG, Feature.SEQUENCE_IDS)


async def test_settings_that_an_old_optimizer_does_not_have_are_refused_when_used() -> None:
    """And left out when they are not."""
    service = FakeService(like="tinker-0.4")
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        await trainer.optim_step(AdamParams(learning_rate=0.1))
        with pytest.raises(UnsupportedByServerError) as caught:
            await trainer.optim_step(AdamParams(weight_decay=0.1))

        assert Feature.ADAM_EXTRAS == caught.value.feature
        await trainer.optim_step(AdamParams(learning_rate=0.1))


async def test_a_refusal_that_names_no_unknown_field_stays_what_it_is() -> None:
    """Even if it names a field that not all servers have."""
    service = FakeService()
    service.faults.on("save_weights", faults.Status(status=422, detail="overwrite: no"), times=1)
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        with pytest.raises(APIStatusError, match="overwrite: no") as caught:
            await trainer.save_state("a", overwrite=True)

        assert 422 == caught.value.status
        assert Feature.OVERWRITING not in session.server.features.missing
        await trainer.save_state("a", overwrite=True)


# Endpoints that older servers do not have


async def test_an_endpoint_that_is_not_there_is_asked_once() -> None:
    """Each call for it then fails before anything is sent."""
    service = FakeService(like="skyrl-0.3.0")
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        for _ in range(2):
            with pytest.raises(UnsupportedByServerError, match="checkpoint listing"):
                await session.rest.list_user_checkpoints_page()
            with pytest.raises(UnsupportedByServerError, match="external weights"):
                await trainer.save_weights_external("a")
            with pytest.raises(UnsupportedByServerError, match="copying"):
                await session.rest.copy_weights("tinker://a/weights/b", "p")
        await trainer.optim_step(AdamParams())

    for endpoint in ("checkpoints", "save_weights_external", "copy_weights"):
        assert [404] == statuses(service, endpoint)


@pytest.mark.parametrize(
    ("feature", "call"),
    [
        (Feature.SESSION_LISTING, lambda rest: rest.list_sessions_page()),
        (Feature.SESSION_SEARCH, lambda rest: rest.search_sessions_page()),
        (Feature.SESSION_DETAILS, lambda rest: rest.get_session("s1")),
        (Feature.SESSION_FINISHING, lambda rest: rest.finish_session("s1")),
        (Feature.PROJECTS, lambda rest: rest.assign_session_project("s1", "p")),
        (Feature.TRACES, lambda rest: rest.export_session_trace("s1")),
        (Feature.CHECKPOINT_TTL, lambda rest: rest.set_checkpoint_ttl_from_tinker_path(PATH, None)),
        (Feature.PUBLISHING, lambda rest: rest.publish_checkpoint_from_tinker_path(PATH)),
        (Feature.API_KEYS, lambda rest: rest.whoami()),
        (Feature.KEY_REVOCATION, lambda rest: rest.revoke_api_key()),
        (Feature.BILLING, lambda rest: rest.get_current_checkpoint_storage_usage()),
        (Feature.AUDIT, lambda rest: rest.get_audit_log()),
    ],
)
async def test_what_an_older_server_lacks_is_found_once_and_said(
    feature: Feature, call: Callable[[RestClient], Awaitable[object]]
) -> None:
    """Then nothing is sent any more, and the session's features say it too."""
    service = FakeService(like="skyrl-0.3.0")
    async with session_with(service) as session:
        before = len(service.ledger.entries)
        for _ in range(2):
            with pytest.raises(UnsupportedByServerError) as caught:
                await call(session.rest)
        sent = len(service.ledger.entries) - before
        known = session.server.features[feature]

    assert (1, feature) == (sent, caught.value.feature)
    assert (False, "answer") == (known.supported, known.learned_from)


async def test_a_method_that_is_not_allowed_is_an_endpoint_that_is_not_there() -> None:
    """As of servers that cannot delete."""
    service = FakeService()
    refusal = faults.Status(status=405, detail="Method Not Allowed")
    service.faults.on("delete_checkpoint", refusal)
    path = "tinker://s1:train:0/weights/a"
    async with session_with(service) as session:
        for _ in range(2):
            with pytest.raises(UnsupportedByServerError, match="checkpoint deletion"):
                await session.rest.delete_checkpoint_from_tinker_path(path)

    assert [405] == statuses(service, "delete_checkpoint")


async def test_a_thing_that_is_not_there_says_nothing_of_the_endpoint() -> None:
    """A 404 with a reason."""
    service = FakeService()
    path = "tinker://s1:train:0/weights/a"
    async with session_with(service) as session:
        for _ in range(2):
            with pytest.raises(APIStatusError) as caught:
                await session.rest.delete_checkpoint_from_tinker_path(path)
            assert 404 == caught.value.status


async def test_a_server_without_config_gets_the_defaults() -> None:
    """Whether it says 404 or 405."""
    service = FakeService(like="tinker-0.4")
    absent = service.ledger
    other = FakeService()
    for endpoint in ("client/config", "client/dynamic_config"):
        other.faults.on(endpoint, faults.Status(status=405, detail="Method Not Allowed"))
    for one in (service, other):
        async with session_with(one) as session:
            features = session.server.features
            assert features[Feature.CLIENT_CONFIG].supported is False
            assert features[Feature.DYNAMIC_CONFIG].supported is False
            await session.create_lora_training_client("toy")
    assert [404] == [one.status for one in absent.of("client/config")]


def test_a_config_that_is_not_there_is_not_asked_for_again() -> None:
    """In an hour, with a refresh interval of five minutes."""
    service = FakeService(like="skyrl-0.3.0", silence_s=10_000)

    async def program() -> None:
        async with service.session():
            await anyio.sleep(3600)

    run_in_virtual_time(program)
    assert 1 == service.ledger.count("client/dynamic_config")


async def test_a_server_that_has_no_cancel_hears_of_one_sample_only() -> None:
    """The first answer says that there is no such endpoint."""
    like = Likeness(name="no cancel", absent=frozenset({"cancel_future"}))
    service = FakeService(like=like, sample_s=60)
    async with session_with(service) as session:
        sampler = await session.create_sampling_client(base_model="toy")
        for number in range(3):
            future = sampler.submit_sample(PROMPT)
            await until(partial(polled_more_than, service, number))
            future.cancel()
            await until(lambda: session.server.features[Feature.CANCEL].learned_from == "answer")

    assert [404] == statuses(service, "cancel_future")


# Creating, loading, listing


async def test_a_model_is_created_and_then_loaded_where_one_step_is_not_enough() -> None:
    """What was refused once is not tried again; ids are the server's."""
    service = FakeService(like="tuft-0.2.2")
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy", rank=3)
        saved = await trainer.save_state("a")
        for _ in range(2):
            resumed = await session.create_training_client_from_state(saved.path)
            await resumed.forward_backward([DATUM], "cross_entropy")
        run = await session.rest.get_training_run(resumed.model_id)

    assert [400, 202, 202] == statuses(service, "load_weights")
    assert 3 == run.lora_rank
    assert [1, 2] == [one.seq_id for one in service.ledger.executed if one.seq_id][-2:]


async def test_the_oldest_servers_know_a_checkpoint_by_its_run_only() -> None:
    """And always load the optimizer: a load without it is refused before a model is made."""
    service = FakeService(like="tinker-0.4")
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy", rank=3)
        saved = await trainer.save_state("a")
        resumed = await session.create_training_client_from_state_with_optimizer(saved.path)
        run = await session.rest.get_training_run(resumed.model_id)
        models = service.ledger.count("create_model")
        with pytest.raises(UnsupportedByServerError, match="weights only loading"):
            await session.create_training_client_from_state(saved.path)
        with pytest.raises(UnsupportedByServerError, match="weights only loading"):
            resumed.load_state(saved.path)
        await resumed.load_state_with_optimizer(saved.path)

    assert 3 == run.lora_rank
    assert models == service.ledger.count("create_model")
    assert [404] == statuses(service, "weights_info")


async def test_ids_are_taken_from_answers_and_never_computed() -> None:
    """They look different with each server."""
    service = FakeService(like="skyrl-0.3.0")
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        saved = await trainer.save_weights_for_sampler("a")
        sampler = await session.create_sampling_client(saved.path)
        response = await sampler.sample(PROMPT, SamplingParams(max_tokens=2), 2)

    assert trainer.model_id.startswith("model_")
    assert f"tinker://{trainer.model_id}/a" == saved.path
    ids = [one.sequence_id for one in response.sequences]
    assert [f"{sampler.sampling_session_id}:0:{index}" for index in range(2)] == ids


async def test_a_lost_save_is_found_where_listings_have_bare_ids() -> None:
    """By its path."""
    service = FakeService(like="tuft-0.2.2")
    service.faults.on("save_weights", faults.DropReply(), times=1)
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        saved = await trainer.save_state("a")
        listed = await session.rest.list_checkpoints_page(trainer.model_id)

    assert f"tinker://{trainer.model_id}/weights/a" == saved.path
    assert ["a"] == [one.checkpoint_id for one in listed.checkpoints]


# Sampling


async def test_a_server_that_needs_max_tokens_is_sent_some() -> None:
    """What is left of the context: the first time after its refusal, then at once."""
    service = FakeService(like="skyrl-0.3.0")
    async with session_with(service) as session:
        sampler = await session.create_sampling_client(base_model="toy")
        for _ in range(2):
            response = await sampler.sample(PROMPT, SamplingParams(stop=[]))
            assert 8192 - 2 == len(response.sequences[0].tokens)
        sampler.context_length = None
        unknown = await sampler.sample(PROMPT, SamplingParams(stop=[]))

    assert [400, 200, 200, 200] == statuses(service, "asample")
    assert 128 == len(unknown.sequences[0].tokens)


async def test_a_bare_stop_string_goes_as_a_list() -> None:
    """Some servers refuse one; others take each of its letters."""
    service = FakeService(like="skyrl-0.3.0")
    async with session_with(service) as session:
        sampler = await session.create_sampling_client(base_model="toy")
        params = SamplingParams(max_tokens=3, stop="zzz")
        response = await sampler.sample(PROMPT, params)

    assert "zzz" == params.stop
    assert 3 == len(response.sequences[0].tokens)


# Results


def test_a_poll_that_is_held_for_longer_than_we_listen_is_no_failure() -> None:
    """A server that holds for 300 s: polls follow each other at once, and the result comes."""
    service = FakeService(like="skyrl-0.3.0", sample_s=1000)

    async def program() -> float:
        async with service.session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            started = anyio.current_time()
            await sampler.sample(PROMPT, SamplingParams(max_tokens=2))
            return anyio.current_time() - started

    assert 1000 == pytest.approx(run_in_virtual_time(program), abs=1)
    polls = [one.at_s for one in service.ledger.of("retrieve_future")]
    assert {45} == {round(later - earlier) for earlier, later in itertools.pairwise(polls)}


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422])
async def test_a_failure_told_by_status_is_a_failed_operation(status: int) -> None:
    """With the server's words, and asked for once; the status is its cause."""
    kinds = {"user": status, "server": status, "unknown": status}
    service = FakeService(like=msgspec.structs.replace(SKYRL_0_3, failures=kinds))
    service.faults.on("optim_step", faults.OperationFails(error="Checkpoint a not found."), times=1)
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        polls = service.ledger.count("retrieve_future")
        with pytest.raises(RequestFailedError, match="Checkpoint a not found") as caught:
            await trainer.optim_step(AdamParams())
        asked = service.ledger.count("retrieve_future") - polls
        await trainer.optim_step(AdamParams())

    assert 1 == asked
    assert isinstance(caught.value.__cause__, APIStatusError)
    assert status == caught.value.__cause__.status


@pytest.mark.parametrize(
    "detail", ["Not Found", "Future not found", "Future with request ID 7 not found.", ""]
)
async def test_a_promise_that_is_gone_is_not_a_failed_operation(detail: str) -> None:
    """Whatever words the server has for it."""
    service = FakeService()
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        service.faults.on("retrieve_future", faults.Status(status=404, detail=detail))
        with pytest.raises(PromiseLostError):
            await trainer.optim_step(AdamParams())


@pytest.mark.parametrize(("status", "error"), [(401, AuthenticationError), (402, BillingError)])
async def test_what_is_about_whoever_asks_is_not_a_failed_operation(
    status: int, error: type[APIStatusError]
) -> None:
    """The operation may be done: with another key its result is there."""
    service = FakeService()
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        service.faults.on("retrieve_future", faults.Status(status=status), times=1)
        with pytest.raises(error):
            await trainer.optim_step(AdamParams())


@pytest.mark.parametrize("status", [408, 429, 503])
def test_a_stored_failure_that_looks_passing_ends(status: int) -> None:
    """The same words, each time at once, until nobody would believe them."""
    service = FakeService(silence_s=10_000)
    refusal = faults.Status(status=status, detail="Timeout when waiting for sequence ID 3.")

    async def program() -> float:
        async with service.session() as session:
            trainer = await session.create_lora_training_client("toy")
            service.faults.on("retrieve_future", refusal)
            started = anyio.current_time()
            with pytest.raises((RequestFailedError, APIStatusError), match="sequence ID 3"):
                await trainer.optim_step(AdamParams())
            return anyio.current_time() - started

    assert 20 < run_in_virtual_time(program) < 310
    assert 25 < service.ledger.count("retrieve_future") < 45


def test_not_yet_at_once_is_followed_by_a_pause() -> None:
    """A server that does not hold polls is not hammered, and may take as long as it likes."""
    for status in (200, 408):
        service = FakeService(train_s=3600, hold_s=0, silence_s=10_000)
        if status == 408:
            service.faults.on(
                "retrieve_future", faults.QueueState(status=408), occurrence=range(2, 900)
            )

        async def program(service: FakeService = service) -> None:
            async with service.session() as session:
                trainer = await session.create_lora_training_client("toy")
                await trainer.optim_step(AdamParams())

        run_in_virtual_time(program)
        assert 2000 < service.ledger.count("retrieve_future") < 4000


# What is known


async def test_what_a_server_has_is_told_with_how_it_is_known() -> None:
    """By its config, by its first answers, or not so far."""
    service = FakeService(like="tuft-0.2.2")
    async with session_with(service) as session:
        before = session.server.features
        trainer = await session.create_lora_training_client("toy")
        await trainer.forward([DATUM], "cross_entropy")
        after = session.server.features
        assert session.server.base_url.startswith("http://127.0.0.1:")

    assert FeatureSupport(True, "answer") == before[Feature.CLIENT_CONFIG]
    assert FeatureSupport(False, "config") == before[Feature.SESSION_POLLER]
    assert FeatureSupport() == before[Feature.PROTOBUF_TRAINING]
    assert FeatureSupport(True, "answer") == after["protobuf_training"]
    assert after[Feature.CLIENT_CONFIG] == before[Feature.CLIENT_CONFIG]
    assert Feature.DYNAMIC_CONFIG in after.missing


async def test_idle_connections_that_the_server_closes_do_no_harm() -> None:
    """As uvicorn does after some seconds."""
    service = FakeService(like=msgspec.structs.replace(TUFT_0_2, idle_s=0.05))
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        for _ in range(3):
            await until(lambda: not service.ledger.open_connections)
            await trainer.optim_step(AdamParams())

    assert [] == [one for one in service.ledger.entries if one.outcome == "lost"]
    assert 3 == service.ledger.count("optim_step")


# The likenesses themselves


async def test_a_failed_operation_of_the_strictest_server_does_not_count() -> None:
    """Its number is expected again, so that all that follows is refused."""
    service = FakeService(like="tuft-0.2.2")
    service.faults.on("optim_step", faults.OperationFails(category="user"), times=1)
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        with pytest.raises(RequestFailedError):
            await trainer.optim_step(AdamParams())
        with pytest.raises(RequestFailedError, match="expected 1, got 2"):
            await trainer.optim_step(AdamParams())


def test_there_is_no_server_of_an_unknown_kind() -> None:
    """The message names those that there are."""
    with pytest.raises(ConfigError, match="skyrl"):
        FakeService(like="skyrl")


async def test_an_optimizer_of_another_family_is_refused_when_the_model_is_made() -> None:
    """Not only when it steps."""
    from tinker_async import DimuonOptimizerConfig

    service = FakeService(like="tuft-0.2.2")
    async with session_with(service) as session:
        for _ in range(2):
            with pytest.raises(UnsupportedByServerError, match="other optimizers"):
                await session.create_lora_training_client("toy", optimizer=DimuonOptimizerConfig())
        trainer = await session.create_lora_training_client("toy")
        with pytest.raises((UnsupportedByServerError, BadRequestError, ValueError)):
            await trainer.optim_step(DimuonParams(learning_rate=0.1))

    assert [422, 202] == statuses(service, "create_model")


async def test_a_connection_that_ends_while_it_is_taken_up_again_costs_no_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The request goes again at once, on another one; the next failure is the first that counts."""
    monkeypatch.setattr(http1, "_RESTED_S", -1.0)
    service = FakeService()
    service.faults.on("get_server_capabilities", faults.DropReply(), occurrence=1)
    service.faults.on("get_server_capabilities", faults.Status(status=503), occurrence=2)
    once_more = RetryPolicy(max_attempts=2, base_s=0.001)
    async with session_with(service) as session:
        await session.get_server_capabilities(retry=once_more)
        with session.events() as events:
            service.faults.on("get_server_capabilities", faults.DropReply(), occurrence=1)
            await session.get_server_capabilities(retry=once_more)
            failed = await anext(events)
        assert isinstance(failed, AttemptFailed)
        assert 0 == failed.delay_s

    assert [None, 503, 200, None, 200] == [
        one.status if one.outcome == "answered" else None
        for one in service.ledger.of("get_server_capabilities")
    ]


async def test_a_samplers_archive_is_found_by_its_bare_name(tmp_path: Path) -> None:
    """Where paths have no kind, and archives are of samplers alone; no other path changes."""
    service = FakeService(like="skyrl-0.3.0")
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        sampler = await trainer.save_weights_for_sampler("kept")
        state = await trainer.save_state("kept")
        assert 1 == sampler.path.removeprefix("tinker://").count("/")
        done = await session.rest.download_checkpoint(sampler.path, tmp_path / "sampler")
        with pytest.raises(NotFoundError):
            await session.rest.download_checkpoint(state.path, tmp_path / "state")
        with pytest.raises(NotFoundError, match="no checkpoint"):
            gone = sampler.path.replace("kept", "gone")
            await session.rest.download_checkpoint(gone, tmp_path / "gone")

    assert ("adapter_config.json", "toy_weights.bin") == done.files
    assert ["sampler"] == left(tmp_path)
    assert [302, 404] == statuses(service, "bare_archive")


async def test_a_server_without_archives_is_asked_twice_at_most(tmp_path: Path) -> None:
    """The first answer counts, with what to do about it."""
    absent = frozenset({"archive", "bare_archive"})
    service = FakeService(like=Likeness(name="without", absent=absent))
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        saved = await trainer.save_weights_for_sampler("kept")
        with pytest.raises(NotFoundError, match="sampler_weights/kept/archive") as caught:
            await session.rest.download_checkpoint(saved.path, tmp_path / "x")

    assert "save_weights_external" in (caught.value.hint or "")
    assert (1, 1) == (service.ledger.count("archive"), service.ledger.count("bare_archive"))


async def test_an_archive_in_a_folder_of_the_server_is_no_download(tmp_path: Path) -> None:
    """Its address is a file's: that is said, and no file of this machine is read."""
    service = FakeService(like="tuft-0.2.2")
    async with session_with(service) as session:
        trainer = await session.create_lora_training_client("toy")
        saved = await trainer.save_weights_for_sampler("kept")
        with pytest.raises(DownloadError, match="not http"):
            await session.rest.download_checkpoint(saved.path, tmp_path / "x")
