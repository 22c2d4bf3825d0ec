"""What the server knows while it runs: sessions, models, samplers, and who is alive.

`Service.run` is its life and owns every task: one lane per model, the loading of
snapshots, and the housekeeping that ends what nobody cares for any more.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import structlog
from anyio.abc import TaskGroup, TaskStatus

from tinker_async.data.params import LoraConfig
from tinker_async.local.engine.jobs import DropModel, ModelCard
from tinker_async.local.server.budget import Budget
from tinker_async.local.server.folders import Folders
from tinker_async.local.server.lanes import Lane
from tinker_async.local.server.port import EnginePort
from tinker_async.local.server.promises import Promise, PromiseBook
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.snapshots import SnapshotPool
from tinker_async.local.server.store import CheckpointRow, RunRow, SessionRow, Store, now

log = structlog.get_logger("tinker_async")

SILENT = "no heartbeat"
"""How a session ends whose client is gone."""


class Limits(msgspec.Struct, frozen=True):
    """How much and how long. Durations in seconds, sizes in bytes."""

    hold_s: float = 30.0
    """How long a poll is held; clients give up after 45 s."""
    silence_s: float = 300.0
    """A session that is silent for this long is over."""
    gap_s: float = 900.0
    """How long later requests wait for one that does not come; clients repeat for 300 s."""
    housekeeping_s: float = 5.0
    body_bytes: int = 256 * 1024 * 1024
    delivered_bytes: int = 64 * 1024 * 1024
    lane_requests: int = 2048
    lane_bytes: int = 512 * 1024 * 1024
    waiting_bytes: int = 1024 * 1024 * 1024
    """Of all requests that wait or run, training and samples together."""
    samples_waiting: int = 4096
    held_polls: int = 4096
    samples_remembered: int = 50_000
    """Of all samplers together; their repetitions get the same promise. Some 25 MB."""
    sequences_per_sample: int = 1024
    resident_snapshots: int = 16
    ephemeral_snapshots: int = 64


class Session:
    """A live session, and what it has made by sequence number."""

    def __init__(self, row: SessionRow) -> None:
        self.row = row
        self.seen_s = anyio.current_time()
        self.models: dict[int, tuple[bytes, Promise]] = {}
        self.samplers: dict[int, tuple[bytes, str]] = {}

    @property
    def id(self) -> str:
        """The session's id."""
        return self.row.session_id


class Model:
    """A live model. Its lane is the only way to the engine."""

    def __init__(self, row: RunRow, lane: Lane) -> None:
        self.row = row
        self.lane = lane
        self.touched = False
        """Whether `row.last_request_at` is newer than what is stored."""


class Sampler:
    """A sampling session: fixed weights. `snapshot_id` None is the base model."""

    def __init__(
        self, sampler_id: str, session_id: str, snapshot_id: str | None, model_path: str | None
    ) -> None:
        self.id = sampler_id
        self.session_id = session_id
        self.snapshot_id = snapshot_id
        self.model_path = model_path
        self.unnumbered = 0


class SampleMemory:
    """Recognises repetitions of samples, until many later ones have come.

    One for all samplers: a loop that makes a sampler a step would else fill the memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: OrderedDict[tuple[str, int], tuple[bytes, Promise]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def repeated(self, sampler: Sampler, seq_id: int | None, digest: bytes) -> Promise | None:
        """Return the promise of a sample that has been asked for before, or None.

        Raises:
            Refusal: 409, the number was used for another sample.
        """
        known = None if seq_id is None else self._known.get((sampler.id, seq_id))
        if known is None:
            return None
        if known[0] != digest:
            raise Refusal(409, f"seq_id {seq_id} was used for another sample", field="seq_id")
        return known[1]

    def remember(self, sampler: Sampler, seq_id: int, digest: bytes, promise: Promise) -> None:
        """Note a new sample; the oldest one may be forgotten for it."""
        self._known[sampler.id, seq_id] = (digest, promise)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def forget(self, sampler_ids: set[str]) -> None:
        """Free what is known of samplers that are over."""
        for key in [key for key in self._known if key[0] in sampler_ids]:
            del self._known[key]


class Service:
    """The state behind the endpoints. Use it inside the event loop that runs `run`."""

    def __init__(
        self,
        *,
        port: EnginePort,
        card: ModelCard,
        model_folder: Path,
        store: Store,
        folders: Folders,
        limits: Limits,
    ) -> None:
        self.port = port
        self.card = card
        self.model_folder = model_folder
        self.store = store
        self.folders = folders
        self.limits = limits
        self.promises = PromiseBook(delivered_limit_bytes=limits.delivered_bytes)
        self.snapshots = SnapshotPool(
            port,
            resident_limit=limits.resident_snapshots,
            ephemeral_limit=limits.ephemeral_snapshots,
            remove=folders.remove,
        )
        self.samples = SampleMemory(limits.samples_remembered)
        self.samples_waiting = 0
        self.held_polls = 0
        self.waiting = Budget(limits.waiting_bytes)
        self._sessions: dict[str, Session] = {}
        self._models: dict[str, Model] = {}
        self._samplers: dict[str, Sampler] = {}
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep everything going until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            task_status.started()
            while True:
                await anyio.sleep(self.limits.housekeeping_s)
                try:
                    await self._keep_house()
                except (OSError, sqlite3.Error):
                    # A full disk must not end the sessions that do not need it.
                    log.exception("housekeeping_failed")

    def start_soon(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """Start a task that ends with the service."""
        if self._tasks is None:
            raise RuntimeError("the service is not running")
        self._tasks.start_soon(work, *args)

    # --- looking up -----------------------------------------------------------

    def is_live(self, session_id: str) -> bool:
        """Whether a session is neither over nor unknown."""
        return session_id in self._sessions

    def session(self, session_id: str, *, unknown_status: int = 404) -> Session:
        """Return a live session and note that its client lives.

        Raises:
            Refusal: 410 when it is over, `unknown_status` when it never was.
        """
        session = self._sessions.get(session_id)
        if session is None:
            over = session_id in self.store.sessions
            raise Refusal(
                410 if over else unknown_status,
                f"the session {session_id} is over" if over else f"no session {session_id!r}",
                field="session_id",
            )
        session.seen_s = anyio.current_time()
        return session

    def model(self, model_id: str) -> Model:
        """Return a live model and note that its client lives.

        Raises:
            Refusal: 410 when it was here, 404 when it never was.
        """
        model = self._models.get(model_id)
        if model is None:
            over = model_id in self.store.runs
            raise Refusal(
                410 if over else 404,
                f"the model {model_id} is not loaded any more"
                if over
                else f"no model {model_id!r}",
                field="model_id",
            )
        self.session(model.row.session_id)
        return model

    def sampler(self, sampler_id: str) -> Sampler:
        """Return a live sampling session and note that its client lives.

        Raises:
            Refusal: 410 when its session is over, 404 when it never was.
        """
        sampler = self._samplers.get(sampler_id)
        if sampler is None:
            over = sampler_id.partition(":")[0] in self.store.sessions
            raise Refusal(
                410 if over else 404,
                f"the sampling session {sampler_id} is over"
                if over
                else f"no sampling session {sampler_id!r}",
                field="sampling_session_id",
            )
        self.session(sampler.session_id)
        return sampler

    def live_sessions(self) -> list[Session]:
        """Return the live sessions, oldest first."""
        return list(self._sessions.values())

    def models_of(self, session_id: str) -> list[Model]:
        """Return the live models of a session."""
        return [model for model in self._models.values() if model.row.session_id == session_id]

    def samplers_of(self, session_id: str) -> list[Sampler]:
        """Return the sampling sessions of a session."""
        return [item for item in self._samplers.values() if item.session_id == session_id]

    # --- coming and going -----------------------------------------------------

    async def open_session(self, **facts: Any) -> Session:
        """Make a session."""
        row = SessionRow(session_id=f"s-{secrets.token_hex(8)}", created_at=now(), **facts)
        await self.store.put_session(row)
        session = Session(row)
        self._sessions[session.id] = session
        return session

    async def end_session(self, session_id: str, how: str) -> None:
        """End a session: what it holds is freed, its pending promises fail. The first end counts."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        reason = f"the session {session_id} is over ({how})"
        # First: what a lane fails would look like a result that nobody has fetched.
        pending = self.promises.end_session(session_id, reason, keep_unfetched=how != SILENT)
        for model in self.models_of(session_id):
            self.close_model(model, reason)
        for promise in pending:
            self.port.cancel_sample(promise.request_id)
        await self._free_samplers(session_id)
        session.row.ended = how
        try:
            await self.store.put_session(session.row)
        except (OSError, sqlite3.Error):
            # It is over all the same: a session that is stored as living is none after a restart.
            log.exception("session_end_not_stored", session_id=session_id)

    async def _free_samplers(self, session_id: str) -> None:
        over = self.samplers_of(session_id)
        for sampler in over:
            del self._samplers[sampler.id]
        self.samples.forget({sampler.id for sampler in over})
        used = {sampler.snapshot_id for sampler in self._samplers.values()}
        for snapshot_id in {sampler.snapshot_id for sampler in over} - used - {None}:
            await self.snapshots.forget(str(snapshot_id))

    def open_model(
        self, session: Session, model_seq_id: int, lora: LoraConfig, metadata: dict[str, Any] | None
    ) -> Model:
        """Make a model with an empty lane; its first operation has to make it in the engine."""
        time = now()
        row = RunRow(
            run_id=f"{session.id}:train:{model_seq_id}",
            session_id=session.id,
            base_model=self.card.name,
            lora=lora,
            created_at=time,
            last_request_at=time,
            user_metadata=metadata,
        )
        lane = Lane(
            limit=self.limits.lane_requests,
            limit_bytes=self.limits.lane_bytes,
            shared=self.waiting,
        )
        model = Model(row, lane)
        self._models[row.run_id] = model
        self.start_soon(self._live, model)
        return model

    async def _live(self, model: Model) -> None:
        await model.lane.run()
        self.port.submit(DropModel(model.row.run_id), _ignore)

    def close_model(self, model: Model, reason: str) -> None:
        """Free a model; what waits in its lane fails."""
        self._models.pop(model.row.run_id, None)
        model.lane.close(reason)

    def add_sampler(self, sampler: Sampler) -> None:
        """Make a sampling session known."""
        self._samplers[sampler.id] = sampler

    async def delete_checkpoint(self, row: CheckpointRow) -> None:
        """Forget a checkpoint, then remove its folder: it is never listed without its files.

        On a disk so full that not even this can be written the folder goes first, to make room. A
        kill between the two leaves a row without a folder, which a restart does not list.
        """
        await self.folders.doom(row.folder)
        try:
            await self.store.delete_checkpoint(row.path)
        except sqlite3.Error:
            await self.folders.remove(row.folder)
            await self.store.delete_checkpoint(row.path)
        else:
            await self.folders.remove(row.folder)

    # --- housekeeping ---------------------------------------------------------

    async def _keep_house(self) -> None:
        silent_since_s = anyio.current_time() - self.limits.silence_s
        for session in self.live_sessions():
            if session.seen_s < silent_since_s:
                log.warning("session_silent", session_id=session.id)
                await self.end_session(session.id, SILENT)
        for model in list(self._models.values()):
            model.lane.give_up_gap(self.limits.gap_s)
            if model.touched:
                model.touched = False
                await self.store.put_run(model.row)
        await self._expire_checkpoints()

    async def _expire_checkpoints(self) -> None:
        time = now()
        for row in list(self.store.checkpoints.values()):
            if row.expires_at is not None and row.expires_at < time:
                await self.delete_checkpoint(row)

    def statistics(self) -> dict[str, int]:
        """Return the sizes of everything that can grow."""
        return {
            "sessions": len(self._sessions),
            "models": len(self._models),
            "samplers": len(self._samplers),
            "samples_waiting": self.samples_waiting,
            "held_polls": self.held_polls,
            "waiting_bytes": self.waiting.used_bytes,
            "samples_remembered": len(self.samples),
            **self.promises.statistics(),
            **self.snapshots.statistics(),
        }


def expiry(ttl_seconds: int | None) -> Any:
    """Return when a checkpoint with this time to live expires, or None for never.

    Raises:
        Refusal: 422, not between an hour and ten years.
    """
    if ttl_seconds is None:
        return None
    if not 3600 <= ttl_seconds <= 315_360_000:
        raise Refusal(
            422,
            f"ttl_seconds must be between 3600 and 315360000, got {ttl_seconds}",
            field="ttl_seconds",
        )
    return now() + timedelta(seconds=ttl_seconds)


def _ignore(_result: object) -> None:
    return
