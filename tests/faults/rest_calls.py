"""The public calls of `RestClient`, as rows of the matrix."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from faults.calls import CALLS, Call, World, about, ask
from faults.reasons import Stage

from tinker_async import RestClient

Prepare = Callable[[World], Awaitable[None]]


def _row(
    name: str,
    stages: tuple[Stage, ...],
    run: Callable[[RestClient, World, int], Awaitable[Any]],
    prepare: Prepare | None = None,
    *,
    note: str = "",
) -> Call:
    return Call(
        f"RestClient.{name}",
        stages,
        lambda world, number: run(world.session.rest, world, number),
        prepare,
        note=note,
    )


def _told(endpoint: str) -> tuple[Stage, ...]:
    """A request whose status says all."""
    return (about(endpoint, "delete"),)


async def _listed(items: Any) -> list[Any]:
    return [item async for item in items]


_HOURS = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")

REST_CALLS: tuple[Call, ...] = (
    _row(
        "get_training_run",
        ask("training_run"),
        lambda rest, world, _: rest.get_training_run(world.trainer.model_id),
        World.add_trainer,
    ),
    _row(
        "get_training_run_by_tinker_path",
        ask("training_run"),
        lambda rest, world, _: rest.get_training_run_by_tinker_path(world.path),
        World.add_checkpoint,
    ),
    _row(
        "list_training_runs",
        ask("training_runs"),
        lambda rest, _, __: _listed(rest.list_training_runs()),
        World.add_trainer,
    ),
    _row(
        "list_training_runs_page",
        ask("training_runs"),
        lambda rest, _, __: rest.list_training_runs_page(),
        World.add_trainer,
    ),
    _row(
        "get_sampler",
        ask("sampler"),
        lambda rest, world, _: rest.get_sampler(world.sampler.sampling_session_id),
        World.add_sampler,
    ),
    _row(
        "get_server_capabilities",
        ask("get_server_capabilities"),
        lambda rest, _, __: rest.get_server_capabilities(),
    ),
    _row("healthz", ask("healthz"), lambda rest, _, __: rest.healthz()),
    # Checkpoints
    _row(
        "list_checkpoints",
        ask("checkpoints"),
        lambda rest, _, __: _listed(rest.list_checkpoints()),
        World.add_checkpoint,
    ),
    _row(
        "list_checkpoints",
        ask("run_checkpoints"),
        lambda rest, world, _: _listed(rest.list_checkpoints(world.trainer.model_id)),
        World.add_checkpoint,
        note="(of a run)",
    ),
    _row(
        "list_user_checkpoints",
        ask("checkpoints"),
        lambda rest, _, __: _listed(rest.list_user_checkpoints()),
        World.add_checkpoint,
    ),
    _row(
        "list_checkpoints_page",
        ask("run_checkpoints"),
        lambda rest, world, _: rest.list_checkpoints_page(world.trainer.model_id),
        World.add_checkpoint,
    ),
    _row(
        "list_user_checkpoints_page",
        ask("checkpoints"),
        lambda rest, _, __: rest.list_user_checkpoints_page(),
        World.add_checkpoint,
    ),
    _row(
        "delete_checkpoint",
        _told("delete_checkpoint"),
        lambda rest, world, number: rest.delete_checkpoint(
            world.trainer.model_id, f"weights/{'abc'[number]}"
        ),
        World.add_checkpoints,
    ),
    _row(
        "delete_checkpoint_from_tinker_path",
        _told("delete_checkpoint"),
        lambda rest, world, number: rest.delete_checkpoint_from_tinker_path(world.paths[number]),
        World.add_checkpoints,
    ),
    _row(
        "publish_checkpoint_from_tinker_path",
        _told("publish"),
        lambda rest, world, number: rest.publish_checkpoint_from_tinker_path(world.paths[number]),
        World.add_checkpoints,
    ),
    _row(
        "unpublish_checkpoint_from_tinker_path",
        _told("publish"),
        lambda rest, world, number: rest.unpublish_checkpoint_from_tinker_path(world.paths[number]),
        World.add_public_checkpoints,
    ),
    _row(
        "set_checkpoint_ttl_from_tinker_path",
        _told("ttl"),
        lambda rest, world, _: rest.set_checkpoint_ttl_from_tinker_path(world.path, 3600),
        World.add_checkpoint,
    ),
    # What is in them
    _row(
        "get_weights_info_by_tinker_path",
        ask("weights_info"),
        lambda rest, world, _: rest.get_weights_info_by_tinker_path(world.path),
        World.add_checkpoint,
    ),
    _row(
        "copy_weights",
        ask("copy_weights"),
        lambda rest, world, _: rest.copy_weights(world.path, "project-other"),
        World.add_checkpoint,
    ),
    _row(
        "get_external_weights_urls",
        ask("external_weights_urls"),
        lambda rest, world, _: rest.get_external_weights_urls(world.path),
        World.add_external_checkpoint,
    ),
    _row(
        "get_checkpoint_archive_url",
        _told("archive"),
        lambda rest, world, _: rest.get_checkpoint_archive_url(world.path),
        World.add_checkpoint,
    ),
    # Sessions
    _row(
        "list_sessions",
        ask("sessions", more=1),
        lambda rest, _, __: _listed(rest.list_sessions()),
    ),
    _row("list_sessions_page", ask("sessions"), lambda rest, _, __: rest.list_sessions_page()),
    _row(
        "get_session",
        ask("session"),
        lambda rest, world, _: rest.get_session(world.other),
        World.add_session,
    ),
    _row(
        "search_sessions",
        ask("search_sessions"),
        lambda rest, _, __: _listed(rest.search_sessions()),
    ),
    _row(
        "search_sessions_page",
        ask("search_sessions"),
        lambda rest, _, __: rest.search_sessions_page(),
    ),
    _row(
        "assign_session_project",
        _told("session_project"),
        lambda rest, world, _: rest.assign_session_project(world.other, "project-other"),
        World.add_session,
    ),
    _row(
        "finish_session",
        _told("finish"),
        lambda rest, world, _: rest.finish_session(world.other),
        World.add_session,
    ),
    _row(
        "export_session_trace",
        ask("trace_export"),
        lambda rest, world, _: rest.export_session_trace(world.other),
        World.add_session,
    ),
    # The account
    _row("whoami", ask("auth/apikey/me"), lambda rest, _, __: rest.whoami()),
    _row(
        "revoke_api_key",
        _told("revoke_api_key"),
        lambda rest, _, number: rest.revoke_api_key(f"tml-old-{number}"),
    ),
    _row(
        "get_billing_usage",
        ask("billing_usage"),
        lambda rest, _, __: rest.get_billing_usage(*_HOURS),
    ),
    _row(
        "get_current_checkpoint_storage_usage",
        ask("storage_usage"),
        lambda rest, _, __: rest.get_current_checkpoint_storage_usage(),
    ),
    _row("get_audit_log", ask("audit"), lambda rest, _, __: rest.get_audit_log()),
)

ALL_CALLS = (*CALLS, *REST_CALLS)
