"""`tinker-async bench`: how fast a server answers, as one program sees it. Bounded in time and work.

Everything goes through the public client, so what is measured is what a program would get.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import tinker_async as ta

_HIGHEST_TOKEN = 255
"""Tokens of the prompts are below it: every model has them."""


class _Plan:
    """What to do, and what was found; a measurement that runs out of time keeps its part."""

    def __init__(self, **options: Any) -> None:
        self.model: str | None = options["model"]
        self.samples: int = options["samples"]
        self.in_flight: int = options["in_flight"]
        self.prompt_tokens: int = options["prompt_tokens"]
        self.max_tokens: int = options["max_tokens"]
        self.steps: int = options["steps"]
        self.window: int = options["window"]
        self.limit_s: float = options["timeout"]
        self.found: dict[str, Any] = {}

    def prompt(self) -> list[int]:
        """Return a prompt of random tokens; others each time, so that no server has it at hand."""
        return [random.randrange(_HIGHEST_TOKEN) for _ in range(self.prompt_tokens)]  # noqa: S311


@click.command()
@click.option("--url", envvar="TINKER_BASE_URL", show_envvar=True, help="The server.")
@click.option("--api-key", envvar="TINKER_API_KEY", show_envvar=True, help="The credential.")
@click.option("--model", help="Base model. Default: the first that the server names.")
@click.option("--samples", type=click.IntRange(min=0), default=256, show_default=True)
@click.option("--in-flight", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--max-tokens", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--steps", type=click.IntRange(min=0), default=20, show_default=True)
@click.option("--window", type=click.IntRange(min=1), default=8, show_default=True)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    help="Seconds for sampling, and for training again; what is done by then counts.",
)
@click.option("--http2/--http1", default=None, help="Default: what TLS settles on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(*, url: str | None, api_key: str | None, http2: bool | None, **options: Any) -> None:
    """Measure a server: samples and training steps per second, and latencies.

    Draws --samples from the base model, --in-flight at a time, then trains a rank 8 adapter on
    two short rows for --steps, --window under way. This is work that a paid service charges for.
    """
    # Not at the top: `--help` shall not load the client.
    import anyio  # noqa: PLC0415

    as_json = options.pop("as_json")
    plan = _Plan(**options)
    anyio.run(partial(_measure, plan, url, api_key, http2))
    click.echo(json.dumps(plan.found) if as_json else "\n".join(_lines(plan.found)))


async def _measure(plan: _Plan, url: str | None, api_key: str | None, http2: bool | None) -> None:
    import anyio  # noqa: PLC0415  # as above

    import tinker_async as ta  # noqa: PLC0415

    async with ta.Session(url, api_key, http2=http2, grace_s=0.0) as session:
        if plan.model is None:
            served = (await session.get_server_capabilities()).supported_models
            plan.model = next((item.model_name for item in served if item.model_name), None)
        if plan.model is None:
            raise ta.ConfigError("the server names no models", hint="give one with --model")
        plan.found["model"] = plan.model
        for name, number, work in (
            ("sampling", plan.samples, _sampling),
            ("training", plan.steps, _training),
        ):
            if not number:
                continue
            timer = _Timer()
            with anyio.move_on_after(plan.limit_s) as scope:
                await work(plan, session, timer)
            if timer.done_s or scope.cancelled_caught:
                plan.found[name] = {**timer.figures(), "complete": not scope.cancelled_caught}


class _Timer:
    """Latencies of what was done, on one clock."""

    def __init__(self) -> None:
        self.done_s: list[float] = []
        self.tokens = 0
        self.start()

    def start(self) -> None:
        self._started, self._cpu = time.monotonic(), time.process_time()
        self._ended, self._cpu_end = self._started, self._cpu

    def note(self, latency_s: float, tokens: int = 0) -> None:
        self.done_s.append(latency_s)
        self.tokens += tokens
        self._ended, self._cpu_end = time.monotonic(), time.process_time()

    def figures(self) -> dict[str, float]:
        wall_s = max(self._ended - self._started, 1e-9)
        count = len(self.done_s)
        if not count:
            return {"done": 0}
        return {
            "done": count,
            "per_s": count / wall_s,
            "tokens_per_s": self.tokens / wall_s,
            **{
                f"p{percent}_ms": 1e3 * _percentile(self.done_s, percent)
                for percent in (50, 90, 99)
            },
            "client_cpu_ms": 1e3 * (self._cpu_end - self._cpu) / count,
        }


def _percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


async def _sampling(plan: _Plan, session: ta.Session, timer: _Timer) -> None:
    import tinker_async as ta  # noqa: PLC0415  # as above

    sampler = await session.create_sampling_client(base_model=plan.model)
    params = ta.SamplingParams(max_tokens=plan.max_tokens)

    async def draw() -> int:
        response = await sampler.sample(ta.ModelInput.from_ints(plan.prompt()), params)
        return sum(len(sequence.tokens) for sequence in response.sequences)

    await _timed(draw, plan.samples, plan.in_flight, timer)


async def _training(plan: _Plan, session: ta.Session, timer: _Timer) -> None:
    import tinker_async as ta  # noqa: PLC0415  # as above

    trainer = await session.create_lora_training_client(plan.model or "", rank=8)
    tokens = plan.prompt()
    datum = ta.Datum(
        ta.ModelInput.from_ints(tokens),
        {"target_tokens": [*tokens[1:], 0], "weights": [1.0] * len(tokens)},
    )
    adam = ta.AdamParams(learning_rate=1e-5)

    async def step() -> int:
        await trainer.train_step([datum] * 2, "cross_entropy", adam)
        return 2 * len(tokens)

    await _timed(step, plan.steps, plan.window, timer)


async def _timed(
    work: Callable[[], Awaitable[int]], number: int, in_flight: int, timer: _Timer
) -> None:
    """Do something so often, so many at once, after one that does not count."""
    import anyio  # noqa: PLC0415  # as above

    left = iter(range(number))

    async def worker() -> None:
        for _ in left:
            start = time.monotonic()
            tokens = await work()
            timer.note(time.monotonic() - start, tokens)

    await work()  # connects, and lets the server load what it needs
    timer.start()
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(min(in_flight, number)):
                tasks.start_soon(worker)
    except ExceptionGroup as group:
        raise _first(group) from group


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """Return the first failure of many alike."""
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [f"model     {found['model']}"]
    for name, unit in (("sampling", "samples"), ("training", "steps")):
        figures = found.get(name)
        if figures is None:
            continue
        if not figures["done"]:
            lines.append(f"{name:9} nothing was done within --timeout")
            continue
        more = "" if figures["complete"] else f" (stopped by --timeout after {figures['done']})"
        lines += [
            f"{name:9} {figures['per_s']:.1f} {unit}/s, {figures['tokens_per_s']:.0f} tokens/s{more}",
            "          latency "
            + ", ".join(
                f"p{percent} {figures[f'p{percent}_ms']:.0f} ms" for percent in (50, 90, 99)
            )
            + f"; client's CPU {figures['client_cpu_ms']:.2f} ms each",
        ]
    return lines
