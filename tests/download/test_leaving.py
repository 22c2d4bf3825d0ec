"""Leaving a download: cancelled at each of its waits, killed, and two at a time."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest
from cancellation.cut import Cut, When
from download.file_server import (
    EXTERNAL,
    TRAINING,
    Asked,
    Host,
    Reply,
    Signer,
    content,
    etag_of,
    fetch,
    file_reply,
    left,
    sockets,
)
from download.test_tar import member, tar

from tinker_async.download import transfer
from tinker_async.download.disk import Disk
from tinker_async.download.transfer import Transfer
from tinker_async.errors import DownloadError

BOUND_S = 60
MOST_WAITS = 400
FILES = {"a.bin": content(120_000), "b/c.bin": b"c"}
ARCHIVE = gzip.compress(tar(*(member(name, data) for name, data in FILES.items())), 1)


@pytest.mark.parametrize("tinker_path", [EXTERNAL, TRAINING], ids=["external", "archive"])
async def test_cancelled_at_any_wait_it_leaves_what_the_next_call_goes_on_from(
    serving: Host,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    anyio_backend_name: str,
    tinker_path: str,
) -> None:
    """No socket, no thread at work, nothing but the folder beside; and that is good.

    Each wait is cut as it begins in one event loop, and as it ends in the other.
    """
    serving.files = FILES if tinker_path == EXTERNAL else {"archive.tar.gz": ARCHIVE}
    disks: list[Disk] = []
    cut = Cut(0)
    run, make = Transfer.run, Disk.__init__

    def made(made: Disk, threads: int) -> None:
        make(made, threads)
        disks.append(made)

    monkeypatch.setattr(transfer, "BLOCK_BYTES", 40_000)
    monkeypatch.setattr(Transfer, "run", lambda one: cut.drive(run(one)))
    monkeypatch.setattr(Disk, "__init__", made)
    signer = Signer(serving)
    at, resumed, before = 0, 0, sockets()
    with anyio.fail_after(BOUND_S):
        while True:
            at += 1
            assert at < MOST_WAITS
            when: When = "early" if (at + (anyio_backend_name == "trio")) % 2 else "late"
            cut = Cut(at, when)
            target = tmp_path / str(at)
            with cut.scope:
                await cut.drive(fetch(signer, target, tinker_path=tinker_path, parallel=1))
            if not cut.happened:
                break
            assert 0 == disks[-1].threads.borrowed_tokens
            assert {*left(tmp_path)} <= {f".{at}.partial", str(at)}
            if target.exists():  # it was in place already
                target = target.rename(tmp_path / "done")
            else:
                done = await fetch(signer, target, tinker_path=tinker_path)
                resumed += done.resumed_from_bytes > 0
            assert sorted(FILES) == sorted(
                path.relative_to(target).as_posix() for path in target.rglob("*.bin")
            )
            for name, data in FILES.items():
                assert data == (target / name).read_bytes()
            remove(target)
    await until_sockets(before, serving)

    assert at > 15
    assert resumed > 3


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


async def until_sockets(before: int, serving: Host) -> None:
    """Wait until the host has noticed that its clients are gone."""
    with anyio.fail_after(5):
        while sockets() > before:  # noqa: ASYNC110  # sockets tell nobody
            await anyio.sleep(0.001)


async def test_a_cancelled_transfer_keeps_nearly_all_that_came(
    serving: Host, tmp_path: Path
) -> None:
    """But for the last block, which is in memory."""
    serving.files = {"a.bin": content(3_500_000)}
    never, sent = anyio.Event(), anyio.Event()

    def behave(asked: Asked) -> Reply:
        return Reply(200, {}, serving.files["a.bin"], cut=3_400_000, hold=never)

    serving.behave = behave
    with anyio.fail_after(BOUND_S), anyio.CancelScope() as scope:
        await fetch(
            Signer(serving),
            tmp_path / "x",
            progress=lambda step: scope.cancel() if step.done_bytes > 3_000_000 else None,
        )

    kept = (tmp_path / ".x.partial/files/a.bin").stat().st_size
    assert kept > 3_000_000
    assert [".x.partial"] == left(tmp_path)
    assert not sent.is_set()


PROGRAM = """
import sys
import anyio
from download.file_server import External, config_for, fetch
from pathlib import Path

class Signer:
    class host:
        url = sys.argv[1]

    async def get_external_weights_urls(self, path):
        return External({"a.bin": sys.argv[1] + "/a.bin?x"}, None)

def show(step):
    if step.done_bytes > 2_000_000:
        print("far", flush=True)

anyio.run(lambda: fetch(Signer(), Path(sys.argv[2]), progress=show), backend=sys.argv[3])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
async def test_a_killed_process_leaves_what_the_next_one_goes_on_from(
    serving: Host, tmp_path: Path, anyio_backend_name: str
) -> None:
    """Its lock is gone with it."""
    data = content(4_000_000)
    serving.files = {"a.bin": data}
    never = anyio.Event()
    serving.behave = lambda asked: Reply(
        200, {"ETag": etag_of(data)}, data, cut=3_900_000, hold=never
    )
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    command = [sys.executable, "-c", PROGRAM, serving.url, str(tmp_path / "x"), anyio_backend_name]
    with anyio.fail_after(BOUND_S):
        async with await anyio.open_process(command, env=environment, stderr=None) as process:
            assert process.stdout is not None
            assert b"far" in await process.stdout.receive()
            process.send_signal(signal.SIGKILL)
            await process.wait()
        assert [".x.partial"] == left(tmp_path)
        serving.behave = lambda asked: None
        done = await fetch(Signer(serving), tmp_path / "x")

    assert done.resumed_from_bytes > 2_000_000
    assert data == (tmp_path / "x/a.bin").read_bytes()
    assert ["x"] == left(tmp_path)


async def test_two_downloads_to_one_target_do_not_meet(serving: Host, tmp_path: Path) -> None:
    """The second is told; the first is not disturbed."""
    serving.files = {"a.bin": content(100_000)}
    begun, go_on = anyio.Event(), anyio.Event()

    def behave(asked: Asked) -> Reply:
        begun.set()
        return Reply(200, {}, serving.files["a.bin"], chunked=True, hold=go_on)

    serving.behave = behave
    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fetch, Signer(serving), tmp_path / "x")
            await begun.wait()
            with pytest.raises(DownloadError, match="another download to x is under way"):
                await fetch(Signer(serving), tmp_path / "x")
            go_on.set()

    assert ["x"] == left(tmp_path)


async def test_the_first_failure_is_told_and_the_other_files_stop(
    serving: Host, tmp_path: Path
) -> None:
    """As itself, not in a group; what the others had is kept."""
    serving.files = {name: content(2_000_000, seed) for seed, name in enumerate("abc")}
    never = anyio.Event()
    others = anyio.Event()

    def behave(asked: Asked) -> Reply:
        if asked.name == "b":
            return Reply(405)
        return Reply(200, {}, serving.files[asked.name], cut=1_500_000, hold=never)

    serving.behave = behave
    with anyio.fail_after(BOUND_S), pytest.raises(Exception, match="answered 405") as caught:
        await fetch(Signer(serving), tmp_path / "x")

    assert not isinstance(caught.value, BaseExceptionGroup)
    assert not others.is_set()


def test_the_notes_beside_hold_no_url(tmp_path: Path) -> None:
    """A signed URL is a secret: it is nowhere on the disk."""
    found: list[Any] = []

    async def program() -> None:
        from download.file_server import host

        async with host() as serving:
            serving.files = {"a.bin": content(2_000_000)}
            serving.behave = lambda asked: (
                file_reply(asked, serving.files["a.bin"]) if asked.number else cut_off(asked)
            )

            def cut_off(asked: Asked) -> Reply:
                reply = file_reply(asked, serving.files["a.bin"])
                reply.cut = 1_500_000
                return reply

            def show(_: object) -> None:
                found.append((tmp_path / ".x.partial/notes").read_bytes())

            await fetch(Signer(serving), tmp_path / "x", progress=show)

    call: Callable[[], Coroutine[Any, Any, None]] = program
    anyio.run(call)

    assert b"signature" not in b"".join(found)
    assert {"tinker_path", "route", "versions"} <= {*json.loads(found[-1])}
