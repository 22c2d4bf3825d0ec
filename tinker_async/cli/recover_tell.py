"""What `tinker-async recover` says: what was found, what became of it, and why not more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import tinker_async as ta
from tinker_async.cli.exits import one_line
from tinker_async.cli.output import Column, Output
from tinker_async.cli.quantities import age, amount
from tinker_async.cli.recover_load import Recovered
from tinker_async.cli.recover_look import Look, Option

Outcome: TypeAlias = Literal["recovered", "would recover", "refused", "failed"]

_STATUS = {"corrupted": "CORRUPTED", "healthy": "ok", "gone": "gone: the server does not know it"}
_RUN = (
    Column("Run", lambda look: look.run_id),
    Column("Folder", lambda look: look.folder and look.folder.path),
    Column("Status", lambda look: _STATUS[look.state]),
    Column("Base model", lambda look: look.plan.base_model),
    Column("Last request", lambda look: look.run and age(look.run.last_request_time)),
)
_RESULT = (
    Column("Recovered from", lambda found: found.option.path),
    Column("Step", lambda found: found.option.entry and found.option.entry.step),
    Column("Weights", lambda found: "as at the save" if found.weights_checked else None),
    Column("New run", lambda found: found.run_id),
    Column("Checkpoint", lambda found: found.path),
    Column("Go on with", lambda found: found.python),
)


def _columns(look: Look) -> tuple[Column, ...]:
    steps: tuple[Column, ...] = ()
    if look.folder is not None:
        steps = (
            Column("Step", lambda one: one.entry and one.entry.step, right=True),
            Column("Metrics", lambda one: one.entry and one.entry.metrics),
        )
    return (
        Column("Checkpoint", lambda one: one.path),
        *steps,
        Column("Saved", lambda one: age(one.time)),
        Column("Size", lambda one: amount(one.listed and one.listed.size_bytes), right=True),
        Column("Verdict", _verdict(look)),
    )


def _verdict(look: Look) -> Callable[[Option], str]:
    fitting = look.fitting

    def verdict(one: Option) -> str:
        if one.why_not is not None:
            return one.why_not
        return "first choice" if one is fitting[0] else "fits"

    return verdict


class Report:
    """Tells of one recovery.

    Args:
        look: What was found.
        out: Where to.
        with_optimizer: Whether the optimizer is restored.
    """

    def __init__(self, look: Look, out: Output, *, with_optimizer: bool) -> None:
        self._look = look
        self._out = out
        self._with_optimizer = with_optimizer

    def found(self) -> None:
        """Show a run and its checkpoints to people; programs get all of it at the end."""
        if self._out.as_json:
            return
        look = self._look
        self._out.record(look, _RUN)
        self._out.table(look.newest_first, _columns(look), empty="no training checkpoints")

    def end(
        self,
        outcome: Outcome,
        *,
        result: Recovered | None = None,
        error: ta.TinkerError | None = None,
    ) -> None:
        """Say what became of it, and on stderr why checkpoints were not taken."""
        out, look = self._out, self._look
        for one in look.options:
            why_not = one.why_not if outcome == "failed" else one.error
            if why_not is not None:
                out.note(one_line(f"not taken: {one.path}: {why_not}"))
        if out.as_json:
            out.document(self._document(outcome, result, error))
        elif result is not None:
            out.record(result, _RESULT)

    def _document(
        self, outcome: Outcome, result: Recovered | None, error: ta.TinkerError | None
    ) -> dict[str, Any]:
        look = self._look
        chosen = result.option if result is not None else next(iter(look.fitting), None)
        return {
            **_described(look),
            "checkpoints": [_as_json(one) for one in look.newest_first],
            "with_optimizer": self._with_optimizer,
            "chosen": chosen and chosen.path,
            "outcome": outcome,
            "error": error and {"type": type(error).__name__, "message": error.message},
            **_result(result),
        }


def _described(look: Look) -> dict[str, Any]:
    folder = look.folder
    return {
        "training_run_id": look.run_id,
        "folder": None if folder is None else str(folder.path),
        "in_use": folder is not None and folder.in_use,
        "state": look.state,
        "base_model": look.plan.base_model,
        "lora_rank": look.plan.lora.rank,
        "last_request_time": look.run and look.run.last_request_time,
    }


def _as_json(one: Option) -> dict[str, Any]:
    entry, listed, objection = one.entry, one.listed, one.objection
    return {
        "tinker_path": one.path,
        "step": entry and entry.step,
        "metrics": entry and entry.metrics,
        "time": one.time,
        "size_bytes": listed and listed.size_bytes,
        "expires_at": listed and listed.expires_at,
        "objection": objection and {"fault": objection.fault, "message": objection.message},
        "error": one.error,
    }


def _result(found: Recovered | None) -> dict[str, Any]:
    return {
        "new_training_run_id": found and found.run_id,
        "tinker_path": found and found.path,
        "weights_checked": found and found.weights_checked,
        "on_record": found and found.on_record,
        "python": found and found.python,
    }
