"""The runs on the server that one durable training has, one after the other: made, loaded, retired.

The rule: everything here asks the session that is open at this moment, so that a renewed one is
used as soon as it is there; what is raised says whether the checkpoint or the server is at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from tinker_async.api.progress import DEFAULT
from tinker_async.data.optimizers import OptimizerConfig, family_of
from tinker_async.data.params import LoraConfig
from tinker_async.durable.records import CheckpointEntry
from tinker_async.durable.validation import (
    Probe,
    Wanted,
    fingerprint,
    objection_to,
    weights_objection,
)
from tinker_async.errors import (
    APIStatusError,
    GoneError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    RateLimitError,
    SessionClosedError,
    SupersededError,
    TransportError,
)
from tinker_async.parts import Parts
from tinker_async.renewal import Renewal
from tinker_async.rest import RestClient
from tinker_async.trainers import FromState
from tinker_async.training import TrainingClient

_NOT_ITS_FAULT = (SessionClosedError, TransportError, OverloadedError, RateLimitError)


class ModelPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a durable training's model is, whichever run on the server holds it."""

    base_model: str
    lora: LoraConfig
    """With the seed that the run began with."""
    optimizer: OptimizerConfig | None = None
    metadata: dict[str, str] | None = None


class Maker:
    """Makes the training clients of one durable training.

    Args:
        renewal: Of the session.
        plan: What the model is.
        restore_optimizer: Whether a checkpoint's optimizer state is loaded too.
    """

    def __init__(self, renewal: Renewal, plan: ModelPlan, *, restore_optimizer: bool) -> None:
        self._renewal = renewal
        self._plan = plan
        self._restore_optimizer = restore_optimizer

    @property
    def parts(self) -> Parts:
        """What the session consists of at this moment.

        Raises:
            SessionLostError: It was lost just now.
        """
        parts = self._renewal.parts
        if parts is None:
            raise SessionClosedError("the session is not open")
        parts.check_open()
        return parts

    @property
    def rest(self) -> RestClient:
        """Of the session, whichever that is."""
        parts = self._renewal.parts
        if parts is None:
            raise SessionClosedError("the session is not open")
        return RestClient(parts.caller)

    async def anew(self) -> TrainingClient:
        """Make the model as it was at the very beginning."""
        plan = self._plan
        return await self.parts.trainers.create(
            plan.base_model,
            plan.lora,
            plan.metadata,
            optimizer=plan.optimizer,
            timeout=DEFAULT,
            retry=None,
        )

    async def loaded(self, path: str) -> TrainingClient:
        """Make a model from a checkpoint, after a look at what the server says of it.

        Raises:
            InvalidInputError: It is not to be loaded.
            TinkerError: Loading failed; see `is_at_fault`.
        """
        plan = self._plan
        wanted = Wanted(
            base_model=plan.base_model,
            rank=plan.lora.rank,
            optimizer=family_of(plan.optimizer) if self._restore_optimizer else None,
        )
        objection = await objection_to(
            path, wanted, caller=self.parts.caller, now=datetime.now(UTC)
        )
        if objection is not None:
            raise InvalidInputError(str(objection), field="checkpoint")
        return await self.parts.trainers.create_from_state(
            FromState(
                path=path,
                with_optimizer=self._restore_optimizer,
                metadata=plan.metadata,
                optimizer=None if self._restore_optimizer else plan.optimizer,
            ),
            timeout=DEFAULT,
            retry=None,
        )

    async def check_weights(self, client: TrainingClient, entry: CheckpointEntry) -> None:
        """Compare what was loaded with what was saved, where that is on record.

        Raises:
            InvalidInputError: These are other weights.
        """
        raw = entry.extra.get("probe")
        if raw is None or entry.fingerprint is None:
            return
        probe = msgspec.convert(raw, Probe)
        found = fingerprint(await probe.ask(client))
        objection = weights_objection(entry.path or entry.name, entry.fingerprint, found)
        if objection is not None:
            raise InvalidInputError(str(objection), field="checkpoint")

    def retire(
        self, client: TrainingClient, reason: SupersededError, on_refused: Callable[[str], None]
    ) -> None:
        """Let a client go whose run was replaced: all that it is asked from now on raises.

        Args:
            client: It.
            reason: What it raises.
            on_refused: Called with the name of each operation that it is asked for.
        """
        lane = client._lane  # noqa: SLF001  # the seam for this
        lane.close(reason, on_refused)
        parts = self._renewal.parts
        if parts is not None:
            parts.trainers.lanes.pop(lane.model_id, None)

    async def path_of(self, entry: CheckpointEntry) -> str | None:
        """Look up a checkpoint whose save has no known end; None where it is not there."""
        try:
            async for one in self.rest.list_checkpoints(entry.run_id):
                if one.checkpoint_type == "training" and one.tinker_path.endswith(f"/{entry.name}"):
                    return one.tinker_path
        except (NotFoundError, GoneError):
            pass
        return None

    async def published(self, run_ids: set[str]) -> set[str]:
        """Return the paths of the runs' checkpoints that others may use."""
        found: set[str] = set()
        for run_id in sorted(run_ids):
            try:
                async for one in self.rest.list_checkpoints(run_id):
                    if one.public:
                        found.add(one.tinker_path)
            except (NotFoundError, GoneError):
                continue
        return found

    async def delete(self, path: str) -> None:
        """Delete a checkpoint; one that is not there is deleted."""
        try:
            await self.rest.delete_checkpoint_from_tinker_path(path)
        except (NotFoundError, GoneError):
            return


def is_at_fault(error: BaseException) -> bool:
    """Whether a failed load speaks against the checkpoint, so that another is tried."""
    if isinstance(error, APIStatusError) and error.status in (401, 402, 403):
        return False
    return not isinstance(error, _NOT_ITS_FAULT) and not getattr(error, "delivery_in_doubt", False)


def described(optimizer: OptimizerConfig | None) -> Any:
    """Return an optimizer's settings as JSON, for the record."""
    return None if optimizer is None else msgspec.to_builtins(optimizer)
