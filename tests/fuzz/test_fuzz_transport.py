"""Damaged bytes of a server: HTTP/1.1, HTTP/2 and content-encodings end in their own errors."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from random import Random

import h2.config
import h2.connection
import h2.exceptions
import hpack
import pytest
from fuzz.harness import fuzz
from fuzz.mutations import damaged

from tinker_async.errors import ResponseError
from tinker_async.transport.blocks import Head
from tinker_async.transport.content import decoded
from tinker_async.transport.frames import FramedStream, Framing
from tinker_async.transport.http1_messages import (
    BadMessageError,
    ResponseHeads,
    ResponseReader,
)

MOST_BODY_BYTES = 1 << 16

# HTTP/1.1

RESPONSES = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n3;x=y\r\nefg\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: a\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nDate: Sun, 22 Nov 2026 00:00:00 GMT\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nContent-Length: 3\r\n\r\nno!"
    ),
    b"HTTP/1.1 500 \r\nConnection: close\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
)
PIECES = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"0\r\n\r\n", b"Content-Length: 5\r\n", b" \t", b"\x00",
    b"Content-Length: 99999999999999999999\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n", b"ffffffffffffffff\r\n", b"7fffffff\r\n", b"-1\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"HTTP/2 200 OK\r\n", b"a: b\r\n" * 300,
    b"x" * 70_000, b"1;" + b"x" * 5000, b"HTTP/1.1 103 \r\n\r\n" * 50, b"\xff\xfe", b":", b"+5",
)  # fmt: skip


def response(rng: Random) -> bytes:
    body = rng.choice(RESPONSES)
    for _ in range(rng.randint(0, 2)):
        at = rng.randint(0, len(body))
        body = body[:at] + rng.choice(PIECES) + body[at:]
    return damaged(rng, body, RESPONSES) if rng.random() < 0.8 else body


def cuts(body: bytes) -> Iterator[bytes]:
    """Cut a body in pieces, whose sizes depend on its content alone."""
    rng, at = Random(zlib.crc32(body)), 0
    while at < len(body):
        size = rng.choice((1, 2, 5, 30, 500, 5000))
        yield body[at : at + size]
        at += size


def outcome(pieces: list[bytes], *, bodiless: bool) -> tuple[object, ...]:
    """Read a response; return what it was, or by what kind of error it was refused."""
    reader = ResponseReader(ResponseHeads(), bodiless=bodiless, most=MOST_BODY_BYTES)
    try:
        for piece in pieces:
            if reader.feed(piece):
                return "whole", reader.head, reader.body
    except (BadMessageError, OverflowError):
        return ("refused",)
    whole = reader.finish()
    return ("whole", reader.head, reader.body) if whole else ("cut short",)


def read_response(body: bytes) -> None:
    for bodiless in (False, True):
        at_once, in_pieces = [
            outcome(pieces, bodiless=bodiless) for pieces in ([body], list(cuts(body)))
        ]
        # A fault behind the end of a response is seen only when it came with it.
        assert at_once == in_pieces or "refused" in (at_once[0], in_pieces[0]), (at_once, in_pieces)
        assert len(at_once) < 3 or len(bytes(at_once[2])) <= MOST_BODY_BYTES  # type: ignore[call-overload]  # bytes


def test_damaged_http1_responses_are_read_or_refused() -> None:
    """Whole or cut, a response is read in one way, refused, or not yet over."""
    fuzz("http1-response", response, read_response, cases=2500, allowed=(), memory=True)


# HTTP/2

Frame = bytes


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> Frame:
    return (
        struct.pack(">L", len(payload))[1:]
        + bytes((kind, flags))
        + struct.pack(">L", stream_id)
        + payload
    )


def conversation(rng: Random) -> list[Frame]:
    """Frames of a server that answers streams 1, 3 and 5, in some order."""
    encoder = hpack.Encoder()
    frames = [frame(4, 0, 0, struct.pack(">HLHL", 3, 100, 4, rng.choice((0, 1, 65535, 2**31 - 1))))]
    for stream_id in (1, 3, 5):
        if rng.random() < 0.2:
            frames.append(frame(1, 4, stream_id, encoder.encode([(b":status", b"103")])))
        pairs = [(b":status", rng.choice((b"200", b"429"))), (b"content-type", b"a/b")]
        pairs += [(b"x-%d" % rng.randrange(5), rng.randbytes(4).hex().encode())]
        block = encoder.encode(pairs)
        if rng.random() < 0.3:
            frames.append(frame(1, 0, stream_id, block[:3]))
            frames.append(frame(9, 4, stream_id, block[3:]))
        else:
            frames.append(frame(1, 4, stream_id, block))
        frames.append(frame(0, rng.choice((0, 1)), stream_id, b"body"))
        frames.append(frame(0, 9, stream_id, b"\x03body\0\0\0"))
    extra = (
        frame(6, 0, 0, b"12345678"),
        frame(8, 0, rng.choice((0, 1, 3)), struct.pack(">L", rng.choice((1, 0, 2**31 - 1)))),
        frame(3, 0, 3, struct.pack(">L", 8)),
        frame(7, 0, 0, struct.pack(">LL", 3, 0) + b"bye"),
        frame(4, 1, 0),
        frame(4, 0, 0, struct.pack(">HL", 1, rng.choice((0, 10, 2**32 - 1)))),
        frame(4, 0, 0, struct.pack(">HL", rng.randrange(8), rng.choice((0, 1, 16384, 2**32 - 1)))),
        frame(2, 0, 1, b"\0\0\0\0\0"),
        frame(5, 4, 1, b"\0\0\0\2" + encoder.encode([(b":path", b"/")])),
        frame(rng.randrange(256), rng.randrange(256), rng.choice((0, 1, 2, 99, 2**31)), b"?"),
        frame(1, 5, 1, rng.choice((b"\x3f\xe1\xff\xff\xff\xff\x7f", b"\x80", b"\xff" * 20, b""))),
        frame(1, 4, 1, b"\x00\x7f\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
        frame(0, 8, 1, b"\xff"),
    )
    for _ in range(rng.randint(0, 4)):
        frames.insert(rng.randint(0, len(frames)), rng.choice(extra))
    return frames


def damaged_conversation(rng: Random) -> bytes:
    frames = conversation(rng)
    for _ in range(rng.randint(0, 3)):
        index = rng.randrange(len(frames))
        kind = rng.randrange(6)
        if kind == 0:
            del frames[index]
            frames = frames or [frame(4, 0, 0)]
        elif kind == 1:
            frames.insert(index, frames[index])
        elif kind == 2:
            other = rng.randrange(len(frames))
            frames[index], frames[other] = frames[other], frames[index]
        elif kind == 3:
            size = rng.choice((0, 1, 16_384, 2**24 - 1))
            frames[index] = struct.pack(">L", size)[1:] + frames[index][3:]
        else:
            head, payload = frames[index][:9], damaged(rng, frames[index][9:], frames)
            frames[index] = frame(head[3], head[4], int.from_bytes(head[5:9], "big"), payload)
    whole = b"".join(frames)
    return damaged(rng, whole, frames) if rng.random() < 0.2 else whole


class Ears:
    """Listens to a connection as the real one does: streams that end are no longer live."""

    def __init__(self) -> None:
        self.framing: Framing[FramedStream] = Framing("http", b"here", self)
        self.data_bytes = 0

    def _over(self, stream: FramedStream) -> None:
        del self.framing.live[stream.id]

    def heard_head(self, stream: FramedStream, head: Head, *, ended: bool) -> None:
        assert 0 <= head.status < 1000
        if ended:
            self._over(stream)

    def heard_interim(self, stream: FramedStream) -> None:
        pass

    def heard_data(
        self, stream: FramedStream | None, data: bytes, length: int, *, ended: bool
    ) -> None:
        self.data_bytes += len(data)
        assert len(data) <= length
        if stream is not None and ended:
            self._over(stream)

    def heard_end(self, stream: FramedStream) -> None:
        self._over(stream)

    def heard_reset(self, stream: FramedStream, code: int) -> None:
        self._over(stream)

    def heard_goaway(self, last_stream_id: int, code: int) -> None:
        pass

    def heard_window(self, stream: FramedStream | None) -> None:
        pass

    def heard_settings(self) -> None:
        pass


def listen(body: bytes) -> None:
    ears = Ears()
    for stream_id in (1, 3, 5):
        ears.framing.open_stream(
            FramedStream(), stream_id, "POST", "/call", ((b"x-a", b"1"),), 10 * (stream_id == 5)
        )
    ears.framing.take_output()
    for piece in cuts(body):
        ears.framing.receive(piece)
        ears.framing.take_output()
    assert ears.data_bytes <= len(body)


def test_damaged_http2_frames_end_the_connection_by_the_rules() -> None:
    """Frames are heard, or the connection ends in an H2Error: never in anything else."""
    fuzz(
        "http2-frames",
        damaged_conversation,
        listen,
        cases=1500,
        allowed=(h2.exceptions.H2Error,),
        memory=True,
    )


def test_an_undamaged_conversation_is_heard_to_the_end() -> None:
    """What is damaged would be understood."""
    heard = 0
    for number in range(50):
        frames = conversation(Random(number))
        try:
            listen(b"".join(frames))
        except h2.exceptions.H2Error:
            continue
        heard += 1
    assert heard >= 15


# Content-encodings

PLAIN = b'{"loss_fn_outputs": []}' * 20
ENCODED = {
    b"gzip": gzip.compress(PLAIN) + gzip.compress(PLAIN),
    b"x-gzip": gzip.compress(b""),
    b"deflate": zlib.compress(PLAIN),
    b"gzip, deflate": zlib.compress(gzip.compress(PLAIN)),
    b"identity": PLAIN,
    b"br": PLAIN,
    b",": PLAIN,
}
MOST_DECODED_BYTES = 1 << 16


def encoded(rng: Random) -> bytes:
    """The name of an encoding, a NUL, and a body."""
    name = rng.choice(list(ENCODED))
    body = ENCODED[name] if rng.random() < 0.9 else gzip.compress(bytes(1 << 22))
    if rng.random() < 0.2:
        name = rng.choice(list(ENCODED))
    return name + b"\0" + damaged(rng, body, list(ENCODED.values()))


def decode_content(case: bytes) -> None:
    name, _, body = case.partition(b"\0")
    plain = decoded(((b"content-encoding", name),), body, endpoint="/e", most=MOST_DECODED_BYTES)
    assert len(plain) <= max(MOST_DECODED_BYTES, len(body))


def test_damaged_content_is_decoded_or_a_response_error() -> None:
    """No content-encoding of any damaged body gives another error, or more than is allowed."""
    fuzz("content", encoded, decode_content, cases=1000, allowed=(ResponseError,), memory=True)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (b"gzip", gzip.compress(bytes(1 << 26))),
        (b"gzip, gzip", gzip.compress(gzip.compress(bytes(1 << 26)))),
        (b"deflate", zlib.compress(bytes(1 << 26))),
        (b"gzip", gzip.compress(b"") * 60_000),
        (b"gzip", gzip.compress(bytes(1000)) * 30_000),
        (b"gzip" + b",gzip" * 5000, gzip.compress(b"x")),
    ],
    ids=["gzip", "twice", "deflate", "empty members", "many members", "many names"],
)
def test_a_bomb_is_refused_before_it_has_gone_off(name: bytes, body: bytes) -> None:
    """What decompresses to too much takes neither the memory nor the time of it."""
    case = name + b"\0" + body

    fuzz(
        f"bomb-{name[:10].decode()}-{len(body)}",
        lambda _rng: case,
        decode_content,
        cases=1,
        allowed=(ResponseError,),
        memory=True,
    )
