"""The fair budget."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel

from tinker_async.background.limits import Budget


@asynccontextmanager
async def held(budget: Budget, amount: int = 1) -> AsyncGenerator[None]:
    await budget.acquire(amount)
    try:
        yield
    finally:
        budget.release(amount)


async def test_waiters_are_served_in_order_and_never_beyond_the_limit() -> None:
    """A large request at the head is not overtaken by small ones behind it."""
    budget = Budget(10)
    order: list[str] = []

    async def take(name: str, amount: int) -> None:
        async with held(budget, amount):
            order.append(name)
            await anyio.wait_all_tasks_blocked()
            assert budget.statistics().in_use <= 10

    with anyio.fail_after(5):
        await budget.acquire(6)
        async with anyio.create_task_group() as group:
            for name, amount in (("large", 10), ("small", 1), ("tiny", 1)):
                group.start_soon(take, name, amount)
                await anyio.wait_all_tasks_blocked()
            assert budget.statistics().waiting == 3
            budget.release(6)

    assert order[0] == "large"
    assert {"small", "tiny"} == set(order[1:])
    assert budget.statistics().in_use == 0


async def test_one_request_above_the_limit_passes_alone() -> None:
    """Otherwise it would wait for ever."""
    budget = Budget(10)
    with anyio.fail_after(5):
        async with held(budget, 99):
            assert budget.statistics().in_use == 99


async def test_a_cancelled_waiter_leaves_the_line() -> None:
    """Whoever stands behind it moves up; nothing stays taken."""
    budget = Budget(10)
    reached = anyio.Event()

    async def small() -> None:
        async with held(budget, 3):
            reached.set()

    async def large(scope: anyio.CancelScope) -> None:
        with scope:
            await budget.acquire(9)

    with anyio.fail_after(5):
        await budget.acquire(5)
        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()
            group.start_soon(large, scope)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(small)
            await anyio.wait_all_tasks_blocked()
            assert not reached.is_set()
            scope.cancel()
            await reached.wait()

    budget.release(5)
    assert (budget.statistics().in_use, budget.statistics().waiting) == (0, 0)


async def test_a_grant_that_meets_a_cancellation_is_given_back() -> None:
    """Granted and cancelled in the same turn of the loop: the units return."""
    budget = Budget(1)
    scope = anyio.CancelScope()

    async def waiter() -> None:
        with scope:
            async with held(budget):
                await anyio.lowlevel.checkpoint()

    with anyio.fail_after(5):
        await budget.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(waiter)
            await anyio.wait_all_tasks_blocked()
            budget.release()
            scope.cancel()

    assert budget.statistics().in_use == 0
