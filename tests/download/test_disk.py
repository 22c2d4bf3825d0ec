"""Writing: full disks, forbidden folders, things in the way, and what a new folder is like."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from download.file_server import Host, Signer, content, fetch, flush, left

from tinker_async.download import disk
from tinker_async.download.disk import Aside, PartFile, disk_errors
from tinker_async.errors import DiskError, TargetExistsError

BOUND_S = 30
DATA = content(3_000_000)


@pytest.fixture
def place(tmp_path: Path, serving: Host) -> Path:
    serving.files = {"a.bin": DATA, "sub/b.bin": b"b"}
    return tmp_path


async def test_an_empty_folder_is_taken(serving: Host, place: Path) -> None:
    """Such as a temporary one."""
    (place / "x").mkdir()
    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), place / "x")

    assert ["a.bin", "sub"] == left(place / "x")


async def test_all_is_on_the_disk_before_it_is_in_place(
    serving: Host, place: Path, flushed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is the new name, after: a machine that loses its power has all of it or nothing."""
    aside = place / ".x.partial/files"
    there: list[bool] = []

    def note(path: Path) -> None:
        there.append((place / "x").exists())
        flushed.append(path)
        flush(path)

    monkeypatch.setattr(disk, "_flush", note)
    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), place / "x")

    before = {aside, aside / "a.bin", aside / "sub", aside / "sub/b.bin"}
    assert (before, place) == ({*flushed[:-1]}, flushed[-1])
    assert [False] * 4 + [True] == there


async def test_overwrite_replaces_the_folder_as_a_whole(serving: Host, place: Path) -> None:
    """Nothing of the old one is left, and nothing beside."""
    (place / "x/old").mkdir(parents=True)
    (place / "x/old/file").write_text("old")
    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), place / "x", overwrite=True)

    assert ["a.bin", "sub"] == left(place / "x")
    assert ["x"] == left(place)


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
async def test_a_file_or_link_at_the_target_is_never_replaced(
    serving: Host, place: Path, kind: str
) -> None:
    """Not even with `overwrite`: it is no checkpoint."""
    (place / "elsewhere").mkdir()
    if kind == "file":
        (place / "x").write_text("mine")
    else:
        (place / "x").symlink_to(place / ("elsewhere" if kind == "link" else "nowhere"))
    with anyio.fail_after(BOUND_S), pytest.raises(TargetExistsError, match="no folder"):
        await fetch(Signer(serving), place / "x", overwrite=True)

    assert ["elsewhere", "x"] == left(place)
    assert [] == left(place / "elsewhere")


async def test_what_comes_to_the_target_meanwhile_is_not_touched(
    serving: Host, place: Path
) -> None:
    """And what was received is kept."""

    def show(_: object) -> None:
        (place / "x").mkdir(exist_ok=True)
        (place / "x/mine").write_text("mine")

    with anyio.fail_after(BOUND_S):
        with pytest.raises(TargetExistsError):
            await fetch(Signer(serving), place / "x", progress=show)
        assert ["mine"] == left(place / "x")
        (place / "x/mine").unlink()
        done = await fetch(Signer(serving), place / "x")

    assert len(DATA) + 1 == done.resumed_from_bytes


async def test_modes_are_those_that_new_files_have(serving: Host, place: Path) -> None:
    """By the process's umask; beside it, meanwhile, only the owner may look."""
    modes: list[int] = []

    def show(_: object) -> None:
        modes.append(stat.S_IMODE((place / ".x.partial").stat().st_mode))

    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), place / "x", progress=show)
    (place / "folder").mkdir()
    (place / "file").touch()

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(place / "folder") == mode(place / "x") == mode(place / "x/sub")
    assert mode(place / "file") == mode(place / "x/a.bin")
    assert {0o700} == set(modes)


async def test_what_is_in_the_way_beside_the_target_is_told(serving: Host, place: Path) -> None:
    """A file or a link that somebody put there."""
    (place / "trap").mkdir()
    (place / ".x.partial").symlink_to(place / "trap")
    with anyio.fail_after(BOUND_S), pytest.raises(DiskError, match="in the way") as caught:
        await fetch(Signer(serving), place / "x")

    assert "forbidden" == caught.value.reason
    assert [] == left(place / "trap")


async def test_rights_of_others_in_the_folder_beside_are_taken_back(
    serving: Host, place: Path
) -> None:
    """It may have been made by another program."""
    (place / ".x.partial").mkdir(mode=0o777)
    (place / ".x.partial").chmod(0o777)
    modes = set()
    with anyio.fail_after(BOUND_S):
        await fetch(
            Signer(serving),
            place / "x",
            progress=lambda _: modes.add((place / ".x.partial").stat().st_mode & 0o777),
        )
    assert {0o700} == modes


@pytest.mark.parametrize("spoil", ["no json", "wrong", "gone", "newer"])
async def test_notes_that_cannot_be_read_begin_anew(serving: Host, place: Path, spoil: str) -> None:
    """Bytes without a version are worth nothing."""
    with anyio.fail_after(BOUND_S), anyio.CancelScope() as scope:
        await fetch(
            Signer(serving),
            place / "x",
            progress=lambda step: scope.cancel() if step.done_bytes > 1_000_000 else None,
            parallel=1,
        )
    notes = place / ".x.partial/notes"
    (place / ".x.partial/files/a.bin").write_bytes(b"bytes of something else" * 1000)
    if spoil == "gone":
        notes.unlink()
    else:
        notes.write_bytes(
            {
                "no json": b"\0",
                "wrong": b'{"tinker_path": 3}',
                "newer": notes.read_bytes().replace(b"{", b'{"format": 2,', 1),
            }[spoil]
        )
    with anyio.fail_after(BOUND_S):
        done = await fetch(Signer(serving), place / "x")

    assert 0 == done.resumed_from_bytes
    assert DATA == (place / "x/a.bin").read_bytes()


async def test_a_tail_that_a_crash_has_damaged_is_found(serving: Host, place: Path) -> None:
    """The compared bytes are the last ones: a file system may have lost them."""
    with anyio.fail_after(BOUND_S), anyio.CancelScope() as scope:
        await fetch(
            Signer(serving),
            place / "x",
            progress=lambda step: scope.cancel() if step.done_bytes > 1_000_000 else None,
            parallel=1,
        )
    file = place / ".x.partial/files/a.bin"
    kept = file.read_bytes()
    file.write_bytes(kept[:-5000] + bytes(5000))
    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), place / "x")

    assert DATA == (place / "x/a.bin").read_bytes()


# Errors of the system


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "full"),
        (errno.EFBIG, "full"),
        (errno.EACCES, "forbidden"),
        (errno.EPERM, "forbidden"),
        (errno.EROFS, "forbidden"),
        (errno.EIO, "other"),
    ],
)
def test_errors_of_the_system_say_what_to_do(number: int, reason: str) -> None:
    """With the path, as an `OSError` as well."""
    with pytest.raises(DiskError) as caught, disk_errors():
        raise OSError(number, os.strerror(number), "/some/file")

    assert reason == caught.value.reason
    assert "/some/file" == caught.value.path
    assert isinstance(caught.value, OSError)
    assert caught.value.hint


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
async def test_a_full_disk_is_told_and_what_came_is_kept(
    serving: Host, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a device that is always full; afterwards there is room, and the call goes on."""
    append = PartFile.append
    full = True

    def no_room(part: PartFile, blocks: list[bytes]) -> None:
        if full and part.size_bytes > 1_000_000:
            with Path("/dev/full").open("wb", buffering=0) as device:
                device.write(b"x")
        append(part, blocks)

    monkeypatch.setattr(PartFile, "append", no_room)
    with anyio.fail_after(BOUND_S):
        with pytest.raises(DiskError, match="the disk is full") as caught:
            await fetch(Signer(serving), place / "x")
        assert "full" == caught.value.reason
        assert [".x.partial"] == left(place)
        full = False
        done = await fetch(Signer(serving), place / "x")

    assert done.resumed_from_bytes > 1_000_000
    assert DATA == (place / "x/a.bin").read_bytes()


async def test_no_room_is_told_before_a_byte_is_asked_for(
    serving: Host, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the host announces the size."""
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with anyio.fail_after(BOUND_S), pytest.raises(DiskError, match="needs 3000000 bytes more"):
        await fetch(Signer(serving), place / "x", parallel=1)

    assert [] == left(place)


PROGRAM = """
import os, sys
from pathlib import Path
from tinker_async.download.disk import Aside, disk_errors
from tinker_async.errors import DiskError
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    with disk_errors():
        Aside(Path(sys.argv[1]) / "x", "tinker://r/weights/a", overwrite=False)
except DiskError as error:
    print(error.reason, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="rights are another matter there")
def test_a_folder_without_rights_is_told(tmp_path: Path) -> None:
    """By name, in a process that is not the administrator's."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(closed)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )

    assert done.stdout.startswith("forbidden not allowed to write"), done.stderr
    assert str(closed) in done.stdout


def test_a_rename_that_fails_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one moment in which there are two: it must not cost the old one."""
    target = tmp_path / "x"
    target.mkdir()
    (target / "old").write_text("old")
    aside = Aside(target, "tinker://r/weights/a", overwrite=True)
    aside.open_notes("external")
    (aside.files / "new").write_text("new")
    rename = Path.rename

    def fails(path: Path, to: Path) -> Path:
        if path == aside.files:
            raise OSError(errno.EIO, "no")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(DiskError), disk_errors():
        aside.put_in_place()
    aside.close()

    assert ["old"] == left(target)
    assert [".x.partial", "x"] == left(tmp_path)
