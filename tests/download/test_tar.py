"""The tar reader against Python's own writer, and against archives that nobody should open."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from download.file_server import content
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinker_async.download.tar import Limits, TarReader
from tinker_async.download.unpack import Unpacking
from tinker_async.errors import DiskError, DownloadError, UnsafeDownloadError


class Kept:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.files: dict[str, bytes] = {}
        self._name = ""
        self._said = 0
        self._data = bytearray()

    def folder(self, parts: tuple[str, ...]) -> None:
        self.folders.append("/".join(parts))

    def begin(self, parts: tuple[str, ...], size_bytes: int) -> None:
        self._name, self._said, self._data = "/".join(parts), size_bytes, bytearray()

    def data(self, data: memoryview) -> None:
        self._data += data

    def end(self) -> None:
        assert self._said == len(self._data)
        self.files[self._name] = bytes(self._data)


def read(archive: bytes, *, step: int = 1 << 16, limits: Limits | None = None) -> Kept:
    kept = Kept()
    reader = TarReader(kept, limits or Limits())
    for at in range(0, len(archive), step):
        reader.feed(archive[at : at + step])
    reader.close()
    return kept


def member(name: str, data: bytes = b"", **facts: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as writer:
        for info, data in members:
            writer.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}
NAME = st.text(st.sampled_from("abcdefgh-_ü重"), min_size=1, max_size=60)


@given(
    files=st.dictionaries(
        NAME.map(lambda name: name + ".x"), st.binary(max_size=2000), min_size=1, max_size=6
    ),
    form=st.sampled_from(list(FORMATS)),
    step=st.integers(1, 1500),
)
def test_what_python_writes_is_read_whatever_the_blocks(
    files: dict[str, bytes], form: str, step: int
) -> None:
    """All three formats, long names and all."""
    try:
        archive = tar(*(member(n, d) for n, d in files.items()), form=FORMATS[form])
    except ValueError:
        assert form == "ustar"  # too long for that format
        return

    assert files == read(archive, step=step).files


@pytest.mark.parametrize("form", FORMATS)
def test_long_names_folders_and_empty_files_are_read(form: str) -> None:
    """As `tar czf - .` writes them."""
    name = "/".join(["folder-" + "x" * 40] * 3) + "/file"
    archive = tar(
        member("./", type=tarfile.DIRTYPE),
        member("./sub", type=tarfile.DIRTYPE),
        member(f"./{name}", b"long"),
        member("./empty"),
        form=FORMATS[form],
    )
    kept = read(archive)

    assert ["sub"] == kept.folders
    assert {name: b"long", "empty": b""} == kept.files


HOSTILE: dict[str, tuple[tarfile.TarInfo, bytes]] = {
    "absolute": member("/etc/cron.d/x", b"x"),
    "parent": member("../x", b"x"),
    "parent inside": member("a/../../x", b"x"),
    "symlink": member("link", type=tarfile.SYMTYPE, linkname="/etc"),
    "symlink inside": member("link", type=tarfile.SYMTYPE, linkname="a"),
    "hard link": member("link", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "character device": member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "block device": member("sda", type=tarfile.BLKTYPE, devmajor=8),
    "pipe": member("pipe", type=tarfile.FIFOTYPE),
    "sparse": member("sparse", b"", type=tarfile.GNUTYPE_SPARSE),
    "volume label": member("label", type=b"V"),
    "continuation": member("multi", type=b"M"),
    "unknown type": member("what", type=b"Z"),
    "folder with content": member("dir", b"data", type=tarfile.DIRTYPE),
    "backslashes": member("..\\..\\x", b"x"),
    "drive": member("C:\\x", b"x"),
    "direction": member("exe\u202egnp.bin", b"x"),
    "nul in pax": member("x", b"x", pax_headers={"path": "a\0/../../b"}),
    "pax path": member("x", b"x", pax_headers={"path": "/etc/passwd"}),
    "pax sparse": member("x", b"x", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.name": "y"}),
    "too long": member("x" * 300, b"x"),
    "very long": member("/".join(["y" * 200] * 40), b"x"),
    "windows device": member("aux.json", b"x"),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_hostile_member_is_refused_before_a_byte_of_it(what: str, form: str) -> None:
    """What stood before it has reached the sink; it and what follows have not."""
    kept = Kept()
    reader = TarReader(kept, Limits())
    archive = tar(member("good", b"good"), HOSTILE[what], member("after"), form=FORMATS[form])
    if what.startswith(("nul in", "pax")) and form == "gnu":
        return  # that format has no such headers
    with pytest.raises(UnsafeDownloadError):
        reader.feed(archive)

    assert {"good": b"good"} == kept.files


@pytest.mark.parametrize(
    "pair",
    [("a", "a"), ("a", "A"), ("a", "./a"), ("a", "a/b"), ("a/b", "a"), ("é", "e\u0301")],
    ids=ascii,
)
def test_two_members_of_one_name_are_refused(pair: tuple[str, str]) -> None:
    """The second one would write over the first."""
    with pytest.raises(UnsafeDownloadError):
        read(tar(member(pair[0], b"1"), member(pair[1], b"2")))


def test_a_link_cannot_be_set_up_by_one_member_and_used_by_the_next() -> None:
    """Links are refused whatever they point to."""
    archive = tar(member("here", type=tarfile.SYMTYPE, linkname="."), member("here/x", b"x"))
    with pytest.raises(UnsafeDownloadError, match="symbolic link"):
        read(archive)


def test_too_many_members_are_refused() -> None:
    """Folders count too."""
    archive = tar(*(member(f"f{number}") for number in range(11)))

    assert 11 == len(read(archive, limits=Limits(max_files=11)).files)
    with pytest.raises(UnsafeDownloadError, match="more than 10 names"):
        read(archive, limits=Limits(max_files=10))


def test_a_size_beyond_the_limit_is_refused_at_its_header() -> None:
    """Also as a sum, and as a number in either notation."""
    for size in (101, 1 << 40, 1 << 62):
        info = tarfile.TarInfo("big")
        info.size = size
        with pytest.raises(UnsafeDownloadError, match="more than 100 bytes"):
            TarReader(Kept(), Limits(max_bytes=100)).feed(info.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(UnsafeDownloadError, match="more than 100 bytes"):
        read(tar(member("a", bytes(60)), member("b", bytes(60))), limits=Limits(max_bytes=100))


def test_huge_extended_headers_are_refused_at_their_header() -> None:
    """They would be held in memory."""
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 1 << 30
        with pytest.raises(UnsafeDownloadError, match="extended header"):
            TarReader(Kept(), Limits()).feed(info.tobuf(tarfile.GNU_FORMAT))


def test_global_headers_may_not_name_files() -> None:
    """They are ignored otherwise: `git archive` writes a comment there."""

    def with_global(headers: dict[str, str]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(
            fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers
        ) as writer:
            info, data = member("x", b"x")
            writer.addfile(info, io.BytesIO(data))
        return buffer.getvalue()

    assert {"x": b"x"} == read(with_global({"comment": "hello"})).files
    with pytest.raises(UnsafeDownloadError):
        read(with_global({"path": "/etc/passwd"}))


def test_bytes_after_the_end_are_refused() -> None:
    """Another program would read on; zeros only fill up the last record."""
    archive = tar(member("a", b"1"))

    assert {"a": b"1"} == read(archive + bytes(100_000)).files
    with pytest.raises(UnsafeDownloadError, match="goes on after its end"):
        read(archive + tar(member("b", b"2")))
    with pytest.raises(UnsafeDownloadError, match="goes on after its end"):
        read(archive + bytes(2 << 20))


@pytest.mark.parametrize("keep", [0, 100, 512, 513, 700, 1024, 1535])
def test_a_truncated_archive_is_damaged(keep: int) -> None:
    """Also where it is cut between members."""
    archive = tar(member("a", b"x" * 600))
    with pytest.raises(DownloadError, match="ends too early") as caught:
        read(archive[:keep])

    assert not isinstance(caught.value, UnsafeDownloadError)


def test_a_header_whose_sum_is_wrong_is_damaged() -> None:
    """A single bit: it might be in the size."""
    archive = bytearray(tar(member("a", b"x" * 600)))
    archive[0] ^= 1
    with pytest.raises(DownloadError, match="checksum"):
        read(bytes(archive))


SEED = bytearray(tar(member("some/file", b"content" * 100), member("é" * 80, b"y")))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), max_size=20),
    st.booleans(),
)
def test_mangled_archives_raise_only_our_errors(changes: list[tuple[int, int]], mend: bool) -> None:
    """And what they pass on has safe names, and the size that was said."""
    archive = bytearray(SEED)
    for at, value in changes:
        archive[at] = value
    if mend:  # headers whose sums are right get further
        for at in range(0, len(archive), 512):
            block = archive[at : at + 512]
            total = sum(block) - sum(block[148:156]) + 256
            archive[at + 148 : at + 156] = b"%06o\0 " % total
    kept = Kept()
    reader = TarReader(kept, Limits())
    try:
        reader.feed(bytes(archive))
        reader.close()
    except DownloadError:
        pass
    for name in [*kept.files, *kept.folders]:
        assert ".." not in name.split("/")
        assert not name.startswith("/")


@given(st.binary(max_size=3000))
def test_noise_is_no_archive(noise: bytes) -> None:
    """Nothing else is raised."""
    with pytest.raises(DownloadError):
        read(noise)


# Unpacking to a folder


def unpack(archive: bytes, folder: Path, limits: Limits | None = None) -> Unpacking:
    path = folder / "archive"
    path.write_bytes(archive)
    root = folder / "files"
    root.mkdir()
    unpacking = Unpacking(path, root, limits or Limits())
    try:
        while unpacking.step():
            pass
    finally:
        unpacking.close()
    return unpacking


@pytest.mark.parametrize(
    "wrap",
    [
        lambda archive: archive,
        gzip.compress,
        lambda archive: gzip.compress(archive[:700]) + gzip.compress(archive[700:]),
        lambda archive: gzip.compress(archive) + bytes(5000),
        lambda archive: gzip.compress(archive[:1]) * 1 + gzip.compress(archive[1:]),
    ],
    ids=["plain", "gzip", "two members", "padding", "one byte first"],
)
def test_plain_and_gzip_archives_are_unpacked(
    wrap: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """Whatever their name says; gzip in several members too."""
    data = content(300_000)
    done = unpack(wrap(tar(member("sub/a", data), member("b", b"b"))), tmp_path)

    assert ["sub/a", "b"] == done.folder.files
    assert data == (tmp_path / "files/sub/a").read_bytes()
    assert 0o600 == (tmp_path / "files/b").stat().st_mode & 0o700
    assert 0 == (tmp_path / "files/b").stat().st_mode & 0o7111


def test_modes_and_owners_of_an_archive_are_not_taken_over(tmp_path: Path) -> None:
    """No program, no set-user-id, no folder that cannot be entered."""
    archive = tar(
        member("d", type=tarfile.DIRTYPE, mode=0), member("d/x", b"x", mode=0o6777, uid=0)
    )
    unpack(archive, tmp_path)

    assert 0 == (tmp_path / "files/d/x").stat().st_mode & 0o7111
    assert 0o700 == (tmp_path / "files/d").stat().st_mode & 0o700


@pytest.mark.parametrize(
    "spoil",
    [
        lambda archive: archive[:-9],
        lambda archive: archive[:-8] + bytes(8),
        lambda archive: archive[: len(archive) // 2],
        lambda archive: archive[:40] + b"\xff\xff\xff" + archive[43:],
        lambda archive: archive[:5],
        lambda archive: b"",
        lambda archive: b"<html>not found</html>" * 50,
    ],
    ids=["cut", "wrong sum", "half", "broken", "header only", "empty", "a page"],
)
def test_a_damaged_archive_is_told_as_such(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Not as a hostile one."""
    with pytest.raises(DownloadError, match="damaged") as caught:
        unpack(spoil(gzip.compress(tar(member("a", content(50_000))))), tmp_path)

    assert not isinstance(caught.value, UnsafeDownloadError)


def test_what_follows_a_gzip_archive_is_refused(tmp_path: Path) -> None:
    """Programs differ in what they do with it."""
    with pytest.raises(UnsafeDownloadError, match="goes on"):
        unpack(gzip.compress(tar(member("a"))) + b"more", tmp_path)


def bomb(member_bytes: int) -> bytes:
    """A small gzip file of a tar whose one member has so many zeros."""
    info = tarfile.TarInfo("zeros")
    info.size = member_bytes
    compressor = zlib.compressobj(9, wbits=31)
    parts = [compressor.compress(info.tobuf(tarfile.GNU_FORMAT))]
    block = bytes(1 << 20)
    parts += [compressor.compress(block) for _ in range(member_bytes >> 20)]
    parts += [compressor.compress(bytes(1024)), compressor.flush()]
    return b"".join(parts)


def test_a_bomb_is_refused_at_its_header_and_nothing_is_written(tmp_path: Path) -> None:
    """64 MiB in 64 kB, where 32 MiB are allowed."""
    archive = bomb(64 << 20)

    assert len(archive) < 100_000
    with pytest.raises(UnsafeDownloadError, match="bytes together"):
        unpack(archive, tmp_path, Limits(max_bytes=32 << 20))
    assert [] == list((tmp_path / "files").iterdir())


def test_what_does_not_fit_on_the_disk_is_told_before_it_is_written(tmp_path: Path) -> None:
    """With the numbers."""
    info = tarfile.TarInfo("huge")
    info.size = 1 << 60
    with pytest.raises(DiskError, match=f"has {1 << 60} bytes") as caught:
        unpack(info.tobuf(tarfile.GNU_FORMAT), tmp_path, Limits(max_bytes=1 << 61))

    assert "full" == caught.value.reason
    assert [] == list((tmp_path / "files").iterdir())


def test_zeros_without_end_after_the_archive_are_refused(tmp_path: Path) -> None:
    """A gzip file may go on with them for ever."""
    compressor = zlib.compressobj(9, wbits=31)
    archive = compressor.compress(tar(member("a", b"1")))
    for _ in range(64):
        archive += compressor.compress(bytes(1 << 20))
    with pytest.raises(UnsafeDownloadError, match="goes on"):
        unpack(archive + compressor.flush(), tmp_path)


def test_unpacking_takes_the_same_memory_whatever_the_size(tmp_path: Path) -> None:
    """A few blocks: 64 MiB come out of 64 kB."""
    archive = bomb(64 << 20)
    tracemalloc.start()
    try:
        unpack(archive, tmp_path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (64 << 20) == (tmp_path / "files/zeros").stat().st_size
    assert peak_bytes < 8 << 20
