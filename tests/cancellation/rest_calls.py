"""The public calls of `RestClient`, as rows of the sweep; those that ask alike share one."""

from __future__ import annotations

from typing import Any

from cancellation.calls import call
from cancellation.scene import QUICK, WAYS, Scene

from tinker_async import RestClient

OTHER_HOSTS = {"RestClient.download_checkpoint"}
"""Whose bytes come from elsewhere: see `tests/download`."""


def rest(*names: str) -> tuple[str, ...]:
    return tuple(f"RestClient.{name}" for name in names)


async def saved(scene: Scene) -> str:
    return (await scene.trainer.save_state(scene.new_name(), retry=QUICK)).path


def other_session(scene: Scene) -> str:
    """A session of somebody else, whose trace is ready."""
    session = scene.service.state.open_session({})
    session.trace_asked = 1
    return session.id


@call(*rest("connect"))
async def connect(scene: Scene) -> Any:
    service = scene.service
    async with service.serve() as url, RestClient.connect(url, service.api_key) as client:
        return await client.healthz()


@call(*rest("get_training_run", "get_training_run_by_tinker_path", "list_training_runs_page"))
async def runs(scene: Scene) -> Any:
    client = scene.session.rest
    run = await client.get_training_run(scene.trainer.model_id)
    same = await client.get_training_run_by_tinker_path(scene.path)
    page = await client.list_training_runs_page(access_scope="accessible")
    return [run.base_model, same.lora_rank, len(page.training_runs)]


@call(*rest("list_training_runs"), ways=WAYS)
async def list_training_runs(scene: Scene) -> Any:
    return [run.training_run_id async for run in scene.session.rest.list_training_runs()]


@call(*rest("get_sampler", "get_server_capabilities", "healthz", "whoami"))
async def the_server(scene: Scene) -> Any:
    client: RestClient = scene.session.rest
    sampler = await client.get_sampler(scene.sampler.sampling_session_id)
    served = await client.get_server_capabilities()
    return [sampler, served, await client.healthz(), await client.whoami()]


@call(*rest("revoke_api_key"))
async def revoke_api_key(scene: Scene) -> Any:
    return await scene.session.rest.revoke_api_key(f"tml-{scene.new_name()}")


@call(*rest("list_checkpoints", "list_user_checkpoints"))
async def list_checkpoints(scene: Scene) -> Any:
    client = scene.session.rest
    mine = [one.checkpoint_id async for one in client.list_checkpoints(scene.trainer.model_id)]
    return mine, [one.checkpoint_id async for one in client.list_user_checkpoints()]


@call(*rest("list_checkpoints_page", "list_user_checkpoints_page"))
async def checkpoint_pages(scene: Scene) -> Any:
    client = scene.session.rest
    page = await client.list_checkpoints_page(scene.trainer.model_id)
    return page, await client.list_user_checkpoints_page(limit=1, offset=1)


@call(*rest("delete_checkpoint_from_tinker_path"), ways=WAYS)
async def delete_checkpoint_from_tinker_path(scene: Scene) -> Any:
    path = await saved(scene)
    await scene.session.rest.delete_checkpoint_from_tinker_path(path)
    return path in scene.service.state.checkpoints


@call(
    *rest(
        "publish_checkpoint_from_tinker_path",
        "unpublish_checkpoint_from_tinker_path",
        "set_checkpoint_ttl_from_tinker_path",
        "delete_checkpoint",
    )
)
async def change(scene: Scene) -> Any:
    client, path = scene.session.rest, await saved(scene)
    record = scene.service.state.checkpoint(path)
    await client.publish_checkpoint_from_tinker_path(path)
    await client.unpublish_checkpoint_from_tinker_path(path)
    await client.set_checkpoint_ttl_from_tinker_path(path, 3600)
    await client.delete_checkpoint(scene.trainer.model_id, record.path.checkpoint_id)
    return record.public, record.expires_at is None, path in scene.service.state.checkpoints


@call(*rest("get_weights_info_by_tinker_path", "copy_weights", "get_checkpoint_archive_url"))
async def contents(scene: Scene) -> Any:
    client = scene.session.rest
    info = await client.get_weights_info_by_tinker_path(scene.path)
    copy = await client.copy_weights(scene.path, "project-other", weights_access_token="a-token")
    archive = await client.get_checkpoint_archive_url(scene.path)
    return info, copy.endswith("/weights/start"), archive.url


@call(*rest("get_external_weights_urls"))
async def get_external_weights_urls(scene: Scene) -> Any:
    state, name = scene.service.state, scene.new_name()
    model = state.models[scene.trainer.model_id]
    record = state.save(model, "external_weights", name, overwrite=False)
    return [*(await scene.session.rest.get_external_weights_urls(str(record.path))).urls]


@call(*rest("list_sessions", "list_sessions_page", "search_sessions", "search_sessions_page"))
async def sessions(scene: Scene) -> Any:
    client = scene.session.rest
    listed = [one async for one in client.list_sessions()]
    found = [one.session_id async for one in client.search_sessions()]
    page = await client.search_sessions_page()
    return listed, found, (await client.list_sessions_page()).sessions, len(page.sessions)


@call(
    *rest("get_session", "assign_session_project", "export_session_trace", "finish_session"),
)
async def one_session(scene: Scene) -> Any:
    client, session_id = scene.session.rest, other_session(scene)
    await client.assign_session_project(session_id, "project-other")
    trace = await client.export_session_trace(session_id)
    await client.finish_session(session_id, "interrupted", "because")
    found = await client.get_session(session_id)
    return trace.startswith("https://"), found.training_run_ids, found.user_metadata


@call(*rest("get_billing_usage", "get_current_checkpoint_storage_usage", "get_audit_log"))
async def the_account(scene: Scene) -> Any:
    client = scene.session.rest
    used = await client.get_billing_usage("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
    stored = await client.get_current_checkpoint_storage_usage()
    return used, stored, await client.get_audit_log("checkpoints")
