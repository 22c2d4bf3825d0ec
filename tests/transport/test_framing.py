"""Our framing beside `h2`, frame by frame: it says the same of the same bytes."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest
from h2.errors import ErrorCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_async.transport.blocks import Head
from tinker_async.transport.frames import (
    CONNECTION_WINDOW_BYTES,
    MAX_FRAME_BYTES,
    STREAM_WINDOW_BYTES,
    FramedStream,
    Framing,
)
from tinker_async.transport.uploads import Upload

Codes = h2.settings.SettingCodes
Said = tuple[Any, ...]
REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":authority", b"here"),
    (b":path", b"/call"),
    (b"x-a", b"1"),
]
STREAMS = 4


class Heard:
    """Writes down what framing says, in the words of `said_by_library`."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.framing: Framing[FramedStream] = Framing("http", b"here", self)

    def open(self, stream_id: int, size: int = 0, headers: Any = ((b"x-a", b"1"),)) -> FramedStream:
        stream = FramedStream()
        self.framing.open_stream(stream, stream_id, "POST", "/call", headers, size)
        return stream

    def heard_head(self, stream: FramedStream, head: Head, *, ended: bool) -> None:
        self.said.append(("head", stream.id, head.status, head.headers))
        if ended:
            self.heard_end(stream)

    def heard_interim(self, stream: FramedStream) -> None:
        self.said.append(("interim", stream.id))

    def heard_data(
        self, stream: FramedStream | None, data: bytes, length: int, *, ended: bool
    ) -> None:
        if stream is not None:
            self.said.append(("data", stream.id, data, length))
            if ended:
                self.heard_end(stream)

    def heard_end(self, stream: FramedStream) -> None:
        self.said.append(("end", stream.id))
        del self.framing.live[stream.id]

    def heard_reset(self, stream: FramedStream, code: int) -> None:
        self.said.append(("reset", stream.id, code))
        del self.framing.live[stream.id]

    def heard_goaway(self, last_stream_id: int, code: int) -> None:
        self.said.append(("goaway", last_stream_id, code))

    def heard_window(self, stream: FramedStream | None) -> None:
        self.said.append(("window", stream.id if stream else 0))

    def heard_settings(self) -> None:
        self.said.append(("settings",))


def said_by_library(event: h2.events.Event) -> Said | None:  # noqa: PLR0911 - a table
    if isinstance(event, h2.events.ResponseReceived):
        headers = tuple((name, value) for name, value in event.headers or ())
        return ("head", event.stream_id, int(headers[0][1]), headers[1:])
    if isinstance(event, h2.events.InformationalResponseReceived):
        return ("interim", event.stream_id)
    if isinstance(event, h2.events.DataReceived):
        return ("data", event.stream_id, event.data, event.flow_controlled_length)
    if isinstance(event, h2.events.StreamEnded):
        return ("end", event.stream_id)
    if isinstance(event, h2.events.StreamReset):
        return ("reset", event.stream_id, event.error_code)
    if isinstance(event, h2.events.ConnectionTerminated):
        return ("goaway", event.last_stream_id, event.error_code)
    if isinstance(event, h2.events.WindowUpdated):
        return ("window", event.stream_id)
    if isinstance(event, h2.events.RemoteSettingsChanged):
        return ("settings",)
    return None


def library_client() -> h2.connection.H2Connection:
    """A client on `h2` with the settings of ours."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    client.local_settings = h2.settings.Settings(
        client=True,
        initial_values={
            Codes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
            Codes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
        },
    )
    client.max_inbound_frame_size = MAX_FRAME_BYTES
    client.initiate_connection()
    client.increment_flow_control_window(CONNECTION_WINDOW_BYTES - 65_535)
    return client


def library_server() -> h2.connection.H2Connection:
    server = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=False, header_encoding=None)
    )
    server.initiate_connection()
    return server


def output(heard: Heard) -> bytes:
    return b"".join(heard.framing.take_output())


streams = st.sampled_from([1, 3, 5, 7])
headers = st.lists(
    st.tuples(st.sampled_from([b"x-a", b"x-b"]), st.sampled_from([b"1", b"2", b"3" * 200])),
    max_size=3,
)
steps = st.one_of(
    st.tuples(st.just("head"), streams, headers),
    st.tuples(st.just("head"), streams, headers),
    st.tuples(st.just("interim"), streams),
    st.tuples(st.just("data"), streams, st.integers(0, 3000), st.sampled_from([None, 0, 9, 255])),
    st.tuples(st.just("end"), streams),
    st.tuples(st.just("trailers"), streams, headers),
    st.tuples(st.just("reset"), streams, st.sampled_from([0, 2, 7, 11])),
    st.tuples(st.just("window"), st.sampled_from([0, 1, 3, 5, 7]), st.integers(1, 10**6)),
    st.tuples(st.just("ping")),
    st.tuples(
        st.just("settings"),
        st.sampled_from([Codes.INITIAL_WINDOW_SIZE, Codes.MAX_CONCURRENT_STREAMS]),
        st.sampled_from([0, 1000, 65_535, 100_000]),
    ),
    st.tuples(
        st.just("settings"), st.just(Codes.HEADER_TABLE_SIZE), st.sampled_from([0, 100, 4096])
    ),
)


def act(server: h2.connection.H2Connection, step: tuple[Any, ...]) -> None:
    kind, *rest = step
    if kind == "head":
        server.send_headers(rest[0], [(b":status", b"200"), *rest[1]])
    elif kind == "interim":
        server.send_headers(rest[0], [(b":status", b"103"), (b"link", b"x")])
    elif kind == "data":
        server.send_data(rest[0], b"d" * rest[1], pad_length=rest[2])
    elif kind == "end":
        server.end_stream(rest[0])
    elif kind == "trailers":
        server.send_headers(rest[0], [*rest[1], (b"x-sum", b"1")], end_stream=True)
    elif kind == "reset":
        server.reset_stream(rest[0], rest[1])
    elif kind == "window":
        server.increment_flow_control_window(rest[1], rest[0] or None)
    elif kind == "ping":
        server.ping(b"12345678")
    else:
        server.update_settings({rest[0]: rest[1]})


BEFORE = {"head": "open", "interim": "open", "data": "head", "end": "head", "trailers": "head"}
AFTER = {"head": "head", "end": "over", "trailers": "over", "reset": "over"}


def is_allowed(states: dict[int, str], step: tuple[Any, ...]) -> bool:
    """Whether a server may do this to a stream now; its new state is noted."""
    kind, stream_id = step[0], step[1] if len(step) > 1 else 0
    if stream_id not in states or kind == "settings":
        return True
    state = states[stream_id]
    if state == "over" or BEFORE.get(kind, state) != state:
        return False
    states[stream_id] = AFTER.get(kind, state)
    return True


@settings(deadline=None, max_examples=200)
@given(st.lists(steps, max_size=40), st.randoms(use_true_random=False))
def test_what_a_server_sends_is_understood_as_by_the_library(
    script: list[tuple[Any, ...]], chance: Any
) -> None:
    """Any order of frames that a server may send, cut anywhere; windows agree at the end."""
    ours, theirs, server = Heard(), library_client(), library_server()
    for number in range(STREAMS):
        ours.open(2 * number + 1, size=10)
        theirs.send_headers(2 * number + 1, REQUEST)
    server.receive_data(output(ours))
    sent = bytearray()
    states = dict.fromkeys((1, 3, 5, 7), "open")
    for step in script:
        if not is_allowed(states, step):
            continue
        # Data beyond the windows the library does not send.
        with suppress(h2.exceptions.FlowControlError, h2.exceptions.StreamClosedError):
            act(server, step)
        sent += server.data_to_send()
    at = 0
    while at < len(sent):
        cut = chance.choice([1, 9, 10, 100, 5000])
        ours.framing.receive(bytes(sent[at : at + cut]))
        at += cut
    events = theirs.receive_data(bytes(sent))
    said = [words for event in events if (words := said_by_library(event)) is not None]
    # The library also tells of streams that are half closed; ours end at once.
    over: set[int] = set()
    for words in said.copy():
        if words[0] in ("window", "reset") and words[1] in over:
            said.remove(words)
        if words[0] in ("end", "reset"):
            over.add(words[1])
    assert [words for words in said if words[0] != "window"] == [
        words for words in ours.said if words[0] != "window"
    ]
    assert theirs.outbound_flow_control_window == ours.framing.window
    assert theirs.inbound_flow_control_window == ours.framing._inbound
    assert {1, 3, 5, 7} - over == set(ours.framing.live)
    for stream_id, stream in ours.framing.live.items():
        reference = theirs.streams[stream_id]
        assert reference.outbound_flow_control_window == stream.window
        assert reference.inbound_flow_control_window == stream.inbound
    server.receive_data(output(ours))  # acknowledgements and answers to PING


def send(
    framing: Framing[FramedStream], stream: FramedStream, size: int, *, in_pieces: bool
) -> None:
    """Send a body, or give up where it is too large for one frame."""
    if in_pieces and size:
        upload = Upload((bytes(size),))
        while upload.left:
            framing.put_piece(stream, upload, min(framing.room(stream), upload.left, 7000))
    elif size > framing.room(stream):
        framing.reset(stream, ErrorCodes.CANCEL)
    elif size:
        framing.put_body(stream, bytes(size))


sizes = st.sampled_from([0, 1, 100, 16_384, 16_385, 50_000])


@settings(deadline=None)
@given(
    st.lists(st.tuples(sizes, st.booleans(), st.sampled_from([0, 10, 20_000, 70_000])), max_size=8),
    st.sampled_from([None, 0, 200]),
)
def test_a_server_on_the_library_reads_what_we_send(
    requests: list[tuple[int, bool, int]], table: int | None
) -> None:
    """Headers of any length, bodies whole and in pieces, resets; nothing breaks its rules."""
    ours, server = Heard(), library_server()
    server.decoder.max_header_list_size = 1 << 20
    server.receive_data(output(ours))
    server.increment_flow_control_window(10**6)
    server.update_settings({Codes.INITIAL_WINDOW_SIZE: 100_000})
    if table is not None:
        server.update_settings({Codes.HEADER_TABLE_SIZE: table})
    ours.framing.receive(server.data_to_send())
    for number, (size, in_pieces, long) in enumerate(requests):
        stream = ours.open(2 * number + 1, size, ((b"x-long", b"v" * long),))
        send(ours.framing, stream, size, in_pieces=in_pieces)
    got: dict[int, dict[str, Any]] = {}
    for event in server.receive_data(output(ours)):
        entry = got.setdefault(getattr(event, "stream_id", None) or 0, {"body": 0})
        if isinstance(event, h2.events.RequestReceived):
            entry["headers"] = dict(event.headers or ())
        elif isinstance(event, h2.events.DataReceived):
            entry["body"] += len(event.data or b"")
        elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
            entry["ending"] = type(event)
    for number, (size, in_pieces, long) in enumerate(requests):
        entry = got[2 * number + 1]
        whole = in_pieces or size <= 16_384
        assert (h2.events.StreamEnded if whole else h2.events.StreamReset) == entry["ending"]
        assert (size if whole else 0) == entry["body"]
        assert b"v" * long == entry["headers"][b"x-long"]
        assert (b"%d" % size if size else None) == entry["headers"].get(b"content-length")


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return (
        struct.pack(">I", len(payload) << 8 | kind) + struct.pack(">BI", flags, stream_id) + payload
    )


OK = b"\x88"  # :status 200
VIOLATIONS = {
    "data on no stream": frame(0, 0, 0, b"x"),
    "data on a stream of the server's": frame(0, 0, 2, b"x"),
    "data on a stream that was never opened": frame(0, 0, 9, b"x"),
    "headers on a stream that was never opened": frame(1, 4, 9, OK),
    "data before headers": frame(0, 0, 1, b"x"),
    "window of a stream that was never opened": frame(8, 0, 9, b"\0\0\0\1"),
    "padding longer than data": frame(0, 8, 1, b"\x05abc"),
    "padding in an empty frame": frame(0, 8, 1, b""),
    "padding longer than headers": frame(1, 4 | 8, 1, b"\x05\x88"),
    "headers cut off within their priority": frame(1, 4 | 0x20, 1, b"\0\0\0"),
    "a continuation of nothing": frame(9, 4, 1, OK),
    "a continuation of another stream": frame(1, 0, 1, OK) + frame(9, 4, 3, b""),
    "a frame within a header block": frame(1, 0, 1, OK) + frame(6, 0, 0, bytes(8)),
    "endless continuations": frame(1, 0, 1, OK) + frame(9, 0, 1, b"") * 64,
    "a header that is in no table": frame(1, 4, 1, b"\xff\x30"),
    "a broken literal": frame(1, 4, 1, b"\x00\x05ab"),
    "trailers that end nothing": frame(1, 4, 1, OK) + frame(1, 4, 1, b"\x00\x01a\x01b"),
    "an informational response that ends": frame(1, 5, 1, b"\x08\x03103"),
    "a push": frame(5, 4, 1, b"\0\0\0\2" + OK),
    "a reset of the wrong size": frame(3, 0, 1, bytes(3)),
    "a window of the wrong size": frame(8, 0, 0, bytes(3)),
    "a window opened by nothing": frame(8, 0, 0, bytes(4)),
    "a window opened too far": frame(8, 0, 0, b"\x7f\xff\xff\xff"),
    "a goaway that is too short": frame(7, 0, 0, bytes(7)),
    "settings of a wrong size": frame(4, 0, 0, bytes(5)),
    "settings of a stream": frame(4, 0, 1, bytes(6)),
    "settings that are not allowed": frame(4, 0, 0, b"\0\4\xff\xff\xff\xff"),
    "a ping of the wrong size": frame(6, 0, 0, bytes(7)),
    "a frame that is too long": b"\x02\x00\x01\x00\x00\0\0\0\1" + bytes(MAX_FRAME_BYTES + 1),
}


@pytest.mark.parametrize("name", VIOLATIONS)
@pytest.mark.parametrize("cut", [None, 1])
def test_a_violation_ends_the_connection_as_with_the_library(name: str, cut: int | None) -> None:
    """An `H2Error`, and a GOAWAY for the peer, whether the bytes come at once or singly."""
    ours, theirs, server = Heard(), library_client(), library_server()
    for stream_id in (1, 3):
        ours.open(stream_id)
        theirs.send_headers(stream_id, REQUEST, end_stream=True)
    hello = server.data_to_send()
    theirs.receive_data(hello)
    ours.framing.receive(hello)
    output(ours)
    data = VIOLATIONS[name]
    with pytest.raises(h2.exceptions.H2Error):
        theirs.receive_data(data)
    with pytest.raises(h2.exceptions.H2Error):
        for at in range(0, len(data), cut or len(data)):
            ours.framing.receive(data[at : at + (cut or len(data))])
    assert 7 == output(ours)[3]


def test_more_data_than_a_window_allows_ends_the_connection() -> None:
    """The window of the stream, and that of all of them, streams that are over included."""
    ours = Heard()
    stream = ours.open(1)
    stream.inbound = 10
    ours.framing.receive(frame(1, 4, 1, OK) + frame(0, 0, 1, bytes(10)))
    with pytest.raises(h2.exceptions.FlowControlError):
        ours.framing.receive(frame(0, 0, 1, b"x"))
    ours = Heard()
    ours.heard_end(ours.open(1))
    full = frame(0, 0, 1, bytes(MAX_FRAME_BYTES))
    for _ in range(CONNECTION_WINDOW_BYTES // MAX_FRAME_BYTES):
        ours.framing.receive(full)
    with pytest.raises(h2.exceptions.FlowControlError):
        ours.framing.receive(frame(0, 0, 1, b"x"))


def test_a_request_that_was_not_sent_is_not_sent_with_the_goodbye() -> None:
    """Its caller is told that it was certainly not processed, and may repeat it elsewhere."""
    ours = Heard()
    output(ours)  # the preface
    ours.open(1)
    with pytest.raises(h2.exceptions.H2Error):
        ours.framing.receive(VIOLATIONS["a push"])
    assert frame(7, 0, 0, struct.pack(">LL", 0, ErrorCodes.PROTOCOL_ERROR)) == output(ours)
    ours = Heard()
    output(ours)
    ours.open(1)
    ours.framing.say_goodbye()
    assert frame(7, 0, 0, bytes(8)) == output(ours)


def test_without_the_preface_there_is_no_goodbye() -> None:
    """A frame alone would not be HTTP/2."""
    ours = Heard()
    ours.framing.say_goodbye()
    assert b"" == output(ours)


def test_what_the_library_lets_pass_is_refused_too() -> None:
    """RST_STREAM for a stream that was never opened is a protocol error (RFC 9113 6.4)."""
    with pytest.raises(h2.exceptions.ProtocolError):
        Heard().framing.receive(frame(3, 0, 9, bytes(4)))


def test_a_streams_window_may_not_be_opened_too_far() -> None:
    """By WINDOW_UPDATE or by SETTINGS; the whole connection ends, as RFC 9113 5.4.1 allows."""
    for data in (
        frame(8, 0, 1, b"\x7f\xff\xff\xff"),
        frame(8, 0, 1, b"\0\0\0\1") + frame(4, 0, 0, b"\0\4\x7f\xff\xff\xff"),
    ):
        ours = Heard()
        ours.open(1)
        with pytest.raises(h2.exceptions.FlowControlError):
            ours.framing.receive(data)


def test_headers_of_a_stream_that_is_over_still_count_for_the_table() -> None:
    """Nobody wants them, but later blocks point at what they added."""
    ours, server = Heard(), library_server()
    gone = ours.open(1)
    ours.open(3)
    server.receive_data(output(ours))
    ours.framing.reset(gone, ErrorCodes.CANCEL)
    del ours.framing.live[1]
    for stream_id in (1, 3):
        server.send_headers(stream_id, [(b":status", b"200"), (b"x-new", b"entry")])
    ours.framing.receive(server.data_to_send())
    assert [("settings",), ("head", 3, 200, ((b"x-new", b"entry"),))] == ours.said


def test_goaway_is_told_and_what_is_below_it_goes_on() -> None:
    """The library would close the connection for good."""
    ours = Heard()
    ours.open(1)
    ours.framing.receive(frame(7, 0, 0, struct.pack(">LL", 1, 0) + b"why") + frame(1, 5, 1, OK))
    assert [("goaway", 1, 0), ("head", 1, 200, ()), ("end", 1)] == ours.said


def test_frames_that_mean_nothing_to_a_client_are_passed_over() -> None:
    """PRIORITY, kinds that are not known, and what is late for a stream that is over."""
    ours = Heard()
    ours.heard_end(ours.open(1))
    ours.said.clear()
    for data in (
        frame(2, 0, 1, bytes(5)),
        frame(0xBE, 0xFF, 0, b"anything"),
        frame(10, 0, 1, b"\0\0"),
        frame(3, 0, 1, bytes(4)),
        frame(8, 0, 1, b"\0\0\0\1"),
        frame(0, 1, 1, b"late"),
    ):
        ours.framing.receive(data)
    assert [] == ours.said
