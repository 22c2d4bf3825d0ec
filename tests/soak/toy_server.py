"""A fake server in a process of its own, with faults: so that the client's memory is its own.

Ruled by lines on standard input, each answered by one line of JSON: `restart`, `weights PATH`,
`report`. The end of the input is the end.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import Counter
from typing import Any

import anyio
import msgspec

from tinker_async.errors import TinkerError
from tinker_async.testing import FakeService, faults
from tinker_async.wire.messages import ClientConfigResponse

_BOTH: tuple[faults.Fault, ...] = (
    faults.Status(503),
    faults.Status(503, commit=True),
    faults.Status(500),
    faults.TooMany(0.01, form="ms"),
    faults.QueueState("paused_capacity", "soak"),
    faults.Stall(0.01),
    faults.Stall(0.01, commit=True),
    faults.Trickle(chunk_bytes=16),
    faults.GoAway(processed=True),
)
KINDS: dict[bool, tuple[faults.Fault, ...]] = {
    False: (
        *_BOTH,
        faults.Refuse(),
        faults.Reset("before"),
        faults.Reset("within"),
        faults.Reset("after"),
        faults.DropReply(),
        faults.Truncate(),
        faults.GoAway(),
    ),
    # A reset hits all the requests of a connection: one kind among many.
    True: (
        *_BOTH,
        faults.Refuse(),
        faults.RstStream(code=7),
        faults.RstStream(code=8),
        faults.RstStream(code=2),
        faults.DropReply(),
        faults.GoAway(),
    ),
}


class Ordered(msgspec.Struct):
    """What the process is started with."""

    rate: float
    seed: int
    http2: bool


class Report(msgspec.Struct):
    """What the ledger has."""

    requests: int
    faults: dict[str, int]
    samples: dict[str, int]
    """By sequence id, how often its result was delivered."""
    cancelled: list[str]
    """Sequence ids of samples that were cancelled."""
    gaps: int
    executed_twice: int


def report(service: FakeService) -> Report:
    ledger = service.ledger
    numbers = Counter((one.model_id, one.seq_id) for one in ledger.executed if one.seq_id)
    lines = {f"{line.sampler_id}:{line.seq_id}:0": line for line in ledger.samples}
    return Report(
        requests=len(ledger.entries),
        faults=dict(Counter(entry.fault for entry in ledger.entries if entry.fault)),
        samples={name: line.answered for name, line in lines.items()},
        cancelled=[name for name, line in lines.items() if line.cancelled],
        gaps=sum(len(ledger.gaps(model)) for model in {one.model_id for one in ledger.executed}),
        executed_twice=sum(times > 1 for times in numbers.values()),
    )


def digest(weights: dict[int, Any]) -> str:
    """Return a hash of weights, to the bit."""
    found = hashlib.blake2b(digest_size=16)
    for token, row in weights.items():
        found.update(token.to_bytes(2, "little") + row.tobytes())
    return found.hexdigest()


def say(value: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


async def main(ordered: Ordered) -> None:
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of writes after a reset
    config = ClientConfigResponse(
        parallel_fwdbwd_chunks=True, sample_use_retrieve_futures=ordered.http2
    )
    service = FakeService(hold_s=1.0, config=config)
    if ordered.rate:
        chance = faults.Random(rate=ordered.rate, seed=ordered.seed, kinds=KINDS[ordered.http2])
        service.faults.on("*", chance)
    lines = anyio.wrap_file(sys.stdin)
    port = 0
    while True:
        async with service.serve(port=port) as url:
            port = int(url.rpartition(":")[2])
            say(url)
            while (line := (await lines.readline()).strip()) not in ("restart", ""):
                if line == "report":
                    say(report(service))
                else:
                    say(await weights(service, line.partition(" ")[2]))
        if not line:
            return
        service.restart()


async def weights(service: FakeService, path: str) -> str:
    try:
        return digest(service.weights_of(path))
    except TinkerError as error:
        return str(error)


if __name__ == "__main__":
    anyio.run(main, msgspec.json.decode(sys.argv[1], type=Ordered))
