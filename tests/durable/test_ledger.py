"""The ledger: what was said is on the disk, whenever and however the writer ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinker_async import InvalidInputError, Ledger, LedgerError, RecoveryRecord
from tinker_async.durable.ledger import FILE, parse
from tinker_async.durable.records import account_of, check_json

ON_DISK = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PATH = "tinker://run/weights/c"


def written(folder: Path, count: int = 3) -> Path:
    """A ledger of a run with so many confirmed checkpoints and a recovery."""
    with Ledger(folder, clock=lambda: 100.0) as ledger:
        ledger.describe("tiny", 8, 7, {"train_mlp": True})
        for number in range(1, count + 1):
            save(ledger, number)
        ledger.recovered(
            RecoveryRecord(
                kind="recovery",
                generation=2,
                from_run="run",
                to_run="run2",
                checkpoint=count,
                cause="corrupted",
            )
        )
    return folder / FILE


def save(ledger: Ledger, number: int) -> None:
    ledger.begin(
        run_id="run",
        name=f"c{number}",
        step=10 * number,
        metrics={"loss": 1.0 / number},
        position={"epoch": 0, "row": [number, "ä"]},
        random_state={"rng": {"kind": "python", "state": "[3, [1, 2], null]"}},
        operation=20 * number,
        parent=number - 1 or None,
    )
    ledger.confirm(number, f"{PATH}{number}", sampler_path="tinker://run/sampler_weights/c")


def test_what_is_written_is_read_by_the_next_program(tmp_path: Path) -> None:
    """All of it: what the run is, where it stood, what became of it."""
    written(tmp_path)
    with Ledger(tmp_path) as ledger:
        newest = ledger.account.confirmed[-1]

        assert (30, f"{PATH}3", 60, 2) == (
            *(newest.step, newest.path, newest.operation),
            newest.parent,
        )
        assert {"epoch": 0, "row": [3, "ä"]} == newest.position
        assert {"rng": {"kind": "python", "state": "[3, [1, 2], null]"}} == newest.random_state
        assert {"loss": 1.0 / 3} == newest.metrics
        assert 2 == ledger.account.generation
        assert ledger.account == Ledger.read(tmp_path)


def test_each_line_is_json(tmp_path: Path) -> None:
    """So that other programs can read it."""
    lines = [json.loads(line) for line in written(tmp_path).read_text("utf-8").splitlines()]

    kinds = ["run", *(["checkpoint", "status"] * 3), "recovery"]
    assert kinds == [line["type"] for line in lines]


def test_a_checkpoint_ends_in_one_way_and_may_be_found_again(tmp_path: Path) -> None:
    """What was given up may turn out to be there; what was deleted is never there again."""
    with Ledger(tmp_path) as ledger:
        for number in (1, 2):
            ledger.begin(run_id="run", name="c", step=number)
        assert [1, 2] == [one.number for one in ledger.account.pending]
        assert "failed" == ledger.fail(1, "lost").status
        assert "lost" == ledger.account.entry(1).error
        assert "confirmed" == ledger.confirm(1, PATH).status
        assert ("deleted", PATH) == (ledger.deleted(1).status, ledger.account.entry(1).path)
        refused: list[Callable[[], object]] = [
            lambda: ledger.confirm(1, PATH),
            lambda: ledger.deleted(2),
            lambda: ledger.fail(3, "there is none"),
            lambda: ledger.begin(run_id="run", name="c", step=3, parent=3),
        ]
        for call in refused:
            with pytest.raises(InvalidInputError):
                call()
    assert ["deleted", "pending"] == [one.status for one in Ledger.read(tmp_path).entries]


def test_a_confirmed_checkpoint_can_be_added_to(tmp_path: Path) -> None:
    """Its fingerprint is known later than its path, and nothing that was known is lost."""
    with Ledger(tmp_path) as ledger:
        ledger.begin(run_id="run", name="c", step=1)
        ledger.confirm(1, PATH, sampler_path="tinker://s")
        ledger.confirm(1, PATH, fingerprint=(-1.5, -0.25))

    found = Ledger.read(tmp_path).entry(1)
    assert ("tinker://s", (-1.5, -0.25)) == (found.sampler_path, found.fingerprint)


def test_a_time_to_live_is_a_time_on_record(tmp_path: Path) -> None:
    """Of the wall clock, since the server counts on while no program runs."""
    with Ledger(tmp_path, clock=lambda: 1000.0) as ledger:
        entry = ledger.begin(run_id="run", name="c", step=1, ttl_s=3600.0)

    assert (4600.0, False, True) == (
        entry.expires_at,
        entry.has_expired(4599),
        entry.has_expired(4600),
    )


def test_the_first_start_says_what_the_run_is(tmp_path: Path) -> None:
    """Its seed counts for ever; another model in the same folder is refused."""
    with Ledger(tmp_path) as ledger:
        assert 7 == ledger.describe("tiny", 8, seed=7).seed
    with Ledger(tmp_path) as ledger:
        assert 7 == ledger.describe("tiny", 8, seed=99).seed
        for arguments in (("other", 8, 7), ("tiny", 4, 7), ("tiny", 8, 7, {"train_mlp": False})):
            with pytest.raises(LedgerError) as caught:
                ledger.describe(*arguments)
            assert "other_run" == caught.value.reason


@pytest.mark.parametrize(
    "position", [(1, 2), {1: 2}, float("nan"), {"a": object()}, [float("inf")], {"x": (1,)}]
)
def test_what_json_would_change_is_refused_at_once(tmp_path: Path, position: Any) -> None:
    """A program must get back exactly what it set; and nothing of it was written."""
    with Ledger(tmp_path) as ledger:
        with pytest.raises(InvalidInputError, match="position"):
            ledger.begin(run_id="run", name="c", step=1, position=position)
        assert () == ledger.account.entries
    assert b"" == (tmp_path / FILE).read_bytes()


def test_a_loss_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    """The checkpoint is as good as any; there is nothing to compare it by."""
    with Ledger(tmp_path) as ledger:
        metrics = {"loss": float("nan"), "lr": 0.5, "norm": float("inf")}
        assert {"lr": 0.5} == ledger.begin(run_id="run", name="c", step=1, metrics=metrics).metrics


# Crashes


@ON_DISK
@given(st.data())
def test_a_file_cut_at_any_byte_is_a_true_account_of_its_time(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The unfinished line is dropped, the file mended, and writing goes on in it."""
    folder = tmp_path_factory.mktemp("cut")
    file = written(folder)
    whole = file.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    file.write_bytes(whole[:cut])
    lines = whole[:cut].count(b"\n")
    expected = account_of(parse(b"".join(whole.splitlines(keepends=True)[:lines]), file)[0])

    assert expected == Ledger.read(folder)
    with Ledger(folder) as ledger:
        assert expected == ledger.account
        assert whole[: whole[:cut].rfind(b"\n") + 1] == file.read_bytes()
        ledger.begin(run_id="run", name="next", step=999)
    assert 999 == Ledger.read(folder).entries[-1].step
    assert len(expected.entries) + 1 == len(Ledger.read(folder).entries)


@ON_DISK
@given(junk=st.binary(min_size=1, max_size=30))
def test_junk_at_the_end_is_dropped(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    """Such as zeros, where the system wrote a length but not yet the bytes."""
    folder = tmp_path_factory.mktemp("junk")
    file = written(folder, 1)
    expected = Ledger.read(folder)
    with file.open("ab") as open_file:
        open_file.write(junk.replace(b"\n", b"\0"))

    with Ledger(folder) as ledger:
        assert expected == ledger.account


@pytest.mark.parametrize("line", [0, 2])
def test_damage_before_the_end_is_told(tmp_path: Path, line: int) -> None:
    """It is no crash of ours: going on might begin at a wrong place."""
    file = written(tmp_path)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[line] = b"#" + lines[line][1:]
    file.write_bytes(b"".join(lines))

    for opened in (Ledger, Ledger.read):
        with pytest.raises(LedgerError, match=f"line {line + 1}") as caught:
            opened(tmp_path)
        assert "damaged" == caught.value.reason


def test_a_line_that_is_missing_is_told(tmp_path: Path) -> None:
    """A checkpoint's end without its beginning."""
    file = written(tmp_path)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:1], *lines[2:]]))

    with pytest.raises(LedgerError, match="contradicts itself"):
        Ledger(tmp_path)


def test_a_newer_version_may_have_added_kinds_of_records(tmp_path: Path) -> None:
    """They are skipped and kept; a newer format as a whole is refused."""
    file = written(tmp_path, 1)
    expected = Ledger.read(tmp_path)
    with file.open("ab") as open_file:
        open_file.write(b'{"type":"weather","sunny":true}\n')
    with Ledger(tmp_path) as ledger:
        assert expected == ledger.account
    assert b"sunny" in file.read_bytes()

    file.write_bytes(b'{"type":"run","base_model":"m","rank":1,"seed":1,"format":2}\n')
    with pytest.raises(LedgerError, match="newer version"):
        Ledger(tmp_path)


WRITER = """
import sys
from tinker_async import Ledger
with Ledger(sys.argv[1]) as ledger:
    while True:
        number = len(ledger.account.entries) + 1
        ledger.begin(run_id="run", name="c", step=number, position={"pad": "x" * 3000})
        ledger.confirm(number, "tinker://run/weights/c")
        print(number, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_what_was_said_survives_a_kill(tmp_path: Path) -> None:
    """At any moment, life after life; the lock dies with its owner."""
    chance = random.Random(6)
    said = 0
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(chance.randint(1, 20)):
            said = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split("\n")[:-1]
        said = int(rest[-1]) if rest else said
        writer.stdout.close()
        writer.wait()

        with Ledger(tmp_path) as ledger:
            confirmed = [one.step for one in ledger.account.confirmed]
            assert list(range(1, said + 1)) == confirmed[:said]
            assert len(confirmed) <= said + 1
            for one in ledger.account.pending:
                ledger.confirm(one.number, "tinker://run/weights/found")
            said = len(ledger.account.entries)


# Two writers


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    """Its error says who has it; the first one goes on, and the next can follow it."""
    with Ledger(tmp_path) as first:
        with pytest.raises(LedgerError, match=f"process {os.getpid()}") as caught:
            Ledger(tmp_path)
        assert "in_use" == caught.value.reason
        first.begin(run_id="run", name="c", step=1)
        assert 1 == len(Ledger.read(tmp_path).entries)
    with Ledger(tmp_path) as second:
        assert 1 == len(second.account.entries)


def test_a_second_process_is_refused_too(tmp_path: Path) -> None:
    """The lock is the system's."""
    code = (
        "import sys\nfrom tinker_async import Ledger, LedgerError\n"
        "try:\n    Ledger(sys.argv[1])\nexcept LedgerError as error:\n    print(error.reason)"
    )
    with Ledger(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        )
    assert "in_use\n" == done.stdout


def test_a_damaged_ledger_lets_go_of_its_lock(tmp_path: Path) -> None:
    """Whoever mends it by hand can go on without ending a program."""
    file = written(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(b"#" + whole)
    with pytest.raises(LedgerError):
        Ledger(tmp_path)
    file.write_bytes(whole)

    Ledger(tmp_path).close()


# A disk that fails


def test_each_record_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that loses power loses nothing that was said."""
    flushed: list[int] = []
    with Ledger(tmp_path) as ledger:
        real = os.fsync

        def flush(fd: int) -> None:
            real(fd)
            flushed.append(os.fstat(fd).st_size)

        monkeypatch.setattr(os, "fsync", flush)
        ledger.begin(run_id="run", name="c", step=1)
        ledger.confirm(1, PATH)
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)

    assert [len(lines[0]), len(lines[0]) + len(lines[1])] == flushed


def test_a_line_that_cannot_be_written_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half of it is taken back, and the ledger can be used when there is room again."""
    ledger = Ledger(tmp_path)
    ledger.begin(run_id="run", name="c", step=1)
    real = os.write
    left = [10]

    def full(fd: int, data: Any) -> int:
        room = left.pop() if left else 0
        if not room:
            raise OSError(28, "No space left on device")
        return real(fd, data[:room])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(LedgerError, match="No space left") as caught:
        ledger.begin(run_id="run", name="c", step=2)
    assert ("unwritable", 1) == (caught.value.reason, len(ledger.account.entries))
    monkeypatch.undo()
    ledger.begin(run_id="run", name="c", step=3)
    ledger.close()

    assert [1, 3] == [one.step for one in Ledger.read(tmp_path).entries]


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    """As our own error, with the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError) as caught:
        Ledger(tmp_path / "file" / "run")
    assert "unwritable" == caught.value.reason
    with pytest.raises(LedgerError, match="no ledger"):
        Ledger.read(tmp_path)


def test_a_closed_ledger_takes_nothing(tmp_path: Path) -> None:
    """Another may be writing by now."""
    ledger = Ledger(tmp_path)
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.begin(run_id="run", name="c", step=1)


# For others


def test_each_record_is_handed_on_once_it_is_on_the_disk(tmp_path: Path) -> None:
    """The hook for lineage stores."""
    seen: list[tuple[str, int]] = []
    file = tmp_path / FILE

    def hook(record: Any) -> None:
        seen.append((type(record).__name__, file.read_bytes().count(b"\n")))

    with Ledger(tmp_path, on_record=hook) as ledger:
        ledger.describe("tiny", 8, 7)
        save(ledger, 1)
    assert [("RunRecord", 1), ("CheckpointEntry", 2), ("StatusRecord", 3)] == seen


def test_the_lineage_is_json_that_tells_where_weights_came_from(tmp_path: Path) -> None:
    """Artifacts, and edges of training and of recovery; no state of a generator."""
    written(tmp_path)
    with Ledger(tmp_path) as ledger:
        found = json.loads(json.dumps(ledger.lineage()))

    assert ["checkpoint-1", "checkpoint-2", "checkpoint-3"] == [
        one["id"] for one in found["artifacts"]
    ]
    assert "random_state" not in found["artifacts"][0]
    edges = [(one["from"], one["to"], one["kind"]) for one in found["edges"]]
    assert [
        ("origin", "checkpoint-1", "trained"),
        ("checkpoint-1", "checkpoint-2", "trained"),
        ("checkpoint-2", "checkpoint-3", "trained"),
        ("checkpoint-3", "run2", "recovery"),
    ] == edges
    assert ("tiny", 7) == (found["run"]["base_model"], found["run"]["seed"])


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
@settings(max_examples=50, deadline=None)
def test_any_json_value_can_be_a_position(value: Any) -> None:
    """Nothing that is JSON is refused."""
    assert value == check_json(value, "position")
