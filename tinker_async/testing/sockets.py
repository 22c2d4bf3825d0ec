"""What the two HTTP fronts of the fake server share: ending a connection the hard way."""

from __future__ import annotations

import os
import socket
import struct

from anyio.abc import ByteStream, SocketAttribute


class Closed(Exception):  # noqa: N818  # control flow of one connection
    """The connection is over: closed here, or found closed."""


def reset(stream: ByteStream) -> None:
    """Let the closing of this connection be a TCP reset, not a polite end."""
    raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610  # not Django
    # A second handle of the same socket: event loops hide the options of the first.
    with socket.socket(fileno=os.dup(raw.fileno())) as handle:
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def split(body: bytes, piece_bytes: int) -> list[bytes]:
    """Cut a body into pieces, the last of which may be shorter."""
    return [body[start : start + piece_bytes] for start in range(0, len(body), piece_bytes)]
