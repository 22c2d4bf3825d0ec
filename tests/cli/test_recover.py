"""`recover`: a lost run goes on from a checkpoint, and whatever cannot be done is said."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
from cli.conftest import KEY
from cli.seeding import Seeded, seed
from cli.terminal import Terminal
from durable.program import batch

import tinker_async as ta
from tinker_async.testing import FakeService, faults

if TYPE_CHECKING:
    from pathlib import Path

    from cli.conftest import Cli

PAST = datetime(2000, 1, 1, tzinfo=UTC)
LOOKS = {"client/config", "training_run", "run_checkpoints", "weights_info"}
"""Endpoints at which nothing changes."""
OPTIONS = {"train_mlp": False, "optimizer": {"type": "adamw"}}
"""Of a durable training that is given these two."""


@pytest.fixture
def seeded(url: str) -> Seeded:
    return seed(url, KEY)


@pytest.fixture
def broken(seeded: Seeded, service: FakeService) -> Seeded:
    """A run that is corrupted, with three training checkpoints."""
    service.corrupt(seeded.run)
    return seeded


def since(service: FakeService, begin: int) -> set[str]:
    """The endpoints that were asked since then."""
    return {entry.endpoint for entry in service.ledger.entries[begin:]}


def same_weights(service: FakeService, path: str, other: str) -> bool:
    one, two = service.weights_of(path), service.weights_of(other)
    return one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)


def steps_of_optimizer(service: FakeService, path: str) -> int:
    return service.state.checkpoints[path].state.steps


# A run by its id


def test_a_corrupted_run_goes_on_from_its_newest_checkpoint(
    cli: Cli, broken: Seeded, service: FakeService, url: str
) -> None:
    """In a new run that is saved: weights and optimizer are the checkpoint's; nothing is deleted."""
    found = cli.json("recover", broken.run)

    newest, path = broken.training[-1], found["tinker_path"]
    assert 2 == service.ledger.count("run_checkpoints")  # the look's, and that of the load
    assert ("recovered", newest) == (found["outcome"], found["chosen"])
    assert f"tinker://{found['new_training_run_id']}/weights/recovered-c" == path
    assert same_weights(service, newest, path)
    assert 3 == steps_of_optimizer(service, path)
    assert {*broken.paths, path} == {*service.state.checkpoints}
    assert 0 == service.ledger.count("delete_checkpoint")
    assert broken.run == service.state.runs[found["new_training_run_id"]].metadata["recovered_from"]  # type: ignore[index]  # it has some

    async def go_on() -> str:
        async with ta.Session(url, KEY) as session:
            scope: dict[str, Any] = {"session": session, "ta": ta}
            program = f"async def main():\n    {found['python']}\n    return trainer.model_id"
            exec(program, scope)
            model_id: str = await scope["main"]()
            return model_id

    assert anyio.run(go_on) in service.state.runs


def test_the_new_run_is_labelled_as_the_old_one(
    cli: Cli, broken: Seeded, service: FakeService
) -> None:
    """Beside where it is from, which of a second recovery is the run that was recovered then."""
    service.state.runs[broken.run].metadata = {"stage": "sft"}
    first = cli.json("recover", broken.run)["new_training_run_id"]
    service.corrupt(first)
    second = cli.json("recover", first)["new_training_run_id"]

    for old, new in ((broken.run, first), (first, second)):
        assert {
            "stage": "sft",
            "created_by": "tinker-async recover",
            "recovered_from": old,
        } == service.state.runs[new].metadata


def test_what_is_found_is_one_document(cli: Cli, broken: Seeded) -> None:
    """The run, each checkpoint with what speaks against it, and what became of it."""
    found = cli.json("recover", broken.run)

    names = (
        "training_run_id folder in_use state base_model lora_rank last_request_time checkpoints "
        "with_optimizer chosen outcome error new_training_run_id tinker_path weights_checked "
        "on_record python"
    )
    assert {*names.split()} == {*found}
    assert (broken.run, None, "corrupted", 4) == (
        found["training_run_id"],
        found["folder"],
        found["state"],
        found["lora_rank"],
    )
    assert broken.training[::-1] == [one["tinker_path"] for one in found["checkpoints"]]
    assert [None] * 3 == [one["objection"] for one in found["checkpoints"]]


def test_a_pipe_gets_the_path_in_a_line_of_its_own(cli: Cli, broken: Seeded) -> None:
    """As the other commands print what they made."""
    result = cli.ask("recover", broken.run, "--name", "again")

    assert 0 == result.exit_code, result.output
    lines = dict(line.split("\t", 1) for line in result.stdout.splitlines())
    assert lines["Checkpoint"].endswith("/weights/again")
    assert "CORRUPTED" == lines["Status"]
    assert broken.training[-1] == lines["Recovered from"]
    assert lines["Checkpoint"] in lines["Go on with"]
    assert "load 1/3" in result.stderr


def test_weights_alone_have_a_fresh_optimizer(
    cli: Cli, broken: Seeded, service: FakeService
) -> None:
    """For another schedule, or where the optimizer is what went wrong."""
    found = cli.json("recover", broken.run, "--weights-only")

    assert found["with_optimizer"] is False
    assert same_weights(service, broken.training[-1], found["tinker_path"])
    assert 0 == steps_of_optimizer(service, found["tinker_path"])


@pytest.mark.parametrize(
    "fault", [faults.OperationFails(error="bad shard"), faults.Status(404, "bad shard")], ids=str
)
def test_a_checkpoint_that_cannot_be_loaded_is_followed_by_the_one_before(
    cli: Cli, broken: Seeded, service: FakeService, fault: faults.Fault
) -> None:
    """Why the first was not taken is said."""
    service.faults.on("load_weights", fault, times=1)
    result = cli.ask("recover", broken.run)

    assert 0 == result.exit_code, result.output
    assert f"Recovered from\t{broken.training[1]}" in result.stdout
    assert f"not taken: {broken.training[2]}: " in result.stderr
    assert "bad shard" in result.stderr
    assert {*broken.paths} < {*service.state.checkpoints}


def test_a_checkpoint_with_an_objection_is_not_even_loaded(
    cli: Cli, broken: Seeded, service: FakeService
) -> None:
    """One that has expired; the next is taken, with a single load."""
    service.state.checkpoints[broken.training[-1]].expires_at = PAST
    found = cli.json("recover", broken.run)

    assert "expired" == found["checkpoints"][0]["objection"]["fault"]
    assert broken.training[1] == found["chosen"]
    assert 1 == service.ledger.count("load_weights")


def test_a_server_that_lists_no_checkpoints_still_names_the_last(
    cli: Cli, broken: Seeded, service: FakeService
) -> None:
    """As far as it describes the run."""
    service.faults.on("run_checkpoints", faults.Status(404, "Not Found"))

    assert broken.training[-1] == cli.json("recover", broken.run)["chosen"]


def test_where_nothing_can_be_loaded_each_checkpoint_has_a_line(
    cli: Cli, broken: Seeded, service: FakeService
) -> None:
    """9, with what each failed with; nothing is deleted, nothing saved."""
    service.faults.on("load_weights", faults.OperationFails(error="bad shard"))
    found = cli.json("recover", broken.run, exit_code=9)
    assert ("failed", None) == (found["outcome"], found["tinker_path"])
    assert "RecoveryExhaustedError" == found["error"]["type"]
    assert [True] * 3 == ["bad shard" in one["error"] for one in found["checkpoints"]]

    result = cli.ask("recover", broken.run)
    assert 9 == result.exit_code
    for path in broken.training:
        assert f"not taken: {path}: RequestFailedError" in result.stderr
    assert f"error: run {broken.run} cannot be recovered: none of its 3" in result.stderr
    assert "nothing was deleted" in result.stderr
    assert {*broken.paths} == {*service.state.checkpoints}


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)], ids=["", "dry"])
def test_where_all_have_expired_no_session_is_opened(
    cli: Cli, broken: Seeded, service: FakeService, dry_run: tuple[str, ...]
) -> None:
    """A dry run finds it out as well."""
    for path in broken.training:
        service.state.checkpoints[path].expires_at = PAST
    begin = len(service.ledger.entries)
    result = cli.ask("recover", broken.run, *dry_run)

    assert 9 == result.exit_code
    assert 3 == result.stderr.count("not taken: ")
    assert since(service, begin) <= LOOKS


def test_a_run_without_checkpoints_says_so(cli: Cli, broken: Seeded, service: FakeService) -> None:
    """Those for samplers do not count."""
    for path in broken.training:
        del service.state.checkpoints[path]
    result = cli.ask("recover", broken.run)

    assert 9 == result.exit_code
    assert "it has no training checkpoint" in result.stderr


def test_a_healthy_run_is_left_alone_unless_it_is_meant(
    cli: Cli, seeded: Seeded, service: FakeService
) -> None:
    """6, and nothing but looks; --anyway goes on with it."""
    begin = len(service.ledger.entries)
    result = cli.ask("recover", seeded.run)
    assert 6 == result.exit_code
    assert f"error: run {seeded.run} is healthy" in result.stderr
    assert "--anyway" in result.stderr
    assert "refused" == cli.json("recover", seeded.run, exit_code=6)["outcome"]
    assert since(service, begin) <= LOOKS

    assert "recovered" == cli.json("recover", seeded.run, "--anyway")["outcome"]


@pytest.mark.parametrize("corrupted", [True, False])
def test_a_dry_run_only_looks(
    cli: Cli, seeded: Seeded, service: FakeService, *, corrupted: bool
) -> None:
    """It says which checkpoint it would take, of a healthy run too; no session, no load, no save."""
    if corrupted:
        service.corrupt(seeded.run)
    begin = len(service.ledger.entries)
    found = cli.json("recover", seeded.run, "--dry-run")
    assert ("would recover", seeded.training[-1], None) == (
        found["outcome"],
        found["chosen"],
        found["tinker_path"],
    )
    result = cli.ask("recover", seeded.run, "--dry-run")
    assert 0 == result.exit_code
    assert "first choice" in result.stdout
    assert corrupted == ("is healthy" not in result.stderr)
    assert since(service, begin) <= LOOKS


def test_a_named_checkpoint_is_tried_first_and_then_the_others(
    cli: Cli, broken: Seeded, service: FakeService
) -> None:
    """As the strategy `specific` of a durable training."""
    oldest = broken.training[0]
    assert oldest == cli.json("recover", broken.run, "--checkpoint", oldest)["chosen"]

    service.faults.on("load_weights", faults.OperationFails(), times=1)
    again = cli.json("recover", broken.run, "--checkpoint", oldest, "--strategy", "specific")
    assert broken.training[-1] == again["chosen"]


def test_a_checkpoint_of_another_model_is_refused(
    cli: Cli, broken: Seeded, service: FakeService, url: str
) -> None:
    """Where it is the only one, nothing is loadable."""
    other = seed(url, KEY)
    service.state.runs[other.run].lora = ta.LoraConfig(rank=8)
    for path in broken.training:
        del service.state.checkpoints[path]
    result = cli.ask("recover", broken.run, "--checkpoint", other.training[0])

    assert 9 == result.exit_code
    assert "its rank is 8, the run's 4" in result.stderr
    assert 0 == service.ledger.count("load_weights")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("s9:train:0",), 5, "no training run 's9:train:0'"),
        (("no/such/folder",), 2, "there is no folder no/such/folder"),
        (("tinker://s1:train:0/weights/a",), 2, "is not the id of a training run"),
        (("s1:train:0", "--strategy", "best"), 2, "servers keep no metrics"),
        (("s1:train:0", "--strategy", "specific"), 2, "needs --checkpoint PATH"),
        (
            ("s1:train:0", "--strategy", "latest", "--checkpoint", "tinker://s1:train:0/weights/a"),
            2,
            "--checkpoint and --strategy latest each name what is tried first",
        ),
        (("s1:train:0", "--checkpoint", "nonsense"), 2, "is not a checkpoint path"),
        (
            ("s1:train:0", "--checkpoint", "tinker://s1:train:0/sampler_weights/a"),
            2,
            "is a checkpoint for sampler",
        ),
        (("s1:train:0", "--name", "a/b"), 2, "is no name of a checkpoint"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(
    cli: Cli, words: tuple[str, ...], code: int, said: str
) -> None:
    """On stderr alone, in plain and in JSON mode."""
    for form in ((), ("--json",)):
        result = cli.ask("recover", *words, *form)
        assert (code, "") == (result.exit_code, result.stdout)
        assert said in result.stderr


def test_a_refused_credential_speaks_against_no_checkpoint(
    cli: Cli, broken: Seeded, service: FakeService
) -> None:
    """Its own exit code, at the first load."""
    service.faults.on("load_weights", faults.Status(403, "not for you"))
    found = cli.json("recover", broken.run, exit_code=4)

    assert ("failed", "PermissionDeniedError") == (found["outcome"], found["error"]["type"])
    assert 1 == service.ledger.count("load_weights")


def test_people_see_a_table_and_the_line_to_go_on_with(
    alone: Cli, url: str, broken: Seeded
) -> None:
    """On a terminal."""
    alone.use(url)
    terminal = Terminal(alone, "recover", broken.run, shows_output=True)

    assert 0 == terminal.end()[0], terminal.seen
    assert "first choice" in terminal.seen
    assert "create_training_client_from_state_with_optimizer" in terminal.seen


# The folder of a durable training


def record(folder: Path, seeded: Seeded, *, pending: bool = False) -> Path:
    """Write the ledger that a durable training with these checkpoints would have."""
    with ta.Ledger(folder) as ledger:
        ledger.describe("toy", 4, 1, OPTIONS)
        for number, path in enumerate(seeded.training, start=1):
            name = path.rpartition("/")[2]
            ledger.begin(
                run_id=seeded.run,
                name=name,
                step=10 * number,
                metrics={"loss:sum": [3.0, 1.0, 2.0][number - 1]},
                position={"batch": number},
            )
            if not (pending and number == 3):
                ledger.confirm(number, path)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir()}


def test_a_folder_goes_on_at_its_step_when_its_program_is_started_again(
    cli: Cli, broken: Seeded, service: FakeService, url: str, tmp_path: Path
) -> None:
    """The new checkpoint is on record: where the program stood, its parent, and the recovery."""
    folder = record(tmp_path / "run", broken)
    found = cli.json("recover", str(folder))
    assert (str(folder), broken.run, "corrupted") == (
        found["folder"],
        found["training_run_id"],
        found["state"],
    )
    assert [30, 20, 10] == [one["step"] for one in found["checkpoints"]]
    assert (True, "recovered-step-30") == (
        found["on_record"],
        found["tinker_path"].rpartition("/")[2],
    )

    account = ta.Ledger.read(folder)
    newest, told = account.confirmed[-1], account.recoveries[-1]
    assert (found["tinker_path"], 30, {"batch": 3}, 3) == (
        newest.path,
        newest.step,
        newest.position,
        newest.parent,
    )
    assert (broken.run, found["new_training_run_id"], 3) == (
        told.from_run,
        told.to_run,
        told.checkpoint,
    )

    async def again() -> tuple[int, Any]:
        async with ta.Session(url, KEY) as session:
            scope: dict[str, Any] = {"session": session}
            program = f"async def main():\n    {found['python']}\n        return trainer"
            exec(program, scope)
            trainer = await scope["main"]()
            return trainer.step, trainer.position

    assert (30, {"batch": 3}) == anyio.run(again)
    resumed = ta.Ledger.read(folder).recoveries[-1]
    assert ("resume", newest.number) == (resumed.kind, resumed.checkpoint)
    assert 0 == service.ledger.count("delete_checkpoint")


@pytest.mark.parametrize(("mode", "place"), [("min", 1), ("max", 0)])
def test_the_best_of_a_folder_is_taken(
    cli: Cli, broken: Seeded, tmp_path: Path, mode: str, place: int
) -> None:
    """By a metric that is on record; one that is not is told with those that are."""
    folder = str(record(tmp_path / "run", broken))
    found = cli.json("recover", folder, "--strategy", "best", "--mode", mode, "--dry-run")
    assert broken.training[place] == found["chosen"]

    wrong = cli.ask("recover", folder, "--strategy", "best", "--metric", "reward")
    assert 2 == wrong.exit_code
    assert "--metric takes loss:sum" in wrong.stderr


def test_a_save_whose_end_nobody_saw_counts_if_it_is_there(
    cli: Cli, broken: Seeded, service: FakeService, tmp_path: Path
) -> None:
    """The program died before it could confirm its newest checkpoint."""
    folder = record(tmp_path / "run", broken, pending=True)
    assert broken.training[-1] == cli.json("recover", str(folder), "--dry-run")["chosen"]

    del service.state.checkpoints[broken.training[-1]]
    found = cli.json("recover", str(folder), "--dry-run")
    assert broken.training[1] == found["chosen"]
    assert 2 == len(found["checkpoints"])


def test_a_checkpoint_that_the_server_has_no_more_is_shown_with_that(
    cli: Cli, broken: Seeded, service: FakeService, tmp_path: Path
) -> None:
    """The ledger's word alone is not enough."""
    folder = record(tmp_path / "run", broken)
    del service.state.checkpoints[broken.training[-1]]
    found = cli.json("recover", str(folder))

    assert "missing" == found["checkpoints"][0]["objection"]["fault"]
    assert broken.training[1] == found["chosen"]


def test_a_run_that_the_server_does_not_know_any_more_is_lost(
    cli: Cli, seeded: Seeded, service: FakeService, tmp_path: Path
) -> None:
    """Its checkpoints may be there all the same."""
    folder = record(tmp_path / "run", seeded)
    del service.state.runs[seeded.run]
    found = cli.json("recover", str(folder))

    assert ("gone", "recovered", seeded.training[-1]) == (
        found["state"],
        found["outcome"],
        found["chosen"],
    )


def test_a_folder_in_which_a_program_trains_is_only_looked_at(
    cli: Cli, broken: Seeded, service: FakeService, tmp_path: Path
) -> None:
    """6, whatever the state of the run; the record is as it was."""
    folder = record(tmp_path / "run", broken)
    with ta.Ledger(folder):
        before, begin = content(folder), len(service.ledger.entries)
        found = cli.json("recover", str(folder), exit_code=6)
        assert (True, "refused", "LedgerError") == (
            found["in_use"],
            found["outcome"],
            found["error"]["type"],
        )
        result = cli.ask("recover", str(folder), "--dry-run")
        assert 0 == result.exit_code
        assert "a program trains in" in result.stderr
        assert before == content(folder)
        assert since(service, begin) <= LOOKS


def test_a_dry_run_leaves_a_folder_as_it_is(cli: Cli, broken: Seeded, tmp_path: Path) -> None:
    """Not even the lock is touched, nor a line that a crash left unfinished."""
    folder = record(tmp_path / "run", broken)
    with (folder / "ledger.jsonl").open("ab") as file:
        file.write(b'{"type": "checkp')
    before = content(folder)
    found = cli.json("recover", str(folder), "--dry-run")

    assert ("would recover", False) == (found["outcome"], found["in_use"])
    assert before == content(folder)


def test_a_save_that_fails_is_on_record_as_that(
    cli: Cli, broken: Seeded, service: FakeService, tmp_path: Path
) -> None:
    """The program will not look for it."""
    folder = record(tmp_path / "run", broken)
    service.faults.on("save_weights", faults.OperationFails(error="no room"))
    result = cli.ask("recover", str(folder))

    assert 9 == result.exit_code
    assert "no room" in result.stderr
    account = ta.Ledger.read(folder)
    assert ("failed", broken.training[-1]) == (
        account.entries[-1].status,
        account.confirmed[-1].path,
    )


def test_a_checkpoint_from_elsewhere_is_not_put_on_record(
    cli: Cli, broken: Seeded, url: str, tmp_path: Path
) -> None:
    """Nobody knows at which step it stands: the program is given the path."""
    folder = record(tmp_path / "run", broken)
    before, other = content(folder)["ledger.jsonl"], seed(url, KEY).training[0]
    found = cli.json("recover", str(folder), "--checkpoint", other)

    assert (other, False) == (found["chosen"], found["on_record"])
    assert found["tinker_path"] in found["python"]
    assert before == content(folder)["ledger.jsonl"]


@pytest.mark.parametrize(("text", "code"), [(None, 6), ("", 9), ("nonsense\n{}\n", 6)])
def test_a_folder_without_a_record_says_so(
    cli: Cli, tmp_path: Path, service: FakeService, text: str | None, code: int
) -> None:
    """None, an empty one, and a damaged one."""
    if text is not None:
        (tmp_path / "ledger.jsonl").write_text(text, encoding="utf-8")
    result = cli.ask("recover", str(tmp_path))

    assert (code, "") == (result.exit_code, result.stdout)
    assert str(tmp_path) in result.stderr
    assert since(service, 0) <= LOOKS


def test_weights_that_are_not_those_of_the_save_are_not_taken(
    cli: Cli, service: FakeService, url: str, tmp_path: Path
) -> None:
    """Where the ledger has a fingerprint, it is compared after the load."""
    paths = anyio.run(partial(durably_trained, url, tmp_path))
    records = service.state.checkpoints
    assert cli.json("recover", str(tmp_path), "--anyway")["weights_checked"] is True

    for record in [records[path] for path in records if path not in paths[:-1]]:
        record.state = records[paths[0]].state
    found = cli.json("recover", str(tmp_path), "--anyway")
    assert paths[-2] == found["chosen"]
    assert "log-probs differ" in found["checkpoints"][0]["error"]


async def durably_trained(url: str, folder: Path) -> list[str]:
    """Train three steps, each with a checkpoint; return their paths."""
    rng = random.Random(3)
    every = ta.CheckpointPolicy(save_every=1, keep_last=None)
    async with (
        ta.Session(url, KEY) as session,
        session.durable_training(folder, base_model="toy", rank=4, checkpoints=every) as trainer,
    ):
        for _ in range(3):
            trainer.forward_backward(batch(rng), "cross_entropy")
            await trainer.optim_step(ta.AdamParams(learning_rate=0.1))
            await trainer.saved()
    return [entry.path or "" for entry in ta.Ledger.read(folder).confirmed]
