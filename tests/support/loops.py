"""The event loops that tests run on: the core ones on all three, the others on both libraries."""

from __future__ import annotations

import pytest

ASYNCIO = pytest.param(("asyncio", {"debug": False}), id="asyncio")
UVLOOP = pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")
TRIO = pytest.param(("trio", {}), id="trio")

USUAL = [ASYNCIO, TRIO]
CORE = [ASYNCIO, UVLOOP, TRIO]
