"""`RestClient` against the fake service, over a real socket: what it changes and what it is told."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import anyio
import pytest
from faults.virtual_asyncio import virtual_backends

from tinker_async import (
    AccessibleSearchOwner,
    ActiveSessionStatusQuery,
    AuthenticationError,
    ClientFinishedSessionStatusQuery,
    ClientSessionFinished,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
    RequestTimeoutError,
    RestClient,
    RetryPolicy,
    Session,
    SessionActive,
    SessionSearchRequest,
    TrainingBillingEvent,
)
from tinker_async.testing import FakeService, faults
from tinker_async.wire.messages import ClientConfigResponse

KEY = "tml-rest"
QUICK = RetryPolicy(base_s=0.001, max_s=0.002)


class Scene:
    """A session that has made something, and a client without one."""

    def __init__(self, service: FakeService, session: Session, rest: RestClient) -> None:
        self.service = service
        self.session = session
        self.rest = rest
        self.run = ""
        self.path = ""

    def count(self, endpoint: str) -> int:
        return self.service.ledger.count(endpoint)

    @property
    def public(self) -> bool:
        return self.service.state.checkpoint(self.path).public


@pytest.fixture
async def scene() -> AsyncGenerator[Scene]:
    """One training run with one checkpoint."""
    service = FakeService(api_key=KEY)
    async with service.serve() as url, Session(url, KEY, display_name="Night run") as session:
        trainer = await session.create_lora_training_client("toy", rank=8)
        async with RestClient.connect(url, KEY, retry=QUICK, timeout=30) as rest:
            made = Scene(service, session, rest)
            made.run = trainer.model_id
            made.path = (await trainer.save_state("kept")).path
            yield made


# Without a session


async def test_a_client_without_session_makes_none(scene: Scene) -> None:
    """Nothing shows up on the server but the question for its limits."""
    before = len(scene.service.ledger.entries)
    async with scene.service.serve() as url, RestClient.connect(url, KEY) as rest:
        await rest.get_training_run(scene.run)
    entries = scene.service.ledger.entries[before:]

    assert ["client/config", "training_run"] == [entry.endpoint for entry in entries]
    assert ["s1"] == [*scene.service.state.sessions]


async def test_a_wrong_key_is_told_when_connecting(scene: Scene) -> None:
    """Not with the first call."""
    async with scene.service.serve() as url:
        with pytest.raises(AuthenticationError):
            async with RestClient.connect(url, "tml-wrong"):
                pytest.fail("it let us in")


async def test_a_key_is_exchanged_for_a_token_where_the_server_wants_it() -> None:
    """Then whoami reads the token, without a request."""
    config = ClientConfigResponse(pjwt_auth_enabled=True)
    service = FakeService(api_key=KEY, config=config)
    async with service.serve() as url, RestClient.connect(url, KEY) as rest:
        found = await rest.whoami()

    assert ("tml:user:fake", "tml:organization:fake", "fake@example.com", None) == (
        found.user_urn,
        found.org_urn,
        found.email,
        found.api_key,
    )
    assert ["client/config", "auth/token"] == [one.endpoint for one in service.ledger.entries]


async def test_of_a_plain_key_the_server_is_asked(scene: Scene) -> None:
    """A key has no claims."""
    found = await scene.rest.whoami()

    assert (None, None, "fake@example.com") == (found.user_urn, found.org_urn, found.email)
    assert found.api_key is not None
    assert ("fake", 1, "fake") == (
        found.api_key.name,
        found.api_key.key_id,
        found.api_key.organization,
    )


# Checkpoints


async def test_publishing_twice_is_a_conflict_that_is_told_at_once(scene: Scene) -> None:
    """The official client repeats it for five minutes."""
    await scene.rest.publish_checkpoint_from_tinker_path(scene.path)
    assert scene.public

    with pytest.raises(ConflictError, match="public already"):
        await scene.rest.publish_checkpoint_from_tinker_path(scene.path)
    assert 2 == scene.count("publish")

    await scene.rest.unpublish_checkpoint_from_tinker_path(scene.path)
    assert not scene.public
    with pytest.raises(ConflictError, match="private already"):
        await scene.rest.unpublish_checkpoint_from_tinker_path(scene.path)
    assert 4 == scene.count("publish")


@pytest.mark.parametrize("fault", [faults.DropReply(), faults.Status(502, commit=True)])
async def test_a_change_whose_answer_was_lost_succeeds(scene: Scene, fault: faults.Fault) -> None:
    """The second attempt finds it made, and knows why."""
    script, rest = scene.service.faults, scene.rest
    script.on("publish", fault, occurrence=1)
    await rest.publish_checkpoint_from_tinker_path(scene.path)
    assert (True, 2) == (scene.public, scene.count("publish"))

    script.on("publish", fault, occurrence=1)
    await rest.unpublish_checkpoint_from_tinker_path(scene.path)
    assert (False, 4) == (scene.public, scene.count("publish"))

    script.on("delete_checkpoint", fault, occurrence=1)
    await rest.delete_checkpoint(scene.run, "weights/kept")
    assert {} == scene.service.state.checkpoints
    with pytest.raises(NotFoundError):
        await rest.delete_checkpoint(scene.run, "weights/kept")


async def test_a_ttl_is_set_and_cleared(scene: Scene) -> None:
    """None clears it, and is sent as null."""
    rest = scene.rest
    await rest.set_checkpoint_ttl_from_tinker_path(scene.path, 3600)
    [one] = [one async for one in rest.list_checkpoints(scene.run)]
    assert one.expires_at is not None
    assert one.expires_at.tzinfo is not None

    await rest.set_checkpoint_ttl_from_tinker_path(scene.path, None)
    [one] = [one async for one in rest.list_checkpoints(scene.run)]
    assert one.expires_at is None


async def test_a_copy_is_a_checkpoint_of_a_new_run(scene: Scene) -> None:
    """Of the same kind, in the project that was named."""
    copy = await scene.rest.copy_weights(scene.path, "project-other", ttl_seconds=3600)

    run = await scene.rest.get_training_run_by_tinker_path(copy)
    assert run.training_run_id != scene.run
    assert run.last_checkpoint is not None
    assert (copy, "training") == (
        run.last_checkpoint.tinker_path,
        run.last_checkpoint.checkpoint_type,
    )
    listed = [one async for one in scene.rest.list_training_runs(project_id="project-other")]
    assert [run.training_run_id] == [one.training_run_id for one in listed]


async def test_a_copy_whose_answer_was_lost_is_one_copy(scene: Scene) -> None:
    """One idempotency key for the whole operation, another for the next."""
    scene.service.faults.on("copy_weights", faults.DropReply(), occurrence=1)
    first = await scene.rest.copy_weights(scene.path, "project-fake")
    second = await scene.rest.copy_weights(scene.path, "project-fake")

    assert 3 == scene.count("copy_weights")
    assert first != second
    assert 3 == len(scene.service.state.runs)


async def test_the_archives_address_is_given_and_not_followed(scene: Scene) -> None:
    """With the time until which it is good."""
    found = await scene.rest.get_checkpoint_archive_url(scene.path)

    assert found.url.endswith("/kept/archive.tar")
    assert found.expires is not None
    left = found.expires - datetime.now(UTC)
    assert timedelta(minutes=10) < left <= timedelta(minutes=15)
    assert 0 == scene.count("file")


async def test_an_archive_that_is_being_built_is_asked_for_again(scene: Scene) -> None:
    """503 until it is there."""
    scene.service.faults.on("archive", faults.Status(503), times=3)
    found = await scene.rest.get_checkpoint_archive_url(scene.path)

    assert found.url
    assert 4 == scene.count("archive")


# Sessions


async def test_sessions_are_found_by_what_is_known_of_them(scene: Scene) -> None:
    """By a word of the name; and how they stand."""
    async with scene.service.session(display_name="Day run", user_metadata={"n": "1"}) as other:
        other_id = other.session_id
        request = SessionSearchRequest(display_name="RUN", statuses=[ActiveSessionStatusQuery()])
        found = [one async for one in scene.rest.search_sessions(request)]
        assert [other_id, "s1"] == [one.session_id for one in found]
        assert SessionActive() == found[0].status
    ended = SessionSearchRequest(
        user_metadata={"n": "1"},
        owner=AccessibleSearchOwner(),
        statuses=[ClientFinishedSessionStatusQuery(["success"])],
    )
    [one] = [one async for one in scene.rest.search_sessions(ended)]

    assert other_id == one.session_id
    assert isinstance(one.status, ClientSessionFinished)
    assert "success" == one.status.reason.type
    assert one.created_at is not None
    assert one.created_at.tzinfo is not None


async def test_a_session_can_be_finished_from_outside(scene: Scene) -> None:
    """The first reason counts."""
    other = scene.service.state.open_session({})
    await scene.rest.finish_session(other.id, "interrupted", "the machine is gone")
    await scene.rest.finish_session(other.id, "success")
    [found] = (
        await scene.rest.search_sessions_page(SessionSearchRequest(session_id="s2"))
    ).sessions

    assert isinstance(found.status, ClientSessionFinished)
    assert ("interrupted", "the machine is gone") == (found.status.reason.type, found.status.detail)


async def test_a_session_is_moved_into_a_project(scene: Scene) -> None:
    """With its runs. A project that is not ours is refused."""
    rest = scene.rest
    with pytest.raises(PermissionDeniedError):
        await rest.assign_session_project("s1", "project-of-others")
    await rest.assign_session_project("s1", "project-other")
    runs = [
        one.training_run_id async for one in rest.list_training_runs(project_id="project-other")
    ]
    stored = await rest.get_current_checkpoint_storage_usage("project-other")

    assert [scene.run] == runs
    assert [1] == [item.checkpoint_count for item in stored.data]


@pytest.mark.parametrize("anyio_backend", virtual_backends(0.0))
async def test_a_trace_is_asked_for_every_five_seconds(anyio_backend: Any) -> None:
    """Until it is ready."""
    assert anyio_backend
    service = FakeService()
    async with service.session() as session:
        url = await session.rest.export_session_trace(session.session_id)

    asked = [entry.at_s for entry in service.ledger.of("trace_export")]
    assert url.startswith("https://")
    assert [5.0] == [pytest.approx(b - a) for a, b in itertools.pairwise(asked)]


@pytest.mark.parametrize("anyio_backend", virtual_backends(0.0))
async def test_the_wait_for_a_trace_ends_with_the_timeout(anyio_backend: Any) -> None:
    """However long the server says "pending"."""
    assert anyio_backend
    service = FakeService()
    async with service.session() as session:
        service.state.sessions[session.session_id].trace_asked = -(10**6)
        started = anyio.current_time()
        with pytest.raises(RequestTimeoutError, match="export_session_trace"):
            await session.rest.export_session_trace(session.session_id, timeout=33)

    assert 33 == pytest.approx(anyio.current_time() - started, abs=0.1)
    assert 7 == service.ledger.count("trace_export")


# The account


async def test_usage_is_of_the_hours_that_were_asked_for(scene: Scene) -> None:
    """An aware time in any zone; its tokens are those that were trained on."""
    zone = timezone(timedelta(hours=2))
    start = datetime(2026, 1, 1, 2, tzinfo=zone)  # midnight in UTC, where the fake's time begins
    model = scene.service.state.models[scene.run]
    scene.service.state.account.note_use("s1", model.run.base_model, "training", 7)
    found = await scene.rest.get_billing_usage(start, start + timedelta(hours=1))

    assert {"s1"} == {*found.sessions}
    assert TrainingBillingEvent(token_count=7) in [one.event_info for one in found.data]
    later = start + timedelta(days=1)
    assert [] == (await scene.rest.get_billing_usage(later, later + timedelta(hours=1))).data


async def test_the_audit_log_has_what_was_done(scene: Scene) -> None:
    """Of the kind that was asked for."""
    await scene.rest.publish_checkpoint_from_tinker_path(scene.path)
    await scene.rest.assign_session_project("s1", "project-other")
    entries = (await scene.rest.get_audit_log("checkpoints")).entries

    assert ["checkpoint_create", "checkpoint_publish"] == [entry.event for entry in entries]
    assert scene.path == entries[-1].event_details["tinker_path"]


async def test_capabilities_health_and_samplers_need_no_session(scene: Scene) -> None:
    sampler = await scene.session.create_sampling_client(base_model="toy")
    found = await scene.rest.get_sampler(sampler.sampling_session_id)

    assert "ok" == (await scene.rest.healthz()).status
    assert ("toy", None) == (found.base_model, found.model_path)
    models = (await scene.rest.get_server_capabilities()).supported_models
    assert ["toy"] == [model.model_name for model in models]


# Arguments

PATH = "tinker://s1:train:0/weights/kept"
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("get_training_run", ("",), {}, "<session>:train:<number>"),
    ("get_training_run", ("a/b",), {}, "<session>:train:<number>"),
    ("get_training_run", (PATH,), {}, "ends in tinker_path"),
    ("get_training_run", (None,), {}, "<session>:train:<number>"),
    ("get_training_run", ("s1:train:0", "everything"), {}, "owned, accessible"),
    ("get_training_run_by_tinker_path", ("s1:train:0",), {}, "tinker://<training run>"),
    ("get_training_run_by_tinker_path", ("tinker:///weights/a",), {}, "names no training run"),
    ("get_training_run_by_tinker_path", (7,), {}, "tinker://<training run>"),
    ("list_training_runs_page", (0,), {}, "at least 1"),
    ("list_training_runs_page", (1, -1), {}, "at least 0"),
    ("list_training_runs_page", (), {"project_id": "a b"}, "TINKER_PROJECT_ID"),
    ("list_checkpoints_page", ("..",), {}, "<session>:train:<number>"),
    ("list_user_checkpoints_page", (True,), {}, "at least 1"),
    ("delete_checkpoint", ("s1:train:0", "kept"), {}, "weights/<name>"),
    ("delete_checkpoint", ("s1:train:0", None), {}, "weights/<name>"),
    ("delete_checkpoint_from_tinker_path", ("kept",), {}, "tinker://<training run>"),
    ("publish_checkpoint_from_tinker_path", ("kept",), {}, "tinker://<training run>"),
    ("unpublish_checkpoint_from_tinker_path", ("kept",), {}, "tinker://<training run>"),
    ("set_checkpoint_ttl_from_tinker_path", ("kept", 3600), {}, "tinker://<training run>"),
    ("set_checkpoint_ttl_from_tinker_path", (PATH, 3599), {}, "3600"),
    ("set_checkpoint_ttl_from_tinker_path", (PATH, 4e3), {}, "3600"),
    ("set_checkpoint_ttl_from_tinker_path", (PATH, 316_000_000_000), {}, "ten years"),
    ("get_weights_info_by_tinker_path", ("kept",), {}, "tinker://<training run>"),
    ("copy_weights", ("kept", "project-fake"), {}, "tinker://<training run>"),
    ("copy_weights", (PATH,), {}, "TINKER_PROJECT_ID"),
    ("copy_weights", (PATH, "project-fake"), {"ttl_seconds": 1}, "3600"),
    ("get_external_weights_urls", (PATH,), {}, "save_weights_external"),
    ("get_checkpoint_archive_url", ("kept",), {}, "tinker://<training run>"),
    ("get_sampler", ("a/b",), {}, "<session>:sample:<number>"),
    ("list_sessions_page", (), {"access_scope": ""}, "owned, accessible"),
    ("get_session", ("a\nb",), {}, "Session.session_id"),
    ("search_sessions_page", ({"limit": 3},), {}, "SessionSearchRequest"),
    ("assign_session_project", ("s1", ""), {}, "TINKER_PROJECT_ID"),
    ("finish_session", ("s1", "done"), {}, "interrupted"),
    ("finish_session", ("s1", "success", 3), {}, "detail"),
    ("export_session_trace", ("",), {}, "Session.session_id"),
    ("get_billing_usage", ("yesterday", "today"), {}, "2026-07-13T00:00:00Z"),
    ("get_billing_usage", (datetime(2026, 1, 1), "x"), {}, "with a zone"),  # noqa: DTZ001  # naive
    ("get_billing_usage", ("2026-01-01T00:30:00Z", "2026-01-02T00:00:00Z"), {}, "full hour"),
    ("get_billing_usage", ("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"), {}, "14 days"),
    ("get_billing_usage", ("2026-01-01T00:00:00Z", "2026-01-16T00:00:00Z"), {}, "14 days"),
    ("get_current_checkpoint_storage_usage", ("",), {}, "TINKER_PROJECT_ID"),
    ("get_audit_log", ("checkpoint",), {}, "organizations"),
    ("get_audit_log", ("all", datetime(2026, 1, 1, tzinfo=UTC)), {}, "datetime.date"),
]


async def test_wrong_arguments_are_refused_before_anything_is_sent(scene: Scene) -> None:
    """Each with a sentence that shows the right form, and the argument's name."""
    before = len(scene.service.ledger.entries)
    for method, arguments, options, form in WRONG:
        with pytest.raises(InvalidInputError, match=form) as caught:
            await getattr(scene.rest, method)(*arguments, **options)
        assert caught.value.field in str(caught.value), method

    sent = [entry.endpoint for entry in scene.service.ledger.entries[before:]]
    assert [] == [endpoint for endpoint in sent if endpoint != "session_heartbeat"]


@pytest.mark.parametrize(
    ("method", "arguments", "options"),
    [
        ("list_training_runs", (), {"access_scope": "all"}),
        ("list_checkpoints", ("a/b",), {}),
        ("list_sessions", (), {"access_scope": "all"}),
        ("search_sessions", ("night",), {}),
    ],
)
async def test_a_listing_with_wrong_arguments_is_refused_when_it_is_asked_for(
    scene: Scene, method: str, arguments: Any, options: Any
) -> None:
    """Not with its first item."""
    with pytest.raises(InvalidInputError):
        getattr(scene.rest, method)(*arguments, **options)
