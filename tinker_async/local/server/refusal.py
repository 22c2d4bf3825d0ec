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


def checked_number(number: int, field: str) -> int:
    """Return a number that a client counts models, samplers or requests with.

    Raises:
        Refusal: It does not fit into 64 bits, and so into no name and no column.
    """
    if not 0 <= number < 2**63:
        raise Refusal(422, "must be a 64-bit number >= 0", field=field)
    return number
