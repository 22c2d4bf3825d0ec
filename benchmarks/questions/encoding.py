"""What does encoding 64 x 4096 cost against copying its tensors, and is decoding a copy?

Three baselines copy the same 16 bytes a token (int32 tokens, int64 targets, float32 weights), array
by array. "Fresh": `bytes.join` into memory that the process did not have before (earlier results
are kept), page faults included. "Recycled": `bytes.join` into memory that was freed
just before. "Warm": into a buffer that was written before. The targets are about the fresh one,
with which this protocol was measured so far; the ratio to the warm one has a row of its own,
and there the source is in the caches, too, so it is the hardest comparison there is. The fastest of
15 rounds counts, CPU time. Our encoder hands large tensors on as they are: its buffers as the
transport takes them, and joined into one body as others make it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import workloads
from benchmarks.harness import OFFICIAL, Bench
from benchmarks.rows import Row, at_least, column, within

_ROWS, _TOKENS, _ROUNDS = 64, 4096, 15
_FRESH, _RECYCLED, _WARM = "memcpy, fresh", "memcpy, recycled", "memcpy, warm"


def ask(bench: Bench) -> list[Row]:
    who = [*([OFFICIAL] if bench.has_official else []), "asyncio"]
    variants = {
        name: lambda name=name: bench.client(name, None, "encoding", rows=_ROWS, tokens=_TOKENS)
        for name in who
    }
    copies = {_FRESH: _copy_fresh, _RECYCLED: _copy_recycled, _WARM: _copy_warm}
    found = bench.interleave({**variants, **copies})
    rows = [
        Row(
            name=f"encoding_{figure}_{than.rpartition(' ')[2]}",
            table="client",
            what=f"encoding {_ROWS} x {_TOKENS}, {what}, against {than}",
            unit="ms",
            runs=column(found, f"{figure}_ms"),
            question="encoding",
            than=than,
            must=within(2.5, than) if than == _FRESH else None,
            aim=within(1.2, than) if than == _FRESH else None,
        )
        for figure, what in (("encode", "as buffers to send"), ("joined", "joined into one body"))
        for than in (_FRESH, _WARM)
    ]
    return [*rows, _decoding()]


def _arrays() -> list[npt.NDArray[Any]]:
    return [array for row in workloads.training_rows(_ROWS, _TOKENS) for array in row.values()]


def _views() -> list[memoryview]:
    return [array.data.cast("B") for array in _arrays()]


def _copy_recycled() -> dict[str, float]:
    views = _views()
    return _both(lambda: b"".join(views))


def _copy_fresh() -> dict[str, float]:
    views, kept = _views(), list[bytes]()
    return _both(lambda: kept.append(b"".join(views)))


def _copy_warm() -> dict[str, float]:
    views = _views()
    kept = memoryview(bytearray(sum(view.nbytes for view in views)))

    def copy() -> None:
        at = 0
        for view in views:
            kept[at : at + view.nbytes] = view
            at += view.nbytes

    copy()
    return _both(copy)


def _both(work: Callable[[], object]) -> dict[str, float]:
    best = min(_timed(work) for _ in range(_ROUNDS))
    return {"encode_ms": 1e3 * best, "joined_ms": 1e3 * best}


def _timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _decoding() -> Row:
    from benchmarks.stub_server.answers import _output
    from tinker_async.wire.training import decode_forward_backward_output

    body = np.frombuffer(bytearray(_output((_TOKENS,) * _ROWS, True)), dtype=np.uint8)
    output = decode_forward_backward_output(memoryview(body.data))
    shared = [
        np.shares_memory(tensors["logprobs"].to_numpy(), body) for tensors in output.loss_fn_outputs
    ]
    return Row(
        name="decoding_views",
        table="client",
        what=f"decoding log-probs of {_ROWS} x {_TOKENS}: tensors that are views of the body",
        unit=f"of {len(shared)}",
        runs={"asyncio": [float(sum(shared))]},
        question="encoding",
        than=None,
        more_is_better=True,
        must=at_least(len(shared)),
        aim=at_least(len(shared)),
        note="no copy; `numpy.shares_memory`",
    )
