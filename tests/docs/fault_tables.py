"""The tables of the page about faults, from the expectations that the fault matrix is tested by."""

from __future__ import annotations

import re

from faults.cells import cells_of
from faults.reasons import CASES, Case, Expected, Kind, Stage, expected, understood
from faults.rest_calls import ALL_CALLS

COLUMNS: dict[str, Stage] = {
    "A question, a creation, a sample": Stage("asample", "draw"),
    "An operation of a model": Stage("forward_backward", "lane"),
    "A named save": Stage("save_weights", "save"),
    "Waiting for an operation": Stage("retrieve_future", "poll", protobuf=True),
    "Waiting for a sample": Stage("retrieve_future", "poll", protobuf=True, of="draw"),
}
KINDS: dict[Kind, str] = {
    "ask": "a question",
    "make": "a creation",
    "delete": "a deletion",
    "lane": "an operation of a model",
    "save": "a named save",
    "draw": "a sample",
    "file": "a file that others may have",
    "poll": "waiting",
    "told": "one request for all samples",
}


def parts() -> dict[str, str]:
    """Return the generated parts of the page."""
    return {"calls": _calls(), "faults": _faults(), "cells": _cells()}


def _calls() -> str:
    rows: dict[str, list[str]] = {}
    for call in ALL_CALLS:
        kinds = dict.fromkeys(stage.kind for stage in call.stages if stage.kind != "quiet")
        sends = ", then ".join(KINDS[kind] for kind in kinds)
        names = rows.setdefault(sends, [])
        if f"`{call.name}`" not in names:
            names.append(f"`{call.name}`")
    lines = [f"| {', '.join(names)} | {sends} |" for sends, names in rows.items()]
    return "| Calls | What they send |\n|---|---|\n" + "\n".join(lines) + "\n"


def _faults() -> str:
    rows: dict[tuple[str, ...], list[str]] = {}
    for case in CASES:
        outcome = tuple(_outcome(stage, case) for stage in COLUMNS.values())
        names = rows.setdefault(outcome, [])
        name = f"`{_name(case)}`"
        if name not in names:
            names.append(name)
    head = f"| Fault | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}\n"
    return head + "".join(
        f"| {', '.join(names)} | {' | '.join(outcome)} |\n" for outcome, names in rows.items()
    )


def _name(case: Case) -> str:
    """Forms that come to the same, as one."""
    return re.sub(r"^(TooMany|Reset)\(.*", r"\1", str(case)).replace("{'retry-after': '2'}", "...")


def _outcome(stage: Stage, case: Case) -> str:
    if not case.fault.fits(stage.endpoint):
        return ""
    once, always = (expected(stage, case, always=always) for always in (False, True))
    if once.held or always.held:
        return "waited for"
    if once.error is None and always.error is None:
        if case.error is None or understood(stage, case):
            return "as usual"
        return "again; then looked up" if case.repeated else "looked up"
    if once.error is None:
        way = "drawn again" if once.effects == 2 else "again"
        return f"{way}; then {_failure(always)}"
    return _failure(once)


def _failure(found: Expected) -> str:
    name = "" if found.error is None else f"`{found.error.__name__}`"
    after = {"gone": ", session over", "fails": ", later ones too", "works": ""}[found.again]
    return name + (", poisoned" if found.poisoned else after)


def _cells() -> str:
    cells = sum(len(cells_of(call, CASES)) for call in ALL_CALLS)
    return (
        f"{len(ALL_CALLS)} calls (some in several ways) and {len(CASES)} faults, in each request of a "
        f"call, once and always: {cells:,} cells, each on asyncio and on trio. `make fuzz` runs them all; in "
        "`make test`, calls whose requests are sent by the same code as an earlier one's meet one fault "
        "of each group, and on trio meet it once.\n"
    )
