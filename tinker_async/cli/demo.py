"""`tinker-async demo`: both training loops on the embedded engine, with a report and a plot."""

from __future__ import annotations

import importlib.util
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

from tinker_async.cli.demo_report import Report, needs_matplotlib, report_json, write_report
from tinker_async.cli.demo_run import Settings, plan_for, run_demo
from tinker_async.cli.live import Live
from tinker_async.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command()
@click.option(
    "--model",
    default="smollm2-135m",
    show_default=True,
    help="smollm2-135m (93 MB, fetched once), tiny-llama, tiny-qwen3, or NAME=FOLDER of a "
    "Hugging Face model that speaks ChatML.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for report.json, curves.png and the checkpoints.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@click.option(
    "--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), help="Supervised steps.")
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds of reinforcement.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch; default all cores.")
def demo(
    model: str,
    out: Path,
    backend: str,
    seed: int,
    steps: int | None,
    rounds: int | None,
    threads: int | None,
    *,
    as_json: bool,
) -> None:
    """Fine-tune a real model on this machine: with examples first, then with a reward.

    Shows answers before and after, and leaves curves and checkpoints behind.
    """
    with _lone_errors():
        _needs(backend)
        out.mkdir(parents=True, exist_ok=True)
        settings = Settings(
            model=model,
            plan=plan_for(model, steps=steps, rounds=rounds),
            data_dir=(out / "checkpoints").absolute(),
            seed=seed,
            backend=backend,
            threads=threads,
        )
        with Live() as live:
            report = anyio.run(run_demo, settings, live, backend=backend)
        paths = write_report(report, out)
    if as_json:
        click.echo(report_json(report), nl=False)
    else:
        click.echo(summary(report))
        click.echo("\n".join(f"Wrote {path}" for path in paths))


def summary(report: Report) -> str:
    """Return the answers before and after, and how the two numbers moved."""
    gap = report.max_sampler_trainer_logprob_gap
    lines = [
        f"Supervised: loss per token {_span(report.sft_nll)}",
        *_answers(report.before, report.after),
        "",
        f"Reinforcement: mean reward {_span(report.rl_reward)}",
        *_answers(report.rl_before, report.rl_after),
        "",
        f"Log-probs of sampler and trainer differ by at most {gap:.1e}.",
        "Checkpoints:",
        *(f"  {path}" for path in report.checkpoints.values()),
    ]
    return "\n".join(lines)


def _span(values: list[float]) -> str:
    return f"{values[0]:.2f} at first, {values[-1]:.2f} at last"


def _answers(before: dict[str, str], after: dict[str, str]) -> list[str]:
    lines = []
    for question, answer in before.items():
        lines += [
            f"  {question}",
            f"    before: {_printable(answer)}",
            f"    after:  {_printable(after[question])}",
        ]
    return lines


def _printable(text: str) -> str:
    """One line, without control characters: random weights must not steer the terminal."""
    return "".join(char for char in " ".join(text.split()) if char.isprintable())


def _needs(backend: str) -> None:
    needs_matplotlib()
    if importlib.util.find_spec(backend) is None:
        raise MissingExtraError(f"{backend} is not installed", hint=f"pip install {backend}")


@contextmanager
def _lone_errors() -> Iterator[None]:
    """Let a lone failure leave as itself, however many task groups it came through."""
    try:
        yield
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:  # trio raises it in any task
            raise KeyboardInterrupt from group
        lone: BaseException = group
        while isinstance(lone, BaseExceptionGroup) and len(lone.exceptions) == 1:
            lone = lone.exceptions[0]
        if lone is group:
            raise
        raise lone from group
    except OSError as error:  # the folder of the report
        raise click.ClickException(str(error)) from error
