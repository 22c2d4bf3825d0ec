"""For each REST call our request is the genuine official client's, and ours accepts its answers.

The official client speaks in a process of its own, to a server that writes down what it is
asked, and to the fake service; then ours says the same.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Awaitable, Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from official.endpoints import COMPARED, endpoint_of
from support.scripted import Call, ScriptedServer, scripted_server

import tinker_async as ta
from tinker_async.testing import FakeService

CONVERSATION = Path(__file__).with_name("rest_conversation.py")
BOUND_S = 120
KEY = "tml-judge"
NAMES = {
    "run": "s1:train:0",
    "path": "tinker://s1:train:0/weights/kept",
    "sampler_path": "tinker://s1:train:0/sampler_weights/kept",
    "external_path": "tinker://s1:train:0/external_weights/kept",
    "doomed_path": "tinker://s1:train:0/sampler_weights/doomed",
    "sampler": "s1:sample:0",
}
SETTING_UP = {f"/api/v1/{name}" for name in ("client/config", "client/dynamic_config", "telemetry")}
TIME = "2026-01-01T00:00:00Z"
RUN = {
    "training_run_id": "s1:train:0",
    "base_model": "toy",
    "model_owner": "me",
    "is_lora": True,
    "last_request_time": TIME,
}
CURSOR = {"offset": 0, "limit": 1, "total_count": 0}
SESSION: dict[str, Any] = {"training_run_ids": [], "sampler_ids": []}
ONE = "training_runs/s1:train:0/checkpoints/"
NOTHING: tuple[int, dict[str, str], bytes] = (204, {}, b"")
ANSWERS: dict[str, Any] = {
    "client/config": {},
    "get_server_capabilities": {"supported_models": []},
    "training_runs": {"training_runs": [], "cursor": CURSOR},
    "training_runs/s1:train:0": RUN,
    "training_runs/s1:train:0/checkpoints": {"checkpoints": []},
    "checkpoints": {"checkpoints": [], "cursor": CURSOR},
    f"{ONE}sampler_weights/kept/publish": NOTHING,
    f"{ONE}weights/kept/ttl": NOTHING,
    f"{ONE}weights/doomed": NOTHING,
    f"{ONE}sampler_weights/doomed": NOTHING,
    f"{ONE}external_weights/kept/external_weights_urls": {"urls": {}, "expires": TIME},
    "weights_info": {"base_model": "toy", "is_lora": True},
    "copy_weights": {"tinker_path": "tinker://copy/weights/kept"},
    "sessions": {"sessions": []},
    "sessions/s1": SESSION,
    "sessions/search": {"sessions": []},
    "sessions/s1/project": NOTHING,
    "sessions/s1/trace_export": {"status": "ready", "url": "https://trace"},
    "samplers/s1:sample:0": {"sampler_id": "s1:sample:0", "base_model": "toy"},
    "billing/usage/events": {"data": []},
    "billing/usage/checkpoints/current": {"data": []},
    "audit": {"entries": []},
}
BODY_DEFAULTS: dict[str, dict[str, Any]] = {
    "/api/v1/sessions/search": {"user_metadata": {}, "owner": {"type": "own"}, "limit": 50}
}
SCOPED = {"sessions", "training_runs"}
"""What they list is the caller's own unless `access_scope` says something else."""


def calls(rest: ta.RestClient) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Ours, in the order of the conversation."""
    run, path, sampler_path = NAMES["run"], NAMES["path"], NAMES["sampler_path"]
    search = ta.SessionSearchRequest(
        session_id="s1",
        project_ids=["project-fake"],
        user_metadata={"purpose": "test"},
        display_name="night",
        owner=ta.UserSearchOwner(owner_urns=["tml:user:fake"]),
        statuses=[
            ta.ActiveSessionStatusQuery(),
            ta.ClientFinishedSessionStatusQuery(reasons=["errored"]),
        ],
        limit=7,
    )
    return {
        "capabilities": rest.get_server_capabilities,
        "run": lambda: rest.get_training_run(run),
        "run_accessible": lambda: rest.get_training_run(run, access_scope="accessible"),
        "run_by_path": lambda: rest.get_training_run_by_tinker_path(path),
        "runs": rest.list_training_runs_page,
        "runs_of_project": lambda: rest.list_training_runs_page(
            limit=3, offset=1, access_scope="accessible", project_id="project-fake"
        ),
        "checkpoints": lambda: rest.list_checkpoints_page(run),
        "user_checkpoints": rest.list_user_checkpoints_page,
        "user_checkpoints_page": lambda: rest.list_user_checkpoints_page(limit=1, offset=1),
        "publish": lambda: rest.publish_checkpoint_from_tinker_path(sampler_path),
        "unpublish": lambda: rest.unpublish_checkpoint_from_tinker_path(sampler_path),
        "ttl": lambda: rest.set_checkpoint_ttl_from_tinker_path(path, 7200),
        "no_ttl": lambda: rest.set_checkpoint_ttl_from_tinker_path(path, None),
        "weights_info": lambda: rest.get_weights_info_by_tinker_path(path),
        "copy": lambda: rest.copy_weights(
            path, "project-other", ttl_seconds=3600, weights_access_token="a-foreign-token"
        ),
        "external": lambda: rest.get_external_weights_urls(NAMES["external_path"]),
        "delete": lambda: rest.delete_checkpoint(run, "weights/doomed"),
        "delete_by_path": lambda: rest.delete_checkpoint_from_tinker_path(NAMES["doomed_path"]),
        "sessions": rest.list_sessions_page,
        "sessions_page": lambda: rest.list_sessions_page(
            limit=2, offset=0, access_scope="accessible"
        ),
        "session": lambda: rest.get_session("s1"),
        "search_own": rest.search_sessions_page,
        "search": lambda: rest.search_sessions_page(search),
        "assign": lambda: rest.assign_session_project("s1", "project-other"),
        "trace": lambda: rest.export_session_trace("s1"),
        "sampler": lambda: rest.get_sampler(NAMES["sampler"]),
        "billing": lambda: rest.get_billing_usage(TIME, "2026-01-02T00:00:00Z"),
        "storage": rest.get_current_checkpoint_storage_usage,
        "storage_of_project": lambda: rest.get_current_checkpoint_storage_usage("project-fake"),
        "audit": rest.get_audit_log,
        "audit_of_day": lambda: rest.get_audit_log("checkpoints", date(2026, 1, 1)),
    }


def recording(server: ScriptedServer) -> None:
    for path, answer in ANSWERS.items():
        server.on(path, partial(_given, answer))


def _given(answer: Any, _: Call) -> Any:
    return answer


async def converse(url: str, key: str = KEY) -> dict[str, Any]:
    """Let the official client say all it has to say; return what it was answered."""
    with anyio.fail_after(BOUND_S):
        process = await anyio.run_process(
            [sys.executable, str(CONVERSATION), url, key, json.dumps(NAMES)],
            env={**os.environ, "TINKER_TELEMETRY": "0"},
            stderr=subprocess.PIPE,
            check=False,
        )
    assert process.returncode == 0, process.stderr.decode()
    found: dict[str, Any] = json.loads(process.stdout)
    return found


def meaning(call: Call) -> dict[str, Any]:
    """What a request says, with the defaults that it leaves out."""
    path, _, query = call.path.partition("?")
    parameters = dict(urllib.parse.parse_qsl(query))
    head = path.removeprefix("/api/v1/").split("/")
    if call.method == "GET" and head[0] in SCOPED and len(head) <= 2:
        parameters.setdefault("access_scope", "owned")
    body: Any = msgspec.json.decode(call.body) if call.body else None
    if path in BODY_DEFAULTS:
        body = BODY_DEFAULTS[path] | body
    return {"method": call.method, "path": path, "query": parameters, "body": body}


async def theirs_recorded() -> list[Call]:
    async with scripted_server() as server:
        recording(server)
        await converse(server.url)
        return [call for call in server.calls if call.path not in SETTING_UP]


@pytest.fixture(scope="module")
def theirs() -> list[Call]:
    """The requests of the official client."""
    pytest.importorskip("tinker", reason="the official client is in the extra `judge`")
    return anyio.run(theirs_recorded)


async def test_each_request_says_what_the_official_one_says(theirs: list[Call]) -> None:
    """Method, path, query and body, for the same call; and the credential is where it belongs."""
    async with scripted_server() as server:
        recording(server)
        async with ta.RestClient.connect(server.url, KEY) as rest:
            made = calls(rest)
            for call in made.values():
                with anyio.fail_after(10):
                    await call()
        ours = [call for call in server.calls if call.path not in SETTING_UP]

    assert len(made) == len(theirs) == len(ours)
    assert {*COMPARED["test_rest_requests"]} == {endpoint_of(one.method, one.path) for one in ours}
    for name, their, our in zip(made, theirs, ours, strict=True):
        assert meaning(their) == meaning(our), name
        assert their.headers["x-api-key"] == our.headers["x-api-key"] == KEY
        if our.body:
            assert their.headers["content-type"] == our.headers["content-type"], name


def test_the_access_token_is_in_its_header_in_both(theirs: list[Call]) -> None:
    """And the idempotency key is there, which the official client makes for the operation."""
    [copy] = [call for call in theirs if call.path.endswith("/copy_weights")]

    assert "a-foreign-token" == copy.headers["x-tinker-weights-access-token"]
    assert len(copy.headers["x-idempotency-key"]) == 36
    assert b"a-foreign-token" not in copy.body


async def prepared(service: FakeService, url: str) -> None:
    """Make what the conversation talks of."""
    async with ta.Session(
        url, KEY, display_name="Night run", user_metadata={"purpose": "test"}
    ) as session:
        trainer = await session.create_lora_training_client("toy", rank=8)
        await trainer.save_state("kept")
        await trainer.save_state("doomed")
        await trainer.save_weights_for_sampler("kept")
        await trainer.save_weights_for_sampler("doomed")
        model = service.state.models[trainer.model_id]
        service.state.save(model, "external_weights", "kept", overwrite=False)
        await session.create_sampling_client(base_model="toy")
        service.state.sessions["s1"].trace_asked = 1  # or it would be asked again after 5 s
        await converse_and_compare(service, url)


async def converse_and_compare(service: FakeService, url: str) -> None:
    said = await converse(url)

    assert "toy" == said["capabilities"]["supported_models"][0]["model_name"]
    assert said["run"] == said["run_accessible"] == said["run_by_path"]
    assert ["s1:train:0"] == [run["training_run_id"] for run in said["runs"]["training_runs"]]
    assert (1, 3) == (
        said["runs_of_project"]["cursor"]["total_count"],
        said["runs_of_project"]["cursor"]["limit"],
    )
    assert 5 == len(said["checkpoints"]["checkpoints"])
    assert ["external", "sampler", "sampler", "training", "training"] == [
        one["checkpoint_type"] for one in said["user_checkpoints"]["checkpoints"]
    ]
    assert 8 == said["weights_info"]["lora_rank"]
    assert "tinker://copy1:train:0/weights/kept" == said["copy"]
    assert ["adapter_config.json", "toy_weights.bin"] == [*said["external"]["urls"]]
    assert ["s1"] == said["sessions"]["sessions"]
    assert ["s1:train:0"] == said["session"]["training_run_ids"]
    for search in ("search_own", "search"):
        [found] = said[search]["sessions"]
        assert ("s1", {"type": "active"}) == (found["session_id"], found["status"])
    assert said["trace"].startswith("https://")
    assert "toy" == said["sampler"]["base_model"]
    assert {"checkpoint"} == {event["event_info"]["type"] for event in said["billing"]["data"]}
    assert {"project-other"} == {one["project_id"] for one in said["storage"]["data"]}
    assert [] == said["storage_of_project"]["data"]
    assert "checkpoint_copy" in [entry["event"] for entry in said["audit"]["entries"]]
    assert "project_assign" not in [one["event"] for one in said["audit_of_day"]["entries"]]
    assert {200, 204} == {entry.status for entry in service.ledger.entries}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_official_client_accepts_what_the_fake_service_answers(
    anyio_backend: str,
) -> None:
    """Each call against its state."""
    assert anyio_backend
    pytest.importorskip("tinker", reason="the official client is in the extra `judge`")
    service = FakeService(api_key=KEY)
    async with service.serve() as url:
        await prepared(service, url)


def jwt(claims: dict[str, Any]) -> str:
    parts = ({"alg": "none"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts]
    return b".".join([*encoded, b"sig"]).decode()


async def test_who_a_token_names_is_read_as_the_official_client_reads_it() -> None:
    """From the claims, without a request."""
    pytest.importorskip("tinker", reason="the official client is in the extra `judge`")
    from tinker.lib.public_interfaces import rest_client

    claims = {"sub": "tml:user:1", "org_id": "org-1", "email": "", "exp": 4_102_444_800}
    token = jwt(claims)
    official = rest_client._whoami_response_from_jwt(token)
    async with scripted_server() as server:
        recording(server)
        async with ta.RestClient.connect(server.url, token) as rest:
            ours = await rest.whoami()
        asked = [call.path for call in server.calls]

    assert (official.user_urn, official.org_urn, official.email) == (
        ours.user_urn,
        ours.org_urn,
        ours.email,
    )
    assert ["/api/v1/client/config"] == asked
