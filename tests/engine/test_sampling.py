"""Continuous batching: what comes out is what each request alone would give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tinker_async.data.params import LoraConfig, SamplingParams
from tinker_async.data.results import SampleResponse
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine.adapters import BASE, Adapter
from tinker_async.local.engine.base import BaseModel
from tinker_async.local.engine.decoding import Decoder
from tinker_async.local.engine.failures import EngineMemoryError, SampleCancelledError
from tinker_async.local.engine.jobs import Sample
from tinker_async.local.engine.stopping import StopRules
from tinker_async.local.tiny import build_tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

GREEDY = SamplingParams(temperature=0, stop=[], max_tokens=12)


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    build_tiny(request.param, path)
    return path


@pytest.fixture(scope="module")
def base(folder: Path) -> BaseModel:
    return BaseModel.load(folder, name="tiny")


@pytest.fixture
def decoder_of(base: BaseModel, folder: Path) -> Callable[..., Decoder]:
    """Make a decoder with given limits."""
    return lambda **limits: Decoder(base, StopRules(base.card, folder), **limits)


def prompt_of(length: int, seed: int = 0) -> npt.NDArray[np.int32]:
    return np.random.default_rng([seed, length]).integers(3, 259, length).astype(np.int32)


def adapter_of(base: BaseModel, seed: int) -> Adapter:
    """An adapter whose B is not zero, so that it changes the output much."""
    adapter = base.adapters.create(LoraConfig(rank=4, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapter.weights.items():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    return adapter


class Run:
    """Requests given to a decoder, and their results in the order they came."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.results: dict[int, Any] = {}
        self.order: list[int] = []
        self._count = 0

    def add(self, job: Sample, adapter: str = BASE) -> int:
        number = self._count
        self._count += 1

        def done(result: Any) -> None:
            assert number not in self.results, "answered twice"
            self.results[number] = result
            self.order.append(number)

        self.decoder.admit(job, adapter, done)
        return number

    def finish(self, limit: int = 5000) -> list[Any]:
        for _ in range(limit):
            if not self.decoder.has_work:
                return [self.results[number] for number in range(self._count)]
            self.decoder.step()
        raise AssertionError("the decoder does not come to an end")


def draw(decoder: Decoder, job: Sample, adapter: str = BASE) -> SampleResponse:
    run = Run(decoder)
    run.add(job, adapter)
    (result,) = run.finish()
    if isinstance(result, BaseException):
        raise result
    assert isinstance(result, SampleResponse)
    return result


def full_logprobs(base: BaseModel, tokens: list[int], adapter: str = BASE) -> torch.Tensor:
    """Log-probs at every position, `(length, vocab)`, by one plain forward pass."""
    with torch.no_grad():
        hidden = base.hidden_states(torch.tensor([tokens]), adapter_names=[adapter])
        return base.logits(hidden, [adapter])[0].log_softmax(-1)


def check_greedy(base: BaseModel, job: Sample, result: Any, adapter: str = BASE) -> None:
    """Every token is the best one, and its log-prob right, by a full recomputation."""
    assert isinstance(result, SampleResponse), result
    (sequence,) = result.sequences
    tokens = sequence.tokens.tolist()
    assert job.params.max_tokens == len(tokens)
    full = full_logprobs(base, [*job.prompt.tolist(), *tokens], adapter)
    steps = full[len(job.prompt) - 1 : -1]
    assert steps.argmax(-1).tolist() == tokens
    expected = steps[range(len(tokens)), tokens].numpy()
    assert sequence.logprobs is not None
    np.testing.assert_allclose(sequence.logprobs, expected, atol=1e-4)
    assert sequence.stop_reason == "length"


def test_staggered_greedy_requests_equal_full_recomputation(
    base: BaseModel, decoder_of: Callable[..., Decoder]
) -> None:
    """Rows join and leave in the middle of others, slots are used again, nothing leaks."""
    decoder = decoder_of(max_rows=3)
    run = Run(decoder)
    jobs = [
        Sample(prompt_of(length, number), SamplingParams(temperature=0, stop=[], max_tokens=new))
        for number, (length, new) in enumerate(
            [(5, 20), (70, 3), (1, 40), (30, 1), (8, 15), (3, 9), (150, 12), (2, 2)]
        )
    ]
    most = 0
    for job in jobs:
        run.add(job)
        for _ in range(4):
            decoder.step()
            most = max(most, decoder.rows_active)
    results = run.finish()
    assert most == 3
    for job, result in zip(jobs, results, strict=True):
        check_greedy(base, job, result)


def test_a_long_prompt_read_in_parts_equals_full_recomputation(
    base: BaseModel, decoder_of: Callable[..., Decoder]
) -> None:
    """Parts of a prompt alternate with decoding of others, which end while it is read."""
    decoder = decoder_of(max_rows=4, prefill_tokens=16)
    run = Run(decoder)
    jobs = [
        Sample(prompt_of(length, number), SamplingParams(temperature=0, stop=[], max_tokens=new))
        for number, (length, new) in enumerate([(9, 3), (11, 6), (100, 8), (6, 5), (16, 4)])
    ]
    for job in jobs:
        run.add(job)
    results = run.finish()
    assert run.order.index(0) < run.order.index(2)  # others went on while it was read
    for job, result in zip(jobs, results, strict=True):
        check_greedy(base, job, result)


def test_mixed_adapters_in_one_batch_equal_single_runs(
    base: BaseModel, decoder_of: Callable[..., Decoder]
) -> None:
    """The base model and two adapters decode together, each as it would alone."""
    names = [BASE, adapter_of(base, 1).name, adapter_of(base, 2).name]
    run = Run(decoder_of())
    jobs = [Sample(prompt_of(6 + number), GREEDY) for number in range(6)]
    for number, job in enumerate(jobs):
        run.add(job, names[number % 3])
    results = run.finish()
    for number, (job, result) in enumerate(zip(jobs, results, strict=True)):
        check_greedy(base, job, result, names[number % 3])
    other = draw(decoder_of(), jobs[0], names[1]).sequences[0]
    assert other.tokens.tolist() != results[0].sequences[0].tokens.tolist()


def test_seeded_samples_repeat_whatever_shares_the_batch(
    decoder_of: Callable[..., Decoder],
) -> None:
    """Tokens depend on the request alone; sample i uses seed + i."""
    params = SamplingParams(seed=11, max_tokens=15, stop=[], top_p=0.95)
    job = Sample(prompt_of(9), params, num_samples=3)
    alone = [one.tokens.tolist() for one in draw(decoder_of(), job).sequences]

    run = Run(decoder_of(max_rows=6))
    for number in range(8):
        noise = SamplingParams(temperature=1.5, max_tokens=5 + number, stop=[])
        run.add(Sample(prompt_of(4 * number + 1), noise, num_samples=2))
        if number == 3:
            mine = run.add(job)
        run.decoder.step()
    crowded = [one.tokens.tolist() for one in run.finish()[mine].sequences]
    assert alone == crowded

    second = Sample(job.prompt, SamplingParams(seed=12, max_tokens=15, stop=[], top_p=0.95))
    assert alone[1] == draw(decoder_of(), second).sequences[0].tokens.tolist()
    assert len({tuple(tokens) for tokens in alone}) == 3


def test_without_a_seed_samples_differ(decoder_of: Callable[..., Decoder]) -> None:
    """Seed None is random, between samples and between requests."""
    job = Sample(prompt_of(5), SamplingParams(max_tokens=12, stop=[]), num_samples=4)
    found = [
        tuple(one.tokens.tolist()) for _ in range(2) for one in draw(decoder_of(), job).sequences
    ]
    assert len(set(found)) == 8


def test_more_samples_than_rows_are_spread_over_time(
    base: BaseModel, decoder_of: Callable[..., Decoder]
) -> None:
    """Seven greedy and seven seeded samples on two rows: complete, in order, and right."""
    prompt = prompt_of(10)
    greedy = draw(decoder_of(max_rows=2), Sample(prompt, GREEDY, num_samples=7))
    assert len(greedy.sequences) == 7
    assert len({tuple(one.tokens.tolist()) for one in greedy.sequences}) == 1
    only = SampleResponse(sequences=greedy.sequences[:1])
    check_greedy(base, Sample(prompt, GREEDY), only)

    params = SamplingParams(seed=3, max_tokens=10)  # EOS ends some earlier
    few = draw(decoder_of(max_rows=2), Sample(prompt, params, num_samples=7)).sequences
    many = draw(decoder_of(max_rows=64), Sample(prompt, params, num_samples=7)).sequences
    assert [one.tokens.tolist() for one in many] == [one.tokens.tolist() for one in few]


def test_requests_beyond_capacity_start_in_the_order_they_came(
    decoder_of: Callable[..., Decoder],
) -> None:
    """With one row, equal requests end in order, and a request's samples stay together."""
    run = Run(decoder_of(max_rows=1))
    for number in range(4):
        run.add(Sample(prompt_of(5, number), GREEDY, num_samples=1 + number % 2))
    run.finish()
    assert run.order == [0, 1, 2, 3]


def test_the_cache_stays_within_its_bound(
    base: BaseModel, decoder_of: Callable[..., Decoder]
) -> None:
    """Long requests wait for each other when their rows times columns would not fit."""
    bound = base.card.max_context_length  # the least there is
    decoder = decoder_of(max_rows=64, max_cache_tokens=1)
    run = Run(decoder)
    lengths = [1500, 40, 700, 10, 20, 900, 30]
    jobs = [Sample(prompt_of(length), GREEDY) for length in lengths]
    for job in jobs:
        run.add(job)
    most_rows = 0
    while decoder.has_work:
        decoder.step()
        most_rows = max(most_rows, decoder.rows_active)
        assert decoder._cache.rows * decoder._cache.columns <= bound
    assert most_rows > 1
    for job, result in zip(jobs, run.finish(), strict=True):
        check_greedy(base, job, result)
    assert decoder._cache.rows == 0  # and the memory is given back at rest


def test_prompt_logprobs_equal_a_full_forward_pass(
    base: BaseModel, decoder_of: Callable[..., Decoder]
) -> None:
    """NaN first, then each prompt token's log-prob; top-k likewise, position 0 empty."""
    adapter = adapter_of(base, 5).name
    prompt = prompt_of(50)
    job = Sample(
        prompt,
        SamplingParams(max_tokens=1, temperature=0.5),
        num_samples=2,
        prompt_logprobs=True,
        topk_prompt_logprobs=4,
    )
    for limits in ({}, {"prefill_tokens": 7}):
        result = draw(decoder_of(**limits), job, adapter)
        full = full_logprobs(base, prompt.tolist(), adapter)
        expected = full[:-1][range(49), prompt[1:].astype(np.int64)].numpy()
        assert result.prompt_logprobs is not None
        assert result.prompt_logprobs.dtype == np.float32
        assert np.isnan(result.prompt_logprobs[0])
        np.testing.assert_allclose(result.prompt_logprobs[1:], expected, atol=1e-4)
        top = result.topk_prompt_logprobs
        assert top is not None
        assert top.token_ids.shape == (50, 4)
        assert top.tolist()[0] is None
        best = full[:-1].topk(4)
        np.testing.assert_allclose(top.logprobs[1:], best.values, atol=1e-4)
        assert top.token_ids[1:].tolist() == best.indices.tolist()
        assert result.prompt_cache_hit_tokens == 0


def test_prompt_logprobs_are_given_only_when_asked_for(
    decoder_of: Callable[..., Decoder],
) -> None:
    """Plain log-probs, top-k, both or none."""
    for plain in (False, True):
        for top in (0, 2):
            job = Sample(prompt_of(4), GREEDY, prompt_logprobs=plain, topk_prompt_logprobs=top)
            result = draw(decoder_of(), job)
            assert plain == (result.prompt_logprobs is not None)
            assert (top > 0) == (result.topk_prompt_logprobs is not None)
            assert result.sequences[0].topk_logprobs is None


def test_the_logprobs_of_a_one_token_prompt_are_all_missing(
    decoder_of: Callable[..., Decoder],
) -> None:
    """Nothing predicts the first token, so there is nothing to say."""
    job = Sample(prompt_of(1), GREEDY, prompt_logprobs=True, topk_prompt_logprobs=2)
    result = draw(decoder_of(), job)
    assert result.prompt_logprobs is not None
    assert np.isnan(result.prompt_logprobs).tolist() == [True]
    assert result.topk_prompt_logprobs is not None
    assert result.topk_prompt_logprobs.tolist() == [None]


def test_sampled_logprobs_and_their_top_k_are_temperature_scaled(
    base: BaseModel, decoder_of: Callable[..., Decoder]
) -> None:
    """Per token, of the distribution at the request's temperature, before truncation."""
    prompt = prompt_of(12)
    params = SamplingParams(temperature=0.7, top_k=3, seed=1, max_tokens=10, stop=[])
    run = Run(decoder_of())
    run.add(Sample(prompt, params, topk_sample_logprobs=5))
    run.add(Sample(prompt_of(3), GREEDY, topk_sample_logprobs=2))
    sequence = run.finish()[0].sequences[0]
    tokens = sequence.tokens.tolist()
    with torch.no_grad():
        hidden = base.hidden_states(torch.tensor([[*prompt.tolist(), *tokens]]))
        scaled = (base.logits(hidden)[0] / 0.7).log_softmax(-1)[len(prompt) - 1 : -1]
    np.testing.assert_allclose(sequence.logprobs, scaled[range(10), tokens], atol=1e-4)
    top = sequence.topk_logprobs
    assert top is not None
    assert top.token_ids.shape == (10, 5)
    np.testing.assert_allclose(top.logprobs, scaled.topk(5).values, atol=1e-4)
    assert all(token in row[:3] for token, row in zip(tokens, top.token_ids.tolist(), strict=True))


def test_stops_end_rows_while_others_go_on(decoder_of: Callable[..., Decoder]) -> None:
    """Stop tokens, stop strings, EOS and no stop at all, side by side in one batch."""
    prompt = prompt_of(20)

    def stopping(stop: Any) -> Sample:
        return Sample(prompt, SamplingParams(seed=1, temperature=2, stop=stop, max_tokens=40))

    free = draw(decoder_of(), stopping([])).sequences[0].tokens.tolist()
    assert min(free) > 2, "no special token among them, so that EOS ends nothing"
    first_token = free.index(free[5]) + 1
    letters = next(n for n in range(40) if max(free[n : n + 2]) < 131) + 2  # two of ASCII
    text = bytes(token - 3 for token in free[letters - 2 : letters]).decode()

    run = Run(decoder_of())
    for stop in ([free[5]], ["nothing like it", text], [], None):
        run.add(stopping(stop))
    by_token, by_text, never, by_eos = (result.sequences[0] for result in run.finish())
    assert by_token.tokens.tolist() == free[:first_token]
    assert by_token.stop_reason == "stop"
    assert len(by_token.logprobs) == first_token
    assert by_text.tokens.tolist() == free[:letters]
    assert by_text.stop_reason == "stop"
    assert never.tokens.tolist() == by_eos.tokens.tolist() == free
    assert never.stop_reason == by_eos.stop_reason == "length"


def test_eos_ends_a_sample_and_stays_in_it(decoder_of: Callable[..., Decoder]) -> None:
    """At high temperature EOS comes soon; it is last, and with [] it does not end."""
    params = SamplingParams(seed=0, temperature=50, max_tokens=1500)
    sequence = draw(decoder_of(), Sample(prompt_of(4), params)).sequences[0]
    assert sequence.stop_reason == "stop"
    assert sequence.tokens[-1] == 2
    assert 2 not in sequence.tokens[:-1]
    endless = SamplingParams(seed=0, temperature=50, max_tokens=len(sequence.tokens) + 5, stop=[])
    longer = draw(decoder_of(), Sample(prompt_of(4), endless)).sequences[0]
    assert longer.tokens[: len(sequence.tokens)].tolist() == sequence.tokens.tolist()
    assert longer.stop_reason == "length"


def test_a_stop_at_the_last_allowed_token_counts_as_a_stop(
    decoder_of: Callable[..., Decoder],
) -> None:
    """Both limits reached at once: the reason is `stop`."""
    free = draw(decoder_of(), Sample(prompt_of(7), GREEDY)).sequences[0].tokens.tolist()
    params = SamplingParams(temperature=0, stop=[free[0]], max_tokens=1)
    assert draw(decoder_of(), Sample(prompt_of(7), params)).sequences[0].stop_reason == "stop"


@pytest.mark.parametrize("max_tokens", [None, 10_000])
def test_the_context_bounds_the_length(
    base: BaseModel, decoder_of: Callable[..., Decoder], max_tokens: int | None
) -> None:
    """Without `max_tokens`, or with too many, the sample fills the context and ends."""
    limit = base.card.max_context_length
    params = SamplingParams(seed=1, stop=[], max_tokens=max_tokens)
    sequence = draw(decoder_of(), Sample(prompt_of(limit - 4), params)).sequences[0]
    assert len(sequence.tokens) == 4
    assert sequence.stop_reason == "length"


@pytest.mark.parametrize(
    ("job", "field", "says"),
    [
        (Sample(prompt_of(2048), GREEDY), "prompt", "2048"),
        (Sample(np.zeros(0, dtype=np.int32), GREEDY), "prompt", "at least one"),
        (Sample(np.array([5, 259], dtype=np.int32), GREEDY), "prompt", "259"),
        (Sample(np.array([5, -1], dtype=np.int32), GREEDY), "prompt", "-1"),
        (Sample(prompt_of(3), GREEDY, num_samples=0), "num_samples", "at least 1"),
        (Sample(prompt_of(3), GREEDY, topk_prompt_logprobs=260), "topk_prompt_logprobs", "259"),
        (Sample(prompt_of(3), GREEDY, topk_sample_logprobs=-1), "topk_sample_logprobs", "0"),
        (Sample(prompt_of(3), SamplingParams(stop=[999])), "stop", "999"),
    ],
)
def test_impossible_requests_are_refused(
    decoder_of: Callable[..., Decoder], job: Sample, field: str, says: str
) -> None:
    """Before anything runs, with the field and the limit named."""
    run = Run(decoder_of())
    with pytest.raises(InvalidInputError, match=says) as caught:
        run.add(job)
    assert caught.value.field == field
    assert not run.decoder.has_work
    assert run.results == {}


def test_cancelled_requests_end_at_once_and_leave_the_others_alone(
    base: BaseModel, decoder_of: Callable[..., Decoder]
) -> None:
    """In the middle of drawing, of reading, and while waiting."""
    decoder = decoder_of(max_rows=4, prefill_tokens=32)
    run = Run(decoder)
    keep = Sample(prompt_of(5), SamplingParams(temperature=0, stop=[], max_tokens=30))
    numbers = [
        run.add(Sample(prompt_of(6), GREEDY, num_samples=2, key="drawing")),
        run.add(keep),
        run.add(Sample(prompt_of(200), GREEDY, key="reading")),
        run.add(Sample(prompt_of(8), GREEDY, key="waiting")),
        run.add(Sample(prompt_of(9), GREEDY, num_samples=9, key="fanning")),
    ]
    while decoder.requests_waiting > 3 or not decoder._reading:
        decoder.step()
    for _ in range(3):
        decoder.step()
    assert decoder._reading
    for key in ("reading", "drawing", "waiting", "unknown", ""):
        decoder.cancel(key)
    while decoder.rows_active < 4:
        decoder.step()
    decoder.cancel("fanning")
    results = run.finish()
    for number in (0, 2, 3, 4):
        assert isinstance(results[numbers[number]], SampleCancelledError)
    check_greedy(base, keep, results[1])
    assert not decoder.uses(BASE)


def test_an_adapter_is_in_use_until_its_last_request_ends(
    base: BaseModel, decoder_of: Callable[..., Decoder]
) -> None:
    """So that it is not freed under a running sample."""
    name = adapter_of(base, 6).name
    decoder = decoder_of()
    run = Run(decoder)
    run.add(Sample(prompt_of(3), SamplingParams(max_tokens=2, stop=[])), name)
    run.add(Sample(prompt_of(3), SamplingParams(max_tokens=9, stop=[])), name)
    while 0 not in run.results:
        assert decoder.uses(name)
        decoder.step()
    assert decoder.uses(name)
    run.finish()
    assert not decoder.uses(name)


def test_a_diverged_adapter_harms_neither_batch_mates_nor_later_users_of_its_slot(
    base: BaseModel, decoder_of: Callable[..., Decoder]
) -> None:
    """NaN weights fail their own request with a hint; what they left in the cache is gone."""
    sick = adapter_of(base, 7)
    with torch.no_grad():
        for weight in sick.weights.values():
            weight.fill_(float("nan"))
    decoder = decoder_of(max_rows=3)
    run = Run(decoder)
    keep = [
        Sample(prompt_of(5, n), SamplingParams(temperature=0, stop=[], max_tokens=6 + n))
        for n in range(6)
    ]
    bad = [run.add(Sample(prompt_of(90), GREEDY), sick.name)]  # a kept row takes its slot
    kept = [run.add(keep[0]), run.add(keep[1])]
    bad += [run.add(Sample(prompt_of(90), GREEDY, num_samples=2, prompt_logprobs=True), sick.name)]
    kept += [run.add(job) for job in keep[2:]]
    results = run.finish()
    for number in bad:
        assert isinstance(results[number], InvalidInputError)
        assert "diverged" in str(results[number])
    for job, number in zip(keep, kept, strict=True):
        check_greedy(base, job, results[number])


class Short:
    """A base model that runs out of memory in one of its passes, as torch says it."""

    def __init__(self, base: BaseModel, *, at: int) -> None:
        self.card, self.device, self.dtype = base.card, base.device, base.dtype
        self.logits = base.logits
        self._base = base
        self._left = at

    def hidden_states(self, *args: Any) -> torch.Tensor:
        hidden = self._base.hidden_states(*args)
        self._left -= 1
        if self._left == 0:
            torch.empty(2**60, dtype=torch.int8)
        return hidden


def test_running_out_of_memory_fails_what_has_begun_and_the_others_go_on(
    base: BaseModel, folder: Path
) -> None:
    """The error is typed and says what to do; waiting requests are served afterwards."""
    decoder = Decoder(Short(base, at=4), StopRules(base.card, folder), max_rows=2)
    run = Run(decoder)
    jobs = [Sample(prompt_of(4, number), GREEDY) for number in range(4)]
    for job in jobs:
        run.add(job)
    results = run.finish()
    for number in (0, 1):
        assert isinstance(results[number], EngineMemoryError)
        assert "shorter" in str(results[number])
    for number in (2, 3):
        check_greedy(base, jobs[number], results[number])
