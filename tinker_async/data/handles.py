"""`SamplerHandle`: what another process needs to sample from the same weights.

Plain data that travels as JSON. Rule: nothing secret is in it; whoever opens it brings
a credential of their own.
"""

from __future__ import annotations

import re
import urllib.parse

import msgspec

from tinker_async.data import given
from tinker_async.errors import InvalidInputError

_WHERE = re.compile(r"required field `(\w+)`|at `\$\.(\w+)`")
"""The two ways in which msgspec names the field that is wrong."""


class SamplerHandle(
    msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="sampler_handle"
):
    """A sampler, for other processes: JSON without a secret. Pickles too.

    Made by `SamplingClient.handle`, opened by `Session.create_sampling_client_from_handle`,
    by any number of processes and any number of times. At most one of `base_model` and
    `model_path` is set; neither is for a snapshot of
    `save_weights_and_get_sampling_client`.

    Raises:
        InvalidInputError: A field is empty, `base_url` is no URL or carries a credential, or
            both kinds of weights are set.
    """

    base_url: str
    """The server it is of."""
    sampling_session_id: str
    """The server's id of the sampler; it ends with the session that made it."""
    base_model: str | None = None
    """The base model, if it samples from one."""
    model_path: str | None = None
    """The checkpoint, if it samples from one."""

    def __post_init__(self) -> None:
        for field in ("base_model", "model_path"):
            if (name := getattr(self, field)) is not None:
                given.text(name, field)
        for field in ("base_url", "sampling_session_id"):
            if not given.text(getattr(self, field), field):
                raise InvalidInputError(f"{field}: is empty", field=field)
        try:
            netloc = urllib.parse.urlsplit(self.base_url).netloc
        except ValueError as error:
            raise InvalidInputError(f"base_url: is no URL: {error}", field="base_url") from None
        if "@" in netloc:
            raise InvalidInputError("base_url: carries a user name or a password", field="base_url")
        if self.base_model is not None and self.model_path is not None:
            raise InvalidInputError(
                "model_path: a sampler has either a base_model or a model_path", field="model_path"
            )

    def to_json(self) -> str:
        """Return it as one line of JSON, which `from_json` reads."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> SamplerHandle:
        """Read what `to_json` wrote; fields of newer versions are ignored.

        Raises:
            InvalidInputError: Not such JSON. `field` names what is wrong in it, or is `handle`.
        """
        if not isinstance(text, (str, bytes)):
            raise given.wrong("handle", f"must be the text of a handle, got {given.shown(text)}")
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if isinstance(error.__cause__, InvalidInputError):
                raise error.__cause__ from None
            found = _WHERE.search(str(error))
            field = next(filter(None, found.groups())) if found else "handle"
            raise InvalidInputError(
                f"{field}: not the JSON of a sampler's handle: {error}",
                field=field,
                hint="pass on what SamplerHandle.to_json returned, unchanged",
            ) from None
