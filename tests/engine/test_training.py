"""forward_backward and optim_step on tiny models, judged by plain peft, autograd and torch."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training_cases import finish, judge, rl_data, sft_data, shaken, train

from tinker_async.data.datum import Datum
from tinker_async.data.model_input import ModelInput
from tinker_async.data.params import AdamParams, LoraConfig
from tinker_async.data.results import ForwardBackwardOutput
from tinker_async.data.tensors import TensorData
from tinker_async.errors import InvalidInputError
from tinker_async.local.engine import training
from tinker_async.local.engine.base import BaseModel
from tinker_async.local.engine.batches import micro_batches, read_rows
from tinker_async.local.engine.failures import ModelLostError
from tinker_async.local.engine.losses import make_loss
from tinker_async.local.engine.training import TrainedModel, forward_backward, optim_step

LENGTHS = (5, 17, 3, 9)


def gradients(model: TrainedModel) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.adapter.weights.items()
        if parameter.grad is not None
    }


def weights(model: TrainedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.adapter.weights.items()}


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal names, and values equal to 1e-5 of each matrix's largest one."""
    assert expected.keys() == found.keys()
    for key, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0, key
        assert (found[key] - gradient).abs().max() <= 1e-5 * scale, key


def same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("cross_entropy", {}),
        ("importance_sampling", {}),
        ("ppo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}),
        ("cispo", {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}),
        ("dro", {"beta": 0.05}),
    ],
)
def test_logprobs_and_gradients_equal_plain_peft(
    base: BaseModel, model_folder: Path, name: str, config: dict[str, Any]
) -> None:
    """Padded micro-batches and the fused head against one datum at a time with full logits.

    Every LoRA matrix is compared, that of the tied head included.
    """
    model = shaken(base)
    data = sft_data(LENGTHS) if name == "cross_entropy" else rl_data(LENGTHS)
    logprobs, expected = judge(model_folder, model.adapter, data, name, config)

    output = train(base, model, data, name, micro_batch_tokens=40, **config)

    for one, ours in zip(logprobs, output.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(ours["logprobs"].to_numpy(), one, rtol=1e-5, atol=1e-5)
    found = gradients(model)
    assert "base_model.model.lm_head.lora_B.weight" in found
    assert_near(found, expected)


@pytest.mark.parametrize(
    "lora",
    [
        LoraConfig(rank=2, seed=1, train_unembed=False),
        LoraConfig(rank=2, seed=1, train_mlp=False, train_unembed=False),
        LoraConfig(rank=2, seed=1, train_mlp=False, train_attn=False),
    ],
)
def test_only_the_chosen_layers_are_trained(
    base: BaseModel, model_folder: Path, lora: LoraConfig
) -> None:
    """train_attn, train_mlp and train_unembed choose the layers, and gradients stay right."""
    model = shaken(base, lora)
    data = sft_data(LENGTHS)
    _, expected = judge(model_folder, model.adapter, data, "cross_entropy", {})

    train(base, model, data)

    found = gradients(model)
    assert lora.train_unembed == any("lm_head" in key for key in found)
    assert lora.train_mlp == any("mlp" in key for key in found)
    assert lora.train_attn == any("self_attn" in key for key in found)
    assert_near(found, expected)


@pytest.mark.parametrize("name", ["cross_entropy", "importance_sampling"])
def test_targets_of_several_tokens_a_position(
    base: BaseModel, model_folder: Path, name: str
) -> None:
    """(N, K) targets, mixed with (N,) ones in a batch: outputs keep each datum's shape."""
    model = shaken(base)
    data = rl_data([6, 4], width=3) + rl_data([5])
    if name == "cross_entropy":
        data = [
            Datum(
                d.model_input,
                {
                    "target_tokens": d.loss_fn_inputs["target_tokens"],
                    "weights": d.loss_fn_inputs["advantages"],
                },
            )
            for d in data
        ]
    logprobs, expected = judge(model_folder, model.adapter, data, name, {})

    output = train(base, model, data, name)

    shapes = [out["logprobs"].dense_shape for out in output.loss_fn_outputs]
    assert [(6, 3), (4, 3), (5,)] == shapes
    for one, ours in zip(logprobs, output.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(ours["logprobs"].to_numpy(), one, rtol=1e-5, atol=1e-5)
    assert_near(gradients(model), expected)


def test_dro_counts_no_cell_that_only_padding_made(base: BaseModel) -> None:
    """A (N,) row beside a (N, 3) row has the gradient it has alone, though dro's A = 0 is not free."""
    apart, together = shaken(base), shaken(base)
    narrow, wide = rl_data([5])[0], rl_data([5], width=3)[0]
    losses = [train(base, apart, [datum], "dro").metrics["loss:sum"] for datum in (narrow, wide)]
    total = train(base, together, [narrow, wide], "dro").metrics["loss:sum"]
    assert sum(losses) == pytest.approx(total, rel=1e-5)
    assert_near(gradients(together), gradients(apart))


def test_sparse_targets_equal_dense_ones(base: BaseModel) -> None:
    """CSR target_tokens and weights give bit for bit what their dense form gives."""
    targets = np.zeros((6, 8), dtype=np.int64)
    factors = np.zeros((6, 8), dtype=np.float32)
    targets[2, 5], factors[2, 5], targets[4, 0], factors[4, 0] = 77, 0.5, 3, -1.5
    tokens = ModelInput.from_ints(range(6))
    dense = {
        key: TensorData(array.reshape(-1), dtype, array.shape)  # type: ignore[arg-type]  # a literal
        for key, array, dtype in (
            ("target_tokens", targets, "int64"),
            ("weights", factors, "float32"),
        )
    }
    sparse = Datum(tokens, {"target_tokens": targets, "weights": factors})
    assert sparse.loss_fn_inputs["target_tokens"].is_sparse
    outputs, grads = [], []
    for datum in (Datum(tokens, dense), sparse):
        model = shaken(base)
        outputs.append(train(base, model, [datum]))
        grads.append(gradients(model))
    assert outputs[0] == outputs[1]
    assert (6, 8) == outputs[1].loss_fn_outputs[0]["logprobs"].dense_shape
    assert same_bits(*grads)


def test_missing_weights_are_ones(base: BaseModel) -> None:
    """cross_entropy without weights counts every target once."""
    datum = sft_data([7])[0]
    targets = {"target_tokens": datum.loss_fn_inputs["target_tokens"]}
    ones: dict[str, Any] = {**targets, "weights": np.ones(7, dtype=np.float32)}
    model = shaken(base)
    without = train(base, model, [Datum(datum.model_input, targets)])
    assert train(base, model, [Datum(datum.model_input, ones)]) == without


def test_metrics_sum_over_data_and_have_one_colon(base: BaseModel) -> None:
    """loss:sum is the sum of elementwise losses; logprobs come whatever the weights are."""
    data = sft_data(LENGTHS)
    output = train(base, shaken(base), data)
    total = sum(
        float(-(out["logprobs"].to_numpy() * d.loss_fn_inputs["weights"].to_numpy()).sum())
        for d, out in zip(data, output.loss_fn_outputs, strict=True)
    )
    assert total == pytest.approx(output.metrics["loss:sum"], rel=1e-5)
    assert float(sum(LENGTHS)) == output.metrics["num_tokens:sum"]
    assert all(name.count(":") == 1 for name in output.metrics)
    assert "ArrayRecord" == output.loss_fn_output_type
    assert all((out["logprobs"].to_numpy() < 0).all() for out in output.loss_fn_outputs)


@pytest.mark.parametrize("micro_batch_tokens", [1, 18, 34])
def test_micro_batches_and_padding_do_not_change_results(
    base: BaseModel, micro_batch_tokens: int
) -> None:
    """Any budget gives the log-probs and gradients of one big batch, outputs in data's order."""
    data = sft_data(LENGTHS)
    whole, split = shaken(base), shaken(base)
    expected = train(base, whole, data)

    output = train(base, split, data, micro_batch_tokens=micro_batch_tokens)

    for one, other in zip(expected.loss_fn_outputs, output.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(
            one["logprobs"].to_numpy(), other["logprobs"].to_numpy(), atol=1e-5
        )
    assert_near(gradients(split), gradients(whole))


def test_chunks_of_a_batch_add_up(base: BaseModel) -> None:
    """Two calls accumulate the gradient of one call over both halves."""
    data = sft_data(LENGTHS)
    once, twice = shaken(base), shaken(base)
    total = train(base, once, data).metrics["loss:sum"]
    parts = [train(base, twice, half).metrics["loss:sum"] for half in (data[:2], data[2:])]
    assert sum(parts) == pytest.approx(total, rel=1e-5)
    assert_near(gradients(twice), gradients(once))


def test_micro_batches_keep_the_budget_and_hold_similar_lengths(base: BaseModel) -> None:
    """Padded size stays within the budget, except for a row that exceeds it alone."""
    rows = read_rows(sft_data([3, 50, 9, 8, 2, 10]), make_loss("cross_entropy", {}), base.card)
    groups = [[row.length for row in group] for group in micro_batches(rows, max_tokens=20)]
    assert [[50], [10, 9], [8, 3], [2]] == groups


def test_forward_alone_leaves_no_gradient(base: BaseModel) -> None:
    """forward gives the same outputs; parameters keep no gradient."""
    data = sft_data(LENGTHS)
    model = shaken(base)
    output = train(base, model, data, forward_only=True)
    assert {} == gradients(model)
    assert output == train(base, model, data)


def test_a_call_yields_after_each_micro_batch(base: BaseModel) -> None:
    """The engine can do something else in between: one pause a micro-batch."""
    pauses = forward_backward(
        base,
        shaken(base),
        sft_data(LENGTHS),
        loss_fn="cross_entropy",
        loss_fn_config={},
        micro_batch_tokens=1,
    )
    assert [None] * len(LENGTHS) == list(pauses)


def test_a_failed_micro_batch_leaves_the_gradients_as_they_were(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in the second micro-batch: nothing of the first one stays."""
    model = shaken(base)
    train(base, model, sft_data([4]))
    before = gradients(model)
    calls = []

    def scarce(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return score(*args, **kwargs)

    score: Any = training.score  # type: ignore[attr-defined]  # where it is used
    monkeypatch.setattr(training, "score", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        train(base, model, sft_data([5, 6]), micro_batch_tokens=1)
    assert same_bits(before, gradients(model))


def test_a_call_closed_midway_leaves_the_gradients_as_they_were(base: BaseModel) -> None:
    """Closing the generator withdraws the call."""
    model = shaken(base)
    call = forward_backward(
        base, model, sft_data([5, 6]), loss_fn="cross_entropy", loss_fn_config={}
    )
    next(call)
    call.close()
    assert {} == gradients(model)


def test_a_loss_that_is_not_finite_is_refused_without_a_trace(base: BaseModel) -> None:
    """exp(p - q) overflows where A is not 0: typed error, no gradient added."""
    model = shaken(base)
    datum = rl_data([6])[0]
    wrong: dict[str, Any] = {
        **datum.loss_fn_inputs,
        "logprobs": np.full(6, -500.0, dtype=np.float32),
    }
    with pytest.raises(InvalidInputError) as caught:
        train(base, model, [datum, Datum(datum.model_input, wrong)], "importance_sampling")
    assert "data[1].loss_fn_inputs" == caught.value.field
    assert {} == gradients(model)


@pytest.mark.parametrize(
    "adam",
    [
        AdamParams(learning_rate=1e-3),
        AdamParams(learning_rate=1e-2, beta1=0.5, beta2=0.6, eps=1e-6, weight_decay=0.1),
        AdamParams(learning_rate=1e-3, grad_clip_norm=0.01, weight_decay=0.01),
    ],
)
def test_optim_step_equals_torch_adamw(base: BaseModel, adam: AdamParams) -> None:
    """Three steps, clipping and decoupled decay included, bit for bit.

    Torch's own loop over parameters rounds otherwise in the last bits.
    """
    for fused in (True, False):
        _check_against_adamw(base, adam, fused=fused)


def test_a_step_that_fails_half_way_says_that_the_model_is_lost(base: BaseModel) -> None:
    """What fails before any weight is changed is only that failure, and can be done again."""
    model = shaken(base)
    train(base, model, sft_data(LENGTHS))
    before, kernel = weights(model), model.optimizer.step

    def no_memory() -> None:
        raise MemoryError("no room")

    def half_way(adam: AdamParams) -> None:
        kernel(adam)
        raise RuntimeError("why")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.optimizer, "prepare", no_memory)
        with pytest.raises(MemoryError):
            optim_step(model, AdamParams())
    assert same_bits(before, weights(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.optimizer, "step", half_way)
        with pytest.raises(ModelLostError, match="failed half-way: why"):
            optim_step(model, AdamParams())


def _check_against_adamw(base: BaseModel, adam: AdamParams, *, fused: bool) -> None:
    model = shaken(base)
    reference = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters]
    judge_ = torch.optim.AdamW(
        reference,
        lr=adam.learning_rate,
        betas=(adam.beta1, adam.beta2),
        eps=adam.eps,
        weight_decay=adam.weight_decay,
        foreach=False,
        fused=fused,
    )
    for step in range(3):
        train(base, model, sft_data(LENGTHS, seed=step))
        for parameter, twin in zip(model.parameters, reference, strict=True):
            assert parameter.grad is not None
            twin.grad = parameter.grad.clone()
        norm = torch.cat([p.grad.flatten() for p in reference if p.grad is not None]).norm()
        if adam.grad_clip_norm:
            torch.nn.utils.clip_grad_norm_(reference, adam.grad_clip_norm)
        judge_.step()
        metrics = optim_step(model, adam).metrics
        assert metrics is not None
        assert float(norm) == pytest.approx(metrics["grad_norm"], rel=1e-5)
        assert adam.learning_rate == metrics["learning_rate"]
        assert {} == gradients(model)
    assert 3 == model.steps
    for parameter, twin in zip(model.parameters, reference, strict=True):
        rtol, atol = (0.0, 0.0) if fused else (1e-5, 1e-7)
        torch.testing.assert_close(parameter, twin, rtol=rtol, atol=atol)


def test_a_step_without_gradients_changes_no_weight(base: BaseModel) -> None:
    """As in torch: no gradient, no update, not even weight decay."""
    model = shaken(base)
    before = weights(model)
    metrics = optim_step(model, AdamParams(learning_rate=1.0, weight_decay=0.5)).metrics
    assert {"grad_norm": 0.0, "learning_rate": 1.0} == metrics
    assert same_bits(before, weights(model))


def test_training_lowers_the_loss(base: BaseModel) -> None:
    """Thirty steps on one example: the loss falls by more than half."""
    model = TrainedModel.create(base, LoraConfig(rank=8, seed=0))
    tokens = list(range(40, 60))
    data = [Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})]
    losses = []
    for _ in range(30):
        losses.append(train(base, model, data).metrics["loss:sum"])
        optim_step(model, AdamParams(learning_rate=1e-2))
    assert losses[-1] < losses[0] / 2


def test_interleaved_tenants_equal_each_alone(base: BaseModel) -> None:
    """Two models trained in turns, micro-batch by micro-batch, end with the bits of each alone."""

    def call(model: TrainedModel, seed: int) -> Generator[None, None, ForwardBackwardOutput]:
        return forward_backward(
            base,
            model,
            sft_data(LENGTHS, seed=seed),
            loss_fn="cross_entropy",
            loss_fn_config={},
            micro_batch_tokens=20,
        )

    adam = AdamParams(learning_rate=1e-2)
    alone = []
    for seed in (1, 2):
        model = shaken(base, seed=seed)
        for step in range(3):
            finish(call(model, 10 * seed + step))
            optim_step(model, adam)
        alone.append(weights(model))

    tenants = [shaken(base, seed=1), shaken(base, seed=2)]
    for step in range(3):
        running = [call(model, 10 * seed + step) for seed, model in enumerate(tenants, start=1)]
        while running:
            running = [one for one in running if next(one, "done") is None]
        for model in tenants:
            optim_step(model, adam)

    assert same_bits(alone[0], weights(tenants[0]))
    assert same_bits(alone[1], weights(tenants[1]))


def test_a_snapshot_does_not_change_while_its_model_trains_on(base: BaseModel) -> None:
    """Logits through the snapshot stay bit-identical; the model's own move."""
    model = shaken(base)
    snapshot = base.adapters.snapshot(model.adapter)
    tokens = torch.arange(12)[None]

    def logits(name: str) -> torch.Tensor:
        with torch.no_grad():
            return base.logits(base.hidden_states(tokens, adapter_names=[name]), [name])

    before = logits(snapshot.name)
    assert torch.equal(before, logits(model.adapter.name))
    train(base, model, sft_data(LENGTHS))
    optim_step(model, AdamParams(learning_rate=1e-2))
    assert torch.equal(before, logits(snapshot.name))
    assert not any(weight.requires_grad for weight in snapshot.weights.values())
    assert not torch.equal(before, logits(model.adapter.name))


def test_a_fresh_model_is_the_base_model(base: BaseModel) -> None:
    """B starts at zero, A does not."""
    adapter = base.adapters.create(LoraConfig(rank=4, seed=3))
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        plain = base.logits(base.hidden_states(tokens))
        adapted = base.logits(
            base.hidden_states(tokens, adapter_names=[adapter.name]), [adapter.name]
        )
    assert torch.equal(plain, adapted)
    assert all(bool(w.any()) == ("lora_A" in name) for name, w in adapter.weights.items())


def test_the_seed_fixes_the_start_and_leaves_the_process_alone(base: BaseModel) -> None:
    """Equal seeds, equal bits; torch's global random state is untouched; no seed, random."""
    state = torch.get_rng_state()
    one, two, other, free, freer = (
        base.adapters.create(LoraConfig(rank=2, seed=seed)) for seed in (7, 7, 8, None, None)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one.weights[key], two.weights[key]) for key in one.weights)
    key = next(iter(one.weights))
    assert not torch.equal(one.weights[key], other.weights[key])
    assert free.lora.seed is not None
    assert not torch.equal(free.weights[key], freer.weights[key])


def test_mixed_rows_equal_single_rows(base: BaseModel) -> None:
    """Rows of several adapters, a snapshot and the base in one batch, each as if alone."""
    a = shaken(base, seed=1).adapter
    b = shaken(base, LoraConfig(rank=2, train_unembed=False), seed=2).adapter
    names = [a.name, b.name, base.adapters.snapshot(a).name, "__base__", b.name]
    tokens = torch.randint(0, 259, (5, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mixed = base.logits(base.hidden_states(tokens, adapter_names=names), names)
        for row, name in enumerate(names):
            hidden = base.hidden_states(tokens[row : row + 1], adapter_names=[name])
            torch.testing.assert_close(mixed[row], base.logits(hidden, [name])[0])
    assert not torch.equal(mixed[0], mixed[3])


def test_dropping_an_adapter_leaves_the_others_trainable(base: BaseModel) -> None:
    """Also when the dropped one was active; its parameters leave the model."""
    kept, dropped = shaken(base, seed=1), shaken(base, seed=2)
    data = sft_data(LENGTHS)
    train(base, dropped, data)
    count = sum(1 for _ in base.peft.parameters())
    base.adapters.drop(dropped.adapter)
    assert count - len(dropped.parameters) == sum(1 for _ in base.peft.parameters())
    train(base, kept, data)
    assert kept.adapter.weights.keys() == gradients(kept).keys()


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (LoraConfig(rank=5000), "lora_config.rank"),
        (LoraConfig(seed=2**70), "lora_config.seed"),
    ],
)
def test_impossible_adapters_are_refused(base: BaseModel, config: LoraConfig, field: str) -> None:
    """A rank that would exhaust memory and a seed torch cannot take."""
    with pytest.raises(InvalidInputError) as caught:
        base.adapters.create(config)
    assert field == caught.value.field
