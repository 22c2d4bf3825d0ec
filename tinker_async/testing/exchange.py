"""One request on its way through the fake server, the same for sockets and in process.

A front (HTTP/1.1, HTTP/2, in process) makes an `Exchange` when it has the head of a
request, hands it the body, and delivers the answer as `fault` says. The rule: whoever
made an exchange ends it, by `answered` or `lost`.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Annotated, Protocol

import anyio
import msgspec

from tinker_async.testing import (
    endpoints_account,
    endpoints_losses,
    endpoints_polling,
    endpoints_records,
    endpoints_sampling,
    endpoints_sessions,
    endpoints_training,
)
from tinker_async.testing.answers import Answer, Refusal, refused
from tinker_async.testing.disguise import Disguise
from tinker_async.testing.faults import EndsSession, Fault, Stall
from tinker_async.testing.ledger import Entry, Ledger, Outcome
from tinker_async.testing.routing import Call, Route, split_target
from tinker_async.testing.script import FaultScript
from tinker_async.testing.state import State
from tinker_async.wire import json as wire_json
from tinker_async.wire.messages import FailedResponse, FuturesTarget
from tinker_async.wire.protobuf import Field, Message
from tinker_async.wire.protobuf import decode as decode_protobuf
from tinker_async.wire.table import DecodeError

ROUTES: tuple[Route, ...] = (
    *endpoints_sampling.ROUTES,
    *endpoints_polling.ROUTES,
    *endpoints_training.ROUTES,
    *endpoints_sessions.ROUTES,
    *endpoints_records.ROUTES,
    *endpoints_account.ROUTES,
    *endpoints_losses.ROUTES,
)
ENDPOINTS = tuple(dict.fromkeys(route.name for route in ROUTES))

MAX_BODY_BYTES = 256 << 20
"""A request body above this is answered 413."""


class Desk(Protocol):
    """What an exchange needs of the service."""

    state: State
    ledger: Ledger
    faults: FaultScript
    disguise: Disguise | None


class _Keys(msgspec.Struct):
    """The ids that a JSON request may carry."""

    session_id: str | None = None
    model_id: str | None = None
    sampling_session_id: str | None = None
    seq_id: int | None = None
    request_id: str | None = None
    target: FuturesTarget | None = None


class _ProtobufKeys(Message):
    """The same of a `ForwardBackwardRequest`; the codec skips the rest."""

    model_id: Annotated[str, Field(1, "string")] = ""
    seq_id: Annotated[int, Field(2, "int32")] = 0


class Exchange:
    """One request and what becomes of it."""

    def __init__(
        self, desk: Desk, method: str, target: str, headers: Mapping[bytes, bytes]
    ) -> None:
        """Note that a request has arrived, and choose its fault."""
        self._state = desk.state
        self._disguise = desk.disguise
        parts, query = split_target(target)
        self._route, ids = _find(method, "/".join(parts))
        name = self._route.name if self._route is not None else ""
        entries = desk.ledger.entries
        self.entry = Entry(len(entries) + 1, anyio.current_time(), name, method, target)
        entries.append(self.entry)
        self.fault: Fault | None = desk.faults.choose(name) if name else None
        if self.fault is not None:
            self.entry.fault = str(self.fault)
        self._call = Call(method, ids, query, headers, self.entry, self.fault)

    async def answer(self, body: bytes) -> Answer:
        """Return what the request is answered. May take long, or for ever."""
        self._call.body = body
        self.entry.body_bytes = len(body)
        answer = await self._answer()
        self.entry.status = answer.status
        return answer

    async def _answer(self) -> Answer:
        refusal = self._unpack()
        _identify(self._call)
        if refusal is not None:
            return refusal
        fault = self.fault
        if isinstance(fault, EndsSession):
            self._end_session()
            return refused(410, "the session is over (scripted)")
        if isinstance(fault, Stall):
            return await self._stalled(fault)
        instead = None if fault is None else fault.instead(self._fetched_id())
        if instead is not None:
            return instead
        answer = await self._carry_out()
        return answer if fault is None else fault.spoiled(answer)

    def _fetched_id(self) -> str | None:
        return self.entry.request_id if self.entry.endpoint == "retrieve_future" else None

    async def _stalled(self, fault: Stall) -> Answer:
        done = await self._carry_out() if fault.commit else None
        if fault.seconds is None:
            await anyio.sleep_forever()
        await anyio.sleep(fault.seconds or 0)
        return done if done is not None else await self._carry_out()

    def _unpack(self) -> Answer | None:
        """Check the key, undo zstd. Returns the answer when that ends the request."""
        key = self._state.settings.api_key
        given = self._call.headers.get(b"x-api-key", b"")
        if self._state.tokens.rejects(given):
            marker = (b"www-authenticate", b'Bearer error="invalid_token"')
            return refused(401, "the token has expired or was revoked", (marker,))
        is_key = key is None or hmac.compare_digest(given, key.encode())
        is_key = is_key and given not in self._state.revoked_keys
        has_address = self.entry.endpoint == "file"  # the signed address is the permission
        if not is_key and not has_address and not self._state.tokens.knows(given):
            return refused(401, "the X-API-Key header is missing or wrong")
        if self._call.headers.get(b"content-encoding", b"identity") == b"zstd":
            import zstandard  # noqa: PLC0415  # an extra, for clients that were told to compress

            try:
                inflated = zstandard.ZstdDecompressor().decompressobj().decompress(self._call.body)
            except zstandard.ZstdError as error:
                return refused(400, f"the body is not zstd: {error}")
            self._call.body = inflated
        if len(self._call.body) > MAX_BODY_BYTES:
            return refused(413, "the body is too large")
        return None

    async def _carry_out(self) -> Answer:
        """Do the work: what any server without faults would."""
        disguise = self._disguise
        if self._route is None:
            detail = f"no endpoint {self.entry.path!r}" if disguise is None else "Not Found"
            return refused(404, detail)
        try:
            if disguise is not None:
                early = disguise.receive(self._state, self._call)
                if early is not None:
                    return early
            found = self._route.handler(self._state, self._call)
            answer = found if isinstance(found, Answer) else await found
            return answer if disguise is None else disguise.send(self._state, self._call, answer)
        except Refusal as refusal:
            return refusal.answer

    def _end_session(self) -> None:
        state, entry = self._state, self.entry
        owner = entry.session_id or (entry.model_id or entry.sampler_id or "").partition(":")[0]
        promise = state.promises.find(entry.request_id) if not owner else None
        session = state.sessions.get(promise.session_id if promise is not None else owner)
        if session is not None:
            state.end_session(session, "scripted")

    # How it ended

    def answered(self) -> None:
        """Note that the last of the answer is handed to the connection now.

        Before it is, not after: the client may have it, and look at the ledger, before its sender
        is told. `revoked` takes it back.
        """
        self._count_delivery(1)
        self._end("answered")

    def revoked(self) -> None:
        """Note that the last of the answer could not be sent after all."""
        self._count_delivery(-1)
        self.entry.outcome = "lost"

    def _count_delivery(self, times: int) -> None:
        promise = self._call.delivers
        if promise is None or not (self.fault is None or self.fault.harmless):
            return
        if promise.line is not None:
            if isinstance(promise.outcome, FailedResponse):
                promise.line.failed += times
            else:
                promise.line.answered += times
        if times > 0:
            self._state.promises.delivered(promise)

    def lost(self) -> None:
        """Note that there was no answer, or that it did not get through. Later words are ignored."""
        self._end("lost")

    def _end(self, outcome: Outcome) -> None:
        if self.entry.outcome == "pending":
            self.entry.outcome = outcome
            self.entry.ended_s = anyio.current_time()


def _find(method: str, path: str) -> tuple[Route | None, tuple[str, ...]]:
    parts = path.split("/")
    plain = _PLAIN.get((method, path))
    if plain is not None:
        return plain, ()
    for route in ROUTES:
        ids = route.match(method, parts)
        if ids is not None:
            return route, ids
    return None, ()


_PLAIN = {(route.method, route.pattern): route for route in ROUTES if "{" not in route.pattern}


def _identify(call: Call) -> None:
    """Note the ids that a request carries; a body that cannot be read carries none."""
    entry = call.entry
    if call.ids and entry.endpoint in {"finish", "session"}:
        entry.session_id = call.ids[0]
    if not call.body:
        return
    try:
        if b"protobuf" in call.headers.get(b"content-type", b""):
            sent = decode_protobuf(_ProtobufKeys, call.body)
            entry.model_id, entry.seq_id = sent.model_id, sent.seq_id
            return
        keys = wire_json.decode(call.body, _Keys)
    except DecodeError:
        return
    entry.session_id, entry.model_id = keys.session_id or entry.session_id, keys.model_id
    entry.sampler_id, entry.seq_id = keys.sampling_session_id, keys.seq_id
    if keys.target is not None:
        entry.sampler_id = keys.target.sampling_session_id
    entry.request_id = keys.request_id
