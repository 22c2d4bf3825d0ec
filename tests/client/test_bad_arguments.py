"""Whatever is given for any argument: a result or an error of the library, and nothing sent for a bad one."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from client.bad_arguments import (
    BAD,
    CLIENTS,
    GIVEN_BY_SERVERS,
    INPUTS,
    Scene,
    Slot,
    function_slots,
    input_slots,
    may_be,
    methods_of,
    slots_of,
)

import tinker_async as ta
from tinker_async import ConfigError, InvalidInputError, RetryPolicy, TinkerError
from tinker_async.testing import FakeService, faults

QUICK = RetryPolicy(max_attempts=2, base_s=0.001)
BY_ITSELF = {"session_heartbeat", "client/dynamic_config", "retrieve_future"}
"""What a session sends whether anybody calls it or not."""
NEEDS_TORCH = {"create_custom_loss", "forward_backward_custom"}
"""Whose good calls would load it."""
ONLY_CHECKED = {"durable_training": "its block is for `tests/durable`"}


def said_wrong(slot: Slot, bad: str, error: BaseException | None, sent: int) -> str | None:
    """What is wrong about what came of a value; None if it is right."""
    what = f"{slot.name} = {bad}"
    if error is None:
        return f"{what}: taken for {slot.annotation}" if slot.refuses(bad) else None
    if not isinstance(error, TinkerError):
        return f"{what}: {type(error).__name__}: {error}"
    if isinstance(error, (InvalidInputError, ConfigError)):
        if sent:
            return f"{what}: {sent} sent, then {error}"
        if isinstance(error, InvalidInputError) and not (error.field and str(error)):
            return f"{what}: refused without a word"
        return None
    return f"{what}: sent, and then {error!r}" if slot.refuses(bad) else None


async def outcome(method: str, made: Any) -> None:
    """Wait for what a call gives."""
    if method in ONLY_CHECKED:
        return
    if inspect.isawaitable(made):
        await made
    elif isinstance(made, AsyncIterator):
        with contextlib.suppress(StopAsyncIteration):
            await anext(made)
    elif isinstance(made, contextlib.AbstractAsyncContextManager):
        async with made as outcomes:
            async for one in outcomes:
                assert one.error is None or isinstance(one.error, TinkerError)


def sent_by_calls(service: FakeService, since: int) -> int:
    entries = service.ledger.entries[since:]
    return sum(one.endpoint not in BY_ITSELF for one in entries)


async def swept(owner: type, method: str, folder: Path) -> list[str]:
    """Call a method with all that is bad, one argument at a time."""
    service = FakeService()
    found: list[str | None] = []
    async with service.session(retry=QUICK) as session:
        scene = Scene(service, session, folder)
        await scene.prepare()
        service.faults.on("archive", faults.Status(404))  # no bytes are fetched here
        client = scene.client(owner)
        name = f"{owner.__name__}.{method}"
        for slot in slots_of(name, getattr(client, method), scene.good(method)):
            for bad, value in BAD.items():
                if method in NEEDS_TORCH and not slot.refuses(bad):
                    continue
                before, error, made = len(service.ledger.entries), None, None
                try:
                    made = slot.call(value)
                    await outcome(method, made)
                except Exception as caught:  # noqa: BLE001  # that is what is looked at
                    error = caught
                found.append(said_wrong(slot, bad, error, sent_by_calls(service, before)))
                if slot.refuses(bad) and isinstance(made, ta.APIFuture):
                    found.append(f"{slot.name} = {bad}: queued, and refused by its future")
    return [one for one in found if one is not None]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("owner", CLIENTS, ids=lambda owner: owner.__name__)
async def test_every_argument_of_every_call_takes_anything(
    owner: type, anyio_backend: str, tmp_path: Path
) -> None:
    """Read from the classes: a new argument that nobody checks fails here."""
    wrong = []
    with anyio.fail_after(60):
        for method in methods_of(owner):
            try:
                wrong += await swept(owner, method, tmp_path)
            except BaseExceptionGroup as failures:  # what nobody awaited, of a call that succeeded
                rest = failures.split(TinkerError)[1]
                wrong += [f"{method}: {rest!r}"] if rest else []
            except TinkerError as failure:
                wrong += [] if failure.operation else [f"{method}: {failure!r}"]

    assert anyio_backend
    assert wrong == [], "\n".join(["", *wrong])


@pytest.mark.parametrize("bad", BAD)
def test_every_field_of_what_users_make_takes_anything(bad: str) -> None:
    """Structs, and functions that need no server."""
    wrong = []
    for slot in (*input_slots(), *function_slots()):
        error: BaseException | None = None
        try:
            slot.call(BAD[bad])
        except Exception as caught:  # noqa: BLE001  # as above
            error = caught
        wrong.append(said_wrong(slot, bad, error, 0))

    left = [one for one in wrong if one is not None]
    assert left == [], "\n".join(["", *left])


def test_a_number_that_no_float_can_be_is_refused() -> None:
    """As one that is none, and not by what Python says of it."""
    with pytest.raises(InvalidInputError) as caught:
        RetryPolicy(window_s=10**400)
    assert "window_s" == caught.value.field


def test_every_struct_is_the_librarys_or_in_the_sweep() -> None:
    """A new one that users make needs a row."""
    public = [getattr(ta, name) for name in ta.__all__]
    structs = {one for one in public if inspect.isclass(one) and hasattr(one, "__struct_fields__")}
    homes = tuple(f"tinker_async.{home}" for home in GIVEN_BY_SERVERS)
    made_by_users = {one for one in structs if not one.__module__.startswith(homes)}
    made_by_users -= {ta.Candidate, ta.SessionSearchResponse}  # the library's, beside users' own

    without_fields = {one for one in made_by_users if not one.__struct_fields__}
    assert made_by_users - without_fields <= {*INPUTS}


def test_the_sweep_is_not_empty() -> None:
    """Nor does it take everything for right."""
    slots = [*input_slots(), *function_slots()]
    assert sum(slot.refuses(bad) for slot in slots for bad in BAD) > 500
    assert {"Session", "TrainingClient"} <= {owner.__name__ for owner in CLIENTS}
    assert "sample" in methods_of(ta.SamplingClient)
    assert may_be("str | None", "None")
    assert not may_be("str | None", "5")
