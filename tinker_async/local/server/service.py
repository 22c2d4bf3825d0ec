"""What the server knows while it runs: sessions, models, samplers, and who is alive.

`Service.run` is its life and owns every task: one lane per model, the loading of
snapshots, and the housekeeping that ends what nobody cares for any more.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from tinker_async.data.params import LoraConfig
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.jobs import CustomLoss, DropModel, ModelCard
from tinker_async.local.server.budget import Budget
from tinker_async.local.server.completions import Completions
from tinker_async.local.server.credentials import Credentials
from tinker_async.local.server.flags import Flags
from tinker_async.local.server.folders import Folders
from tinker_async.local.server.lanes import Lane
from tinker_async.local.server.ledger import Ledger
from tinker_async.local.server.limits import Limits
from tinker_async.local.server.metering import Meter
from tinker_async.local.server.port import EnginePort
from tinker_async.local.server.promises import Promise, PromiseBook
from tinker_async.local.server.refusal import Refusal
from tinker_async.local.server.rows import DEFAULT_PROJECT, SILENT, RunRow, SessionRow
from tinker_async.local.server.shelf import Shelf
from tinker_async.local.server.snapshots import SnapshotPool
from tinker_async.local.server.store import Store, now
from tinker_async.local.server.transfer import Readers

log = structlog.get_logger("tinker_async")


_CLONES = 1024
"""Clones of one sampler of which it is known what is done; the oldest ones are forgotten."""


class Session:
    """A live session, and what it has made by sequence number."""

    def __init__(self, row: SessionRow) -> None:
        self.row = row
        self.seen_s = anyio.current_time()
        self.in_order = False
        """Whether its client sends a model's requests one by one, so that no gap is ever filled."""
        self.models: dict[int, tuple[bytes, Promise]] = {}
        self.losses: dict[int, tuple[bytes, Promise]] = {}
        self.graphs: dict[str, CustomLoss] = {}
        """Its custom losses, by their id"""
        self.samplers: dict[int, tuple[bytes, str]] = {}

    @property
    def id(self) -> str:
        """The session's id."""
        return self.row.session_id

    def custom_loss(self, config: Mapping[str, float | str]) -> CustomLoss:
        """Return the custom loss that a request names.

        Raises:
            InvalidInputError: This session has none of that id.
        """
        loss_id = config.get("loss_id")
        found = self.graphs.get(str(loss_id))
        if found is None or set(config) != {"loss_id"}:
            raise InvalidInputError(
                f"loss_fn_config must be the loss_id of a custom loss of this session, got {dict(config)}",
                field="loss_fn_config",
            )
        return found


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
        self.clients = 0
        """How many clones have joined"""
        self._completions: OrderedDict[int, Completions] = OrderedDict()

    def completions_of(self, clone: int) -> Completions:
        """Return which samples of a clone are done; clone 0 is the original."""
        done = self._completions.get(clone)
        if done is None:
            done = self._completions[clone] = Completions()
            if len(self._completions) > _CLONES:
                self._completions.popitem(last=False)
        return done


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
        flags: Flags | None = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self.port = port
        self.card = card
        self.model_folder = model_folder
        self.store = store
        self.folders = folders
        self.limits = limits
        self.flags = flags or Flags()
        self.clock = clock
        """The time of day: of records and of what expires."""
        self.credentials = Credentials(clock)
        self.readers = Readers()
        self.copies: OrderedDict[str, tuple[bytes, Promise]] = OrderedDict()
        """By idempotency key."""
        self.ledger = Ledger(store, clock)
        self.shelf = Shelf(store, folders, self.ledger, clock)
        self.meter = Meter(self.ledger, self._session_of, port.tick)
        port.watch(self.meter.watch)
        port.on_stopped(self._engine_stopped)
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
        self._ending: set[str] = set()
        self._models: dict[str, Model] = {}
        self._samplers: dict[str, Sampler] = {}
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep everything going until cancelled."""
        await self._at_leisure(self._mark_left_alive)
        try:
            async with anyio.create_task_group() as self._tasks:
                task_status.started()
                while True:
                    await anyio.sleep(self.limits.housekeeping_s)
                    await self._at_leisure(self._keep_house)
        finally:
            self._tasks = None
            with anyio.CancelScope(shield=True):
                await self._at_leisure(self._end_in_order)

    async def _at_leisure(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
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

    def is_ending(self, session_id: str) -> bool:
        """Whether a session is over and being freed."""
        return session_id in self._ending

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

    def project_of(self, session_id: str) -> str:
        """Return the project of a session, whether it lives or not."""
        row = self.store.sessions.get(session_id)
        return DEFAULT_PROJECT if row is None else row.project

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
        session = Session(await self.record_session(**facts))
        self._sessions[session.id] = session
        return session

    async def record_session(self, **facts: Any) -> SessionRow:
        """Store a session that no client is in."""
        session_id = f"s-{secrets.token_hex(8)}"
        row = SessionRow(session_id=session_id, created_at=self.clock(), **facts)
        await self.store.put_session(row)
        return row

    async def end_session(self, session_id: str, how: str, detail: str | None = None) -> None:
        """End a session: what it holds is freed, its pending promises fail. The first end counts."""
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        reason = f"the session {session_id} is over ({how})"
        self._ending.add(session_id)
        # First: what a lane fails would look like a result that nobody has fetched.
        pending = self.promises.end_session(session_id, reason, keep_unfetched=how != SILENT)
        for model in self.models_of(session_id):
            self.close_model(model, reason)
        for promise in pending:
            self.port.cancel_sample(promise.request_id)
        await self._free_samplers(session_id)
        session.row.ended, session.row.detail = how, detail
        self._ending.discard(session_id)
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
        time = self.clock()
        row = RunRow(
            run_id=f"{session.id}:train:{model_seq_id}",
            session_id=session.id,
            base_model=self.card.name,
            lora=lora,
            created_at=time,
            last_request_at=time,
            user_metadata=metadata,
            live=True,
        )
        lane = Lane(
            limit=self.limits.lane_requests,
            limit_bytes=self.limits.lane_bytes,
            shared=self.waiting,
            in_order=session.in_order,
            on_lost=partial(self._note_lost, row),
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

    async def note_unloaded(self, row: RunRow) -> None:
        """Write down that a run has no model any more, if the disk takes it."""
        row.live = False
        await self._at_leisure(partial(self.store.put_run, row))

    def lose_model(self, model_id: str, reason: str) -> None:
        """Give a live model up: its run is corrupted from now on, and its requests fail.

        Raises:
            Refusal: As in `model`.
        """
        self.model(model_id).lane.lose(reason)

    def _engine_stopped(self) -> None:
        if self._tasks is None:
            return  # after an orderly end: the engine stops as well, and nothing is lost
        for model in self._models.values():
            model.lane.lose("the engine stopped while its model was in it")

    def _note_lost(self, row: RunRow, reason: str) -> None:
        log.error("run_corrupted", training_run_id=row.run_id, reason=reason)
        row.lost = reason
        if row.run_id in self.store.runs:  # else it is lost before it was made
            self.start_soon(self._at_leisure, partial(self.store.put_run, row))

    def add_sampler(self, sampler: Sampler) -> None:
        """Make a sampling session known."""
        self._samplers[sampler.id] = sampler
        self.ledger.sampler(sampler.id, sampler.session_id, sampler.model_path)

    def _session_of(self, request_id: str) -> str | None:
        try:
            return self.promises.get(request_id).session_id
        except Refusal:  # its session ended while its weights were loading
            return None

    # --- housekeeping ---------------------------------------------------------

    async def _keep_house(self) -> None:
        silent_since_s = anyio.current_time() - self.limits.silence_s
        for session in self.live_sessions():
            if session.seen_s < silent_since_s:
                log.warning("session_silent", session_id=session.id)
                await self.end_session(session.id, SILENT)
        for model in list(self._models.values()):
            model.lane.give_up_gap(self.limits.gap_s)
        await self.shelf.sweep()
        await self._write_down()

    async def _mark_left_alive(self) -> None:
        """Call the runs corrupted whose models were in a server that was killed."""
        left = [row for row in self.store.runs.values() if row.live]
        for row in left:
            session = self.store.sessions.get(row.session_id)
            row.live = False
            if session is None or session.ended is None:
                row.lost = row.lost or "the server died while its model was in it"
        if left:
            await self.store.put_runs(left)

    async def _end_in_order(self) -> None:
        rows = [one.row for one in self._models.values() if one.row.run_id in self.store.runs]
        for row in rows:
            row.live = False
        await self._write_down()
        if rows:
            await self.store.put_runs(rows)

    async def _write_down(self) -> None:
        """Write what is only in memory so far."""
        for model in list(self._models.values()):
            if model.touched and model.row.run_id in self.store.runs:
                model.touched = False
                await self.store.put_run(model.row)
        await self.ledger.write()

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


def _ignore(_result: object) -> None:
    return
