"""Header blocks that are remembered mean what blocks made anew would: judged by `hpack`."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_async.transport.blocks import Head, RequestBlocks, ResponseBlocks

Pairs = tuple[tuple[bytes, bytes], ...]

COMMON: Pairs = (
    (b"x-api-key", b"tml-" + b"k" * 40),
    (b"user-agent", b"test"),
    (b"accept", b"application/json"),
    (b"content-type", b"application/json"),
)
names = st.sampled_from([b"x-a", b"x-b", b"accept", b"authorization", b"x-" + b"long" * 70])
values = st.one_of(st.sampled_from([b"", b"1", b"v" * 126, b"v" * 127, b"v" * 300]), st.binary())
requests = st.tuples(
    st.sampled_from(["GET", "POST", "DELETE"]),
    st.sampled_from(["/", "/one", "/two?x=1", "/" + "long" * 50]),
    st.one_of(
        st.sampled_from([COMMON, (), COMMON[:2]]),
        st.lists(st.tuples(names, values), max_size=4).map(tuple),
    ),
    st.sampled_from([0, 1, 999, 10**9]),
)


def expected(method: str, path: str, headers: Pairs, size: int) -> list[tuple[bytes, bytes]]:
    length = [(b"content-length", b"%d" % size)] if size else []
    return [
        (b":method", method.encode()),
        (b":scheme", b"https"),
        (b":authority", b"example.com:8443"),
        (b":path", path.encode()),
        *headers,
        *length,
    ]


class PeersReader:
    """A peer's decoder, which insists on the table size that the peer has announced."""

    def __init__(self) -> None:
        self.decoder = hpack.Decoder()

    def announce(self, size: int) -> None:
        self.decoder.max_allowed_table_size = size

    def read(self, block: bytes) -> list[tuple[bytes, bytes]]:
        return [(name, value) for name, value in self.decoder.decode(block, raw=True)]


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(requests, requests, requests, st.sampled_from([0, 1, 100, 300, 4096, 65_536])),
        max_size=60,
    )
)
def test_a_peer_reads_every_request_as_it_was_given(
    steps: list[tuple[str, str, Pairs, int] | int],
) -> None:
    """First, repeated and after each change of SETTINGS_HEADER_TABLE_SIZE."""
    blocks, peer = RequestBlocks("https", b"example.com:8443"), PeersReader()
    for step in steps:
        if isinstance(step, int):
            blocks.limit_table(step)
            peer.announce(step)
            continue
        for _ in range(3):
            assert expected(*step) == peer.read(blocks.block(*step))


def test_a_repeated_request_is_a_block_of_indices() -> None:
    """One byte a header, and content-length as a literal that no table keeps."""
    blocks = RequestBlocks("https", b"example.com:8443")
    first = blocks.block("POST", "/api/v1/asample", COMMON, 1234)
    second = blocks.block("POST", "/api/v1/asample", COMMON, 56)

    assert len(first) > 100
    assert 8 + len(b"\x0f\x0d\x0256") == len(second)


def test_the_peers_table_is_filled_once_and_never_beyond() -> None:
    """Paths that come once do not push out what all requests have in common."""
    blocks, peer = RequestBlocks("https", b"example.com:8443"), PeersReader()
    hot = ("POST", "/hot", COMMON, 0)
    peer.read(blocks.block(*hot))
    for number in range(500):
        once = ("GET", f"/once/{number}", COMMON, 0)
        assert expected(*once) == peer.read(blocks.block(*once))
    assert expected(*hot) == peer.read(block := blocks.block(*hot))

    assert len(block) <= 16
    assert peer.decoder.header_table._current_size <= 4096
    assert (b":authority", b"example.com:8443") == peer.decoder.header_table.dynamic_entries[-1]


@pytest.mark.parametrize("path", ["/ä", "/\u2028"])
def test_a_path_that_is_not_ascii_leaves_the_table_as_it_was(path: str) -> None:
    """The request is refused; the next one is read rightly."""
    blocks, peer = RequestBlocks("https", b"example.com:8443"), PeersReader()
    with pytest.raises(UnicodeEncodeError):
        blocks.block("POST", path, COMMON, 0)
    assert expected("POST", "/", COMMON, 0) == peer.read(blocks.block("POST", "/", COMMON, 0))


# Responses


class Reading:
    """`ResponseBlocks` on a decoder of its own, counting what it leaves to the decoder."""

    def __init__(self) -> None:
        self.decoder = hpack.Decoder()
        self.decoded = 0
        self.blocks = ResponseBlocks(self.decoder, self._decode)

    def _decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        self.decoded += 1
        return list(self.decoder.decode(block, raw=True))

    def read(self, block: bytes) -> Head:
        return self.blocks.read(block)


responses = st.lists(
    st.tuples(
        st.sampled_from([b"x-a", b"x-b", b"content-length", b"content-encoding"]),
        st.sampled_from([b"", b"1", b"2", b"3", b"v" * 500]),
        st.booleans(),
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.one_of(responses, responses, responses, st.integers(0, 1500)), max_size=60),
)
def test_remembered_responses_equal_those_decoded_anew(
    steps: list[list[tuple[bytes, bytes, bool]] | int],
) -> None:
    """Whatever is added to, evicted from or resized in the table between them."""
    encoder, fresh, reading = hpack.Encoder(), hpack.Decoder(), Reading()
    for step in steps:
        if isinstance(step, int):
            if step != encoder.header_table_size:  # told twice, it would tell the peer nothing
                encoder.header_table_size = step
            continue
        for _ in range(3):
            block = encoder.encode([(b":status", b"200"), *step], huffman=bool(len(step) % 2))
            head = reading.read(block)
            pairs = tuple((name, value) for name, value in fresh.decode(block, raw=True))
            assert ((b":status", b"200"), *head.headers) == pairs
            assert 200 == head.status
            assert any(name == b"content-encoding" for name, _, _ in step) == head.is_encoded


def test_a_block_that_changes_nothing_is_decoded_once() -> None:
    """The first adds entries, the second is remembered, the third is looked up."""
    encoder, reading = hpack.Encoder(), Reading()
    heads = [reading.read(encoder.encode([(b":status", b"200"), (b"x-a", b"1")])) for _ in range(5)]
    assert [Head(200, ((b"x-a", b"1"),), is_encoded=False)] * 5 == heads
    assert 2 == reading.decoded


def test_the_same_bytes_are_decoded_again_after_the_table_changed() -> None:
    """Index 62 names the newest entry, whichever that is."""
    reading = Reading()
    indexed = b"\xbe"
    named = b"\x0f\x2f\x01v"  # a literal whose name is entry 62
    reading.read(b"\x40\x03x-a\x011")
    assert [((b"x-a", b"1"),)] * 2 == [reading.read(indexed).headers for _ in range(2)]
    assert [((b"x-a", b"v"),)] * 2 == [reading.read(named).headers for _ in range(2)]
    reading.read(b"\x40\x03x-b\x012")
    assert ((b"x-b", b"2"),) == reading.read(indexed).headers
    assert ((b"x-b", b"v"),) == reading.read(named).headers
    reading.read(b"\x20\x3f\xe1\x1f")  # resized to nothing and back: all entries are gone
    with pytest.raises(hpack.HPACKError):
        reading.read(indexed)


def test_an_entry_equal_to_the_one_before_it_still_moves_the_others() -> None:
    """The table's front looks the same, its length need not change: it is another entry."""
    reading = Reading()
    reading.read(b"\x3f\x45" + b"\x40\x03x-a\x011" + b"\x40\x03x-b\x012")  # room for two
    assert ((b"x-a", b"1"),) == reading.read(b"\xbf").headers
    assert ((b"x-a", b"1"),) == reading.read(b"\xbf").headers
    reading.read(b"\x40\x03x-b\x012")
    assert ((b"x-b", b"2"),) == reading.read(b"\xbf").headers


@pytest.mark.parametrize(
    ("pairs", "status"),
    [((), 0), (((b"x-a", b"1"),), 0), (((b":status", b"abc"),), 0), (((b":status", b"20"),), 0)],
)
def test_a_block_without_a_status_has_none(pairs: Pairs, status: int) -> None:
    """Trailers, and servers that forget it."""
    assert status == Reading().read(hpack.Encoder().encode(pairs)).status


def test_a_resize_is_followed_each_time_it_is_told() -> None:
    """Also where the same bytes were read before, and the table was empty all the time."""
    reading = Reading()
    for resize in (b"\x3f\x45", b"\x3f\xe1\x1f", b"\x3f\x45"):  # 100, 4096, 100 bytes
        assert 200 == reading.read(resize + b"\x88").status
    for name in (b"a", b"b", b"c"):  # 34 bytes each: the third pushes out the first
        reading.read(b"\x40\x01" + name + b"\x011")
    assert ((b"b", b"1"),) == reading.read(b"\xbf").headers
    with pytest.raises(hpack.HPACKError):
        reading.read(b"\xc0")
