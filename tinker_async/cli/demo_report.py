"""What the demo leaves behind: `report.json` and `curves.png`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import msgspec

from tinker_async.errors import MissingExtraError

_BLUE, _ORANGE = "#1f5fa8", "#c8641a"


class Report(msgspec.Struct, kw_only=True):
    """The numbers and texts of one run. Losses in nats per token, times in seconds."""

    model: str
    backend: str
    seed: int
    sft_nll: list[float]
    """loss per trained token, by step"""
    rl_reward: list[float]
    """mean reward, by round"""
    rl_length_tokens: list[float]
    """mean length of an answer, by round"""
    before: dict[str, str]
    """answers of the base model to questions that are not in the training data"""
    after: dict[str, str]
    rl_before: dict[str, str]
    rl_after: dict[str, str]
    max_sampler_trainer_logprob_gap: float
    seconds: dict[str, float]
    checkpoints: dict[str, str]


def needs_matplotlib() -> None:
    """Tell about the missing extra before the work, not after it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError(
            "the demo draws its curves with matplotlib", hint="pip install 'tinker-async[demo]'"
        )


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write both files into an existing folder and return their paths (JSON, PNG)."""
    json_path, png_path = folder / "report.json", folder / "curves.png"
    json_path.write_bytes(report_json(report))
    draw_curves(report, png_path)
    return json_path, png_path


def report_json(report: Report) -> bytes:
    """Return the report as indented JSON with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def draw_curves(report: Report, path: Path) -> None:
    """Draw loss by step and reward by round, side by side, without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # extra `demo`
    from matplotlib.figure import Figure  # noqa: PLC0415  # as above

    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    loss, reward = figure.subplots(1, 2)
    _draw(
        loss, report.sft_nll, _BLUE, "Supervised: a pirate's voice", "step", "loss per token (nats)"
    )
    loss.set_ylim(bottom=0)
    _draw(reward, report.rl_reward, _ORANGE, "Reinforcement: brevity", "round", "mean reward")
    reward.axhline(0, color="0.6", linewidth=0.8)
    figure.suptitle(f"tinker-async demo on {report.model}")
    figure.savefig(path)


def _draw(axes: Any, values: list[float], color: str, title: str, x: str, y: str) -> None:
    axes.plot(range(1, len(values) + 1), values, color=color, marker="o", markersize=4)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=True, color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
