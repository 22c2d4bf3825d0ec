"""Every REST call of the official client, one after the other; run as a process of its own.

Usage: python rest_conversation.py URL KEY NAMES, where NAMES is a JSON object. Prints one JSON
object: what each call returned.
"""

from __future__ import annotations

import json
import sys
import warnings
from datetime import date
from typing import Any

import tinker
from tinker import types

warnings.simplefilter("ignore")  # experimental and deprecated calls are called all the same


def search() -> types.SessionSearchRequest:
    return types.SessionSearchRequest(
        session_id="s1",
        project_ids=["project-fake"],
        user_metadata={"purpose": "test"},
        display_name="night",
        owner=types.UserSearchOwner(owner_urns=["tml:user:fake"]),
        statuses=[
            types.ActiveSessionStatusQuery(),
            types.ClientFinishedSessionStatusQuery(reasons=["errored"]),
        ],
        limit=7,
    )


def calls(rest: Any, admin: Any, names: dict[str, str]) -> dict[str, Any]:
    run, path, sampler_path = names["run"], names["path"], names["sampler_path"]
    return {
        "capabilities": rest.get_server_capabilities,
        "run": lambda: rest.get_training_run(run),
        "run_accessible": lambda: rest.get_training_run(run, access_scope="accessible"),
        "run_by_path": lambda: rest.get_training_run_by_tinker_path(path),
        "runs": rest.list_training_runs,
        "runs_of_project": lambda: rest.list_training_runs(
            limit=3, offset=1, access_scope="accessible", project_id="project-fake"
        ),
        "checkpoints": lambda: rest.list_checkpoints(run),
        "user_checkpoints": rest.list_user_checkpoints,
        "user_checkpoints_page": lambda: rest.list_user_checkpoints(limit=1, offset=1),
        "publish": lambda: rest.publish_checkpoint_from_tinker_path(sampler_path),
        "unpublish": lambda: rest.unpublish_checkpoint_from_tinker_path(sampler_path),
        "ttl": lambda: rest.set_checkpoint_ttl_from_tinker_path(path, 7200),
        "no_ttl": lambda: rest.set_checkpoint_ttl_from_tinker_path(path, None),
        "weights_info": lambda: rest.get_weights_info_by_tinker_path(path),
        "copy": lambda: rest.copy_weights(
            path, "project-other", ttl_seconds=3600, weights_access_token="a-foreign-token"
        ),
        "external": lambda: rest.get_external_weights_urls(names["external_path"]),
        "delete": lambda: rest.delete_checkpoint(run, "weights/doomed"),
        "delete_by_path": lambda: rest.delete_checkpoint_from_tinker_path(names["doomed_path"]),
        "sessions": rest.list_sessions,
        "sessions_page": lambda: rest.list_sessions(limit=2, offset=0, access_scope="accessible"),
        "session": lambda: rest.get_session("s1"),
        "search_own": lambda: rest.search_sessions(types.SessionSearchRequest()),
        "search": lambda: rest.search_sessions(search()),
        "assign": lambda: rest.assign_session_project("s1", "project-other"),
        "trace": lambda: rest.export_session_trace("s1"),
        "sampler": lambda: rest.get_sampler(names["sampler"]),
        "billing": lambda: admin.get_billing_usage("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
        "storage": admin.get_current_checkpoint_storage_usage,
        "storage_of_project": lambda: admin.get_current_checkpoint_storage_usage("project-fake"),
        "audit": admin.get_audit_log,
        "audit_of_day": lambda: admin.get_audit_log("checkpoints", date(2026, 1, 1)),
    }


def plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def main() -> None:
    url, key, text = sys.argv[1:]
    rest = tinker.RestClient(base_url=url, api_key=key)
    admin = tinker.AdminClient(base_url=url, api_key=key)
    found: dict[str, Any] = {}
    for name, call in calls(rest, admin, json.loads(text)).items():
        try:
            found[name] = plain(call().result())
        except Exception as error:
            error.add_note(f"in {name}")
            raise
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
