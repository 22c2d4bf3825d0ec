"""What an administrator does with the official client: every record the server keeps.

A process of its own, as in `conversation.py`. Usage: python records.py URL KEY. Prints JSON.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import urllib.error
import urllib.request
import warnings
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import noting  # type: ignore[import-not-found]  # beside this program
import tinker
from tinker import types
from tinker.cli.auth_api import TinkerAuthApi

warnings.simplefilter("ignore")  # deprecations and experiments of the official client

TOKENS = [17, 230, 5, 99, 41]


def datum() -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints(TOKENS[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=TOKENS[1:], dtype="int64"),
            "weights": types.TensorData(data=[1.0] * 4, dtype="float32"),
        },
    )


def work(service: Any, found: dict[str, Any]) -> None:
    """Train a little, save in all three formats, sample."""
    trainer = service.create_lora_training_client(
        base_model=found["served"], rank=4, user_metadata={"run": "one"}
    ).result()
    trainer.forward_backward([datum(), datum()], "cross_entropy").result()
    trainer.optim_step(types.AdamParams(learning_rate=1e-3)).result()
    found["model"] = trainer.model_id
    found["state"] = (
        trainer.save_state("s1", ttl_seconds=7200, user_metadata={"step": "1"}).result().path
    )
    found["state2"] = trainer.save_state("s1", overwrite=True).result().path
    found["sampler"] = trainer.save_weights_for_sampler("p1").result().path
    found["external"] = trainer.save_weights_external("x1").result().path
    try:
        trainer.save_weights_external("x2", age_encryption_recipients=["age1abc"]).result()
    except tinker.BadRequestError as error:
        found["no_age"] = str(error)
    sampling = service.create_sampling_client(model_path=found["sampler"]).result()
    prompt = types.ModelInput.from_ints(TOKENS)
    params = types.SamplingParams(max_tokens=3, temperature=0.0)
    drawn = sampling.sample(prompt, num_samples=2, sampling_params=params).result()
    found["drawn"] = sum(len(sequence.tokens) for sequence in drawn.sequences)


def sessions(rest: Any, found: dict[str, Any]) -> None:
    """List, get, search, move, trace."""
    session_id = found["session"] = found["model"].partition(":")[0]
    found["sessions"] = rest.list_sessions(limit=5).result().sessions
    got = rest.get_session(session_id, access_scope="accessible").result()
    found["got"] = got.model_dump()
    rest.assign_session_project(session_id, "proj-b").result()
    found["runs_of_b"] = [
        run.training_run_id
        for run in rest.list_training_runs(project_id="proj-b").result().training_runs
    ]
    request = types.SessionSearchRequest(
        display_name="NIGHT the",
        project_ids=["proj-b"],
        user_metadata={"team": "a"},
        statuses=[types.ActiveSessionStatusQuery()],
    )
    page = rest.search_sessions(request).result()
    found["search"] = [json.loads(one.model_dump_json()) for one in page.sessions]
    sampler_id = got.sampler_ids[0]
    found["base_of_sampler"] = rest.get_sampler(sampler_id).result().model_path
    url = rest.export_session_trace(session_id).result()
    found["trace"] = json.loads(fetch(url)[1])


def fetch(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def checkpoints(rest: Any, found: dict[str, Any], url: str, key: str) -> None:
    """List, describe, publish, keep for a while, copy, download, delete."""
    run = found["model"]
    found["run"] = json.loads(rest.get_training_run(run).result().model_dump_json())
    listed = rest.list_checkpoints(run).result().checkpoints
    found["listed"] = [[c.checkpoint_id, c.checkpoint_type, c.size_bytes] for c in listed]
    found["info"] = rest.get_weights_info_by_tinker_path(found["sampler"]).result().model_dump()
    rest.publish_checkpoint_from_tinker_path(found["state"]).result()
    rest.set_checkpoint_ttl_from_tinker_path(found["state"], 3600).result()
    page = rest.list_user_checkpoints(limit=2, offset=0).result()
    found["page"] = [page.cursor.total_count, [c.public for c in page.checkpoints]]
    found["public"] = {
        c.checkpoint_id: [c.public, c.expires_at is not None]
        for c in rest.list_user_checkpoints().result().checkpoints
    }
    rest.unpublish_checkpoint_from_tinker_path(found["state"]).result()
    rest.set_checkpoint_ttl_from_tinker_path(found["state"], None).result()
    copied = rest.copy_weights(found["state"], "proj-c", weights_access_token="tok").result()
    found["copied"] = copied
    owner = rest.get_training_run_by_tinker_path(copied).result()
    found["copy_of_rank"] = owner.lora_rank
    downloads(rest, found, url, key)
    rest.delete_checkpoint_from_tinker_path(copied).result()
    try:
        rest.get_weights_info_by_tinker_path(copied).result()
    except tinker.NotFoundError as error:
        found["gone"] = str(error)


def downloads(rest: Any, found: dict[str, Any], url: str, key: str) -> None:
    response = rest.get_external_weights_urls(found["external"]).result()
    in_future = response.expires > datetime.now(UTC) + timedelta(minutes=5)
    found["urls"] = {name: len(fetch(one)[1]) for name, one in response.urls.items()}
    found["urls_expire_later"] = in_future
    path = found["state"].removeprefix("tinker://").replace("/", "/checkpoints/", 1)
    answer = httpx.get(
        f"{url}/api/v1/training_runs/{path}/archive",
        headers={"X-API-Key": key, "accept": "application/gzip"},
        follow_redirects=False,
    )
    found["archive"] = [answer.status_code, answer.headers["expires"].endswith("GMT")]
    whole = fetch(answer.headers["location"])[1]
    status, rest_of_it = fetch(answer.headers["location"], Range="bytes=1000-")
    found["resumed"] = [status, whole[:1000] + rest_of_it == whole]
    with tarfile.open(fileobj=io.BytesIO(whole), mode="r:gz") as archive:
        found["members"] = archive.getnames()


def admin(found: dict[str, Any], url: str, key: str) -> None:
    """Usage, storage and the log of events."""
    client = tinker.AdminClient(base_url=url, api_key=key)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    usage = client.get_billing_usage(hour - timedelta(hours=1), hour + timedelta(hours=2)).result()
    found["usage"] = [
        [event.session_id, event.project_id, event.event_info.model_dump()] for event in usage.data
    ]
    found["billed"] = {key: one.user_metadata for key, one in usage.sessions.items()}
    stored = client.get_current_checkpoint_storage_usage().result()
    found["stored"] = {one.project_id: one.checkpoint_count for one in stored.data}
    log = client.get_audit_log("checkpoints").result()
    found["audit"] = [[entry.event, entry.tinker_path] for entry in log.entries]
    found["projects"] = [e.event for e in client.get_audit_log("projects").result().entries]
    found["long_ago"] = client.get_audit_log(day=date(2020, 1, 1)).result().entries


def identity(found: dict[str, Any], url: str, key: str) -> None:
    """The key's description, a token in its place, and its end."""
    with httpx.Client() as http:
        auth = TinkerAuthApi(http, base_url=url)
        found["key"] = auth.get_self_api_key(key).name
        token = http.post(f"{url}/api/v1/auth/token", headers={"X-API-Key": key}, json={}).json()[
            "jwt"
        ]
        by_token = tinker.RestClient(base_url=url, api_key=token)
        found["whoami"] = by_token.whoami().result().model_dump()
        found["by_token"] = by_token.list_sessions().result().sessions
        auth.delete_self_api_key(key)
        found["afterwards"] = [
            http.get(f"{url}/api/v1/sessions", headers={"X-API-Key": one}).status_code
            for one in (key, token)
        ]


def main() -> None:
    url, key = sys.argv[1:]
    noting.begin()
    found: dict[str, Any] = {}
    rest = tinker.RestClient(base_url=url, api_key=key)
    found["served"] = rest.get_server_capabilities().result().supported_models[0].model_name
    service = tinker.ServiceClient(
        base_url=url,
        api_key=key,
        project_id="proj-a",
        display_name="The night run",
        user_metadata={"team": "a"},
    )
    work(service, found)
    sessions(rest, found)
    checkpoints(rest, found, url, key)
    service.close("errored", "as an example").result()
    finished = types.ClientFinishedSessionStatusQuery(reasons=["errored"])
    page = rest.search_sessions(types.SessionSearchRequest(statuses=[finished])).result()
    found["finished"] = [
        [one.session_id, one.status.reason.type, one.status.detail]
        for one in page.sessions
        if isinstance(one.status, types.ClientSessionFinished)
    ]
    admin(found, url, key)
    identity(found, url, key)
    found["answered"] = noting.told()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
