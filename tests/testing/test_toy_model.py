"""The toy learns like a model, and is the same everywhere."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from tinker_async import AdamParams, Datum, InvalidInputError, ModelInput, SamplingParams
from tinker_async.testing.toy_model import STEP_SCALE, ToyModel, ToyWeights
from tinker_async.testing.toy_sampling import draw
from tinker_async.wire.messages import SampleRequest

TEXT = list(b"the toy learns")
INPUT = ModelInput.from_ints(TEXT[:-1])
ADAM = AdamParams(learning_rate=1e-2)


def model() -> ToyModel:
    return ToyModel(ToyWeights("toy", {}))


def datum(**inputs: object) -> Datum:
    return Datum(INPUT, {"target_tokens": TEXT[1:], **inputs})  # type: ignore[dict-item]


def logprobs(toy: ToyModel) -> npt.NDArray[np.float32]:
    output = toy.forward_backward([datum()], "cross_entropy", {}, forward_only=True)
    found: npt.NDArray[np.float32] = output.loss_fn_outputs[0]["logprobs"].to_numpy()
    return found


def request(**fields: object) -> SampleRequest:
    params = fields.pop("params", SamplingParams(max_tokens=len(TEXT) - 1))
    prompt = ModelInput.from_ints(fields.pop("prompt", TEXT[:1]))
    return SampleRequest(prompt, params, **fields)  # type: ignore[arg-type]


def test_cross_entropy_is_learnt_until_greedy_samples_recall_the_text() -> None:
    """Where its transitions are unique."""
    toy = model()
    losses = []
    for _ in range(40):
        losses.append(toy.forward_backward([datum()], "cross_entropy", {}).metrics["loss:sum"])
        toy.optim_step(ADAM)

    assert losses[0] > 60
    assert losses[-1] < losses[0] / 10
    params = SamplingParams(max_tokens=3, temperature=0)
    response = draw(toy.weights, request(prompt=list(b"a"), params=params), seed=0)
    assert list(b"rns") == response.sequences[0].tokens.tolist()


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo", "dro"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_advantages_move_probabilities_their_way(loss: str, sign: float) -> None:
    toy = model()
    before = logprobs(toy)
    advantages = np.full(before.shape, sign, dtype=np.float32)
    example = datum(logprobs=before, advantages=advantages)
    toy.forward_backward([example], loss, {})
    toy.optim_step(AdamParams(learning_rate=1e-4))

    moved = logprobs(toy).sum() - before.sum()
    assert sign * moved > 0


@pytest.mark.parametrize("loss", ["cross_entropy", "importance_sampling", "ppo", "cispo", "dro"])
def test_gradients_are_those_of_the_loss(loss: str) -> None:
    """Against central differences in the logits, away from the corners of the clips."""
    toy = model()
    rng = np.random.default_rng(3)
    sampled = logprobs(toy) + rng.normal(scale=0.02, size=len(TEXT) - 1).astype(np.float32)
    advantages = rng.normal(size=len(TEXT) - 1).astype(np.float32)
    if loss == "cross_entropy":
        example = datum(weights=np.abs(advantages))
    else:
        example = datum(logprobs=sampled, advantages=advantages)
    toy.forward_backward([example], loss, {})
    step = 1e-2
    for token, target in ((TEXT[0], TEXT[1]), (TEXT[3], 200)):
        values = []
        for shift in (step, -step):
            row = np.zeros(256, dtype=np.float32)
            row[target] = shift
            nudged = ToyModel(ToyWeights("toy", {token: row}))
            if loss == "cispo":  # its ratio is a constant: shift only the log-prob
                ratio = np.exp(logprobs(toy) - sampled)
                value = -(ratio * advantages * logprobs(nudged)).sum(dtype=np.float64)
            else:
                output = nudged.forward_backward([example], loss, {})
                value = output.metrics["loss:sum"]
            values.append(value)
        expected = (values[0] - values[1]) / (2 * step)
        assert expected == pytest.approx(toy._gradients[token][target], rel=0.02, abs=2e-3)


@pytest.mark.parametrize(("ratio", "advantage"), [(2.0, 1.0), (0.5, -1.0)])
def test_ppo_has_no_gradient_where_it_clips(ratio: float, advantage: float) -> None:
    """Where the ratio has left the bounds the way the advantage pulls it."""
    toy = model()
    sampled = logprobs(toy) - np.float32(np.log(ratio))
    advantages = np.full(len(sampled), advantage, dtype=np.float32)
    clipped = datum(logprobs=sampled, advantages=advantages)
    output = toy.forward_backward([clipped], "ppo", {})

    assert not any(row.any() for row in toy._gradients.values())
    bound = {2.0: 1.2, 0.5: 0.8}[ratio]
    assert -bound * advantages.sum() == pytest.approx(output.metrics["loss:sum"], rel=1e-5)


def test_one_step_is_adamw() -> None:
    """The first step goes by the learning rate, against the sign of the gradient."""
    toy = model()
    toy.forward_backward([datum(weights=[1.0] + [0.0] * (len(TEXT) - 2))], "cross_entropy", {})
    metrics = toy.optim_step(AdamParams(learning_rate=1e-3)).metrics

    row = toy.weights.rows[TEXT[0]]
    assert np.float32(1e-3 * STEP_SCALE) == pytest.approx(row[TEXT[1]], rel=1e-5)
    assert np.abs(row) == pytest.approx(np.full(256, 1e-3 * STEP_SCALE), rel=1e-3)
    assert metrics is not None
    assert 0 < metrics["grad_norm"] < 2


def test_a_step_without_gradients_changes_nothing() -> None:
    toy = model()
    toy.optim_step(ADAM)
    toy.forward_backward([datum()], "cross_entropy", {}, forward_only=True)
    toy.optim_step(ADAM)

    assert {} == toy.weights.rows


def test_gradients_are_clipped_by_their_norm() -> None:
    """Adam does not see the length of a gradient, but the sum of a long and a short one."""
    results = []
    for clip in (0.0, 1e-3):
        toy = model()
        for weight in (100.0, 0.001):
            weights = [weight] * (len(TEXT) - 1)
            toy.forward_backward([datum(weights=weights)], "cross_entropy", {})
            metrics = toy.optim_step(AdamParams(learning_rate=1e-3, grad_clip_norm=clip)).metrics
        results.append((metrics, toy.weights.rows[TEXT[0]]))

    assert results[0][0] is not None
    assert not np.array_equal(results[0][1], results[1][1])


def test_a_restored_model_goes_on_bit_for_bit() -> None:
    """With the optimizer; without it the next steps differ."""
    toy = model()
    for _ in range(3):
        toy.forward_backward([datum()], "cross_entropy", {})
        toy.optim_step(ADAM)
    saved = toy.state()
    again, fresh = model(), model()
    again.restore(saved, optimizer=True)
    fresh.restore(saved, optimizer=False)
    for one in (toy, again, fresh):
        for _ in range(3):
            one.forward_backward([datum()], "cross_entropy", {})
            one.optim_step(ADAM)

    assert toy.weights.rows.keys() == again.weights.rows.keys()
    for token, row in toy.weights.rows.items():
        assert row.tobytes() == again.weights.rows[token].tobytes()
    assert any(
        row.tobytes() != fresh.weights.rows[token].tobytes()
        for token, row in toy.weights.rows.items()
    )


def test_trainer_and_sampler_agree_on_log_probs_bit_for_bit() -> None:
    """Those of samples and of prompts."""
    toy = model()
    toy.forward_backward([datum()], "cross_entropy", {})
    toy.optim_step(ADAM)
    response = draw(toy.weights, request(), seed=5)
    (sequence,) = response.sequences
    tokens = [TEXT[0], *sequence.tokens.tolist()]
    example = Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})
    output = toy.forward_backward([example], "cross_entropy", {}, forward_only=True)
    trained = output.loss_fn_outputs[0]["logprobs"].to_numpy()
    scored = draw(toy.weights, request(prompt=tokens, prompt_logprobs=True), seed=0)

    assert sequence.logprobs is not None
    assert scored.prompt_logprobs is not None
    assert trained.tobytes() == sequence.logprobs.tobytes()
    assert trained.tobytes() == scored.prompt_logprobs[1:].tobytes()
    assert np.isnan(scored.prompt_logprobs[0])


def test_distributions_as_targets_train_all_of_them() -> None:
    """`[T, K]` targets, dense or sparse, count as K targets of one position."""
    toy = model()
    targets = np.array([[1, 2], [3, 4]], dtype=np.int64)
    weights = np.array([[0.5, 0.5], [1.0, 0.0]], dtype=np.float32)
    example = Datum(ModelInput.from_ints([10, 11]), {"target_tokens": targets, "weights": weights})
    output = toy.forward_backward([example], "cross_entropy", {})
    found = output.loss_fn_outputs[0]["logprobs"].to_numpy()

    assert (2, 2) == found.shape
    assert -(found * weights).sum() == pytest.approx(output.metrics["loss:sum"], rel=1e-5)
    gradient = toy._gradients[10]
    assert 0 > gradient[1] == pytest.approx(gradient[2], abs=0.02)


def test_samples_follow_their_seed_and_nothing_else() -> None:
    """Sample i of a request has the seed plus i; without one the caller's counts."""
    weights = ToyWeights("toy", {})
    params = SamplingParams(max_tokens=6, seed=7, stop=[])
    both = draw(weights, request(params=params, num_samples=2), seed=1).sequences
    again = draw(weights, request(params=params), seed=2).sequences
    next_one = draw(weights, request(params=SamplingParams(max_tokens=6, stop=[])), seed=8)

    assert both[0].tokens.tolist() == again[0].tokens.tolist()
    assert both[1].tokens.tolist() == next_one.sequences[0].tokens.tolist()
    assert both[0].tokens.tolist() != both[1].tokens.tolist()


def test_samples_have_the_models_distribution() -> None:
    """Frequencies of the first token, within five standard errors each."""
    weights = ToyWeights("toy", {})
    params = SamplingParams(max_tokens=1, seed=0)
    drawn = draw(weights, request(params=params, num_samples=20_000), seed=0).sequences
    counts = np.bincount([int(one.tokens[0]) for one in drawn], minlength=256)
    expected = np.exp(weights.logprobs(TEXT[0])) * 20_000

    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_temperature_top_k_and_top_p_narrow_the_choice() -> None:
    weights = ToyWeights("toy", {})
    row = weights.logprobs(TEXT[0])
    best = np.argsort(-row, kind="stable")

    def tokens(**params: float) -> set[int]:
        asked = request(params=SamplingParams(max_tokens=1, seed=0, **params), num_samples=500)  # type: ignore[arg-type]
        return {int(one.tokens[0]) for one in draw(weights, asked, seed=0).sequences}

    assert {int(best[0])} == tokens(temperature=0)
    assert set(best[:3].tolist()) == tokens(top_k=3)
    two = request(params=SamplingParams(max_tokens=1, seed=0, top_k=2), num_samples=2000)
    first = sum(int(one.tokens[0]) == best[0] for one in draw(weights, two, seed=0).sequences)
    share = 1 / (1 + np.exp(row[best[1]] - row[best[0]]))
    assert abs(first - 2000 * share) < 5 * np.sqrt(2000 * share * (1 - share))
    p = float(np.exp(row[best[:5]]).sum())
    assert set(best[:5].tolist()) == tokens(top_p=p - 1e-4)
    assert len(tokens(temperature=0.05)) < len(tokens(temperature=1.0)) < len(tokens(temperature=5))


def test_stop_is_a_token_a_text_or_nothing() -> None:
    weights = ToyWeights("toy", {0: np.zeros(256, np.float32)})
    free = SamplingParams(max_tokens=400, seed=0, stop=[])
    samples = draw(weights, request(params=free, num_samples=20), seed=0).sequences
    seed, sequence = next((i, one) for i, one in enumerate(samples) if 0 in one.tokens)
    tokens = sequence.tokens.tolist()
    assert (400, "length") == (len(tokens), sequence.stop_reason)

    def cut(stop: object) -> tuple[list[int], str]:
        params = SamplingParams(max_tokens=400, seed=seed, stop=stop)  # type: ignore[arg-type]
        (one,) = draw(weights, request(params=params), seed=0).sequences
        return one.tokens.tolist(), one.stop_reason

    assert (tokens[: tokens.index(0) + 1], "stop") == cut(None)
    assert (tokens[: tokens.index(tokens[9]) + 1], "stop") == cut([tokens[9]])
    ascii_pair = next(i for i in range(400) if max(tokens[i : i + 2]) < 128)
    pair = bytes(tokens[ascii_pair : ascii_pair + 2]).decode()
    assert (tokens[: ascii_pair + 2], "stop") == cut(pair)


def test_top_k_log_probs_are_the_best_ones() -> None:
    asked = request(prompt=TEXT[:4], topk_prompt_logprobs=3, topk_sample_logprobs=2)
    response = draw(ToyWeights("toy", {}), asked, seed=0)

    assert response.topk_prompt_logprobs is not None
    rows = response.topk_prompt_logprobs.tolist()
    assert rows[0] is None
    row = ToyWeights("toy", {}).logprobs(TEXT[0])
    assert np.argsort(-row)[:3].tolist() == [token for token, _ in rows[1] or []]
    assert response.sequences[0].topk_logprobs is not None
    assert len(response.sequences[0].tokens) == response.sequences[0].topk_logprobs.length


@pytest.mark.parametrize(
    ("example", "loss", "config", "says"),
    [
        (datum(), "no_such", {}, "no_such"),
        (datum(), "ppo", {}, "is missing"),
        (datum(weights=[1.0]), "cross_entropy", {}, "shape"),
        (datum(), "cross_entropy", {"clip": 1}, "clip"),
        (Datum(INPUT, {}), "cross_entropy", {}, "target_tokens"),
        (Datum(INPUT, {"target_tokens": [1]}), "cross_entropy", {}, r"\[13\]"),
        (datum(weights=np.full(13, np.inf)), "cross_entropy", {}, "finite"),
    ],
)
def test_what_is_wrong_is_refused_and_leaves_no_gradient(
    example: Datum, loss: str, config: dict[str, float], says: str
) -> None:
    toy = model()
    with pytest.raises(InvalidInputError, match=says):
        toy.forward_backward([datum(), example], loss, config)
    toy.optim_step(ADAM)

    assert {} == toy.weights.rows


def test_another_process_computes_the_same_bits() -> None:
    """Nothing hangs on hashes, addresses or the time of day."""
    code = """
import hashlib
from tinker_async import AdamParams, Datum, ModelInput
from tinker_async.testing.toy_model import ToyModel, ToyWeights
toy = ToyModel(ToyWeights("toy", {}))
text = list(b"the toy learns")
for _ in range(3):
    toy.forward_backward([Datum(ModelInput.from_ints(text[:-1]), {"target_tokens": text[1:]})], "cross_entropy", {})
    toy.optim_step(AdamParams(learning_rate=1e-2))
print(hashlib.sha256(b"".join(row.tobytes() for row in toy.weights.rows.values())).hexdigest())
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]

    assert runs[0].stdout == runs[1].stdout != ""
