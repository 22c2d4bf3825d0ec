"""A server in a thread, and the command line against it, in process or as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from anyio.from_thread import start_blocking_portal
from click.testing import CliRunner, Result

from tinker_async.cli import main
from tinker_async.testing import FakeService

if TYPE_CHECKING:
    import ssl

TIMEOUT_S = 60
KEY = "tml-the-key-of-the-tests"
OF_OURS = ("TINKER_", "CLOUDFLARE_", "SSL_CERT_")
PROXIES = {f"{name}_PROXY" for name in ("HTTP", "HTTPS", "ALL", "NO")}


@pytest.fixture(autouse=True)
def _structlog_as_at_start() -> Iterator[None]:
    """A command sets structlog up unless its program has; an earlier test's settings are neither."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


class Cli:
    """The command line with an environment of its own.

    `env` begins with no setting of ours but a home folder; `use(url)` adds server and key.
    """

    def __init__(self, home: Path, backend: str) -> None:
        inherited = [
            name for name in os.environ if name.startswith(OF_OURS) or name.upper() in PROXIES
        ]
        self.env: dict[str, str | None] = dict.fromkeys(inherited)
        self.env |= {"HOME": str(home), "COLUMNS": "200"}
        self.home = home
        self.backend = backend

    def use(self, url: str, key: str = KEY) -> None:
        self.env |= {"TINKER_BASE_URL": url, "TINKER_API_KEY": key}

    def __call__(self, *arguments: str, input: str | None = None) -> Result:  # noqa: A002  # as CliRunner
        """Run a command in process. Whatever is not an orderly end is raised here."""
        result = CliRunner().invoke(
            main, arguments, input=input, env=self.env, prog_name="tinker-async"
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def ask(self, *arguments: str, input: str | None = None) -> Result:  # noqa: A002  # as CliRunner
        """Run a command that connects, in the event loop of this test."""
        return self(*arguments, "--backend", self.backend, input=input)

    def json(self, *arguments: str, exit_code: int = 0) -> Any:
        """Run a command with --json in the event loop of this test; stdout is one document."""
        result = self.ask(*arguments, "--json")
        assert exit_code == result.exit_code, result.output
        return json.loads(result.stdout)

    def process(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command as a user does."""
        env = {name: value for name, value in {**os.environ, **self.env}.items() if value}
        command = [sys.executable, "-m", "tinker_async.cli", *arguments]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **options}
        return subprocess.Popen(command, env=env, text=True, **options)


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    """The event loop that commands run in."""
    name: str = request.param
    return name


@pytest.fixture
def alone(tmp_path: Path) -> Cli:
    """The command line without a server, in asyncio."""
    return Cli(tmp_path, "asyncio")


@pytest.fixture
def cli(tmp_path: Path, backend: str, url: str) -> Cli:
    """The command line with the server of `service`, in each event loop."""
    made = Cli(tmp_path, backend)
    made.use(url)
    return made


@pytest.fixture
def service() -> FakeService:
    """The server; whoever changes it does so before asking it."""
    return FakeService(api_key=KEY)


Serve = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def serve() -> Serve:
    """Return what serves a `FakeService` on a socket, in a thread, for the length of a block."""

    @contextmanager
    def served(service: FakeService, ssl_context: ssl.SSLContext | None = None) -> Iterator[str]:
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(service.serve(ssl_context=ssl_context)) as url,
        ):
            yield url

    return served


@pytest.fixture
def url(service: FakeService, serve: Serve) -> Iterator[str]:
    """The address of `service`."""
    with serve(service) as url:
        yield url
