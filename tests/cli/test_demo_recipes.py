"""The parts of the demo that need no engine: data, rewards, report, plot, progress."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import tinker_async as ta
from tinker_async.cli.demo import summary
from tinker_async.cli.demo_report import Report, report_json, write_report
from tinker_async.cli.demo_run import TINY_PLAN, Plan, plan_for
from tinker_async.cli.live import Live
from tinker_async.cli.personas import BREVITY, HELD_OUT, PIRATE
from tinker_async.cli.recipes import (
    Rollout,
    batches,
    brevity_reward,
    chat_prompt,
    encode,
    group_rollouts,
    logprob_gap,
    rollout_datum,
    supervised_datum,
)
from tinker_async.local.tiny import byte_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

END = 2
"""`<|im_end|>` of the byte tokenizer."""


def _values(datum: ta.Datum, key: str) -> list[Any]:
    return datum.loss_fn_inputs[key].tolist()


def _sequence(tokens: list[int], *, stop_reason: str = "stop") -> ta.SampledSequence:
    return ta.SampledSequence(
        tokens=np.array(tokens, dtype=np.int32),
        logprobs=np.linspace(-1, -2, len(tokens), dtype=np.float32),
        stop_reason=stop_reason,
    )


def test_a_supervised_example_trains_the_answer_and_its_end_only() -> None:
    """Where the weight is 1, the targets spell the answer and `<|im_end|>`; elsewhere it is 0."""
    tokenizer = byte_tokenizer()
    datum = supervised_datum(tokenizer, "Who?", "Arr!")
    inputs, targets = datum.model_input.to_ints(), _values(datum, "target_tokens")
    weights = _values(datum, "weights")
    assert inputs[1:] == targets[:-1]
    assert len(inputs) == len(targets) == len(weights)
    trained = [token for token, weight in zip(targets, weights, strict=True) if weight == 1.0]
    assert [*encode(tokenizer, "Arr!"), END] == trained
    assert {0.0, 1.0} == set(weights)
    untrained = len(weights) - len(trained)
    assert encode(tokenizer, chat_prompt("Who?")) == inputs[: untrained + 1]


def test_the_prompt_is_chatml_up_to_the_answer() -> None:
    """Written by hand, and one token for each marker."""
    assert chat_prompt("Hi?") == "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    ids = encode(byte_tokenizer(), chat_prompt("Hi?"))
    assert (ids.count(1), ids.count(END)) == (2, 1)


@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))
def test_every_epoch_uses_each_example_once(pool: int, size: int, count: int, seed: int) -> None:
    """Batches are full, repeat with the seed, and cut one stream of shuffled epochs."""
    data = [
        ta.Datum(ta.ModelInput.from_ints([number]), {"target_tokens": [number]})
        for number in range(pool)
    ]

    def drawn() -> list[list[int]]:
        return [
            [datum.model_input.to_ints()[0] for datum in batch]
            for batch in batches(data, size, count, seed)
        ]

    assert [size] * count == [len(batch) for batch in drawn()]
    assert drawn() == drawn()
    stream = [number for batch in drawn() for number in batch]
    for start in range(0, len(stream) - pool + 1, pool):
        assert set(range(pool)) == set(stream[start : start + pool])


def test_short_answers_earn_more_and_cut_or_silent_ones_lose() -> None:
    """1 - length / limit when an answer ended by itself; cut off, or silent, it gets -0.5."""
    assert brevity_reward(5, 20, stopped=True) == 0.75
    assert brevity_reward(20, 20, stopped=True) == 0.0
    assert brevity_reward(20, 20, stopped=False) == -0.5
    assert brevity_reward(1, 20, stopped=True) == -0.5


def test_advantages_are_rewards_above_the_mean_of_their_group() -> None:
    """They sum to zero; a sample that was cut off is below, a short one above."""
    sequences = [_sequence([7, END]), _sequence([7] * 8, stop_reason="length")]
    short, cut = group_rollouts([5, 6], sequences, max_tokens=8)
    assert (short.reward, cut.reward) == (0.75, -0.5)
    assert (short.advantage, cut.advantage) == (0.625, -0.625)
    assert short.tokens == [7, END]


def test_a_sample_without_logprobs_cannot_be_trained_on() -> None:
    """Nothing is made up for what the server did not send."""
    silent = ta.SampledSequence(tokens=np.array([1]), logprobs=None, stop_reason="stop")
    with pytest.raises(ValueError, match="no log-probs"):
        group_rollouts([5], [silent], max_tokens=4)


def test_a_rollout_trains_its_sampled_tokens_only() -> None:
    """Advantage and sampler log-prob stand where the sampled token is the target, zero before."""
    rollout = Rollout([5, 6, 7], [8, END], np.array([-0.5, -1.5], np.float32), 0.5, 0.25)
    datum = rollout_datum(rollout)
    assert datum.model_input.to_ints() == [5, 6, 7, 8]
    assert _values(datum, "target_tokens") == [6, 7, 8, END]
    assert _values(datum, "advantages") == [0.0, 0.0, 0.25, 0.25]
    assert _values(datum, "logprobs") == [0.0, 0.0, -0.5, -1.5]


def test_the_gap_is_the_largest_difference_on_sampled_tokens() -> None:
    """Prompt positions do not count: the sampler has no log-probs there."""
    rollout = Rollout([5, 6, 7], [8, END], np.array([-0.5, -1.5], np.float32), 0.0, 0.0)
    logprobs = ta.TensorData.from_value("logprobs", [-9.0, -9.0, -0.5, -1.75])
    output = ta.ForwardBackwardOutput("x", [{"logprobs": logprobs}], {})
    assert logprob_gap([rollout], output) == 0.25


def test_the_data_teaches_one_voice_and_keeps_questions_back() -> None:
    """Every answer has the voice; nothing that is asked afterwards was trained on."""
    questions = {question for question, _ in PIRATE}
    assert len(questions) == len(PIRATE) >= 16
    assert all(answer.startswith("Arr") for _, answer in PIRATE)
    assert len(HELD_OUT) >= 4
    assert not questions & set(HELD_OUT)
    assert len(BREVITY) == 2


def test_the_plan_follows_the_model_and_the_users_counts() -> None:
    """Random weights get their own rates; explicit counts win."""
    assert Plan() == plan_for("smollm2-135m")
    assert plan_for("Tiny-Qwen3") == TINY_PLAN
    assert (
        plan_for("x=/y", steps=3, rounds=2).steps,
        plan_for("x=/y", steps=3, rounds=2).rounds,
    ) == (3, 2)


@pytest.fixture
def report() -> Report:
    return Report(
        model="m",
        backend="trio",
        seed=0,
        sft_nll=[3.0, 1.0],
        rl_reward=[-0.5, 0.75],
        rl_length_tokens=[20.0, 5.0],
        before={"Q?": "long\x1b[2J\nanswer"},
        after={"Q?": "Arr"},
        rl_before={"R?": "b"},
        rl_after={"R?": "a"},
        max_sampler_trainer_logprob_gap=1e-5,
        seconds={"total": 1.0},
        checkpoints={"sft_sampler": "tinker://run/sampler_weights/demo"},
    )


def test_the_report_is_written_with_its_curves(report: Report, tmp_path: Path) -> None:
    """report.json reads back as the same report; curves.png is an image of some size."""
    json_path, png_path = write_report(report, tmp_path)
    assert report == msgspec.json.decode(json_path.read_bytes(), type=Report)
    assert report_json(report) == json_path.read_bytes()
    assert png_path.read_bytes().startswith(b"\x89PNG")
    assert png_path.stat().st_size > 10_000


def test_the_summary_cannot_steer_the_terminal(report: Report) -> None:
    """Answers are shown on one line each, without control characters."""
    text = summary(report)
    assert "before: long[2J answer" in text
    assert "\x1b" not in text
    assert "3.00 at first, 1.00 at last" in text
    assert "tinker://run/sampler_weights/demo" in text


def _show(console: Console) -> None:
    with Live(console) as live:
        live.stage("fine-tuning", 2)
        live.note("waiting [for] it")
        live.note("loading 1%")
        live.note("loading 99%")
        live.step("loss 1.00")
        live.step("loss 0.50")


def test_progress_is_plain_lines_where_there_is_no_terminal() -> None:
    """One line an event (a counting percentage is one), brackets kept, nothing overwritten."""
    out = io.StringIO()
    _show(Console(file=out))
    assert out.getvalue().splitlines() == [
        "fine-tuning 0/2  waiting [for] it",
        "fine-tuning 0/2  loading 1%",
        "fine-tuning 1/2  loss 1.00",
        "fine-tuning 2/2  loss 0.50",
    ]


def test_progress_is_a_bar_on_a_terminal_without_a_thread() -> None:
    """The bar is redrawn on events only."""
    out = io.StringIO()
    threads = threading.active_count()
    console = Console(file=out, force_terminal=True, width=120)
    with Live(console) as live:
        live.stage("fine-tuning", 2)
        live.step("loss [1.00]")
        assert threads == threading.active_count()
    text = out.getvalue()
    assert "fine-tuning" in text
    assert "1/2" in text
    assert "loss [1.00]" in text
