"""`run watch`: runs are followed until one is corrupted, whatever becomes of single looks."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from cli.conftest import KEY, TIMEOUT_S
from cli.seeding import DATUM, seed
from cli.terminal import Terminal

import tinker_async as ta
from tinker_async.cli.run_watch_polls import Glance, Watch
from tinker_async.testing import FakeService, faults, virtual_time_backend

if TYPE_CHECKING:
    from cli.conftest import Cli

OFTEN = ("--every", "10ms")


@pytest.fixture
def anyio_backend() -> Any:
    """Async tests here are in virtual time."""
    return virtual_time_backend()


@pytest.fixture
def fake() -> FakeService:
    """A server that is reached in process."""
    return FakeService()


class Seen:
    """What a watch tells, and what is done meanwhile."""

    def __init__(self, *then: Callable[[], object]) -> None:
        self.glances: list[Glance] = []
        self.at_s: list[float] = []
        self._then = list(then)

    def __call__(self, glance: Glance) -> None:
        self.glances.append(glance)
        self.at_s.append(anyio.current_time())
        if self._then:
            self._then.pop(0)()

    @property
    def news(self) -> list[list[str]]:
        """What was new at each look."""
        return [[change.what for change in glance.changes] for glance in self.glances]

    @property
    def failures(self) -> list[str | None]:
        errors = [glance.error for glance in self.glances]
        return [None if error is None else type(error).__name__ for error in errors]


def nothing() -> None:
    """At this look all stays as it is."""


async def run_of(session: ta.Session) -> str:
    trainer = await session.create_lora_training_client("toy", rank=4)
    return trainer.model_id


# In virtual time


async def test_a_run_is_watched_until_it_is_corrupted(fake: FakeService) -> None:
    """At the pace that was asked for; each change once."""
    async with fake.session() as session:
        trainer = await session.create_lora_training_client("toy", rank=4)
        trainer.train_step([DATUM], "cross_entropy", ta.AdamParams())
        await trainer.save_state("a")
        watch = Watch(run_ids=[trainer.model_id], every_s=60)
        seen = Seen(
            nothing,
            lambda: fake.state.save(
                fake.state.models[trainer.model_id], "weights", "b", overwrite=False
            ),
            nothing,
            lambda: fake.corrupt(trainer.model_id),
        )
        with anyio.fail_after(1000):
            await watch.run(session.rest, seen)

    assert [["seen"], [], ["checkpoint"], [], ["corrupted"]] == seen.news
    assert [60.0] * 4 == [later - at for at, later in zip(seen.at_s, seen.at_s[1:], strict=False)]
    assert [trainer.model_id] == watch.corrupted


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    "fault", [faults.Status(503), faults.Reset(), faults.BadJson(), faults.TooMany()], ids=str
)
async def test_looks_that_fail_are_told_and_come_further_apart(
    fake: FakeService, fault: faults.Fault, *, named: bool
) -> None:
    """One request each; nothing is new because of them, and the pace comes back."""
    async with fake.session() as session:
        run = await run_of(session)
        endpoint = "training_run" if named else "training_runs"
        fake.faults.on(endpoint, fault, occurrence=[2, 3, 4])
        watch = Watch(run_ids=[run] if named else [], every_s=10)
        seen = Seen(*[nothing] * 5, lambda: fake.corrupt(run))
        with anyio.fail_after(1000):
            await watch.run(session.rest, seen)

    assert [["seen"], [], [], [], [], [], ["corrupted"]] == seen.news
    assert [False, True, True, True, False, False, False] == [
        failure is not None for failure in seen.failures
    ]
    assert all([run] == [one.training_run_id for one in glance.runs] for glance in seen.glances)
    assert 7 == fake.ledger.count(endpoint)
    pauses = [glance.pause_s for glance in seen.glances]
    assert pauses[0] == pauses[4] == 10
    assert 10 < pauses[1] < pauses[2] < pauses[3]


async def test_the_pause_does_not_grow_for_ever(fake: FakeService) -> None:
    """Five minutes at most, or the pace itself."""
    fake.faults.on("training_runs", faults.Status(503))
    async with fake.session() as session:
        for every_s, most_s in ((30.0, 300.0), (900.0, 900.0)):
            seen = Seen()
            with anyio.move_on_after(10_000):
                await Watch(every_s=every_s).run(session.rest, seen)
            assert 0.75 * most_s <= seen.glances[-1].pause_s <= most_s


async def test_what_no_repetition_changes_ends_the_watch(fake: FakeService) -> None:
    """A refused credential; and a run that is not there at the first look."""
    async with fake.session() as session:
        run = await run_of(session)
        with anyio.fail_after(1000), pytest.raises(ta.NotFoundError):
            await Watch(run_ids=[run, "s9:train:0"]).run(session.rest, Seen())
        fake.faults.on("training_run", faults.Status(403))
        with anyio.fail_after(1000), pytest.raises(ta.PermissionDeniedError):
            await Watch(run_ids=[run]).run(session.rest, Seen())


async def test_a_run_that_the_server_forgets_is_gone(fake: FakeService) -> None:
    """The others are watched on; where all are gone, that is the end."""
    runs = fake.state.runs
    async with fake.session() as session:
        one, two = await run_of(session), await run_of(session)
        kept = {}
        seen = Seen(
            lambda: kept.update({one: runs.pop(one)}),
            nothing,
            lambda: runs.update(kept),
            lambda: runs.pop(two),
            lambda: runs.pop(one),
        )
        with anyio.fail_after(1000), pytest.raises(ta.NotFoundError, match=f"{one}, {two}"):
            await Watch(run_ids=[one, two]).run(session.rest, seen)

    assert [["seen", "seen"], ["gone"], [], ["seen"], ["gone"], ["gone"]] == seen.news


async def test_without_names_the_newest_runs_are_watched(fake: FakeService) -> None:
    """One that is corrupted at the first look is no news; one that comes so later is."""
    async with fake.session() as session:
        old, broken, newer = [await run_of(session) for _ in range(3)]
        fake.corrupt(broken)
        watch = Watch(limit=2)
        seen = Seen(
            nothing,
            lambda: fake.corrupt(old),  # beyond the limit
            nothing,
            lambda: fake.corrupt(newer),
        )
        with anyio.fail_after(1000):
            await watch.run(session.rest, seen)

    assert [["seen", "seen"], [], [], [], ["corrupted"]] == seen.news
    assert [newer, broken] == [run.training_run_id for run in seen.glances[0].runs]
    assert [newer] == watch.corrupted


async def test_an_older_run_that_comes_into_view_is_no_news(fake: FakeService) -> None:
    """It was corrupted before, when others were newer; a new one is news even at its first look."""
    async with fake.session() as session:
        old, gone, kept = [await run_of(session) for _ in range(3)]
        fake.corrupt(old)
        watch = Watch(limit=2)
        seen = Seen(lambda: fake.state.runs.pop(gone))
        with anyio.move_on_after(100):
            await watch.run(session.rest, seen)
        assert {old, kept} == {run.training_run_id for run in seen.glances[-1].runs}
        assert [] == watch.corrupted
        new = await run_of(session)
        fake.corrupt(new)
        with anyio.fail_after(100):
            await watch.run(session.rest, Seen())

    assert [new] == watch.corrupted


async def test_a_watch_that_goes_on_counts_all_that_are_lost(fake: FakeService) -> None:
    """Until it is ended."""
    async with fake.session() as session:
        one, two = await run_of(session), await run_of(session)
        fake.corrupt(one)
        watch = Watch(run_ids=[one, two], go_on=True)
        seen = Seen(nothing, lambda: fake.corrupt(two))
        with anyio.move_on_after(300):
            await watch.run(session.rest, seen)

    assert [one, two] == watch.corrupted
    assert 10 == len(seen.glances)


# As a user has it


def test_a_run_that_is_corrupted_already_ends_the_watch_at_once(
    cli: Cli, service: FakeService, url: str
) -> None:
    """12, so that a script can recover it; the hint says how."""
    run = seed(url, KEY).run
    service.corrupt(run)
    result = cli.ask("run", "watch", run)

    assert 12 == result.exit_code
    [line] = result.stdout.splitlines()
    assert ["seen", run, "CORRUPTED", f"tinker://{run}/weights/c"] == line.split("\t")[1:]
    assert f"hint: tinker-async recover {run}" in result.stderr
    told = json.loads(cli.ask("run", "watch", run, "--json").stdout)
    assert (run, "seen", True) == (
        told["training_run_id"],
        told["event"],
        told["run"]["corrupted"],
    )


def test_a_watch_ends_with_its_time(cli: Cli, url: str) -> None:
    """0; in a pipe without changes there is one line for each run."""
    runs = [seed(url, KEY).run for _ in range(2)][::-1]
    result = cli.ask("run", "watch", *OFTEN, "--for", "50ms")

    assert 0 == result.exit_code, result.output
    assert runs == [line.split("\t")[2] for line in result.stdout.splitlines()]
    assert "" == result.stderr


def started(cli: Cli, *words: str) -> subprocess.Popen[str]:
    return cli.process("run", "watch", *OFTEN, *words, "--backend", cli.backend, stderr=-1)


def test_a_script_sees_a_run_break_and_looks_fail(cli: Cli, service: FakeService, url: str) -> None:
    """An object in a line for each change, as it happens; a failed look is one, too."""
    run = seed(url, KEY).run
    service.faults.on("training_run", faults.Status(503), occurrence=2)
    with started(cli, run, "--json") as child:
        assert child.stdout is not None
        events: list[dict[str, Any]] = [json.loads(child.stdout.readline()) for _ in range(2)]
        service.corrupt(run)
        out, err = child.communicate(timeout=TIMEOUT_S)
    events += map(json.loads, out.splitlines())

    assert ["seen", "failed", "corrupted"] == [event["event"] for event in events]
    assert "InternalServerError" == events[1]["error"]["type"]
    assert events[1]["next_s"] < 1
    assert 12 == child.returncode
    assert "the look failed" in err
    assert "Traceback" not in err


def test_ctrl_c_is_how_a_watch_ends(cli: Cli, url: str) -> None:
    """0, without a word."""
    run = seed(url, KEY).run
    with started(cli, run) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=TIMEOUT_S)

    assert (0, "") == (child.returncode, err)


def test_a_terminal_has_a_table_that_follows(alone: Cli, service: FakeService, url: str) -> None:
    """It ends with the run as it is by then."""
    alone.use(url)
    run = seed(url, KEY).run
    terminal = Terminal(alone, "run", "watch", run, *OFTEN, shows_output=True)
    terminal.until("Ctrl-C ends")
    assert "CORRUPTED" not in terminal.seen
    service.corrupt(run)

    assert 12 == terminal.end()[0]
    assert "CORRUPTED" in terminal.seen
    assert f"tinker-async recover {run}" in terminal.seen


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--every", "0"), 2, "'0' is no time"),
        (("--every", "soon"), 2, "500ms, 30s"),
        (("--for", "-1s"), 2, "is no time"),
        (("s9:train:0",), 5, "no training run 's9:train:0'"),
        (("a b",), 2, "is not the id of a training run"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(
    cli: Cli, words: tuple[str, ...], code: int, said: str
) -> None:
    """On stderr alone."""
    for form in ((), ("--json",)):
        result = cli.ask("run", "watch", *words, *form)
        assert (code, "") == (result.exit_code, result.stdout)
        assert said in result.stderr
