"""`tinker://<training run>/<kind>/<name>`: the paths of checkpoints."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from tinker_async.data import given
from tinker_async.errors import InvalidInputError

CheckpointType: TypeAlias = Literal["training", "sampler", "external"]

PREFIX = "tinker://"
_SHOWN = 200
KINDS: dict[str, CheckpointType] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}


class CheckpointPath(msgspec.Struct, frozen=True):
    """A parsed checkpoint path."""

    training_run_id: str
    kind: str
    name: str

    @property
    def checkpoint_type(self) -> CheckpointType:
        """What the checkpoint serves for."""
        return KINDS[self.kind]

    @property
    def checkpoint_id(self) -> str:
        """The id inside its run: `<kind>/<name>`."""
        return f"{self.kind}/{self.name}"

    @property
    def tinker_path(self) -> str:
        """The path itself."""
        return f"{PREFIX}{self.training_run_id}/{self.kind}/{self.name}"

    def __str__(self) -> str:
        return self.tinker_path


def parse_path(
    path: str, *, expect: CheckpointType | None = None, field: str = "path"
) -> CheckpointPath:
    """Parse a checkpoint path.

    Args:
        path: `tinker://<training run>/<kind>/<name>`.
        expect: Refuse a path of another kind.
        field: The argument's name, for the error.

    Raises:
        InvalidInputError: Not such a path, or of the wrong kind.
    """
    sound = isinstance(path, str) and path.startswith(PREFIX) and path.isprintable()
    parts = path.removeprefix(PREFIX).split("/") if sound else []
    if len(parts) != 3 or parts[1] not in KINDS or not parts[2]:
        shown = repr(path)
        raise InvalidInputError(
            f"{field}: {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'} "
            "is not a checkpoint path",
            field=field,
            hint="the form is tinker://<training run>/weights/<name>, .../sampler_weights/<name> "
            "or .../external_weights/<name>",
        )
    parsed = CheckpointPath(*parts)
    if expect is not None and parsed.checkpoint_type != expect:
        remedy = {
            "training": "use a path that save_state returned",
            "sampler": "use a path that save_weights_for_sampler returned",
            "external": "use a path that save_weights_external returned",
        }.get(given.text(expect, "expect"))
        if remedy is None:
            raise given.wrong("expect", f"must be training, sampler or external, got {expect!r}")
        raise InvalidInputError(
            f"{field}: {path!r} is a checkpoint for {parsed.checkpoint_type}, not for {expect}",
            field=field,
            hint=remedy,
        )
    return parsed


def parse_sampler_path(path: str, *, field: str = "path") -> CheckpointPath:
    """As `parse_path`; also reads the paths of servers that name samplers without their kind.

    Raises:
        InvalidInputError: Neither form.
    """
    sound = isinstance(path, str) and path.startswith(PREFIX) and path.isprintable()
    parts = path.removeprefix(PREFIX).split("/") if sound else []
    if len(parts) == 2 and all(parts) and parts[1] not in KINDS:
        return CheckpointPath(parts[0], "sampler_weights", parts[1])
    return parse_path(path, field=field)
