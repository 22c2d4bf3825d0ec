"""Who a credential stands for, and whether the server is well."""

from __future__ import annotations

import msgspec


class ApiKeyInfo(msgspec.Struct, frozen=True):
    """What the server says of an API key. The key itself is not in it."""

    key_id: int | str | None = None
    name: str | None = None
    note: str | None = None
    organization: str | None = None
    email: str | None = None


class WhoamiResponse(msgspec.Struct, frozen=True):
    """Who calls. A token has URNs; of a plain API key the server tells `email` and `api_key`."""

    user_urn: str | None = None
    org_urn: str | None = None
    email: str | None = None
    """None for callers that are no people."""
    api_key: ApiKeyInfo | None = None


class HealthResponse(msgspec.Struct, frozen=True):
    """Whether the server is ready: `status` is then `ok`."""

    status: str
