"""Local checks of saves: names, times to live, metadata, and whom an export is encrypted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinker_async.data import given
from tinker_async.errors import InvalidInputError

_SHORTEST_TTL_S = 3600
_LONGEST_TTL_S = 10 * 366 * 24 * 3600
"""Ten years; servers may count them shorter."""
_MOST_RECIPIENTS = 10
_RECIPIENTS = ("age1", "ssh-")


def check_save(name: str, ttl_seconds: int | None, user_metadata: Mapping[str, str] | None) -> None:
    """Check what is said of a checkpoint.

    Raises:
        InvalidInputError: It cannot be right.
    """
    if not isinstance(name, str) or not name or "/" in name or not name.isprintable():
        raise InvalidInputError(
            f"name: {name!r} cannot name a checkpoint",
            field="name",
            hint="use letters, digits, '.', '_' and '-'",
        )
    if ttl_seconds is not None and (
        not isinstance(ttl_seconds, int) or not _SHORTEST_TTL_S <= ttl_seconds <= _LONGEST_TTL_S
    ):
        raise InvalidInputError(
            f"ttl_seconds: must be at least {_SHORTEST_TTL_S} and at most ten years, "
            f"got {ttl_seconds!r}",
            field="ttl_seconds",
        )
    given.texts(user_metadata, "user_metadata")


def check_recipients(recipients: Sequence[str] | None) -> None:
    """Check whom an export is to be encrypted to.

    Raises:
        InvalidInputError: Too many, or one is no public key.
    """
    field = "age_encryption_recipients"
    if recipients is not None and not isinstance(recipients, (list, tuple)):
        raise InvalidInputError(
            f"{field}: must be a list of keys, got {type(recipients).__name__}", field=field
        )
    if recipients is not None and len(recipients) > _MOST_RECIPIENTS:
        raise InvalidInputError(
            f"{field}: {len(recipients)} keys, but {_MOST_RECIPIENTS} are the most", field=field
        )
    for index, key in enumerate(recipients or ()):
        if not isinstance(key, str) or not key.startswith(_RECIPIENTS):
            where = f"{field}[{index}]"
            raise InvalidInputError(
                f"{where}: neither an age key nor an SSH public key",
                field=where,
                hint="age keys begin with age1, SSH keys with ssh-ed25519 or ssh-rsa",
            )
