"""The `h2` library as this package uses it: set up, and bent where its defaults do not fit.

Everything that depends on how `h2` works inside stands here, so that one module is to be
looked at when `h2` changes. No I/O.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinker_async.transport import Buffer, Headers

STREAM_WINDOW_BYTES = 16 << 20
CONNECTION_WINDOW_BYTES = 64 << 20
MAX_FRAME_BYTES = 128 << 10
"""Larger than the default 16 KiB (fewer events), small enough not to hold up a neighbour."""
MAX_HEADER_LIST_BYTES = 1 << 20
LAST_STREAM_ID = 2**31 - 1
_STREAMS_BETWEEN_SWEEPS = 64
_DATA = 0x0

_NOT_SENT = frozenset(
    (
        b"connection",
        b"content-length",  # ours to say
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
    )
)


class Http2State(h2.connection.H2Connection):
    """The client side of a connection, ready to send its preface.

    Three things differ from `h2`: counting open streams is not linear for every request (the
    multiplexer counts them itself); GOAWAY does not end what is in flight; a wrong
    content-length does not end the connection.
    """

    def __init__(self) -> None:
        # The peer's headers are data to us, and ours are made by this library: checking
        # them again costs a quarter of a request.
        super().__init__(
            h2.config.H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
            )
        )
        self._until_sweep = _STREAMS_BETWEEN_SWEEPS
        codes = h2.settings.SettingCodes
        self.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                codes.ENABLE_PUSH: 0,
                codes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                codes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
                codes.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST_BYTES,
            },
        )
        self.max_inbound_frame_size = MAX_FRAME_BYTES
        self.decoder.max_header_list_size = MAX_HEADER_LIST_BYTES
        self.initiate_connection()
        self.increment_flow_control_window(CONNECTION_WINDOW_BYTES - 65_535)

    @property
    def open_outbound_streams(self) -> int:
        """0: the limit is kept by the multiplexer. Forgets closed streams now and then."""
        self._until_sweep -= 1
        if self._until_sweep <= 0:
            self._until_sweep = _STREAMS_BETWEEN_SWEEPS
            _ = super().open_outbound_streams
        return 0

    def _receive_goaway_frame(self, frame: Any) -> tuple[list[Any], list[h2.events.Event]]:
        """Report GOAWAY without entering the closed state: streams below it go on."""
        event = h2.events.ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        event.additional_data = frame.additional_data
        return [], [event]

    def open_stream(self, stream_id: int, headers: Headers, *, end_stream: bool) -> None:
        """Queue the HEADERS of a new request."""
        self.send_headers(stream_id, headers, end_stream=end_stream)
        stream: Any = self.streams[stream_id]
        stream._initialize_content_length = _ignore  # noqa: SLF001 - see the class docstring

    @property
    def has_output(self) -> bool:
        """Whether `data_to_send` would return anything."""
        return bool(self._data_to_send)

    def receive(self, data: bytes) -> list[h2.events.Event]:
        """Take in bytes. A frame that announces too much is refused before it has come."""
        events = self.receive_data(data)
        pending = self.incoming_buffer._data  # noqa: SLF001 - h2 looks only at the whole frame
        if int.from_bytes(pending[:3], "big") > MAX_FRAME_BYTES and len(pending) >= 3:
            raise h2.exceptions.FrameTooLargeError("a frame is longer than what we allow")
        return events

    def window(self, stream_id: int) -> int:
        """Bytes that may be sent on a stream now; 0 or less: none."""
        return min(
            self.outbound_flow_control_window, self.streams[stream_id].outbound_flow_control_window
        )

    def frame_data(self, stream_id: int, upload: Upload, size: int) -> list[Buffer]:
        """Return a DATA frame with the next bytes of a body, without copying them.

        `h2.send_data` would copy each byte five times on its way out. The caller sees to it
        that what `data_to_send` holds goes out first, and ends the stream by `end_stream`.
        """
        self.outbound_flow_control_window -= size
        self.streams[stream_id].outbound_flow_control_window -= size
        header = size.to_bytes(3, "big") + bytes((_DATA, 0)) + stream_id.to_bytes(4, "big")
        return [header, *upload.take(size)]


def _ignore(*_: object) -> None:
    """Stand in for a check that is not wanted."""


class Upload:
    """A request body, handed out in pieces of any size without being joined."""

    __slots__ = ("_views", "left")

    def __init__(self, parts: Sequence[Buffer]) -> None:
        views = (memoryview(part) for part in parts)
        self._views = deque(view.cast("B") for view in views if view.nbytes)
        self.left = sum(view.nbytes for view in self._views)

    def take(self, size: int) -> list[Buffer]:
        """Return the next `size` bytes as views; `size` is at most `left`."""
        self.left -= size
        taken: list[Buffer] = []
        while size:
            view = self._views.popleft()
            if view.nbytes > size:
                self._views.appendleft(view[size:])
                view = view[:size]
            size -= view.nbytes
            taken.append(view)
        return taken

    def take_all(self) -> bytes:
        """Return what is left as one piece."""
        return b"".join(self.take(self.left))


class HeaderTable:
    """Turns the headers of a `Request` into those that go on the wire, and remembers."""

    __slots__ = ("_authority", "_known", "_scheme")

    def __init__(self, scheme: str, authority: bytes) -> None:
        self._scheme = (b":scheme", scheme.encode("ascii"))
        self._authority = (b":authority", authority)
        self._known: dict[Headers, Headers] = {}

    def request_headers(self, method: str, path: str, headers: Headers, size: int) -> Headers:
        """Return pseudo-headers, then the caller's without those HTTP/2 forbids."""
        regular = self._known.get(headers)
        if regular is None:
            regular = tuple(pair for pair in headers if pair[0] not in _NOT_SENT)
            if len(self._known) >= 256:
                self._known.clear()  # headers that vary with each request gain nothing here
            self._known[headers] = regular
        pseudo = (
            (b":method", method.encode("ascii")),
            self._scheme,
            self._authority,
            (b":path", path.encode("ascii")),
        )
        if size:
            return (*pseudo, *regular, (b"content-length", b"%d" % size))
        return (*pseudo, *regular)
