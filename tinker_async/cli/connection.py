"""Where a command connects to, and how its coroutine is run: the options that they share.

The rule: the credential comes from the environment, a command or the stored file, never from
the command line, which other users of the machine can read.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tinker_async.cli.exits import first_error
from tinker_async.errors import MissingExtraError, TinkerError

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from tinker_async import RestClient, Session

T = TypeVar("T")


class Connection:
    """What the options say of the server. Nothing is connected before `rest` or `session`."""

    def __init__(
        self,
        *,
        base_url: str | None = None,
        ca_bundle: str | None = None,
        timeout_s: float | None = None,
        backend: str = "asyncio",
    ) -> None:
        self.base_url = base_url
        self.ca_bundle = ca_bundle
        self.timeout_s = timeout_s
        self.backend = backend

    def rest(
        self, api_key: str | None = None, **options: Any
    ) -> AbstractAsyncContextManager[RestClient]:
        """Return `RestClient.connect(...)` with these settings."""
        import tinker_async as ta  # noqa: PLC0415  # `--help` shall not load the client

        return ta.RestClient.connect(
            self.base_url, api_key, ca_bundle=self.ca_bundle, timeout=self.timeout_s, **options
        )

    def session(self, **options: Any) -> Session:
        """Return a `Session` with these settings."""
        import tinker_async as ta  # noqa: PLC0415  # as above

        options = {"grace_s": 0.0, **options}
        return ta.Session(
            self.base_url, ca_bundle=self.ca_bundle, timeout=self.timeout_s, **options
        )

    def ask(self, work: Callable[[RestClient], Awaitable[T]]) -> T:
        """Connect, run `work(rest)` to its end, and return what it returns."""
        return self.ask_as(None, work)

    def ask_as(self, api_key: str | None, work: Callable[[RestClient], Awaitable[T]]) -> T:
        """Do as `ask`, with another credential than the one in force."""

        async def connected() -> T:
            async with self.rest(api_key) as rest:
                return await work(rest)

        return self.run(connected)

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine function in the event loop that `--backend` names.

        Raises:
            TinkerError: The lone or first one of those that came out of task groups.
        """
        import anyio  # noqa: PLC0415  # as above

        with self._running():
            return anyio.run(work, backend=self.backend)

    @contextmanager
    def portal(self) -> Iterator[BlockingPortal]:
        """Run the event loop in a thread for a block: this thread has a terminal to look after.

        Raises:
            TinkerError: As `run`.
        """
        from anyio.from_thread import start_blocking_portal  # noqa: PLC0415  # as above

        with self._running(), start_blocking_portal(self.backend) as portal:
            yield portal

    @contextmanager
    def _running(self) -> Iterator[None]:
        if importlib.util.find_spec(self.backend) is None:
            raise MissingExtraError(
                f"{self.backend} is not installed", hint=f"pip install {self.backend}"
            )
        try:
            with logs_on_stderr():
                yield
        except BaseExceptionGroup as group:
            error = first_error(group)
            if isinstance(error, (KeyboardInterrupt, TinkerError, click.ClickException)):
                raise error from group
            raise


@contextmanager
def logs_on_stderr() -> Iterator[None]:
    """Let the library's log go to stderr, from warnings on: stdout has results alone.

    A program that has set structlog up, and calls a command itself, keeps its settings.
    """
    import structlog  # noqa: PLC0415  # `--help` shall not load it

    if structlog.is_configured():
        yield
        return
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.reset_defaults()


_OPTIONS = (
    click.option(
        "--base-url",
        envvar="TINKER_BASE_URL",
        show_envvar=True,
        metavar="URL",
        help="The server. Default: the Tinker service.",
    ),
    click.option(
        "--ca-bundle",
        type=click.Path(exists=True),
        help="File or folder of the certificate authorities to believe.",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="How long a call may take. Default: no limit.",
    ),
    click.option(
        "--backend",
        type=click.Choice(["asyncio", "trio"]),
        default="asyncio",
        show_default=True,
        help="The event loop.",
    ),
)


def connection_options(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command the options of a connection, as its argument `connection`."""

    @wraps(command)
    def with_connection(
        *args: Any,
        base_url: str | None,
        ca_bundle: str | None,
        timeout_s: float | None,
        backend: str,
        **kwargs: Any,
    ) -> T:
        connection = Connection(
            base_url=base_url, ca_bundle=ca_bundle, timeout_s=timeout_s, backend=backend
        )
        return command(*args, connection=connection, **kwargs)

    for option in reversed(_OPTIONS):
        with_connection = option(with_connection)
    return with_connection
