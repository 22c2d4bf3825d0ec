"""`RestClient`: reading and managing what is on the server. Plain requests, no queue."""

from __future__ import annotations

from tinker_async.rest.client import RestClient

__all__ = ("RestClient",)
