"""The fair budget."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from hypothesis import given, settings
from hypothesis import strategies as st

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


class Owner:
    """Counts as itself."""


async def test_owners_take_turns_and_each_ones_waiters_go_in_order() -> None:
    """One in line is not behind the thousands of another; nobody who wants one unit waits long."""
    budget = Budget(1)
    joined: list[str] = []
    order: list[str] = []
    busy, small = Owner(), Owner()

    async def take(name: str, owner: Owner) -> None:
        joined.append(name)
        await budget.acquire(1, owner)
        order.append(name)
        budget.release()

    with anyio.fail_after(20):
        await budget.acquire()
        async with anyio.create_task_group() as group:
            for number in range(1000):
                group.start_soon(take, f"busy {number}", busy)
            await anyio.wait_all_tasks_blocked()
            for number in range(2):
                group.start_soon(take, f"small {number}", small)
                await anyio.wait_all_tasks_blocked()
            budget.release()

    assert joined[:1000] == [name for name in order if name.startswith("busy")]
    assert order.index("small 0") == 1
    assert order.index("small 1") == 3


async def test_those_who_wait_again_go_before_the_others_of_their_line() -> None:
    """In the order in which they came back."""
    budget = Budget(1)
    order: list[str] = []

    async def take(name: str, *, again: bool) -> None:
        await budget.acquire(1, "one", again=again)
        order.append(name)
        budget.release()

    with anyio.fail_after(5):
        await budget.acquire()
        async with anyio.create_task_group() as group:
            for name in ("new", "newer", "again", "again too"):
                group.start_soon(partial(take, name, again=name.startswith("again")))
                await anyio.wait_all_tasks_blocked()
            budget.release()

    assert order == ["again", "again too", "new", "newer"]


async def test_a_raised_limit_serves_the_line_and_a_lowered_one_takes_nothing_back() -> None:
    """What is in use above it is waited for."""
    budget = Budget(2)
    got = 0

    async def take() -> None:
        nonlocal got
        await budget.acquire()
        got += 1

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(take)
            await anyio.wait_all_tasks_blocked()
            assert got == 2
            budget.limit = 4
            await anyio.wait_all_tasks_blocked()
            assert got == 4
            budget.limit = 1
            for _ in range(3):
                budget.release()
            await anyio.wait_all_tasks_blocked()
            assert (4, 1, 2) == (got, budget.in_use, budget.statistics().waiting)
            budget.release()
            await anyio.wait_all_tasks_blocked()
            assert (5, 1) == (got, budget.in_use)
            budget.release()


@settings(deadline=None)
@given(
    story=st.lists(
        st.one_of(
            st.tuples(st.just("acquire"), st.integers(0, 3), st.integers(1, 12)),
            st.tuples(st.just("cancel"), st.integers(0, 50), st.just(0)),
            st.tuples(st.just("release"), st.integers(0, 50), st.just(0)),
            st.tuples(st.just("limit"), st.integers(1, 20), st.just(0)),
        ),
        max_size=60,
    )
)
def test_no_story_breaks_the_budgets_laws(story: list[tuple[str, int, int]]) -> None:
    """Never above the limit but for one alone; nothing lost; whoever fits is not kept waiting."""
    anyio.run(_tell, story)


async def _tell(story: list[tuple[str, int, int]]) -> None:
    async with anyio.create_task_group() as group:
        users = _Users(group)
        for what, number, amount in story:
            getattr(users, what)(number, amount)
            await _settle()
            users.check()
        while users.budget.statistics().waiting:
            users.release(0, 0)
            await _settle()
    users.check()


async def _settle() -> None:
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


class _Users:
    """Tasks that take from a budget, and what they have."""

    def __init__(self, group: TaskGroup) -> None:
        self.budget = Budget(10)
        self.held: list[int] = []
        self._group = group
        self._scopes: list[anyio.CancelScope] = []

    async def _take(self, owner: int, amount: int, scope: anyio.CancelScope) -> None:
        with scope:
            await self.budget.acquire(amount, owner)
            self.held.append(amount)

    def acquire(self, owner: int, amount: int) -> None:
        self._scopes.append(anyio.CancelScope())
        self._group.start_soon(self._take, owner, amount, self._scopes[-1])

    def cancel(self, number: int, _: int) -> None:
        if self._scopes:
            self._scopes.pop(number % len(self._scopes)).cancel()

    def release(self, number: int, _: int) -> None:
        if self.held:
            self.budget.release(self.held.pop(number % len(self.held)))

    def limit(self, number: int, _: int) -> None:
        self.budget.limit = number

    def check(self) -> None:
        assert sum(self.held) == self.budget.in_use
        assert self.held or not self.budget.statistics().waiting
