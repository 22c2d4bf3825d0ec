"""What the fake server knows: sessions, models with their lanes, samplers, checkpoints.

The rule: every change is made in a plain function, at once. Operations are carried out
when their turn comes by number; only seeing the result may take time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import anyio
import msgspec

from tinker_async.data.params import LoraConfig
from tinker_async.data.paths import KINDS, CheckpointPath
from tinker_async.data.records import Checkpoint, TrainingRun
from tinker_async.errors import InvalidInputError
from tinker_async.loss_graphs import GraphLoss
from tinker_async.testing.account import PROJECT, Account
from tinker_async.testing.answers import Refusal
from tinker_async.testing.completions import Completions
from tinker_async.testing.faults import Corrupts, Fault, OperationFails
from tinker_async.testing.ledger import Executed, Ledger
from tinker_async.testing.likeness import Archives
from tinker_async.testing.promises import Kind, Promise, PromiseBook
from tinker_async.testing.tokens import TokenBook
from tinker_async.testing.toy_model import ToyModel, ToyState, ToyWeights
from tinker_async.wire.messages import ClientConfigResponse, DynamicConfigResponse, FailedResponse

_START = datetime(2026, 1, 1, tzinfo=UTC)


MakeId: TypeAlias = Callable[[str, str, str, int], str]


def usual_id(_kind: str, usual: str, _session: str, _number: int) -> str:
    """Return the fake's own id."""
    return usual


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a fake server behaves; see `FakeService`."""

    seed: int
    base_models: tuple[str, ...]
    hold_s: float
    sample_s: float
    train_s: float
    silence_s: float
    api_key: str | None
    config: ClientConfigResponse
    inline_bytes: int | None
    token_lifetime_s: float | None
    archives: Archives = "signed"
    make_id: MakeId = usual_id
    """From kind, the usual id, session and number to an id."""


class SessionRecord:
    """A session, and what it has made by number."""

    def __init__(
        self, session_id: str, metadata: dict[str, Any] | None, created_at: datetime
    ) -> None:
        self.id = session_id
        self.metadata = metadata
        self.created_at = created_at
        self.project_id = PROJECT
        self.display_name: str | None = None
        self.trace_asked = 0
        """How often its trace was asked for."""
        self.detail: str | None = None
        """What its client said of the end."""
        self.seen_s = anyio.current_time()
        self.ended: str | None = None
        """How it ended, or None while it lives."""
        self.models: dict[int, tuple[bytes, Promise]] = {}
        self.samplers: dict[int, tuple[bytes, str]] = {}
        self.losses: dict[int, tuple[bytes, Promise]] = {}
        """Custom losses, as `models`."""
        self.graphs: dict[str, GraphLoss] = {}
        """Custom losses that are made, by id."""


class Run:
    """A training run as listings show it; it outlives its model."""

    def __init__(self, run_id: str, base_model: str, lora: LoraConfig, time: datetime) -> None:
        self.id = run_id
        self.base_model = base_model
        self.lora = lora
        self.last_request_time = time
        self.metadata: dict[str, Any] | None = None
        self.project_id: str | None = None
        """Of a copy; other runs are where their session is."""
        self.optimizer: dict[str, Any] = {"type": "adamw"}
        self.corrupted = False


class CheckpointRecord:
    """A checkpoint."""

    def __init__(self, path: CheckpointPath, run: Run, state: ToyState, time: datetime) -> None:
        self.path = path
        self.run = run
        self.state = state
        self.time = time
        self.public = False
        self.expires_at: datetime | None = None
        self.metadata: dict[str, str] | None = None

    def view(self) -> Checkpoint:
        """Return what listings show."""
        copies = 3 if self.path.kind == "weights" else 1
        return Checkpoint(
            checkpoint_id=self.path.checkpoint_id,
            checkpoint_type=KINDS[self.path.kind],
            time=self.time,
            tinker_path=str(self.path),
            size_bytes=64 + copies * self.state.weights.size_bytes,
            public=self.public,
            expires_at=self.expires_at,
            user_metadata=self.metadata,
        )


class Sampler:
    """A sampling session: weights that stay."""

    def __init__(
        self, sampler_id: str, session_id: str, weights: ToyWeights, model_path: str | None
    ) -> None:
        self.id = sampler_id
        self.session_id = session_id
        self.weights = weights
        self.model_path = model_path
        self.numbers: dict[int, tuple[bytes, Promise]] = {}
        self.clients = 0
        self.unnumbered = 0
        self.completions: dict[int, Completions] = {}
        """What is done, by client."""

    def completions_of(self, client: int) -> Completions:
        """Return what is done of one client's samples."""
        return self.completions.setdefault(client, Completions())


class _Waiting(msgspec.Struct, frozen=True, eq=False):
    name: str
    seq_id: int | None
    promise: Promise
    operation: Callable[[], Any]
    fault: Fault | None


class Model:
    """A model and its lane: operations run by number, early ones wait for their turn."""

    def __init__(self, session_id: str, run: Run, toy: ToyModel) -> None:
        self.id = run.id
        self.session_id = session_id
        self.run = run
        self.toy = toy
        self.next_seq_id = 1
        self.free_s = 0.0
        """When the last operation is through."""
        self.known: dict[int, tuple[bytes, Promise]] = {}
        self.held: dict[int, _Waiting] = {}
        self.inflight: list[Sampler] = []
        """Samplers that share this model's newest published weights."""


class State:
    """Everything behind the endpoints."""

    def __init__(self, settings: Settings, ledger: Ledger, switches: DynamicConfigResponse) -> None:
        self.settings = settings
        self.ledger = ledger
        self.promises = PromiseBook(settings.make_id)
        self.switches = switches
        """What `client/dynamic_config` answers."""
        self.tokens = TokenBook()
        self.revoked_keys: set[bytes] = set()
        """Keys that were ended by a request."""
        self.sessions: dict[str, SessionRecord] = {}
        self.models: dict[str, Model] = {}
        self.samplers: dict[str, Sampler] = {}
        self.runs: dict[str, Run] = {}
        self.checkpoints: dict[str, CheckpointRecord] = {}
        self.pause: tuple[str, str | None] | None = None
        """Queue state and reason while nothing finishes."""
        self._time = 0
        self.account = Account(self.time)

    def time(self) -> datetime:
        """Return a time of day for listings: it grows, and is the same in every run."""
        self._time += 1
        return _START + timedelta(seconds=self._time)

    # Looking up

    def project_of(self, session_id: str) -> str:
        """Return the project that a session is in."""
        session = self.sessions.get(session_id)
        return session.project_id if session is not None else PROJECT

    def project_of_run(self, run: Run) -> str:
        """Return the project that a run is in."""
        return run.project_id or self.project_of(run.id.partition(":")[0])

    def session(self, session_id: str) -> SessionRecord:
        """Return a live session and note that its client lives.

        Raises:
            Refusal: 410 when it is over, 404 when it never was.
        """
        session = self.sessions.get(session_id)
        if session is None:
            raise Refusal(404, f"no session {session_id!r}")
        now = anyio.current_time()
        if session.ended is None and now - session.seen_s > self.settings.silence_s:
            self.end_session(session, "no heartbeat")
        if session.ended is not None:
            raise Refusal(410, f"the session {session_id} is over ({session.ended})")
        session.seen_s = now
        return session

    def promise(self, request_id: str) -> Promise:
        """Return a promise.

        Raises:
            Refusal: 410 when it is lost or its session is over, 404 when it never was.
        """
        promise = self.promises.get(request_id)
        ended = self.sessions[promise.session_id].ended
        if ended is not None:
            raise Refusal(410, f"the session {promise.session_id} is over ({ended})")
        return promise

    def model(self, model_id: str) -> Model:
        """Return a live model.

        Raises:
            Refusal: 410 when it was here, 404 when it never was.
        """
        model = self.models.get(model_id)
        if model is None:
            known = model_id in self.runs
            raise Refusal(410 if known else 404, f"no model {model_id!r} (any more)")
        self.session(model.session_id)
        return model

    def sampler(self, sampler_id: str) -> Sampler:
        """Return a live sampling session.

        Raises:
            Refusal: 410 when its session is over, 404 when it never was.
        """
        sampler = self.samplers.get(sampler_id)
        if sampler is None:
            known = sampler_id.partition(":")[0] in self.sessions
            raise Refusal(410 if known else 404, f"no sampling session {sampler_id!r} (any more)")
        self.session(sampler.session_id)
        return sampler

    def checkpoint(self, path: str) -> CheckpointRecord:
        """Return a checkpoint.

        Raises:
            Refusal: 404, there is none.
        """
        found = self.checkpoints.get(path)
        if found is None:
            raise Refusal(404, f"no checkpoint {path!r}")
        return found

    # Coming and going

    def open_session(self, metadata: dict[str, Any] | None) -> SessionRecord:
        """Make a session."""
        number = len(self.sessions) + 1
        session_id = self.settings.make_id("session", f"s{number}", "", number)
        session = SessionRecord(session_id, metadata, self.time())
        self.sessions[session.id] = session
        return session

    def end_session(self, session: SessionRecord, how: str) -> None:
        """End a session and what it has made. The first end counts."""
        if session.ended is not None:
            return
        session.ended = how
        self.promises.wake_all()
        for model in [one for one in self.models.values() if one.session_id == session.id]:
            del self.models[model.id]
        for sampler in [one for one in self.samplers.values() if one.session_id == session.id]:
            del self.samplers[sampler.id]
            for completions in sampler.completions.values():
                completions.wake()

    def open_model(
        self, session: SessionRecord, number: int, base_model: str, lora: LoraConfig
    ) -> Model:
        """Make a model on a base model."""
        usual = f"{session.id}:train:{number}"
        run_id = self.settings.make_id("model", usual, session.id, number)
        run = Run(run_id, base_model, lora, self.time())
        self.runs[run.id] = run
        model = Model(session.id, run, ToyModel(ToyWeights(base_model, {})))
        self.models[model.id] = model
        return model

    def save(self, model: Model, kind: str, name: str, *, overwrite: bool) -> CheckpointRecord:
        """Make a checkpoint of a model as it is now.

        Raises:
            InvalidInputError: There is one of this name.
        """
        path = CheckpointPath(model.id, kind, name)
        if str(path) in self.checkpoints and not overwrite:
            raise InvalidInputError(f"{path} exists already", field="path")
        record = CheckpointRecord(path, model.run, model.toy.state(), self.time())
        self.checkpoints.pop(str(path), None)
        self.checkpoints[str(path)] = record
        self.account.note_use(model.session_id, model.run.base_model, "checkpoint", 1)
        self.account.note_event("checkpoint_create", tinker_path=str(path))
        return record

    def restart(self) -> None:
        """Forget all but checkpoints and runs, as a server that was killed and started again."""
        self.promises.lose_all()
        self.models.clear()
        self.samplers.clear()
        for session in self.sessions.values():
            session.ended = session.ended or "the server was restarted"

    # Operations

    def enqueue(
        self,
        model: Model,
        name: str,
        seq_id: int | None,
        digest: bytes,
        operation: Callable[[], Any],
        *,
        fault: Fault | None,
        kind: Kind = "json",
    ) -> Promise:
        """Put an operation into a model's lane, or return the promise it got the first time.

        Raises:
            Refusal: 409 the number was used for something else, 422 it is below 1.
        """
        if seq_id is not None:
            if seq_id < 1:
                raise Refusal(422, f"seq_id must be at least 1, got {seq_id}")
            known = model.known.get(seq_id)
            if known is not None:
                if known[0] != digest:
                    raise Refusal(409, f"seq_id {seq_id} was used for another request")
                return known[1]
        promise = self.promises.make(kind, model.session_id, model.id)
        model.run.last_request_time = self.time()
        waiting = _Waiting(name, seq_id, promise, operation, fault)
        if seq_id is None:
            self._carry_out(model, waiting)
            return promise
        model.known[seq_id] = (digest, promise)
        model.held[seq_id] = waiting
        while (ready := model.held.pop(model.next_seq_id, None)) is not None:
            model.next_seq_id += 1
            self._carry_out(model, ready)
        return promise

    def _carry_out(self, model: Model, waiting: _Waiting) -> None:
        if isinstance(waiting.fault, Corrupts):
            model.run.corrupted = True
        outcome: Any
        if model.run.corrupted:
            outcome = FailedResponse(error=f"the run {model.id} is corrupted", category="server")
        elif isinstance(waiting.fault, OperationFails):
            outcome = FailedResponse(error=waiting.fault.error, category=waiting.fault.category)
        else:
            try:
                outcome = waiting.operation()
            except InvalidInputError as error:
                outcome = FailedResponse(error=str(error), category="user")
        failed = isinstance(outcome, FailedResponse)
        self.ledger.executed.append(Executed(model.id, waiting.seq_id, waiting.name, failed))
        model.free_s = max(model.free_s, anyio.current_time()) + self.settings.train_s
        waiting.promise.settle(outcome, due_s=model.free_s)

    # Listings

    def view_run(self, run: Run) -> TrainingRun:
        """Return what listings show of a run."""
        newest = {
            record.path.kind: record.view()
            for record in self.checkpoints.values()
            if record.run is run
        }
        metadata = run.metadata
        return TrainingRun(
            training_run_id=run.id,
            base_model=run.base_model,
            model_owner="fake",
            is_lora=True,
            corrupted=run.corrupted,
            lora_rank=run.lora.rank,
            last_request_time=run.last_request_time,
            last_checkpoint=newest.get("weights"),
            last_sampler_checkpoint=newest.get("sampler_weights"),
            user_metadata=metadata and {key: str(value) for key, value in metadata.items()},
        )
