"""Downloads from hosts that are good, slow, broken, forgetful, expired and lying."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from download.file_server import (
    EXTERNAL,
    QUICK,
    TRAINING,
    Asked,
    Host,
    Reply,
    Signer,
    config_for,
    content,
    etag_of,
    fetch,
    file_reply,
    left,
)

from tinker_async.api.retry import RetryPolicy
from tinker_async.download.records import DownloadProgress
from tinker_async.download.resume import OVERLAP_BYTES
from tinker_async.download.sources import SignedUrls, Source
from tinker_async.errors import (
    APIStatusError,
    DownloadError,
    InvalidInputError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    RequestTimeoutError,
    TargetExistsError,
    UnsafeDownloadError,
    status_error,
)
from tinker_async.testing import run_in_virtual_time

BOUND_S = 30
BIG = content(3_000_000)


def on_disk(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def partial_of(target: Path) -> Path:
    return target.parent / f".{target.name}.partial"


def kept_bytes(target: Path) -> int:
    files = partial_of(target) / "files"
    return sum(len(data) for data in on_disk(files).values()) if files.exists() else 0


async def test_all_files_of_a_checkpoint_arrive(serving: Host, tmp_path: Path) -> None:
    """With their hashes; the folder is the only thing that is left."""
    serving.files = {"a.bin": BIG, "sub/deep/b.bin": b"b", "empty.txt": b""}
    with anyio.fail_after(BOUND_S):
        done = await fetch(Signer(serving), tmp_path / "new" / "checkpoint")

    assert serving.files == on_disk(tmp_path / "new" / "checkpoint")
    assert tmp_path / "new" / "checkpoint" == done.path
    assert ("a.bin", "empty.txt", "sub/deep/b.bin") == done.files
    assert len(BIG) + 1 == done.size_bytes
    assert {k: hashlib.sha256(v).hexdigest() for k, v in serving.files.items()} == done.sha256
    assert 0 == done.resumed_from_bytes
    assert "external" == done.route
    assert ["checkpoint"] == left(tmp_path / "new")


async def test_our_credential_goes_to_no_host_of_files(serving: Host, tmp_path: Path) -> None:
    """The URL is the permission."""
    serving.files = {"a.bin": b"a"}
    config = config_for(serving.url, headers={"x-team": "secret-of-the-team"})
    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), tmp_path / "x", config=config)

    for asked in serving.asked:
        assert {"host", "user-agent", "accept", "accept-encoding"} == set(asked.headers) - {""}
        assert "secret" not in str(asked.headers)


async def test_files_come_in_parallel_within_the_bound(serving: Host, tmp_path: Path) -> None:
    """As many as are asked for, and never more."""
    serving.files = {f"{number}.bin": content(1000, number) for number in range(12)}
    three = anyio.Event()
    begun = 0

    def behave(asked: Asked) -> Reply:
        nonlocal begun
        begun += 1
        reply = file_reply(asked, serving.files[asked.name])
        if begun <= 3:
            reply.hold = three
        if begun == 3:
            three.set()
        return reply

    serving.behave = behave
    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), tmp_path / "x", parallel=3)

    assert 3 == serving.most_busy
    assert serving.files == on_disk(tmp_path / "x")


async def test_progress_is_told_and_grows_to_the_whole(serving: Host, tmp_path: Path) -> None:
    """By file and of all; at the end of each stage everything is done."""
    serving.files = {"a.bin": BIG, "b.bin": b"b"}
    told: list[DownloadProgress] = []
    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), tmp_path / "x", progress=told.append)

    whole = len(BIG) + 1
    for stage in ("downloading", "checking"):
        steps = [one for one in told if one.stage == stage]
        assert (whole, whole) == (steps[-1].done_bytes, steps[-1].total_bytes)
        assert [one.done_bytes for one in steps] == sorted(one.done_bytes for one in steps)
    assert len({one.done_bytes for one in told}) > 3


async def test_an_error_of_the_progress_hook_leaves_as_itself(
    serving: Host, tmp_path: Path
) -> None:
    """It is the caller's own, and ends the download."""
    serving.files = {"a.bin": BIG, "b.bin": b"b"}

    def show(_: DownloadProgress) -> None:
        raise LookupError("the caller's own")

    with anyio.fail_after(BOUND_S), pytest.raises(LookupError, match="own"):
        await fetch(Signer(serving), tmp_path / "x", progress=show)
    assert not (tmp_path / "x").exists()


# Broken connections


@pytest.mark.parametrize("cut", [1, 65_535, 65_536, 1 << 20, len(BIG) - 1])
async def test_a_broken_connection_is_gone_on_from_where_it_broke(
    serving: Host, tmp_path: Path, cut: int
) -> None:
    """What is asked for again is the overlap, no more."""
    serving.files = {"a.bin": BIG}

    def behave(asked: Asked) -> Reply | None:
        reply = file_reply(asked, BIG)
        reply.cut = cut if asked.number == 0 else None
        return reply

    serving.behave = behave
    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), tmp_path / "x")

    assert BIG == (tmp_path / "x/a.bin").read_bytes()
    assert [None, max(0, cut - OVERLAP_BYTES)] == [asked.first for asked in serving.asked]
    assert etag_of(BIG) == serving.asked[1].headers["if-range"]
    assert len(BIG) + min(cut, OVERLAP_BYTES) == serving.sent_bytes


async def test_a_connection_that_breaks_again_and_again_is_no_failure_while_it_gets_further(
    serving: Host, tmp_path: Path
) -> None:
    """Twenty breaks with two attempts allowed: each brought something."""
    serving.files = {"a.bin": BIG}

    def behave(asked: Asked) -> Reply:
        reply = file_reply(asked, BIG)
        reply.cut = OVERLAP_BYTES + 150_000 if len(reply.body) > OVERLAP_BYTES + 150_000 else None
        return reply

    serving.behave = behave
    retry = RetryPolicy(max_attempts=2, base_s=0.001)
    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), tmp_path / "x", retry=retry)

    assert BIG == (tmp_path / "x/a.bin").read_bytes()
    assert len(serving.asked) > 15


async def test_no_progress_is_given_up_and_the_next_call_goes_on(
    serving: Host, tmp_path: Path
) -> None:
    """The error says how much is kept; the target does not exist."""
    serving.files = {"a.bin": BIG}

    def behave(asked: Asked) -> Reply:
        reply = file_reply(asked, BIG)
        reply.cut = 2_000_000 if asked.number == 0 else 0
        return reply

    serving.behave = behave
    with anyio.fail_after(BOUND_S):
        with pytest.raises(ProtocolError, match=r"2000000 bytes of a\.bin are kept") as caught:
            await fetch(Signer(serving), tmp_path / "x")
        assert QUICK.max_attempts == len(serving.asked)
        assert "download_checkpoint" == caught.value.operation
        assert not (tmp_path / "x").exists()
        assert 2_000_000 == kept_bytes(tmp_path / "x")

        serving.behave = lambda asked: None
        done = await fetch(Signer(serving), tmp_path / "x")

    assert 2_000_000 == done.resumed_from_bytes
    assert 2_000_000 - OVERLAP_BYTES == serving.asked[-1].first
    assert {"a.bin": BIG} == on_disk(tmp_path / "x")
    assert not partial_of(tmp_path / "x").exists()


async def test_files_that_are_whole_already_are_only_verified(
    serving: Host, tmp_path: Path
) -> None:
    """One of two failed for good: the next call asks the whole one for its overlap."""
    serving.files = {"a.bin": BIG, "b.bin": b"b" * 10}
    serving.behave = lambda asked: Reply(500) if asked.name == "b.bin" else None
    with anyio.fail_after(BOUND_S):
        with pytest.raises(APIStatusError):
            await fetch(Signer(serving), tmp_path / "x", parallel=1)
        serving.behave = lambda asked: None
        before = serving.sent_bytes
        done = await fetch(Signer(serving), tmp_path / "x")

    assert len(BIG) == done.resumed_from_bytes
    assert OVERLAP_BYTES + 10 == serving.sent_bytes - before
    assert serving.files == on_disk(tmp_path / "x")


# Hosts that answer something else


@pytest.mark.parametrize("etag", ["", None, 'W/"weak"'])
async def test_a_host_without_ranges_is_asked_for_all_again(
    serving: Host, tmp_path: Path, etag: str | None
) -> None:
    """It answers 200 to a range; what was there is replaced, not appended to."""
    serving.files = {"a.bin": BIG}

    def behave(asked: Asked) -> Reply:
        return Reply(
            200,
            {} if etag is None else {"ETag": etag or etag_of(BIG)},
            BIG,
            cut=2_000_000 if asked.number == 0 else None,
        )

    serving.behave = behave
    with anyio.fail_after(BOUND_S):
        done = await fetch(Signer(serving), tmp_path / "x")

    assert BIG == (tmp_path / "x/a.bin").read_bytes()
    assert len(BIG) == done.size_bytes
    assert 2 == len(serving.asked)


@pytest.mark.parametrize("with_etag", [True, False])
async def test_a_file_that_changes_between_attempts_is_never_mixed(
    serving: Host, tmp_path: Path, *, with_etag: bool
) -> None:
    """By its ETag, and without one by the bytes that are compared."""
    new = content(len(BIG), seed=7)

    def behave(asked: Asked) -> Reply:
        if asked.number == 0:
            reply = file_reply(asked, BIG, etag="" if with_etag else None)
            reply.cut = 2_000_000
            return reply
        return file_reply(asked, new, etag="" if with_etag else None)

    serving.files = {"a.bin": BIG}
    serving.behave = behave
    with anyio.fail_after(BOUND_S):
        done = await fetch(Signer(serving), tmp_path / "x")

    assert new == (tmp_path / "x/a.bin").read_bytes()
    assert hashlib.sha256(new).hexdigest() == done.sha256["a.bin"]


async def test_a_checkpoint_that_was_overwritten_between_calls_is_never_mixed(
    serving: Host, tmp_path: Path
) -> None:
    """Also where a file was whole: each is asked for again, a little."""
    serving.files = {"a.bin": BIG, "b.bin": b"old"}
    serving.behave = lambda asked: Reply(500) if asked.name == "b.bin" else None
    with anyio.fail_after(BOUND_S):
        with pytest.raises(APIStatusError):
            await fetch(Signer(serving), tmp_path / "x", parallel=1)
        serving.behave = lambda asked: None
        serving.files = {"a.bin": content(len(BIG), seed=3), "b.bin": b"new"}
        await fetch(Signer(serving), tmp_path / "x")

    assert serving.files == on_disk(tmp_path / "x")


@pytest.mark.parametrize(
    "lie",
    [
        lambda reply: reply.headers.update({"Content-Range": "bytes 5-9/10"}),
        lambda reply: reply.headers.update({"Content-Range": "nonsense"}),
        lambda reply: reply.headers.update({"Content-Encoding": "gzip"}),
        lambda reply: reply.headers.pop("Content-Range"),
    ],
    ids=["other range", "nonsense", "compressed", "no range"],
)
async def test_a_range_that_is_not_the_one_asked_for_is_not_appended(
    serving: Host, tmp_path: Path, lie: Callable[[Reply], object]
) -> None:
    """The file begins anew."""
    serving.files = {"a.bin": BIG}

    def behave(asked: Asked) -> Reply:
        reply = file_reply(asked, BIG)
        if asked.number == 0:
            reply.cut = 1_500_000
        elif reply.status == 206:
            lie(reply)
        return reply

    serving.behave = behave
    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), tmp_path / "x")

    assert BIG == (tmp_path / "x/a.bin").read_bytes()
    assert [None, 1_500_000 - OVERLAP_BYTES, None] == [asked.first for asked in serving.asked]


async def test_a_host_that_says_a_greater_length_than_it_sends_is_not_believed(
    serving: Host, tmp_path: Path
) -> None:
    """The rest is asked for, and where there is none, that is an error."""
    serving.files = {"a.bin": b"x" * 100}
    serving.behave = lambda asked: Reply(200, {"Content-Length": "5000"}, b"x" * 100, cut=100)
    with anyio.fail_after(BOUND_S), pytest.raises(ProtocolError, match="too early"):
        await fetch(Signer(serving), tmp_path / "x")

    assert not (tmp_path / "x").exists()


async def test_a_range_whose_total_is_a_lie_ends_with_an_error(
    serving: Host, tmp_path: Path
) -> None:
    """It goes beyond the total that it says itself, chunk by chunk."""

    def behave(asked: Asked) -> Reply:
        if asked.first is None:
            reply = file_reply(asked, BIG)
            reply.cut = 1_000_000
            return reply
        headers = {"Content-Range": f"bytes {asked.first}-{len(BIG) - 1}/{len(BIG)}"}
        return Reply(206, headers, BIG[asked.first :] + b"more", chunked=True)

    serving.files = {"a.bin": BIG}
    serving.behave = behave
    with anyio.fail_after(BOUND_S), pytest.raises(ProtocolError, match="longer than"):
        await fetch(Signer(serving), tmp_path / "x")

    assert not (tmp_path / "x").exists()


async def test_a_file_of_unknown_length_is_taken_to_its_end(serving: Host, tmp_path: Path) -> None:
    """Chunked, without length or ETag; progress has no total."""
    serving.files = {"a.bin": BIG}
    serving.behave = lambda asked: Reply(200, {}, BIG, chunked=True)
    told: list[DownloadProgress] = []
    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), tmp_path / "x", progress=told.append)

    assert BIG == (tmp_path / "x/a.bin").read_bytes()
    assert {None} == {one.total_bytes for one in told if one.stage == "downloading"}


@pytest.mark.parametrize("announced", [True, False])
async def test_more_than_the_limit_is_refused_and_removed(
    serving: Host, tmp_path: Path, *, announced: bool
) -> None:
    """Before a byte where the length is announced; else as soon as it is passed."""
    serving.files = {"a.bin": BIG}
    serving.behave = lambda asked: Reply(200, {}, BIG, chunked=not announced)
    with anyio.fail_after(BOUND_S), pytest.raises(UnsafeDownloadError, match="max_bytes"):
        await fetch(Signer(serving), tmp_path / "x", max_bytes=2_000_000)

    assert [] == left(tmp_path)


async def test_compressed_files_are_refused(serving: Host, tmp_path: Path) -> None:
    """They were asked for as they are: nothing is ever expanded, so nothing can explode."""
    serving.files = {"a.bin": b"a"}
    serving.behave = lambda asked: Reply(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b...")
    with anyio.fail_after(BOUND_S), pytest.raises(ProtocolError, match="compressed"):
        await fetch(Signer(serving), tmp_path / "x")
    assert {"identity"} == {asked.headers["accept-encoding"] for asked in serving.asked}


@pytest.mark.parametrize("name", ["repr-digest", "digest", "x-amz-checksum-sha256"])
async def test_a_checksum_of_the_host_is_verified(serving: Host, tmp_path: Path, name: str) -> None:
    """A wrong one is an error, and the file is asked for anew by the next call."""
    right = base64.b64encode(hashlib.sha256(BIG).digest()).decode()
    form = {"repr-digest": "sha-256=:{}:", "digest": "SHA-256={}"}.get(name, "{}")
    serving.files = {"a.bin": BIG}
    digest = base64.b64encode(bytes(32)).decode()

    def behave(asked: Asked) -> Reply:
        reply = file_reply(asked, BIG)
        reply.headers[name] = form.format(digest)
        return reply

    serving.behave = behave
    with anyio.fail_after(BOUND_S):
        with pytest.raises(DownloadError, match=r"a\.bin is damaged: its SHA-256"):
            await fetch(Signer(serving), tmp_path / "x")
        assert not (tmp_path / "x").exists()
        digest = right
        await fetch(Signer(serving), tmp_path / "x")

    assert [None, None] == [asked.first for asked in serving.asked]
    assert {"a.bin": BIG} == on_disk(tmp_path / "x")


async def test_a_truncated_safetensors_file_is_found_without_any_checksum(
    serving: Host, tmp_path: Path
) -> None:
    """Its own header says how long it is."""
    header = b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    whole = len(header).to_bytes(8, "little") + header + bytes(36)
    serving.files = {"adapter.safetensors": whole[:-1]}
    with anyio.fail_after(BOUND_S):
        with pytest.raises(DownloadError, match="header describes"):
            await fetch(Signer(serving), tmp_path / "x")
        serving.files = {"adapter.safetensors": whole}
        await fetch(Signer(serving), tmp_path / "x")


# Waiting and refusals


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_passing_refusals_are_repeated(serving: Host, tmp_path: Path, status: int) -> None:
    """By the policy."""
    serving.files = {"a.bin": b"a"}
    serving.behave = lambda asked: Reply(status) if asked.number < 3 else None
    with anyio.fail_after(BOUND_S):
        await fetch(Signer(serving), tmp_path / "x")

    assert 4 == len(serving.asked)


async def test_retry_after_is_a_floor_of_the_pause(serving: Host, tmp_path: Path) -> None:
    """More than the policy has left: the error is told at once, with the wish."""
    serving.files = {"a.bin": b"a"}
    serving.behave = lambda asked: Reply(429, {"Retry-After": "50"})
    retry = RetryPolicy(max_attempts=9, window_s=20)
    with anyio.fail_after(BOUND_S), pytest.raises(RateLimitError) as caught:
        await fetch(Signer(serving), tmp_path / "x", retry=retry)

    assert 50 == caught.value.retry_after_s
    assert 1 == len(serving.asked)


async def test_a_silent_host_is_asked_again(serving: Host, tmp_path: Path) -> None:
    """After the limit of the whole call: a held answer ends with a timeout, and keeps its bytes."""
    serving.files = {"a.bin": BIG}
    never = anyio.Event()

    def behave(asked: Asked) -> Reply:
        reply = file_reply(asked, BIG)
        reply.cut, reply.hold = 2_000_000, never
        return reply

    serving.behave = behave
    with anyio.fail_after(BOUND_S), pytest.raises(RequestTimeoutError, match="gone on from"):
        await fetch(Signer(serving), tmp_path / "x", timeout_s=0.5)

    assert 0 < kept_bytes(tmp_path / "x") <= 2_000_000


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_an_expired_url_is_replaced_and_the_file_gone_on_with(
    serving: Host, tmp_path: Path, status: int
) -> None:
    """In the middle of a file."""
    serving.files = {"a.bin": BIG}
    signer = Signer(serving)

    def behave(asked: Asked) -> Reply | None:
        reply = file_reply(asked, BIG)
        if asked.number == 0:
            reply.cut = 2_000_000
        elif asked.path.endswith("=1"):
            return Reply(status, body=b"<Error><Code>ExpiredToken</Code></Error>")
        return reply

    serving.behave = behave
    with anyio.fail_after(BOUND_S):
        await fetch(signer, tmp_path / "x")

    assert 2 == signer.signed
    assert 2_000_000 - OVERLAP_BYTES == serving.asked[-1].first
    assert BIG == (tmp_path / "x/a.bin").read_bytes()


def test_a_url_is_replaced_before_it_runs_out() -> None:
    """Once for all files that need it, and not before."""
    run_in_virtual_time(_use_up_urls)


async def _use_up_urls() -> None:
    signed = 0

    async def sign() -> SignedUrls:
        nonlocal signed
        signed += 1
        await anyio.lowlevel.checkpoint()
        urls = {name: f"https://host/{name}?{signed}" for name in ("a", "b")}
        return SignedUrls(urls, datetime.now(UTC) + timedelta(seconds=900))

    source = Source(sign, await sign())
    await anyio.sleep(860)
    assert "https://host/a?1" == await source.url("a")
    await anyio.sleep(15)
    found: dict[str, str] = {}

    async def ask(name: str) -> None:
        found[name] = await source.url(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "a")
        tasks.start_soon(ask, "b")

    assert {"a": "https://host/a?2", "b": "https://host/b?2"} == found
    assert 2 == signed


async def test_clocks_that_differ_do_not_matter(serving: Host, tmp_path: Path) -> None:
    """URLs that seem to have run out when they come are used."""
    serving.files = {"a.bin": b"a", "b.bin": b"b"}
    signer = Signer(serving, lifetime_s=-100_000)
    with anyio.fail_after(BOUND_S):
        await fetch(signer, tmp_path / "x")

    assert 1 == signer.signed


async def test_a_fresh_url_that_is_refused_too_is_an_error_that_does_not_show_it(
    serving: Host, tmp_path: Path
) -> None:
    """The host's code is told, its other words and the signature are not."""
    serving.files = {"a.bin": b"a"}
    signer = Signer(serving)
    body = b"<Error><Code>AccessDenied</Code><Message>signature=1 of tml-x</Message></Error>"
    serving.behave = lambda asked: Reply(403, body=body)
    with anyio.fail_after(BOUND_S), pytest.raises(PermissionDeniedError) as caught:
        await fetch(signer, tmp_path / "x")

    assert 2 == signer.signed
    assert "AccessDenied" == caught.value.detail
    assert "signature" not in f"{caught.value!r} {vars(caught.value)}"
    assert [] == left(tmp_path)


async def test_a_file_that_vanishes_from_the_offer_is_an_error(
    serving: Host, tmp_path: Path
) -> None:
    """Its URL has run out, and the new offer is without it."""
    serving.files = {"a.bin": b"a", "b.bin": b"b"}
    signer = Signer(serving)

    def behave(asked: Asked) -> Reply | None:
        if asked.name == "b.bin":
            signer.names = ["a.bin"]
            return Reply(403)
        return None

    serving.behave = behave
    with anyio.fail_after(BOUND_S), pytest.raises(DownloadError, match=r"does not offer 'b\.bin'"):
        await fetch(signer, tmp_path / "x")


# What is asked of the server


async def test_a_hostile_name_is_refused_before_anything_is_asked_for(
    serving: Host, tmp_path: Path
) -> None:
    """And nothing is left, not even what an earlier call received."""
    serving.files = {"good": b"x"}
    signer = Signer(serving)
    for name in ("../../evil", "/etc/passwd", "a/../../b", "con", "x\u202ey"):
        signer.names = ["good", name]
        with anyio.fail_after(BOUND_S), pytest.raises(UnsafeDownloadError):
            await fetch(signer, tmp_path / "deep" / "x")
        assert [] == left(tmp_path / "deep")
    assert [] == serving.asked


async def test_a_checkpoint_without_files_is_an_error(serving: Host, tmp_path: Path) -> None:
    """An empty folder would look like one."""
    with anyio.fail_after(BOUND_S), pytest.raises(DownloadError, match="no files"):
        await fetch(Signer(serving), tmp_path / "x")
    assert [] == left(tmp_path)


def missing(status: int = 404) -> APIStatusError:
    return status_error(status, endpoint="/api/v1/x", detail="no such route")


async def test_the_other_route_is_taken_where_a_server_lacks_the_first(
    serving: Host, tmp_path: Path
) -> None:
    """And where both are lacking, the first one's answer is told, with what can be done."""
    data, archive = content(100_000), io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as writer:
        info = tarfile.TarInfo("a.bin")
        info.size = len(data)
        writer.addfile(info, io.BytesIO(data))
    serving.files = {"archive.tar.gz": archive.getvalue()}
    signer = Signer(serving)
    signer.missing = {"external": missing()}
    with anyio.fail_after(BOUND_S):
        done = await fetch(signer, tmp_path / "x")
        assert "archive" == done.route
        with pytest.raises(NotFoundError) as forced:
            await fetch(signer, tmp_path / "y", route="external")
        signer.missing["archive"] = missing(405)
        with pytest.raises(NotFoundError, match="save_weights_external") as both:
            await fetch(signer, tmp_path / "y")
        with pytest.raises(APIStatusError, match="save_weights_external"):
            await fetch(signer, tmp_path / "y", tinker_path=TRAINING)

    assert "download_checkpoint" == forced.value.operation == both.value.operation
    assert {"a.bin": data} == on_disk(tmp_path / "x")
    assert ["x"] == left(tmp_path)


async def test_a_relative_url_is_the_servers_own(serving: Host, tmp_path: Path) -> None:
    """As in a `Location` header."""
    serving.files = {"a.bin": b"a"}

    class Relative(Signer):
        def _sign(self, name: str) -> str:
            return f"/{name}?signature=1"

    with anyio.fail_after(BOUND_S):
        await fetch(Relative(serving), tmp_path / "x")
    assert serving.files == on_disk(tmp_path / "x")


async def test_an_error_of_the_server_is_told_and_no_other_route_tried(
    serving: Host, tmp_path: Path
) -> None:
    """It says nothing of routes."""
    signer = Signer(serving)
    signer.missing = {"archive": missing(401)}
    with anyio.fail_after(BOUND_S), pytest.raises(APIStatusError):
        await fetch(signer, tmp_path / "x", tinker_path=TRAINING)
    assert 0 == signer.signed


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tinker_path": "run/weights/x"}, "tinker_path"),
        ({"route": "torrent"}, "route"),
        ({"parallel": 0}, "parallel"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"timeout_s": 0}, "timeout"),
    ],
)
async def test_wrong_arguments_are_told_before_anything_is_done(
    serving: Host, tmp_path: Path, options: dict[str, object], field: str
) -> None:
    """By name."""
    signer = Signer(serving)
    with pytest.raises(InvalidInputError) as caught:
        await fetch(signer, tmp_path / "x", **options)  # type: ignore[arg-type]  # wrong on purpose

    assert field == caught.value.field
    assert [] == left(tmp_path)


@pytest.mark.parametrize("to", ["/", ".", ".."])
async def test_folders_that_hold_everything_else_are_no_targets(serving: Host, to: str) -> None:
    """Overwriting them would remove this program's own folder."""
    with pytest.raises(InvalidInputError, match="name of a new folder"):
        await fetch(Signer(serving), Path(to), overwrite=True)


async def test_an_existing_target_is_told_before_the_server_is_asked(
    serving: Host, tmp_path: Path
) -> None:
    """It stays as it is."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x/mine").write_text("mine")
    signer = Signer(serving)
    with pytest.raises(TargetExistsError, match="overwrite=True") as caught:
        await fetch(signer, tmp_path / "x", tinker_path=EXTERNAL)

    assert isinstance(caught.value, FileExistsError)
    assert 0 == signer.signed
    assert "mine" == (tmp_path / "x/mine").read_text()


async def test_memory_is_the_same_whatever_the_size(serving: Host, tmp_path: Path) -> None:
    """Four files of 8 MiB at a time, within a few blocks each."""
    block = content(1 << 20)
    serving.files = {f"{number}.bin": block * 8 for number in range(4)}
    peaks: list[int] = []
    tracemalloc.start()
    try:
        with anyio.fail_after(BOUND_S):
            await fetch(
                Signer(serving),
                tmp_path / "x",
                progress=lambda _: peaks.append(tracemalloc.get_traced_memory()[1]),
            )
    finally:
        tracemalloc.stop()

    assert max(peaks) < 12 << 20
