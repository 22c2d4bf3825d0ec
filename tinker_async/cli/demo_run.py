"""One run of the demo: opens the session, runs both recipes, gathers the report."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import msgspec

import tinker_async as ta
from tinker_async.cli.demo_report import Report
from tinker_async.cli.personas import BREVITY, HELD_OUT, PIRATE
from tinker_async.cli.recipes import (
    Round,
    ask,
    chat_prompt,
    encode,
    fine_tune,
    reinforce,
    supervised_datum,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tokenizers import Tokenizer

    from tinker_async.cli.live import Live


class Plan(msgspec.Struct, frozen=True):
    """How much of what. The defaults suit SmolLM2, `TINY_PLAN` suits random weights."""

    steps: int = 14
    batch_size: int = 8
    rank: int = 32
    learning_rate: float = 1e-3
    answer_tokens: int = 40
    rounds: int = 10
    group_size: int = 8
    rl_rank: int = 16
    rl_learning_rate: float = 1e-3
    rl_tokens: int = 20


TINY_PLAN = Plan(learning_rate=1e-2, group_size=32, rl_learning_rate=1e-2)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asked for."""

    model: str
    plan: Plan
    data_dir: Path
    """where checkpoints are kept"""
    seed: int = 0
    backend: str = "asyncio"
    threads: int | None = None


def plan_for(model: str, *, steps: int | None = None, rounds: int | None = None) -> Plan:
    """Return the plan for a model, with the user's own counts."""
    plan = TINY_PLAN if model.lower().startswith("tiny-") else Plan()
    return msgspec.structs.replace(plan, steps=steps or plan.steps, rounds=rounds or plan.rounds)


async def run_demo(settings: Settings, live: Live) -> Report:
    """Run both loops in one session with an engine of its own.

    Raises:
        TinkerError: The model, the engine or an operation failed.
    """
    clock = _Clock()
    live.stage("starting the engine", 1)
    began_s = anyio.current_time()
    async with ta.Session.local(
        settings.model,
        data_dir=settings.data_dir,
        threads=settings.threads,
        progress=live.note,
    ) as session:
        clock.seconds["start"] = round(anyio.current_time() - began_s, 3)
        live.step("ready")
        model = (await session.get_server_capabilities()).supported_models[0].model_name or ""
        bench = _Bench(session, model, settings, live, clock)
        supervised = await _supervised(bench)
        reinforced = await _reinforced(bench)
    clock.seconds["total"] = round(anyio.current_time() - began_s, 3)
    return Report(
        model=model,
        backend=settings.backend,
        seed=settings.seed,
        sft_nll=supervised.nll,
        rl_reward=[one.reward for one in reinforced.rounds],
        rl_length_tokens=[one.length_tokens for one in reinforced.rounds],
        before=supervised.before,
        after=supervised.after,
        rl_before=reinforced.before,
        rl_after=reinforced.after,
        max_sampler_trainer_logprob_gap=max(one.logprob_gap for one in reinforced.rounds),
        seconds=clock.seconds,
        checkpoints=supervised.checkpoints | reinforced.checkpoints,
    )


class _Clock:
    """Seconds that the parts of a run took, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began_s = anyio.current_time()
        yield
        self.seconds[name] = round(anyio.current_time() - began_s, 3)


@dataclass(frozen=True)
class _Bench:
    """What both loops work with."""

    session: ta.Session
    model: str
    settings: Settings
    live: Live
    clock: _Clock


@dataclass(frozen=True)
class _Supervised:
    nll: list[float]
    before: dict[str, str]
    after: dict[str, str]
    checkpoints: dict[str, str]


@dataclass(frozen=True)
class _Reinforced:
    rounds: list[Round]
    before: dict[str, str]
    after: dict[str, str]
    checkpoints: dict[str, str]


async def _supervised(bench: _Bench) -> _Supervised:
    plan, live, clock = bench.settings.plan, bench.live, bench.clock
    trainer = await bench.session.create_lora_training_client(
        bench.model, rank=plan.rank, seed=bench.settings.seed
    )
    tokenizer = await trainer.get_tokenizer()
    with clock.part("sft_before"):
        before = await _asked_of_base(bench, tokenizer, HELD_OUT, plan.answer_tokens)
    data = [supervised_datum(tokenizer, question, answer) for question, answer in PIRATE]
    live.stage("fine-tuning on examples", plan.steps)
    with clock.part("sft"):
        nll = await fine_tune(
            trainer,
            data,
            steps=plan.steps,
            batch_size=plan.batch_size,
            learning_rate=plan.learning_rate,
            seed=bench.settings.seed,
            on_step=lambda loss: live.step(f"loss {loss:.2f} per token"),
        )
    with clock.part("sft_after"):
        sampler = await trainer.save_weights_and_get_sampling_client()
        after = await ask(sampler, tokenizer, HELD_OUT, max_tokens=plan.answer_tokens)
    checkpoints = await _saved(bench, trainer, "sft")
    return _Supervised(nll, before, after, checkpoints)


async def _reinforced(bench: _Bench) -> _Reinforced:
    plan, live, clock = bench.settings.plan, bench.live, bench.clock
    trainer = await bench.session.create_lora_training_client(
        bench.model, rank=plan.rl_rank, seed=bench.settings.seed
    )
    tokenizer = await trainer.get_tokenizer()
    with clock.part("rl_before"):
        before = await _asked_of_base(bench, tokenizer, BREVITY, plan.rl_tokens)
    live.stage("reinforcing brevity", plan.rounds)
    with clock.part("rl"):
        rounds = await reinforce(
            trainer,
            [encode(tokenizer, chat_prompt(question)) for question in BREVITY],
            rounds=plan.rounds,
            group_size=plan.group_size,
            max_tokens=plan.rl_tokens,
            learning_rate=plan.rl_learning_rate,
            seed=bench.settings.seed,
            on_round=lambda one: live.step(
                f"reward {one.reward:+.2f}, {one.length_tokens:.1f} tokens an answer"
            ),
        )
    with clock.part("rl_after"):
        sampler = await trainer.save_weights_and_get_sampling_client()
        after = await ask(sampler, tokenizer, BREVITY, max_tokens=plan.rl_tokens)
    checkpoints = await _saved(bench, trainer, "rl")
    return _Reinforced(rounds, before, after, checkpoints)


async def _asked_of_base(
    bench: _Bench, tokenizer: Tokenizer, questions: tuple[str, ...], max_tokens: int
) -> dict[str, str]:
    bench.live.stage("asking the base model", 1)
    sampler = await bench.session.create_sampling_client(base_model=bench.model)
    answers = await ask(sampler, tokenizer, questions, max_tokens=max_tokens)
    bench.live.step()
    return answers


async def _saved(bench: _Bench, trainer: ta.TrainingClient, name: str) -> dict[str, str]:
    """Save for training and for sampling; return the paths by what they are for."""
    with bench.clock.part(f"{name}_save"):
        state = trainer.save_state(f"demo-{name}")
        weights = trainer.save_weights_for_sampler(f"demo-{name}")
        return {f"{name}_training": (await state).path, f"{name}_sampler": (await weights).path}
