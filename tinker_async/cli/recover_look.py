"""Looking at a run that is to be recovered: how it is, and what speaks against each checkpoint.

The rule: looking changes nothing, neither on the server nor in a folder; and what is found is
tried in the order in which a durable training would try it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import anyio
import msgspec

import tinker_async as ta
from tinker_async.cli.checkpoint.choosing import listing, look_up, newest_first
from tinker_async.cli.checkpoint.info import weights_of
from tinker_async.cli.recover_folder import Folder
from tinker_async.durable.checkpoint_policy import Mode, metric_value
from tinker_async.durable.making import ModelPlan
from tinker_async.durable.recovery_policy import choose
from tinker_async.durable.validation import Objection, Wanted, objection_to

State: TypeAlias = Literal["corrupted", "healthy", "gone"]

_AT_ONCE = 8
MADE_BY = "tinker-async recover"


@dataclass(frozen=True)
class Wish:
    """What the command line says of how to recover."""

    policy: ta.RecoveryPolicy
    metric: str = "loss"
    mode: Mode = "min"


@dataclass
class Option:
    """A checkpoint that could be gone on from."""

    path: str
    entry: ta.CheckpointEntry | None = None
    """What a ledger has of it."""
    listed: ta.Checkpoint | None = None
    """What the server lists of it, as far as it does."""
    objection: Objection | None = None
    error: str | None = None
    """What its load failed with."""

    @property
    def why_not(self) -> str | None:
        """What speaks against it; None if nothing does."""
        return self.error or (None if self.objection is None else self.objection.message)

    @property
    def time(self) -> datetime | None:
        """When it was saved."""
        if self.listed is not None and self.listed.time is not None:
            return self.listed.time
        began_at = self.entry.began_at if self.entry is not None else 0.0
        return datetime.fromtimestamp(began_at, UTC) if began_at else None


@dataclass
class Look:
    """What was found."""

    run_id: str
    run: ta.TrainingRun | None
    """As the server has it; None if it does not know it any more."""
    folder: Folder | None
    plan: ModelPlan
    options: list[Option] = field(default_factory=list)
    """In the order in which they are tried."""

    @property
    def state(self) -> State:
        """How the run is."""
        if self.run is None:
            return "gone"
        return "corrupted" if self.run.corrupted else "healthy"

    @property
    def fitting(self) -> list[Option]:
        """Those that nothing speaks against, in the order in which they are tried."""
        return [one for one in self.options if one.why_not is None]

    @property
    def newest_first(self) -> list[Option]:
        """All, for people."""
        never = datetime.min.replace(tzinfo=UTC)

        def place(one: Option) -> tuple[int, datetime]:
            return (0 if one.entry is None else one.entry.number, one.time or never)

        return sorted(self.options, key=place, reverse=True)

    def nothing_fits(self) -> ta.RecoveryExhaustedError:
        """Make the error for that: with a line for each checkpoint."""
        lines = tuple(f"{one.path}: {one.why_not}" for one in self.options)
        tried = sum(one.error is not None for one in self.options)
        which = (
            "its only checkpoint" if len(lines) == 1 else f"none of its {len(lines)} checkpoints"
        )
        why = f"{which} can{'not' if len(lines) == 1 else ''} be used"
        return ta.RecoveryExhaustedError(
            f"run {self.run_id} cannot be recovered: "
            + (why if lines else "it has no training checkpoint"),
            run_id=self.run_id,
            attempts=tried,
            history=lines,
            hint="nothing was deleted; --checkpoint PATH takes one of another run of the same model",
        )


async def look_at(
    rest: ta.RestClient,
    run: str,
    folder: Folder | None,
    wish: Wish,
    *,
    on_checked: Callable[[Option, int], None],
) -> Look:
    """Find out how a run is, and check its checkpoints as they are before a load.

    Args:
        rest: What asks.
        run: Its id, or the folder.
        folder: What is on record there.
        wish: Which is to be tried first.
        on_checked: Called with each option as it is checked, and how many there are.

    Raises:
        NotFoundError: There is no such run.
        RecoveryExhaustedError: A folder has no checkpoint on record.
        InvalidInputError: There is nothing to tell the best by.
        TinkerError: The server cannot be asked.
    """
    look = await (_of_run(rest, run, wish) if folder is None else _of_folder(rest, folder, wish))
    wanted = Wanted(
        base_model=look.plan.base_model,
        rank=look.plan.lora.rank,
        optimizer=_family(look.plan) if wish.policy.restore_optimizer else None,
    )
    limiter = anyio.CapacityLimiter(_AT_ONCE)

    async def check(option: Option) -> None:
        async with limiter:
            option.objection = await objection_to(
                option.path,
                wanted,
                caller=rest._caller,  # noqa: SLF001  # as the durable client asks
                now=datetime.now(UTC),
                listed=option.listed,
            )
        on_checked(option, len(look.options))

    async with anyio.create_task_group() as tasks:
        for option in look.options:
            tasks.start_soon(check, option)
    return look


def _family(plan: ModelPlan) -> str:
    settings: Any = plan.optimizer or {}
    return str(settings.get("type", "adamw"))


# A run by its id


async def _of_run(rest: ta.RestClient, run_id: str, wish: Wish) -> Look:
    policy = wish.policy
    if policy.strategy == "best":
        raise ta.InvalidInputError(
            "strategy: servers keep no metrics, so nothing tells the best checkpoint of a run",
            field="strategy",
            hint="give the folder of a durable training, or --checkpoint PATH",
        )
    run = await rest.get_training_run(run_id)
    listed = [*(await listing(rest, run_id)).values()]
    if not listed and run.last_checkpoint is not None:  # a server without such listings
        listed = [run.last_checkpoint]
    options = [
        Option(one.tinker_path, listed=one)
        for one in newest_first(listed)
        if one.checkpoint_type == "training"
    ]
    weights = await _weights(rest, options)
    if policy.specific_path is not None:
        options = _with_first(policy.specific_path, options)
    rank = run.lora_rank or (weights and weights.lora_rank) or ta.LoraConfig().rank
    plan = ModelPlan(
        base_model=run.base_model,
        lora=ta.LoraConfig(rank=rank),
        optimizer=weights.optimizer_config if weights is not None else None,
        metadata=_metadata(run_id, run),
    )
    return Look(run_id, run, None, plan, options)


async def _weights(rest: ta.RestClient, options: Sequence[Option]) -> ta.WeightsInfoResponse | None:
    """Return what the run trains: of the newest checkpoint that the server describes."""
    for option in options:
        found = await weights_of(rest, option.path)
        if found is not None:
            return found
    return None


def _with_first(path: str, options: list[Option]) -> list[Option]:
    known = next((one for one in options if one.path == path), Option(path))
    return [known, *(one for one in options if one is not known)]


def _metadata(run_id: str, run: ta.TrainingRun | None) -> dict[str, str]:
    """What is said of the new run: what was said of the old one, and where it is from."""
    old = None if run is None else run.user_metadata
    return {**(old or {}), "created_by": MADE_BY, "recovered_from": run_id}


# A folder


async def _of_folder(rest: ta.RestClient, folder: Folder, wish: Wish) -> Look:
    account, run_id = folder.account, folder.run_id
    if account.run is None or run_id is None:
        raise ta.RecoveryExhaustedError(
            f"there is nothing to recover in {folder.path}: no checkpoint is on record",
            run_id=run_id or "",
            attempts=0,
            history=(),
            hint="start the program again: it begins anew",
        )
    entries, listed = await _joined(rest, account)
    _check_metric(entries, wish)
    candidates = choose(entries, wish.policy, metric=wish.metric, mode=wish.mode)
    run = await _known(rest, run_id)
    plan = ModelPlan(
        base_model=account.run.base_model,
        lora=ta.LoraConfig(rank=account.run.rank, seed=account.run.seed),
        optimizer=account.run.options.get("optimizer"),
        metadata=_metadata(run_id, run),
    )
    options = [Option(one.path, one.entry, listed.get(one.path)) for one in candidates]
    return Look(run_id, run, folder, plan, options)


async def _known(rest: ta.RestClient, run_id: str) -> ta.TrainingRun | None:
    try:
        return await rest.get_training_run(run_id)
    except (ta.NotFoundError, ta.GoneError):
        return None


async def _joined(
    rest: ta.RestClient, account: ta.Account
) -> tuple[list[ta.CheckpointEntry], dict[str, ta.Checkpoint]]:
    """Return the ledger's checkpoints, and what the server lists of them, by path.

    A save whose end the program did not live to see counts if the server has it.
    """
    paths = {
        one.number: one.path or str(ta.CheckpointPath(one.run_id, "weights", one.name))
        for one in account.entries
        if one.status in ("confirmed", "pending")
    }
    listed = {
        one.path: one.found for one in await look_up(rest, paths.values()) if one.found is not None
    }
    entries = []
    for entry in account.entries:
        path = paths.get(entry.number)
        if entry.status == "pending" and path in listed:
            entries.append(msgspec.structs.replace(entry, status="confirmed", path=path))
        else:
            entries.append(entry)
    return entries, listed


def _check_metric(entries: Sequence[ta.CheckpointEntry], wish: Wish) -> None:
    there = [one for one in entries if one.is_confirmed]
    rated = any(metric_value(one.metrics, wish.metric) is not None for one in there)
    if wish.policy.strategy != "best" or rated:
        return
    recorded = sorted({name for one in there for name in one.metrics})
    raise ta.InvalidInputError(
        f"metric: no checkpoint has the metric {wish.metric!r}",
        field="metric",
        hint=f"--metric takes {', '.join(recorded)}" if recorded else "none has any metric",
    )
