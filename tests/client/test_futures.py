"""APIFuture: awaitable by many, many times; waiters are independent of the operation."""

from __future__ import annotations

import anyio
import pytest

from tinker_async import (
    APIFuture,
    InvalidInputError,
    OperationWithdrawnError,
    RequestTimeoutError,
    SessionClosedError,
)


async def test_many_tasks_get_the_same_value_before_and_after() -> None:
    """Three waiters and a late one."""
    future: APIFuture[int] = APIFuture("op")
    got: list[int] = []

    async def wait() -> None:
        got.append(await future)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            future.resolve(7)

    assert got == [7, 7, 7]
    assert await future == 7
    assert future.done


async def test_a_cancelled_waiter_disturbs_nobody() -> None:
    """The operation and the other waiter go on."""
    future: APIFuture[int] = APIFuture("op")
    got: list[int] = []

    async def wait() -> None:
        got.append(await future)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            with anyio.move_on_after(0):
                await future
            assert not future.done
            await anyio.wait_all_tasks_blocked()
            future.resolve(1)

    assert got == [1]


async def test_a_failure_is_raised_to_each_and_counts_as_seen() -> None:
    """The first settlement counts."""
    future: APIFuture[int] = APIFuture("op")
    future.fail(SessionClosedError("over"))
    future.resolve(1)

    assert future.failed_unobserved
    for _ in range(2):
        with pytest.raises(SessionClosedError):
            await future
    assert not future.failed_unobserved


async def test_waiting_can_time_out_without_ending_the_operation() -> None:
    """The error says that it is still under way."""
    future: APIFuture[int] = APIFuture("op")
    with pytest.raises(RequestTimeoutError, match="still under way"):
        await future.result(timeout=0)

    future.resolve(1)
    assert await future.result(timeout=0) == 1


async def test_only_what_was_not_sent_can_be_withdrawn() -> None:
    """Withdrawn: waiters are told. Sent: cancel says no and changes nothing."""
    future: APIFuture[int] = APIFuture("op")
    assert future.cancel()
    with pytest.raises(OperationWithdrawnError):
        await future

    sent: APIFuture[int] = APIFuture("op")
    sent.sent = True
    assert not sent.cancel()
    assert not sent.done


@pytest.mark.parametrize("wait", ["x", [], {}, float("nan"), object()])
async def test_a_wait_that_is_no_time_is_refused(wait: float) -> None:
    """And the failure that is there counts as unseen."""
    future: APIFuture[int] = APIFuture("op")
    future.fail(SessionClosedError("over"))
    with pytest.raises(InvalidInputError, match="number of seconds"):
        await future.result(wait)

    assert future.failed_unobserved
