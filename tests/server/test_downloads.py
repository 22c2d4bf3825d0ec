"""Downloads over a real socket: signed addresses, ranges, deletion and disconnection meanwhile."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import msgspec
import pytest
from server.desk import KEY
from server.engine_double import QuickEngine
from server.hosted import Hosted, hosted

from tinker_async.local.engine import jobs
from tinker_async.local.engine.jobs import Job

BIG = 4_000_000


class WritingEngine(QuickEngine):
    """Writes checkpoints of some size."""

    def submit(self, job: Job, done: Any) -> None:
        if isinstance(job, jobs.SaveTraining | jobs.SaveSampler):
            self._note(job)
            (job.folder / "a.safetensors").write_bytes(bytes(range(250)) * (BIG // 250))
            (job.folder / "b.json").write_bytes(b"{}")
            done(BIG + 2)
            return
        super().submit(job, done)


class Got(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def _ask(url: str, method: str, headers: dict[str, str], body: bytes | None) -> Got:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
    try:
        connection.request(method, f"{parts.path}?{parts.query}", body, headers)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Got(response.status, found, response.read())
    finally:
        connection.close()


async def ask(url: str, method: str = "GET", **headers: str) -> Got:
    """Ask without a key."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await anyio.to_thread.run_sync(_ask, url, method, named, None)


class Served:
    """A server with one checkpoint of each kind."""

    def __init__(self, server: Hosted) -> None:
        self.url = server.url
        self.run = ""

    async def api(self, method: str, path: str, body: Any = None) -> Got:
        headers = {"x-api-key": KEY, "content-type": "application/json"}
        raw = None if body is None else json.dumps(body).encode()
        url = self.url + "/api/v1" + path
        return await anyio.to_thread.run_sync(_ask, url, method, headers, raw)

    async def result(self, path: str, body: Any) -> Any:
        promise = (await self.api("POST", path, body)).json
        wanted = {"request_id": promise["request_id"]}
        return (await self.api("POST", "/retrieve_future", wanted)).json

    def place(self, kind: str) -> str:
        return f"/training_runs/{self.run}/checkpoints/{kind}/x"

    async def archive(self, kind: str = "weights") -> str:
        answer = await self.api("GET", self.place(kind) + "/archive")
        assert answer.status == 302, answer
        return answer.headers["location"]


@asynccontextmanager
async def served(data_dir: Path) -> AsyncIterator[Served]:
    async with hosted(data_dir, WritingEngine()) as server:
        it = Served(server)
        new = {"tags": [], "user_metadata": {}, "sdk_version": "0"}
        session_id = (await it.api("POST", "/create_session", new)).json["session_id"]
        body = {"session_id": session_id, "model_seq_id": 0, "base_model": "tiny"}
        it.run = (await it.result("/create_model", body))["model_id"]
        paths = ("/save_weights", "/save_weights_for_sampler", "/save_weights_external")
        for number, path in enumerate(paths):
            await it.result(path, {"model_id": it.run, "path": "x", "seq_id": number + 1})
        yield it


async def test_an_archive_can_be_had_in_parts(tmp_path: Path) -> None:
    """Each with its place and the same tag; together they are what was saved."""
    async with served(tmp_path) as it:
        url = await it.archive()
        whole = await ask(url)
        assert (200, "application/gzip") == (whole.status, whole.headers["content-type"])
        assert str(len(whole.body)) == whole.headers["content-length"]
        size, tag = len(whole.body), whole.headers["etag"]
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(whole.body))) as tar:
            assert [member.size for member in tar] == [BIG, 2]

        middle = await ask(url, range="bytes=1000-1999", if_range=tag)
        assert (206, f"bytes 1000-1999/{size}") == (middle.status, middle.headers["content-range"])
        assert whole.body[1000:2000] == middle.body
        tail = await ask(await it.archive(), range=f"bytes={size - 70_000}-")
        assert (206, tag) == (tail.status, tail.headers["etag"])
        assert whole.body[-70_000:] == tail.body

        other = await ask(url, range="bytes=1000-1999", if_range='"other"')
        assert (200, whole.body) == (other.status, other.body)
        beyond = await ask(url, range=f"bytes={size}-")
        assert (416, f"bytes */{size}") == (beyond.status, beyond.headers["content-range"])
        assert (await ask(url, if_none_match=tag)).status == 304
        head = await ask(url, "HEAD")
        assert (200, str(size), b"") == (head.status, head.headers["content-length"], head.body)


async def test_an_overwritten_checkpoint_has_another_tag(tmp_path: Path) -> None:
    """A download of the old one starts anew instead of mixing both."""
    async with served(tmp_path) as it:
        tag = (await ask(await it.archive(), "HEAD")).headers["etag"]
        save = {"model_id": it.run, "path": "x", "seq_id": 4, "overwrite": True}
        await it.result("/save_weights", save)
        resumed = await ask(await it.archive(), range="bytes=1000-", if_range=tag)
        assert resumed.status == 200
        assert tag != resumed.headers["etag"]


async def test_external_files_have_an_address_each(tmp_path: Path) -> None:
    """Correct sizes, also in parts; only of external checkpoints."""
    async with served(tmp_path) as it:
        found = (await it.api("GET", it.place("external_weights") + "/external_weights_urls")).json
        assert sorted(found["urls"]) == ["a.safetensors", "b.json"]
        assert all(url.startswith(it.url) for url in found["urls"].values())
        big = await ask(found["urls"]["a.safetensors"], range="bytes=3999999-")
        assert (206, bytes([249])) == (big.status, big.body)
        small = await ask(found["urls"]["b.json"])
        assert (200, b"{}", "2") == (small.status, small.body, small.headers["content-length"])
        refused = await it.api("GET", it.place("weights") + "/external_weights_urls")
        assert (400, "checkpoint_id") == (refused.status, refused.json["field"])


async def test_an_address_that_was_changed_is_refused(tmp_path: Path) -> None:
    """Another path, another time, another seal, or none; and a key does not help."""
    async with served(tmp_path) as it:
        url = await it.archive()
        path, _, query = url.partition("?")
        times, _, seal = query.partition("&signature=")
        stamp = int(times.partition("=")[2])
        changed = [
            path,
            f"{path}?signature={seal}",
            f"{path}?expires={stamp + 1}&signature={seal}",
            f"{path}?expires={stamp}&signature={seal[:-1]}0x",
            f"{path}?expires={'9' * 40}&signature={seal}",
            f"{path.replace('/weights/', '/sampler_weights/')}?{query}",
        ]
        for one in changed:
            for headers in ({}, {"x_api_key": KEY}):
                reply = await ask(one, **headers)
                assert reply.status == 403, one
                assert reply.json["detail"]
                assert str(len(reply.body)) == reply.headers["content-length"]


async def test_a_deleted_checkpoint_is_gone_for_new_downloads_only(tmp_path: Path) -> None:
    """One that is under way gets all of it."""
    async with served(tmp_path) as it:
        url = await it.archive("external_weights")
        whole = (await ask(url)).body
        parts = urlsplit(url)
        async with await anyio.connect_tcp(str(parts.hostname), int(parts.port or 0)) as stream:
            request = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nhost: x\r\n\r\n"
            await stream.send(request.encode())
            received = await stream.receive(100)  # it has begun, and is held up by us
            assert (await it.api("DELETE", it.place("external_weights"))).status == 204
            while len(received.partition(b"\r\n\r\n")[2]) < len(whole):
                received += await stream.receive(1 << 20)
        assert whole == received.partition(b"\r\n\r\n")[2]
        assert (await ask(url)).status == 404


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_client_that_goes_away_leaves_nothing_open(tmp_path: Path) -> None:
    """The files are closed, and others are served."""
    async with served(tmp_path) as it:
        url = await it.archive()
        parts = urlsplit(url)
        request = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nhost: x\r\n\r\n"
        before = open_files(tmp_path)
        for _ in range(3):
            async with await anyio.connect_tcp(str(parts.hostname), int(parts.port or 0)) as stream:
                await stream.send(request.encode())
                await stream.receive(100)
        with anyio.fail_after(10):
            while open_files(tmp_path) != before:  # noqa: ASYNC110  # the server tells nobody
                await anyio.sleep(0.01)
        assert (await ask(url)).status == 200


def open_files(folder: Path) -> list[str]:
    """Return the open files of checkpoints below a folder."""
    links = (path for path in Path("/proc/self/fd").iterdir() if path.exists())
    names = [str(path.resolve()) for path in links]
    return sorted(name for name in names if name.startswith(f"{folder}/checkpoints"))


async def test_many_download_at_once(tmp_path: Path) -> None:
    """Each gets its part, whole."""
    async with served(tmp_path) as it:
        url = await it.archive()
        whole = (await ask(url)).body
        good: list[bool] = []

        async def part(number: int) -> None:
            start = number * 100_000
            got = await ask(url, range=f"bytes={start}-{start + 499_999}")
            good.append(whole[start : start + 500_000] == got.body)

        async with anyio.create_task_group() as tasks:
            for number in range(12):
                tasks.start_soon(partial(part, number))
        assert good == [True] * 12
