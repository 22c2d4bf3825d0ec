"""Reducing metrics over chunks."""

from __future__ import annotations

from tinker_async.data.results import ForwardBackwardOutput
from tinker_async.data.tensors import TensorData
from tinker_async.plan.merging import merge_outputs, reduce_metrics


def test_each_suffix_has_its_reduction() -> None:
    """The table of wire protocol 4.10, with two chunks of 1 and 3 data."""
    first = {"a:sum": 1.0, "a:min": 1.0, "a:max": 1.0, "a:mean": 1.0, "a:slack": 1.0}
    second = {"a:sum": 5.0, "a:min": 5.0, "a:max": 5.0, "a:mean": 5.0, "a:slack": 5.0}

    assert reduce_metrics([first, second], [1, 3]) == {
        "a:sum": 6.0,
        "a:min": 1.0,
        "a:max": 5.0,
        "a:mean": 4.0,
        "a:slack": 1.0,
    }


def test_unique_keeps_every_value() -> None:
    """The first value keeps the name; the others are numbered."""
    chunks = [{"v:unique": 1.0}, {"v:unique": 2.0}, {"v:unique": 3.0}]

    assert reduce_metrics(chunks, [1, 1, 1]) == {
        "v:unique": 1.0,
        "v:unique_1": 2.0,
        "v:unique_2": 3.0,
    }


def test_hashes_add_up_modulo_two_to_the_64th() -> None:
    """`hash2` is a sum of unsigned 64-bit numbers."""
    assert {"h:hash2": float(2**11)} == reduce_metrics(
        [{"h:hash2": 2.0**63}, {"h:hash2": 2.0**63 + 2**11}], [1, 1]
    )


def test_what_cannot_be_reduced_is_dropped() -> None:
    """Unknown suffixes, metrics missing in a chunk, and means without weight."""
    chunks = [
        {"a:last": 1.0, "b:sum": 1.0, "c:mean": 1.0, "d": 1.0},
        {"a:last": 2.0, "c:mean": 1.0},
    ]

    assert reduce_metrics(chunks, [0, 0]) == {}


def test_outputs_are_joined_in_chunk_order() -> None:
    """Outputs concatenate; the type is the first chunk's; one chunk is untouched."""

    def output(*values: float) -> ForwardBackwardOutput:
        return ForwardBackwardOutput(
            loss_fn_output_type="T",
            loss_fn_outputs=[
                {"logprobs": TensorData.from_value("logprobs", [value])} for value in values
            ],
            metrics={"loss:sum": sum(values)},
        )

    merged = merge_outputs([output(1, 2), output(3)])

    assert [item["logprobs"].tolist()[0] for item in merged.loss_fn_outputs] == [1.0, 2.0, 3.0]
    assert merged.metrics == {"loss:sum": 6.0}
    single = ForwardBackwardOutput("T", [], {"odd": 1.0})
    assert single is merge_outputs([single])
