"""The archive route: one tar, gone on with like any file, then unpacked and vetted."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import anyio
import pytest
from download.file_server import (
    TRAINING,
    Asked,
    Host,
    Reply,
    Signer,
    content,
    fetch,
    file_reply,
    left,
)
from download.test_tar import HOSTILE, bomb, member, tar

from tinker_async.download.records import DownloadedCheckpoint, DownloadProgress
from tinker_async.download.resume import OVERLAP_BYTES
from tinker_async.errors import DownloadError, ProtocolError, UnsafeDownloadError

BOUND_S = 30
FILES = {"adapter_model.bin": content(1_000_000), "adapter_config.json": b"{}"}
GOOD = gzip.compress(tar(*(member(f"./{name}", data) for name, data in FILES.items())), 1)


async def get(serving: Host, to: Path, **options: Any) -> DownloadedCheckpoint:
    with anyio.fail_after(BOUND_S):
        return await fetch(Signer(serving), to, tinker_path=TRAINING, **options)


async def test_an_archive_is_unpacked_to_its_files(serving: Host, tmp_path: Path) -> None:
    """The archive itself is not kept."""
    serving.files = {"archive.tar.gz": GOOD}
    told: list[DownloadProgress] = []
    done = await get(serving, tmp_path / "x", progress=told.append)

    assert sorted(FILES) == left(tmp_path / "x")
    assert {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()} == done.sha256
    assert sum(map(len, FILES.values())) == done.size_bytes
    assert "archive" == done.route
    assert ["x"] == left(tmp_path)
    assert ["downloading", "unpacking", "checking"] == list(
        dict.fromkeys(one.stage for one in told)
    )


async def test_a_broken_archive_download_is_gone_on_with_by_the_next_call(
    serving: Host, tmp_path: Path
) -> None:
    """With the byte where it broke, by a fresh URL."""
    serving.files = {"archive.tar.gz": GOOD}
    half = len(GOOD) // 2

    def behave(asked: Asked) -> Reply:
        reply = file_reply(asked, GOOD)
        reply.cut = half if asked.number == 0 else 0
        return reply

    serving.behave = behave
    with pytest.raises(ProtocolError, match=f"{half} bytes of archive are kept"):
        await get(serving, tmp_path / "x")
    serving.behave = lambda asked: None
    done = await get(serving, tmp_path / "x")

    assert half == done.resumed_from_bytes
    assert half - OVERLAP_BYTES == serving.asked[-1].first
    assert sorted(FILES) == list(done.files)


async def test_an_archive_that_is_made_anew_for_each_request_is_never_mixed(
    serving: Host, tmp_path: Path
) -> None:
    """Of the same size, without ETag: the compared bytes tell."""

    def behave(asked: Asked) -> Reply:
        made = tar(member("x", content(3_000_000, seed=asked.number)))
        reply = file_reply(asked, made, etag=None)
        reply.cut = 2_000_000 if asked.number == 0 else None
        return reply

    serving.behave = behave
    done = await get(serving, tmp_path / "x")

    assert hashlib.sha256(content(3_000_000, seed=2)).hexdigest() == done.sha256["x"]


@pytest.mark.parametrize("what", [what for what in HOSTILE if what != "nul in pax"])
async def test_a_hostile_archive_leaves_nothing(serving: Host, tmp_path: Path, what: str) -> None:
    """Not at the target, not beside it, not elsewhere."""
    place = tmp_path / "deep" / "er"
    evil = gzip.compress(tar(member("good", b"good"), HOSTILE[what]))
    serving.files = {"archive.tar.gz": evil}
    with pytest.raises(UnsafeDownloadError):
        await get(serving, place / "x")

    assert [] == left(place)
    assert ["deep"] == left(tmp_path)


async def test_a_hostile_archive_does_not_cost_what_was_there(
    serving: Host, tmp_path: Path
) -> None:
    """With `overwrite` the old folder goes only when the new one is whole."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x/old").write_text("old")
    serving.files = {"archive.tar.gz": tar(HOSTILE["symlink"])}
    with pytest.raises(UnsafeDownloadError):
        await get(serving, tmp_path / "x", overwrite=True)

    assert ["old"] == left(tmp_path / "x")
    assert ["x"] == left(tmp_path)


async def test_a_bomb_is_refused(serving: Host, tmp_path: Path) -> None:
    """64 MiB in 64 kB, beyond the limit of 32 MiB."""
    serving.files = {"archive.tar.gz": bomb(64 << 20)}
    with pytest.raises(UnsafeDownloadError, match="bytes together"):
        await get(serving, tmp_path / "x", max_bytes=32 << 20)

    assert [] == left(tmp_path)


async def test_a_damaged_archive_is_asked_for_anew_by_the_next_call(
    serving: Host, tmp_path: Path
) -> None:
    """The gzip sum tells; nothing is unpacked to the target."""
    serving.files = {"archive.tar.gz": GOOD[:-8] + bytes(8)}
    with pytest.raises(DownloadError, match="damaged"):
        await get(serving, tmp_path / "x")
    assert [] == left(tmp_path)
    serving.files = {"archive.tar.gz": GOOD}
    await get(serving, tmp_path / "x")

    assert [None, None] == [asked.first for asked in serving.asked]


async def test_an_archive_without_files_is_an_error(serving: Host, tmp_path: Path) -> None:
    """A folder alone is no checkpoint."""
    serving.files = {"archive.tar.gz": tar(member("d", type=tarfile.DIRTYPE))}
    with pytest.raises(DownloadError, match="no files"):
        await get(serving, tmp_path / "x")
    assert not (tmp_path / "x").exists()


async def test_another_checkpoint_or_route_does_not_go_on_with_what_is_there(
    serving: Host, tmp_path: Path
) -> None:
    """What was received for one path is no part of another."""
    serving.files = {"archive.tar.gz": GOOD}
    serving.behave = lambda asked: Reply(200, {}, GOOD, cut=500_000)
    with pytest.raises(ProtocolError):
        await get(serving, tmp_path / "x")
    serving.behave = lambda asked: None
    with anyio.fail_after(BOUND_S):
        done = await fetch(
            Signer(serving), tmp_path / "x", tinker_path="tinker://run-2/weights/final"
        )

    assert 0 == done.resumed_from_bytes
    assert serving.asked[-1].first is None
    buffer = io.BytesIO((tmp_path / "x/adapter_model.bin").read_bytes())
    assert FILES["adapter_model.bin"] == buffer.getvalue()
