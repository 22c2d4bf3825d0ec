"""What is checked of arguments before anything is sent. Each refusal shows the right form."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from tinker_async.credentials.secret import Secret
from tinker_async.credentials.tokens import is_token
from tinker_async.data import given
from tinker_async.data.paths import (
    CheckpointPath,
    CheckpointType,
    parse_path,
    parse_sampler_path,
)
from tinker_async.errors import InvalidInputError

SHORTEST_TTL_S = 3600
LONGEST_TTL_S = 3653 * 86_400
"""Ten years, with the most leap days that they can have."""
_LONGEST_USAGE = timedelta(days=14)
_SCOPES = ("owned", "accessible")
_AUDITED = ("all", "checkpoints", "projects", "teams", "organizations")
_FINISHES = ("success", "errored", "interrupted")


def run_id(value: object, field: str = "training_run_id") -> str:
    """Return a training run's id."""
    return _id(value, field, "a training run", "<session>:train:<number>, as in TrainingRun")


def session_id(value: object) -> str:
    """Return a session's id."""
    return _id(value, "session_id", "a session", "that of Session.session_id or list_sessions")


def sampler_id(value: object) -> str:
    """Return a sampling session's id."""
    return _id(value, "sampler_id", "a sampler", "<session>:sample:<number>, as in get_session")


def project_id(value: object, field: str = "project_id") -> str:
    """Return a project's id."""
    return _id(value, field, "a project", "that of the console or of TINKER_PROJECT_ID")


def path(
    value: str, field: str = "tinker_path", expect: CheckpointType | None = None
) -> CheckpointPath:
    """Return the path of a checkpoint."""
    parsed = parse_path(value, expect=expect, field=field)
    if not parsed.training_run_id.strip():
        raise given.wrong(field, f"{given.shown(value)} names no training run", _PATH_FORM)
    return parsed


def archived_path(value: str) -> CheckpointPath:
    """Return the path of a checkpoint, of a sampler also in the form that leaves out its kind."""
    parsed = parse_sampler_path(value, field="tinker_path")
    if not parsed.training_run_id.strip():
        raise given.wrong("tinker_path", f"{given.shown(value)} names no training run", _PATH_FORM)
    return parsed


_PATH_FORM = "the form is tinker://<training run>/weights/<name>"


def checkpoint(training_run_id: object, checkpoint_id: object) -> CheckpointPath:
    """Return the path of a checkpoint that is named by its run and its id in it."""
    run = run_id(training_run_id)
    try:
        return parse_path(f"tinker://{run}/{checkpoint_id}", field="checkpoint_id")
    except InvalidInputError:
        raise given.wrong(
            "checkpoint_id",
            f"{given.shown(checkpoint_id)} is not the id of a checkpoint",
            "the form is weights/<name>, sampler_weights/<name> or external_weights/<name>, "
            "as in Checkpoint.checkpoint_id",
        ) from None


def access_scope(value: str) -> str:
    """Return whose things are meant."""
    return _one_of(value, _SCOPES, "access_scope")


def event_type(value: str) -> str:
    """Return which events are meant."""
    return _one_of(value, _AUDITED, "event_type")


def finish_status(value: str) -> str:
    """Return how a session ended."""
    return _one_of(value, _FINISHES, "status")


def page(limit: int, offset: int) -> None:
    """Check the place of a page."""
    for field, value, least in (("limit", limit, 1), ("offset", offset, 0)):
        if type(value) is not int or value < least:
            raise given.wrong(
                field, f"{given.shown(value)} is not a whole number of at least {least}"
            )


def ttl_seconds(value: int | None) -> None:
    """Check a time to live; None is none."""
    whole = type(value) is int and SHORTEST_TTL_S <= value <= LONGEST_TTL_S
    if value is not None and not whole:
        raise given.wrong(
            "ttl_seconds",
            f"{given.shown(value)} is not a whole number of seconds from one hour to ten years",
            f"the least is {SHORTEST_TTL_S}; None keeps the checkpoint",
        )


def access_token(value: str | None) -> None:
    """Check a token, without showing it."""
    sound = isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value
    if value is not None and not (sound and value):
        raise given.wrong(
            "weights_access_token", "it has characters that no token has, or none at all"
        )


def api_key(value: str | None) -> Secret | None:
    """Return an API key, which no error shows; None is none."""
    if value is None:
        return None
    sound = isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value
    if not (sound and value):
        raise given.wrong("api_key", "it has characters that no key has, or none at all", _KEY_FORM)
    if is_token(value):
        raise given.wrong("api_key", "it is a token (a JWT), not an API key", _KEY_FORM)
    return Secret(value)


_KEY_FORM = "the form is tml-..."


def text(value: str | None, field: str) -> None:
    """Check a text that may be left out."""
    if value is not None and not isinstance(value, str):
        raise given.wrong(field, f"{given.shown(value)} is not a text")


def day(value: date | None) -> str | None:
    """Return a day as it is sent."""
    if value is None:
        return None
    if not isinstance(value, date) or isinstance(value, datetime):
        raise given.wrong(
            "day", f"{given.shown(value)} is not a day", "give a datetime.date, in UTC"
        )
    return value.isoformat()


def hours(starting_on: datetime | str, ending_before: datetime | str) -> tuple[str, str]:
    """Return two times as they are sent: full hours, the first before the second."""
    start, end = _hour(starting_on, "starting_on"), _hour(ending_before, "ending_before")
    if not start < end <= start + _LONGEST_USAGE:
        raise given.wrong(
            "ending_before",
            f"{given.shown(ending_before)} is not after starting_on, by 14 days at most",
        )
    return _sent(start), _sent(end)


def _hour(value: object, field: str) -> datetime:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        time = None
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise given.wrong(field, f"{given.shown(value)} is not a time with a zone", _TIME_FORM)
    time = time.astimezone(UTC)
    if time != time.replace(minute=0, second=0, microsecond=0):
        raise given.wrong(field, f"{given.shown(value)} is not at a full hour of UTC", _TIME_FORM)
    return time


_TIME_FORM = 'the form is "2026-07-13T00:00:00Z", or an aware datetime'


def _sent(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def _id(value: object, field: str, what: str, form: str) -> str:
    if isinstance(value, str) and value.isprintable() and value not in {"", ".", ".."}:
        if not {*value} & {"/", " "}:
            return value
        if value.startswith("tinker://"):
            form += "; for a path use the method whose name ends in tinker_path"
    raise given.wrong(field, f"{given.shown(value)} is not the id of {what}", f"the form is {form}")


def _one_of(value: str, known: tuple[str, ...], field: str) -> str:
    if value not in known:
        raise given.wrong(field, f"{given.shown(value)} is none of {', '.join(known)}")
    return value
