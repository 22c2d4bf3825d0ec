"""Undoes the content-encoding of a response body, with a bound on what comes out.

We never ask for an encoding; some proxies add one all the same.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from tinker_async.errors import ResponseError

if TYPE_CHECKING:
    from tinker_async.transport import Buffer, Headers

MAX_BODY_BYTES = 1 << 30
"""The largest response body that is accepted, as sent and as decoded."""
_MOST_MEMBERS = 100
"""Of one gzip body: following each copies what is left, so their number must be small."""


def decoded(headers: Headers, body: Buffer, *, endpoint: str, most: int = MAX_BODY_BYTES) -> Buffer:
    """Return the body without its content-encoding.

    Args:
        headers: Of the response.
        body: As it was received.
        endpoint: For the error message.
        most: Largest allowed result, in bytes.

    Raises:
        ResponseError: The encoding is unknown, broken, or the result too large.
    """
    for name, value in headers:
        if name == b"content-encoding":
            for coding in reversed(value.lower().split(b",")):
                body = _undo(coding.strip(), body, endpoint, most)
    return body


def _undo(coding: bytes, body: Buffer, endpoint: str, most: int) -> Buffer:
    if coding in (b"identity", b"") or not body:
        return body
    if coding in (b"gzip", b"x-gzip", b"deflate"):
        try:
            return _inflate(coding, body, most)
        except zlib.error as error:
            raise ResponseError(
                f"the {coding.decode()} body of {endpoint} is broken: {error}", endpoint=endpoint
            ) from error
        except OverflowError as error:
            raise too_large(endpoint, most) from error
    raise ResponseError(
        f"{endpoint} answered in content-encoding {coding.decode('latin-1')!r}",
        endpoint=endpoint,
        hint="we never ask for one: a proxy in between may be misconfigured",
    )


def _inflate(coding: bytes, body: Buffer, most: int) -> bytes:
    """Decompress, following concatenated gzip members."""
    # "deflate" means zlib, but some servers send the raw stream: its header tells.
    raw = coding == b"deflate" and (body[0] & 0x0F) != zlib.DEFLATED
    window_bits = -zlib.MAX_WBITS if raw else zlib.MAX_WBITS | 32
    chunks: list[bytes] = []
    size = 0
    rest: Buffer = body
    while rest:
        inflater = zlib.decompressobj(window_bits)
        chunk = inflater.decompress(rest, most - size + 1)
        size += len(chunk)
        if size > most:
            raise OverflowError
        if not inflater.eof:
            raise zlib.error("it ends too early")
        if len(chunks) == _MOST_MEMBERS:
            raise zlib.error(f"it has more than {_MOST_MEMBERS} members")
        chunks.append(chunk)
        rest = inflater.unused_data
        if coding == b"deflate":
            break
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def too_large(endpoint: str, most: int) -> ResponseError:
    """Return the error for a body above the bound."""
    return ResponseError(
        f"the body that {endpoint} answered is larger than {most} bytes", endpoint=endpoint
    )
