"""`FakeService`: the server to test a training loop with, without torch, weights or a network.

It answers every endpoint of the main loop, does what a `FaultScript` says, and keeps a
`Ledger`. The rule: the same requests in the same order give the same answers, bit for
bit, in every process.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tinker_async.errors import ConfigError
from tinker_async.session import Session
from tinker_async.testing.disguise import Disguise
from tinker_async.testing.exchange import ENDPOINTS
from tinker_async.testing.in_process import InProcessTransport
from tinker_async.testing.ledger import Ledger
from tinker_async.testing.likeness import Likeness, likeness_of
from tinker_async.testing.script import FaultScript
from tinker_async.testing.serving import served
from tinker_async.testing.state import Settings, State, usual_id
from tinker_async.wire.messages import ClientConfigResponse, DynamicConfigResponse

if TYPE_CHECKING:
    import ssl

BASE_MODEL = "toy"
API_KEY = "tml-fake"


class FakeService:
    """A deterministic Tinker server with a toy model.

    The toy is a table of logits by last token (256 tokens, one for each byte; any other
    id counts as its lowest byte). It learns, its sampler and its trainer agree on log-probs, and
    a restored checkpoint goes on bit for bit. Operations are carried out at once, in
    the order of their numbers; `sample_s` and `train_s` say how long until a result may be
    fetched.

    Reach it in process (`session`), or over a real socket (`serve`) with any client. One
    service serves any number of sessions, at the same time too, in one event loop at a time.

    Args:
        seed: For samples that bring none.
        base_models: Names that may be trained and sampled from.
        hold_s: How long a poll is held before it is answered "not yet", in seconds.
        sample_s: How long a sample takes, in seconds.
        train_s: How long each operation of a model takes, in seconds.
        silence_s: A session without a sign of life for this long is over.
        api_key: The only key that is let in; None lets in all.
        config: What `client/config` answers.
        cancel_enabled: Whether clients shall tell of abandoned samples.
        token_lifetime_s: How long a token of `auth/token` is let in, in seconds; None is for
            ever. Clients ask for tokens if `config` has `pjwt_auth_enabled`.
        inline_bytes: Of a larger result only the size is sent to clients that say they know what to
            do then; None sends all as they are.
        like: Behave as another kind of server: `skyrl-0.3.0`, `tuft-0.2.2` or `tinker-0.4`, or a
            `likeness.Likeness` of your own. What it says goes before the other settings.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        base_models: Sequence[str] = (BASE_MODEL,),
        hold_s: float = 30.0,
        sample_s: float = 0.0,
        train_s: float = 0.0,
        silence_s: float = 300.0,
        api_key: str | None = None,
        config: ClientConfigResponse | None = None,
        cancel_enabled: bool = True,
        token_lifetime_s: float | None = None,
        inline_bytes: int | None = None,
        like: str | Likeness | None = None,
    ) -> None:
        if not base_models:
            raise ConfigError("base_models is empty")
        likeness = likeness_of(like)
        self.disguise = None if likeness is None else Disguise(likeness)
        """What makes it another kind of server."""
        if likeness is not None and likeness.hold_s is not None:
            hold_s = likeness.hold_s
        settings = Settings(
            seed=seed,
            base_models=tuple(base_models),
            hold_s=hold_s,
            sample_s=sample_s,
            train_s=train_s,
            silence_s=silence_s,
            api_key=api_key,
            config=config or ClientConfigResponse(parallel_fwdbwd_chunks=True),
            inline_bytes=inline_bytes,
            token_lifetime_s=token_lifetime_s,
            archives="signed" if likeness is None else likeness.archives,
            make_id=usual_id if self.disguise is None else self.disguise.make_id,
        )
        self.base_model = settings.base_models[0]
        """The first of the base models."""
        self.api_key = api_key or API_KEY
        """A key that is let in."""
        self.ledger = Ledger()
        """What has happened."""
        self.faults = FaultScript(ENDPOINTS)
        """What shall go wrong."""
        switches = DynamicConfigResponse(sample_cancel_enabled=cancel_enabled)
        self.state = State(settings, self.ledger, switches)

    # Reaching it

    def transport(self) -> InProcessTransport:
        """Return a `Transport` to this server that needs no socket."""
        return InProcessTransport(self)

    def session(self, **options: Any) -> Session:
        """Return a session that talks to this server in process. Enter it as any other.

        Args:
            **options: As for `Session`, but for where to connect.
        """
        session = Session("http://fake.invalid", self.api_key, **options)
        session._open_transport = self._opened  # noqa: SLF001  # the seam that is there for this
        return session

    @asynccontextmanager
    async def _opened(self, _config: object) -> AsyncGenerator[Any]:
        yield self.transport()

    def serve(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> AbstractAsyncContextManager[str]:
        """Serve HTTP/1.1 and HTTP/2 on a socket for the length of a block.

        Args:
            host: Where to listen.
            port: 0 takes a free one.
            ssl_context: Of the server, for https. Its ALPN protocols are the caller's
                to set; what the client speaks is seen from its first bytes.

        Returns:
            A context manager that gives the base URL. Leaving it closes every connection.
        """
        return served(self, host=host, port=port, ssl_context=ssl_context)

    # Bending it

    @property
    def switches(self) -> DynamicConfigResponse:
        """What `client/dynamic_config` answers; clients ask again every `refresh_interval_sec`."""
        return self.state.switches

    @switches.setter
    def switches(self, switches: DynamicConfigResponse) -> None:
        self.state.switches = switches

    def pause(self, queue_state: str = "paused_capacity", reason: str | None = None) -> None:
        """Let no result be seen until `resume`; polls are told the queue state."""
        self.state.pause = (queue_state, reason)

    def resume(self) -> None:
        """End `pause`."""
        self.state.pause = None
        self.state.promises.wake_all()

    def end_session(self, session_id: str, how: str = "ended by the test") -> None:
        """End a session: heartbeats and all other requests of it are answered 410.

        Args:
            session_id: Which.
            how: The reason that is told; `cancelled` is what the console does.

        Raises:
            ConfigError: There is no such session.
        """
        session = self.state.sessions.get(session_id)
        if session is None:
            raise ConfigError(f"the fake server has no session {session_id!r}")
        self.state.end_session(session, how)

    def revoke_tokens(self) -> None:
        """Reject all tokens of `auth/token` so far, with a 401 that says `invalid_token`."""
        self.state.tokens.revoke()

    def corrupt(self, model_id: str) -> None:
        """Break a model: its run is listed as corrupted, and later operations fail.

        Raises:
            ConfigError: There is no such model.
        """
        run = self.state.runs.get(model_id)
        if run is None:
            raise ConfigError(f"the fake server has no model {model_id!r}")
        run.corrupted = True

    def restart(self) -> None:
        """Do as a server that was killed and started again: only checkpoints and runs stay.

        Sessions, models, samplers and promises of before are answered 410. Connections
        stay; to break them, script a `faults.Reset`.
        """
        self.state.restart()

    def weights_of(self, owner: str) -> dict[int, npt.NDArray[np.float32]]:
        """Return what a model, a sampler or a checkpoint (by path) has learnt.

        Returns:
            float32 `[256]` by last token: the difference to the base model's logits.

        Raises:
            ConfigError: There is no such thing.
        """
        state = self.state
        if owner in state.models:
            weights = state.models[owner].toy.weights
        elif owner in state.samplers:
            weights = state.samplers[owner].weights
        elif owner in state.checkpoints:
            weights = state.checkpoints[owner].state.weights
        else:
            raise ConfigError(f"the fake server has no model, sampler or checkpoint {owner!r}")
        return {token: row.copy() for token, row in sorted(weights.rows.items())}

    def __repr__(self) -> str:
        return f"<FakeService: {self.ledger!r}>"
