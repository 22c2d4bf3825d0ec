"""Going on from a checkpoint: it is loaded into a new run, looked at, and that run is saved.

The rule: a checkpoint that is at fault is followed by the next one; nothing is deleted; and what
a folder's ledger says is true at each moment, so that a crash in between costs a name, no more.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.to_thread

import tinker_async as ta
from tinker_async.cli.recover_look import MADE_BY, Look, Option, Wish
from tinker_async.durable.making import Maker, is_at_fault
from tinker_async.durable.saving import Disk

_PREFIX = "recovered-"
_LONGEST = 128
"""Characters of a name."""


@dataclass(frozen=True)
class Recovered:
    """What came of it."""

    option: Option
    """Where it went on from."""
    run_id: str
    """The new run."""
    path: str
    """Its first checkpoint, which stays."""
    weights_checked: bool
    """Whether a fingerprint was there to compare with."""
    on_record: bool
    """Whether the folder's ledger has it, so that its program goes on from it by itself."""
    python: str
    """The line with which a program goes on."""


def _line(look: Look, path: str, *, on_record: bool) -> str:
    if look.folder is None or not on_record:
        method = "create_training_client_from_state_with_optimizer"
        return f"trainer = await session.{method}({_quoted(path)})"
    run = look.folder.account.run
    options = {} if run is None else run.options
    what = [_quoted(str(look.folder.path)), f"base_model={_quoted(look.plan.base_model)}"]
    what.append(f"rank={look.plan.lora.rank}")
    what += [f"{key}={value!r}" for key, value in options.items() if value is not None]
    return f"async with session.durable_training({', '.join(what)}) as trainer:"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@asynccontextmanager
async def opened(look: Look) -> AsyncGenerator[Disk | None]:
    """Hold the ledger of a folder: no program begins to train there meanwhile.

    Raises:
        LedgerError: One does already, or the folder cannot be written.
    """
    if look.folder is None:
        yield None
        return
    disk = Disk(await anyio.to_thread.run_sync(ta.Ledger, look.folder.path))
    try:
        yield disk
    finally:
        disk.ledger.close()


async def go_on(
    session: ta.Session,
    look: Look,
    wish: Wish,
    *,
    name: str | None,
    disk: Disk | None,
    on_tried: Callable[[Option], None],
) -> Recovered:
    """Load the first checkpoint that can be, and save the new run.

    Args:
        session: Where the new run is made.
        look: Whose `fitting` are tried, in order; those that fail get their `error`.
        wish: Whether the optimizer is restored.
        name: Of the new checkpoint; None makes one of the old one's.
        disk: The ledger of the folder.
        on_tried: Called with each checkpoint after its load.

    Raises:
        RecoveryExhaustedError: None can be loaded.
        TinkerError: The server is at fault, not a checkpoint; or the save failed.
    """
    renewal = session._renewal  # noqa: SLF001  # what makes runs for a durable training makes this
    if renewal is None:
        raise ta.SessionClosedError("the session is not open")
    maker = Maker(renewal, look.plan, restore_optimizer=wish.policy.restore_optimizer)
    began_s = anyio.current_time()
    for option in look.fitting:
        try:
            client = await maker.loaded(option.path)
            if option.entry is not None:
                await maker.check_weights(client, option.entry)
        except ta.TinkerError as error:
            if not is_at_fault(error):
                raise
            option.error = f"{type(error).__name__}: {error.message}"
            on_tried(option)
            continue
        on_tried(option)
        saved = _Saving(look, option, client, disk)
        path = await saved.as_(name or _name_after(option))
        await saved.tell(anyio.current_time() - began_s)
        entry = option.entry
        return Recovered(
            option,
            client.model_id,
            path,
            weights_checked=entry is not None
            and entry.fingerprint is not None
            and "probe" in entry.extra,
            on_record=saved.on_record,
            python=_line(look, path, on_record=saved.on_record),
        )
    raise look.nothing_fits()


def _name_after(option: Option) -> str:
    if option.entry is not None:
        return f"{_PREFIX}step-{option.entry.step}"
    return (_PREFIX + ta.parse_path(option.path).name.removeprefix(_PREFIX))[:_LONGEST]


class _Saving:
    """Saves the new run, and puts it on record where its steps are known."""

    def __init__(
        self, look: Look, option: Option, client: ta.TrainingClient, disk: Disk | None
    ) -> None:
        self._look = look
        self._option = option
        self._client = client
        self._disk = disk
        self.on_record = disk is not None and option.entry is not None

    async def as_(self, name: str) -> str:
        """Save, and return the path."""
        disk, old = self._disk, self._option.entry
        if disk is None or old is None:
            return (await self._client.save_state(name)).path
        ledger = disk.ledger
        entry = await disk.call(
            ledger.begin,
            run_id=self._client.model_id,
            name=name,
            step=old.step,
            epoch=old.epoch,
            generation=ledger.account.generation + 1,
            reason="recover",
            metrics=old.metrics,
            position=old.position,
            random_state=old.random_state,
            operation=old.operation,
            parent=old.number,
            extra=old.extra,
        )
        try:
            path = (await self._client.save_state(name)).path
        except ta.TinkerError as error:
            await disk.call(ledger.fail, entry.number, str(error))
            raise
        await disk.call(ledger.confirm, entry.number, path, fingerprint=old.fingerprint)
        return path

    async def tell(self, seconds: float) -> None:
        """Put the recovery itself on record."""
        disk, old = self._disk, self._option.entry
        if disk is None or old is None:
            return
        record = ta.RecoveryRecord(
            kind="recovery",
            generation=disk.ledger.account.generation,
            from_run=self._look.run_id,
            to_run=self._client.model_id,
            checkpoint=old.number,
            cause=MADE_BY,
            seconds=seconds,
        )
        await disk.call(disk.ledger.recovered, record)
