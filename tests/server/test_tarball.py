"""Archives that are made on the way: any part of one is a part of the whole."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinker_async.local.server.tarball import TarGz
from tinker_async.local.server.transfer import find_range

SIZES = [0, 1, 511, 512, 513, 65_534, 65_535, 65_536, 3 * 65_535 - 1536, 200_000]


def folder_of(root: Path, sizes: list[int]) -> list[str]:
    for number, size in enumerate(sizes):
        (root / f"f{number}").write_bytes((bytes(range(1, 251)) * (size // 250 + 1))[:size])
    return [f"f{number}" for number in range(len(sizes))]


@pytest.mark.parametrize("sizes", [[size] for size in SIZES] + [SIZES, []])
def test_it_is_what_tar_and_gzip_read(tmp_path: Path, sizes: list[int]) -> None:
    """With the size that was promised; equal files give equal bytes."""
    names = folder_of(tmp_path, sizes)
    archive = TarGz(tmp_path, names, mtime=12)
    whole = archive.read(0, archive.size + 1)
    again = TarGz(tmp_path, names, mtime=12)
    assert whole == again.read(0, again.size)
    assert len(whole) == archive.size
    archive.close()
    again.close()
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(whole))) as tar:
        assert names == tar.getnames()
        for name in names:
            member = tar.extractfile(name)
            assert member is not None
            assert member.read() == (tmp_path / name).read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    sizes=st.lists(st.sampled_from(SIZES), max_size=4),
    start=st.floats(0, 1),
    length=st.integers(0, 150_000),
)
def test_any_part_is_a_part_of_the_whole(
    tmp_path: Path, sizes: list[int], start: float, length: int
) -> None:
    """Across headers, files, blocks and the checksum at the end."""
    archive = TarGz(tmp_path, folder_of(tmp_path, sizes), mtime=0)
    whole = archive.read(0, archive.size)
    offset = int(start * archive.size)
    assert whole[offset : offset + length] == archive.read(offset, length)
    for last in range(1, 15):
        assert whole[-last:][:3] == archive.read(archive.size - last, 3)
    archive.close()


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    """The size was promised: zeros in its place would be a lie."""
    names = folder_of(tmp_path, [100_000])
    archive = TarGz(tmp_path, names, mtime=0)
    (tmp_path / "f0").write_bytes(b"x")
    with pytest.raises(EOFError):
        archive.read(0, archive.size)
    archive.close()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=5-", (5, 100)),
        ("bytes=5-1000", (5, 100)),
        ("bytes=-30", (70, 100)),
        ("bytes=-300", (0, 100)),
        ("bytes=-0", (100, 100)),
        ("bytes=100-", (100, 100)),
        ("bytes=200-300", (200, 100)),
        ("Bytes = 1-1", (1, 2)),
        ("bytes=9-5", None),
        ("bytes=0-1,5-6", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=+1-2", None),
        ("bytes=٣-", None),
        ("lines=1-2", None),
        ("bytes=" + "9" * 30 + "-", None),
        ("", None),
    ],
)
def test_ranges_are_read_strictly(header: str, expected: tuple[int, int] | None) -> None:
    """What is no single range is none; what lies outside names nothing."""
    assert expected == find_range(header, 100)
