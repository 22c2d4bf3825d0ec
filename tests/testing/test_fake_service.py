"""The fake service with our client: in process, over HTTP/1.1 and over HTTP/2, all the same."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import numpy as np
import pytest
import trustme
from testing.loops import ADAM, DATUM, PROMPT, TEXT, reinforce, step

from tinker_async import (
    APIStatusError,
    AuthenticationError,
    ConfigError,
    ConnectError,
    ModelInput,
    NotFoundError,
    RequestFailedError,
    RetryPolicy,
    SamplingParams,
    Session,
    SessionLostError,
    TinkerError,
)
from tinker_async.testing import FakeService, faults
from tinker_async.transport import Request
from tinker_async.transport.opening import open_transport
from tinker_async.wire.messages import ClientConfigResponse

WAYS = ("in process", "HTTP/1.1", "HTTP/2")
QUICK = RetryPolicy(base_s=0.01, max_s=0.02)


@asynccontextmanager
async def opened(service: FakeService, way: str, **options: Any) -> AsyncIterator[Session]:
    options = {"retry": QUICK, **options}
    if way == "in process":
        async with service.session(**options) as session:
            yield session
        return
    async with (
        service.serve() as url,
        Session(url, service.api_key, http2=way == "HTTP/2", **options) as session,
    ):
        yield session


@pytest.mark.parametrize("way", WAYS)
async def test_a_loop_learns_and_every_way_finds_the_same(way: str) -> None:
    """Rewards, tokens and final weights, to the bit; nothing is left open."""
    service, reference = FakeService(), FakeService()
    with anyio.fail_after(30):
        async with opened(service, way) as session:
            found = await reinforce(session, steps=6)
        async with opened(reference, "in process") as session:
            expected = await reinforce(session, steps=6)

    assert expected == found
    assert found["rewards"][-1] > found["rewards"][0]
    mine, theirs = service.weights_of(found["path"]), reference.weights_of(found["path"])
    assert mine.keys() == theirs.keys()
    assert all(mine[token].tobytes() == theirs[token].tobytes() for token in mine)
    assert [] == service.ledger.pending()
    assert 0 == service.ledger.open_connections


@pytest.mark.parametrize("way", WAYS)
async def test_a_restored_run_goes_on_bit_for_bit(service: FakeService, way: str) -> None:
    """With the optimizer, in a new model and in an old one; without it only at first."""
    async with opened(service, way) as session:
        trainer = await session.create_lora_training_client("toy")
        for _ in range(3):
            await step(trainer)
        path = (await trainer.save_state("here")).path
        expected = [await step(trainer) for _ in range(3)]
        again = await session.create_training_client_from_state_with_optimizer(path)
        fresh = await session.create_training_client_from_state(path)
        found = [await step(again) for _ in range(3)]
        without = [await step(fresh) for _ in range(3)]
        await trainer.load_state_with_optimizer(path)
        reloaded = [await step(trainer) for _ in range(3)]

    assert expected == found == reloaded
    assert expected[0] == without[0]
    assert expected[1:] != without[1:]


async def test_an_ephemeral_sampler_keeps_its_weights(service: FakeService) -> None:
    async with service.session() as session:
        trainer = await session.create_lora_training_client("toy")
        for _ in range(20):
            await step(trainer)
        sampler = await trainer.save_weights_and_get_sampling_client()
        before = await sampler.compute_logprobs(ModelInput.from_ints(TEXT))
        path = (await trainer.save_weights_for_sampler("named")).path
        for _ in range(3):
            await step(trainer)
        named = await session.create_sampling_client(model_path=path)
        after = await sampler.compute_logprobs(ModelInput.from_ints(TEXT))
        of_named = await named.compute_logprobs(ModelInput.from_ints(TEXT))

    assert before.tobytes() == after.tobytes() == of_named.tobytes()
    assert before[1:].mean() > -2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "endpoint",
    [
        "create_model",
        "forward_backward",
        "optim_step",
        "save_weights",
        "asample",
        "retrieve_future",
    ],
)
async def test_repetitions_change_nothing_and_the_ledger_knows_them(
    service: FakeService, way: str, endpoint: str
) -> None:
    """A reply lost after the work is asked for again: one execution, one more arrival."""
    clean = FakeService()
    async with opened(clean, "in process") as session:
        expected = await reinforce(session, steps=2)
    rule = service.faults.on(endpoint, faults.DropReply(), occurrence=1)
    with anyio.fail_after(30):
        async with opened(service, way) as session:
            found = await reinforce(session, steps=2)

    assert expected == found
    assert 1 == rule.hits
    model_id = found["model_id"]
    assert clean.ledger.order(model_id) == service.ledger.order(model_id)
    assert [] == service.ledger.gaps(model_id)
    assert service.ledger.samples_answered_once()
    assert clean.ledger.count(endpoint) + 1 == service.ledger.count(endpoint)
    asked = sum(line.asked for line in service.ledger.samples)
    assert len(service.ledger.samples) + (endpoint == "asample") == asked
    repeated = endpoint in {"forward_backward", "optim_step", "save_weights", "asample"}
    assert int(repeated) == len(service.ledger.duplicates())


async def test_operations_run_in_the_order_of_their_numbers(service: FakeService) -> None:
    """Chunks of one call may arrive in any order; a reset of the first is no gap."""
    service.faults.on("forward_backward", faults.Reset(), occurrence=1)
    async with service.session(retry=QUICK) as session:
        trainer = await session.create_lora_training_client("toy")
        futures = [trainer.forward_backward([DATUM], "cross_entropy") for _ in range(3)]
        optim = trainer.optim_step(ADAM)
        for future in futures:
            await future
        await optim

    numbers = [one.seq_id for one in service.ledger.executed if one.seq_id is not None]
    assert [1, 2, 3, 4] == numbers


async def test_the_ledger_sees_a_gap(service: FakeService) -> None:
    """A number that never arrives holds all that come after it, and is named."""
    promises = []
    async with service.session() as session:
        trainer = await session.create_lora_training_client("toy")
        transport = service.transport()
        for number in (1, 3):
            body = b'{"model_id":"%s","seq_id":%d,"adam_params":{},"type":"optim_step"}'
            request = body % (trainer.model_id.encode(), number)
            promises.append(await _post(transport, "optim_step", request))
        assert [1] == [one.seq_id for one in service.ledger.executed if one.seq_id is not None]
        assert [] == service.ledger.gaps(trainer.model_id)
        assert [3] == sorted(service.state.models[trainer.model_id].held)


async def _post(transport: Any, endpoint: str, body: bytes) -> Any:
    response = await transport.request(Request("POST", f"/api/v1/{endpoint}", (), (body,)))
    assert 200 == response.status, bytes(response.body)
    return response


async def test_a_cancelled_sample_is_told_and_noted() -> None:
    service = FakeService(sample_s=60)
    async with service.session() as session:
        sampler = await session.create_sampling_client(base_model="toy")
        with anyio.move_on_after(0.05):
            await sampler.sample(PROMPT)
        with anyio.fail_after(5):
            while not service.ledger.cancels():  # noqa: ASYNC110  # the ledger has no event
                await anyio.sleep(0.01)

    (line,) = service.ledger.samples
    assert (1, 0, 1) == (line.asked, line.answered, line.cancelled)
    assert [line.request_id] == service.ledger.cancels()
    assert service.ledger.samples_answered_once()
    assert [] == service.ledger.unanswered()


async def test_a_sample_nobody_got_is_named() -> None:
    service = FakeService(cancel_enabled=False)  # nobody tells that it was given up
    service.faults.on("retrieve_future", faults.Status(401))
    async with service.session() as session:
        sampler = await session.create_sampling_client(base_model="toy")
        with pytest.raises(AuthenticationError):
            await sampler.sample(PROMPT)

    assert [0] == [line.answered for line in service.ledger.samples]
    assert not service.ledger.samples_answered_once()
    assert service.ledger.samples == service.ledger.unanswered()


async def test_pause_shows_its_queue_state_and_resume_ends_it() -> None:
    service = FakeService(hold_s=0.02)
    async with service.session() as session:
        trainer = await session.create_lora_training_client("toy")
        service.pause("paused_rate_limit", "too much")
        future = trainer.optim_step(ADAM)
        with anyio.fail_after(5):
            while future.queue_state is None:  # noqa: ASYNC110  # polled by hand
                await anyio.sleep(0.01)
        assert ("paused_rate_limit", "too much") == (future.queue_state, future.queue_state_reason)
        assert not future.done
        service.resume()
        with anyio.fail_after(5):
            await future


@pytest.mark.parametrize("how", ["by hand", "by script"])
async def test_a_corrupt_run_says_so_and_fails(service: FakeService, how: str) -> None:
    async with service.session() as session:
        trainer = await session.create_lora_training_client("toy")
        await step(trainer)
        if how == "by hand":
            service.corrupt(trainer.model_id)
        else:
            service.faults.on("forward_backward", faults.Corrupts(), times=1)
        for _ in range(2):
            with pytest.raises(RequestFailedError, match="corrupted") as caught:
                await trainer.forward_backward([DATUM], "cross_entropy")
            assert "server" == caught.value.category
        run = await session.rest.get_training_run(trainer.model_id)

    assert run.corrupted
    assert [False, False, False, True, True] == [one.failed for one in service.ledger.executed]


async def test_a_failed_operation_changes_nothing_and_uses_its_number_up(
    service: FakeService,
) -> None:
    fault = faults.OperationFails("no luck", category="user")
    service.faults.on("optim_step", fault, occurrence=1)
    async with service.session() as session:
        trainer = await session.create_lora_training_client("toy")
        await trainer.forward_backward([DATUM], "cross_entropy")
        with pytest.raises(RequestFailedError, match="no luck"):
            await trainer.optim_step(ADAM)
        assert {} == service.weights_of(trainer.model_id)
        await trainer.optim_step(ADAM)
        assert {} != service.weights_of(trainer.model_id)

    assert [] == service.ledger.gaps(trainer.model_id)


@pytest.mark.parametrize("how", ["by hand", "by script"])
async def test_a_session_that_dies_takes_everything_with_it(service: FakeService, how: str) -> None:
    with pytest.raises((SessionLostError, APIStatusError, ExceptionGroup)):
        async with service.session(retry=QUICK) as session:
            trainer = await session.create_lora_training_client("toy")
            if how == "by hand":
                service.end_session(session.session_id)
            else:
                service.faults.on("optim_step", faults.EndsSession(), times=1)
            for _ in range(3):
                try:
                    await trainer.optim_step(ADAM)
                except APIStatusError as error:
                    last = error
            assert 410 == last.status
            raise last

    entries = service.ledger.of("optim_step")
    assert {410} == {entry.status for entry in entries}
    assert [] == service.ledger.order("s1:train:0")


async def test_a_restart_loses_all_but_checkpoints(service: FakeService) -> None:
    async with service.session(retry=QUICK) as session:
        trainer = await session.create_lora_training_client("toy")
        await step(trainer)
        path = (await trainer.save_state("kept")).path
        expected = await step(trainer)
        service.restart()
        with pytest.raises(TinkerError):
            await trainer.optim_step(ADAM)
    async with service.session() as session:
        again = await session.create_training_client_from_state_with_optimizer(path)
        assert expected == await step(again)
        assert "s2:train:0" == again.model_id


async def test_a_silent_session_is_over() -> None:
    service = FakeService(silence_s=0.05)
    with pytest.raises((SessionLostError, APIStatusError)):
        async with service.session(retry=QUICK) as session:
            await anyio.sleep(0.2)
            await session.create_lora_training_client("toy")


async def test_listings_are_true(service: FakeService) -> None:
    async with service.session(user_metadata={"k": "v"}) as session:
        trainer = await session.create_lora_training_client("toy", rank=4)
        state = (await trainer.save_state("a")).path
        named = (await trainer.save_weights_for_sampler("b")).path
        runs = [run async for run in session.rest.list_training_runs()]
        listed = [one async for one in session.rest.list_checkpoints()]
        of_run = [one async for one in session.rest.list_checkpoints(trainer.model_id)]
        info = await session.rest.get_weights_info_by_tinker_path(state)
        capabilities = await session.get_server_capabilities()
        await session.rest.delete_checkpoint_from_tinker_path(named)
        left = [one.tinker_path async for one in session.rest.list_checkpoints()]
        with pytest.raises(NotFoundError):
            await session.rest.delete_checkpoint_from_tinker_path(named)

    assert [(trainer.model_id, 4, False)] == [
        (run.training_run_id, run.lora_rank, run.corrupted) for run in runs
    ]
    assert [named, state] == [one.tinker_path for one in listed]
    assert ["weights/a", "sampler_weights/b"] == [one.checkpoint_id for one in of_run]
    assert ("toy", 4) == (info.base_model, info.lora_rank)
    assert ["toy"] == [model.model_name for model in capabilities.supported_models]
    assert [state] == left


async def test_the_tokenizer_is_one_token_a_byte(service: FakeService) -> None:
    async with service.session() as session:
        trainer = await session.create_lora_training_client("toy")
        tokenizer = await trainer.get_tokenizer()

    text = "Grüße, 東京!"
    tokens = tokenizer.encode(text).ids
    assert list(text.encode()) == tokens
    assert text == tokenizer.decode(tokens)


async def test_a_wrong_key_is_refused() -> None:
    service = FakeService(api_key="tml-right")
    async with service.serve() as url:
        with pytest.raises(AuthenticationError):
            async with Session(url, "tml-wrong"):
                pytest.fail("let in")
        async with Session(url, "tml-right") as session:
            assert "s1" == session.session_id


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
async def test_it_serves_tls_and_drops_handshakes(service: FakeService, protocol: str) -> None:
    authority = trustme.CA()
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    theirs.set_alpn_protocols([protocol])
    service.faults.on("connect", faults.TlsDrop(), occurrence=1)
    async with service.serve(ssl_context=theirs) as url:
        ours = ssl.create_default_context()
        authority.configure_trust(ours)
        async with open_transport(url, ssl_context=ours) as transport:
            request = Request("GET", "/api/v1/healthz", ())
            with pytest.raises(ConnectError, match="TLS handshake"):
                await transport.request(request)
            response = await transport.request(request)
            found = transport.statistics().protocol

    assert 200 == response.status
    assert protocol == found.lower().replace("http/2", "h2")
    assert ["healthz"] == [entry.endpoint for entry in service.ledger.entries]


async def test_zstd_bodies_are_understood() -> None:
    service = FakeService(config=ClientConfigResponse(proto_compress_fwdbwd=True))
    data = [DATUM] * 200
    async with service.session() as session:
        trainer = await session.create_lora_training_client("toy")
        output = await trainer.forward(data, "cross_entropy")

    assert 200 == len(output.loss_fn_outputs)
    (entry,) = service.ledger.of("forward_backward")
    assert entry.body_bytes < sum(datum.nbytes for datum in data) / 2


async def test_unknown_paths_are_404_and_noted(service: FakeService) -> None:
    response = await service.transport().request(Request("GET", "/api/v1/no/such", ()))

    assert 404 == response.status
    assert ["/api/v1/no/such"] == [entry.path for entry in service.ledger.of("")]


@pytest.mark.parametrize(
    ("wanted", "if_range", "expected"),
    [
        (b"", b"", (200, slice(None))),
        (b"bytes=3-", b"", (206, slice(3, None))),
        (b"bytes=0-4", b"TAG", (206, slice(0, 5))),
        (b"bytes=3-", b'"another"', (200, slice(None))),
        (b"bytes=99999999-", b"", (416, slice(0, 0))),
        (b"lines=1", b"", (200, slice(None))),
    ],
)
async def test_a_part_of_a_file_can_be_had(
    wanted: bytes, if_range: bytes, expected: tuple[int, slice]
) -> None:
    """What a download needs to go on, unless it is another version by now."""
    service = FakeService()
    transport = service.transport()
    async with service.session() as session:
        trainer = await session.create_lora_training_client("toy")
        saved = await trainer.save_weights_external("e")
        urls = (await session.rest.get_external_weights_urls(saved.path)).urls
        path = urls["adapter_config.json"].partition("fake.invalid")[2]
        whole = await transport.request(Request("GET", path, ()))
        tag = whole.header(b"etag")
        assert tag
        headers = ((b"range", wanted), (b"if-range", tag if if_range == b"TAG" else if_range))
        found = await transport.request(
            Request("GET", path, tuple(pair for pair in headers if pair[1]))
        )

    assert (expected[0], bytes(whole.body)[expected[1]]) == (found.status, bytes(found.body))
    assert tag == found.header(b"etag")


def test_what_does_not_exist_is_said_so(service: FakeService) -> None:
    for call in (service.end_session, service.corrupt, service.weights_of):
        with pytest.raises(ConfigError, match="no-such"):
            call("no-such")
    with pytest.raises(ConfigError):
        FakeService(base_models=())


async def test_samples_without_a_seed_differ_and_repeat_with_the_service() -> None:
    async def tokens(seed: int) -> list[list[int]]:
        async with FakeService(seed=seed).session() as session:
            sampler = await session.create_sampling_client(base_model="toy")
            params = SamplingParams(max_tokens=8, stop=[])
            return [
                (await sampler.sample(PROMPT, params)).sequences[0].tokens.tolist()
                for _ in range(3)
            ]

    first = await tokens(1)
    assert first == await tokens(1) != await tokens(2)
    assert 3 == len({tuple(one) for one in first})
    assert np.array(first).max() < 256


async def test_leaving_the_block_closes_sockets_with_held_requests() -> None:
    """Polls and stalls do not keep it."""
    service = FakeService(sample_s=3600)
    service.faults.on("get_info", faults.Stall())
    with anyio.fail_after(10):
        async with service.serve() as url, anyio.create_task_group() as tasks:
            with pytest.raises(ConnectError):
                async with Session("http://127.0.0.1:1", "tml-x", retry=QUICK):
                    pass
            for http2 in (False, True):
                session = Session(url, "tml-x", http2=http2)

                async def sample(session: Session = session) -> None:
                    async with session:
                        sampler = await session.create_sampling_client(base_model="toy")
                        await sampler.sample(PROMPT)

                tasks.start_soon(sample)
            while len(service.ledger.samples) < 2:  # noqa: ASYNC110  # the ledger has no event
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()

    assert 0 == service.ledger.open_connections
    assert [] == service.ledger.pending()
