"""HTTP error answers, as an exception: what a handler raises to refuse a request."""

from __future__ import annotations


class Refusal(Exception):  # noqa: N818  # an answer, not a failure of ours
    """Answers with `status` and `{"detail": ..., "field": ...}`.

    A 409 is repeated by every client for minutes, so it stands only for a reused
    sequence number; whatever else is permanent gets another status.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.field = field
        self.retry_after_s = retry_after_s
