"""Keys exchanged for tokens: once for everybody, refreshed ahead, replaced when rejected."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest
from cancellation.cut import Cut
from cancellation.scene import tasks_of_the_client
from support.scripted import Call, ScriptedServer, scripted_server

from tinker_async import (
    AuthenticationError,
    ConnectError,
    CredentialError,
    InternalServerError,
    RetryPolicy,
    Session,
    SessionLostError,
)
from tinker_async.api.connecting import open_caller
from tinker_async.api.handshake import ask_limits, ask_switches
from tinker_async.config import resolve_config
from tinker_async.testing import FakeService, faults, run_in_virtual_time
from tinker_async.wire.messages import ClientConfigResponse

KEY = "tml-raw-key-never-shown"
QUICK = RetryPolicy(max_attempts=3, base_s=0.001, max_s=0.001)
EXCHANGING = ClientConfigResponse(pjwt_auth_enabled=True)
REVOKED = (401, {"www-authenticate": 'Bearer error="invalid_token"'}, b"{}")


def token(number: int = 0, *, ends: float | None = None, lifetime: float = 3600) -> str:
    ends = time.time() + lifetime if ends is None else ends
    claims = {"exp": ends, "iat": ends - lifetime, "n": number}
    parts = [
        base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=")
        for p in ({"alg": "none"}, claims)
    ]
    return b".".join([*parts, b"signature"]).decode()


class Exchange:
    """Counts the tokens that it gives, each with its number."""

    def __init__(self, **claims: Any) -> None:
        self.given: list[str] = []
        self._claims = claims

    def __call__(self, _call: Call) -> Any:
        self.given.append(token(len(self.given), **self._claims))
        return {"jwt": self.given[-1]}


@pytest.fixture
async def server() -> AsyncGenerator[ScriptedServer]:
    """A scripted server that wants tokens."""
    async with scripted_server() as running:
        running.on("client/config", lambda _call: {"pjwt_auth_enabled": True})
        yield running


def keys_of(server: ScriptedServer, path: str) -> list[str]:
    return [call.headers["x-api-key"] for call in server.seen(path)]


async def test_the_key_is_shown_to_two_endpoints_only(server: ScriptedServer) -> None:
    """`client/config` and `auth/token`; everything else carries the token."""
    exchange = Exchange()
    server.on("auth/token", exchange)
    with anyio.fail_after(5):
        async with Session(server.url, KEY, retry=QUICK) as session:
            await session.create_sampling_client(base_model="m")

    by_path = {
        call.path.removeprefix("/api/v1/"): call.headers["x-api-key"] for call in server.calls
    }
    assert {"client/config", "auth/token"} == {p for p, key in by_path.items() if key == KEY}
    assert {KEY, exchange.given[0]} == set(by_path.values())
    assert 1 == len(exchange.given)
    assert b"{}" == server.seen("auth/token")[0].body


async def test_without_the_switch_nothing_is_exchanged(server: ScriptedServer) -> None:
    """A server that says nothing gets the key as it is."""
    server.on("client/config", lambda _call: {})
    with anyio.fail_after(5):
        async with Session(server.url, KEY):
            pass

    assert [] == server.seen("auth/token")
    assert {KEY} == {call.headers["x-api-key"] for call in server.calls}


async def test_many_who_need_a_token_ask_for_one(server: ScriptedServer) -> None:
    """One exchange for all, and who gives up takes it from nobody."""
    asked, may_answer, exchange = anyio.Event(), anyio.Event(), Exchange()

    async def slow(call: Call) -> Any:
        asked.set()
        await may_answer.wait()
        return exchange(call)

    server.on("auth/token", slow)
    config = resolve_config(server.url, KEY, environ={})
    with anyio.fail_after(5):
        async with open_caller(config) as caller, anyio.create_task_group() as tasks:
            await ask_limits(caller)
            first = anyio.CancelScope()

            async def impatient() -> None:
                with first:
                    await ask_switches(caller)

            tasks.start_soon(impatient)
            await asked.wait()
            for _ in range(20):
                tasks.start_soon(ask_switches, caller)
            await anyio.wait_all_tasks_blocked()
            first.cancel()
            may_answer.set()

    assert [exchange.given[0]] * 20 == keys_of(server, "client/dynamic_config")
    assert 1 == len(exchange.given)


async def test_a_rejected_token_is_replaced_once_for_all(server: ScriptedServer) -> None:
    """`invalid_token`: one exchange, shared, and each request is sent once more."""
    exchange, together = Exchange(), anyio.Event()
    server.on("auth/token", exchange)
    waiting = 0

    async def first_token_is_revoked(call: Call) -> Any:
        nonlocal waiting
        if call.headers["x-api-key"] != exchange.given[0]:
            return {}
        waiting += 1
        if waiting == 10:
            together.set()
        await together.wait()
        return REVOKED

    server.on("client/dynamic_config", first_token_is_revoked)
    config = resolve_config(server.url, KEY, environ={})
    with anyio.fail_after(5):
        async with open_caller(config) as caller:
            await ask_limits(caller)
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(ask_switches, caller)

    keys = keys_of(server, "client/dynamic_config")
    assert 2 == len(exchange.given)
    assert [10, 10] == [keys.count(one) for one in exchange.given]


@pytest.mark.parametrize("marker", ["", 'Bearer error="insufficient_scope"'])
async def test_another_401_is_told_at_once(server: ScriptedServer, marker: str) -> None:
    """Without the marker the token is not to blame."""
    exchange = Exchange()
    server.on("auth/token", exchange)
    server.on("client/dynamic_config", lambda _call: (401, {"www-authenticate": marker}, b"{}"))
    with anyio.fail_after(5), pytest.raises(AuthenticationError):
        async with Session(server.url, KEY, retry=QUICK):
            pass

    assert 1 == len(exchange.given) == len(server.seen("client/dynamic_config"))


async def test_a_request_is_replayed_once_only(server: ScriptedServer) -> None:
    """A server that rejects every token gets no endless stream of them."""
    exchange = Exchange()
    server.on("auth/token", exchange)
    server.on("client/dynamic_config", lambda _call: REVOKED)
    with anyio.fail_after(5), pytest.raises(AuthenticationError):
        async with Session(server.url, KEY, retry=QUICK):
            pass

    assert 2 == len(exchange.given) == len(server.seen("client/dynamic_config"))


@pytest.mark.parametrize(
    ("status", "error", "requests"),
    [
        (401, AuthenticationError, 1),
        (404, CredentialError, 1),
        (409, CredentialError, 1),
        (429, CredentialError, 3),
        (503, InternalServerError, 3),
    ],
)
async def test_an_exchange_that_fails_is_told_and_not_repeated_from_outside(
    server: ScriptedServer, status: int, error: type[Exception], requests: int
) -> None:
    """The exchange's own attempts are all there are; nothing else was sent."""
    server.on("auth/token", lambda _call: (status, {}, b'{"detail": "no"}'))
    with anyio.fail_after(5), pytest.raises(error, match="no") as caught:
        async with Session(server.url, KEY, retry=QUICK):
            pass

    assert requests == len(server.seen("auth/token"))
    assert [] == server.seen("client/dynamic_config")
    assert not getattr(caught.value, "delivery_in_doubt", None)


@pytest.mark.parametrize("answer", [{}, {"jwt": ""}, {"jwt": 1}, {"jwt": "a\r\nb"}, []])
async def test_an_answer_without_a_token_is_a_typed_error(
    server: ScriptedServer, answer: Any
) -> None:
    """It names the endpoint."""
    from tinker_async import ResponseError

    server.on("auth/token", lambda _call: answer)
    with anyio.fail_after(5), pytest.raises(ResponseError, match="auth/token"):
        async with Session(server.url, KEY, retry=QUICK):
            pass


async def test_neither_key_nor_token_is_in_an_error(server: ScriptedServer) -> None:
    """A server that repeats them does not get them into our texts."""
    exchange = Exchange()
    server.on("auth/token", exchange)

    def echo(call: Call) -> Any:
        said = f"{call.headers['x-api-key']} and {KEY} are wrong"
        return 400, {"content-type": "application/json"}, json.dumps({"detail": said}).encode()

    server.on("create_session", echo)
    with anyio.fail_after(5), pytest.raises(Exception, match="are wrong") as caught:
        async with Session(server.url, KEY, retry=QUICK):
            pass

    assert KEY not in str(caught.value)
    assert exchange.given[0] not in str(caught.value)


async def test_a_token_that_was_given_is_sent_until_it_expires(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is looked at before each request; then nothing is sent."""
    server.on("client/config", lambda _call: {})
    ends = time.time() + 1000
    given = token(ends=ends)
    with anyio.fail_after(10):
        async with Session(server.url, given, retry=QUICK) as session:
            await session.create_sampling_client(base_model="m")
            monkeypatch.setattr(time, "time", lambda: ends)
            seen = len(server.calls)
            with pytest.raises(CredentialError, match="expired") as caught:
                await session.create_sampling_client(base_model="m")

    assert seen == len(server.calls)
    assert {given} == {call.headers["x-api-key"] for call in server.calls}
    assert given not in str(caught.value)


async def test_an_expired_token_is_told_before_anything_is_sent(server: ScriptedServer) -> None:
    """Also when it is to be exchanged."""
    with anyio.fail_after(5), pytest.raises(CredentialError, match="expired"):
        async with Session(server.url, token(ends=time.time() - 1)):
            pass

    assert [] == server.calls


def test_a_token_is_refreshed_at_half_its_time() -> None:
    """By hours of virtual time: the server never sees an old one, and work never waits."""
    service = FakeService(api_key=KEY, config=EXCHANGING, token_lifetime_s=3600)

    async def program() -> None:
        async with service.session():
            await anyio.sleep(10 * 3600)

    run_in_virtual_time(program)

    times = [entry.at_s for entry in service.ledger.of("auth/token")]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 18 <= len(gaps) <= 23
    assert all(0.449 * 3600 <= gap <= 0.551 * 3600 for gap in gaps)
    assert len(set(gaps)) > 1
    assert {200} == {entry.status for entry in service.ledger.entries}


def test_a_refresh_that_fails_is_tried_again_each_minute() -> None:
    """The old token goes on meanwhile; nobody notices."""
    service = FakeService(api_key=KEY, config=EXCHANGING, token_lifetime_s=3600)

    async def program() -> None:
        async with service.session():
            rule = service.faults.on("auth/token", faults.Status(status=503))
            await anyio.sleep(2500)
            rule.remove()
            await anyio.sleep(3 * 3600)

    run_in_virtual_time(program)

    others = {e.status for e in service.ledger.entries if e.endpoint != "auth/token"}
    assert {200} == others
    failed = [e.at_s for e in service.ledger.of("auth/token") if e.status == 503]
    pauses = [b - a for a, b in itertools.pairwise(failed) if b - a > 5]
    assert len(pauses) >= 5
    assert [] == [pause for pause in pauses if not 59.9 < pause < 66]


def test_a_token_goes_on_until_its_end_while_none_is_to_be_had() -> None:
    """Then work fails with what the exchange failed with."""
    service = FakeService(api_key=KEY, config=EXCHANGING, token_lifetime_s=3600)

    async def program() -> float:
        async with service.session(retry=QUICK) as session:
            service.faults.on("auth/token", faults.Refuse())
            with pytest.raises(ConnectError) as caught:
                while True:
                    await session.get_server_capabilities()
                    await anyio.sleep(10)
            assert caught.value.unsent
            assert not caught.value.delivery_in_doubt
            return anyio.current_time()

    assert 3600 <= run_in_virtual_time(program) <= 3620


def test_a_session_whose_key_was_withdrawn_is_lost() -> None:
    """The server refuses the exchange itself: waiting longer would not help."""
    service = FakeService(api_key=KEY, config=EXCHANGING, token_lifetime_s=3600)

    async def program() -> None:
        async with service.session(retry=QUICK):
            service.faults.on("auth/token", faults.Status(status=401))
            await anyio.sleep_forever()

    with pytest.raises(SessionLostError, match="credential"):
        run_in_virtual_time(program)


async def test_revoked_tokens_are_no_trouble_for_a_training_loop() -> None:
    """In the middle of polls, samples and steps."""
    from testing.loops import ADAM, DATUM, PROMPT

    service = FakeService(api_key=KEY, config=EXCHANGING)
    with anyio.fail_after(20):
        async with service.serve() as url, Session(url, KEY, retry=QUICK) as session:
            trainer = await session.create_lora_training_client("toy")
            for _ in range(5):
                step = trainer.forward_backward([DATUM], "cross_entropy")
                service.revoke_tokens()
                await step
                await trainer.optim_step(ADAM)
                sampler = await trainer.save_weights_and_get_sampling_client()
                service.revoke_tokens()
                await sampler.sample(PROMPT)

    assert service.ledger.count("auth/token") > 5


async def test_a_session_can_be_cancelled_at_each_wait_of_an_exchange() -> None:
    """No task is left, and the server hears how each session ended."""
    service = FakeService(api_key=KEY, config=EXCHANGING)
    tasks = tasks_of_the_client()

    async def live() -> None:
        async with service.session(retry=QUICK) as session:
            service.revoke_tokens()
            await session.get_server_capabilities()

    with anyio.fail_after(30):
        for at in range(1, 300):
            cut = Cut(at, "early")
            with cut.scope:
                await cut.drive(live())
            assert tasks == tasks_of_the_client()
            assert not [one for one in service.state.sessions.values() if one.ended is None]
            if not cut.happened:
                break
    assert at > 5
