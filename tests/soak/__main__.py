"""`make soak`: the whole of it, with progress on a terminal; `--json` prints the figures alone."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import anyio
import msgspec
import structlog
from soak.program import Work
from soak.trial import Figures, Tell, engine_weights, soak_engine, soak_toy, toy_weights

TOY = Work(steps=500, group=40, every=40)
ENGINE = Work(steps=60, group=8, every=8, model="tiny-llama", supervised=True)
RATE = 0.05
ENGINE_RATES = {False: 0.05, True: 0.02}
"""Over HTTP/2 each broken connection hits all requests that are on it."""


def teller(name: str) -> Tell:
    """Return what shows progress on a terminal, and is silent elsewhere."""
    if not sys.stderr.isatty():
        return lambda _: None

    def tell(text: str) -> None:
        sys.stderr.write(f"\r\033[K{name}: {text}")
        sys.stderr.flush()

    return tell


async def soaks(backend: str, share: float) -> list[Figures]:
    """Run all four soaks."""
    found = []
    work = msgspec.structs.replace(TOY, steps=max(8, int(TOY.steps * share)))
    teller("toy without faults")("...")
    right = await toy_weights(work)
    for http2 in (False, True):
        name = f"toy, {'HTTP/2' if http2 else 'HTTP/1.1'}"
        tell = teller(name)
        one = await soak_toy(work, http2=http2, rate=RATE, right=right, backend=backend, tell=tell)
        found.append(one)
    work = msgspec.structs.replace(ENGINE, steps=max(8, int(ENGINE.steps * share)))
    with tempfile.TemporaryDirectory() as folder:
        right = await engine_weights(work, Path(folder, "right"))
        for http2, rate in ENGINE_RATES.items():
            name = f"engine, {'HTTP/2' if http2 else 'HTTP/1.1'}"
            place, tell = Path(folder, str(http2)), teller(name)
            one = await soak_engine(
                work, place, http2=http2, rate=rate, right=right, backend=backend, tell=tell
            )
            found.append(one)
    return found


def main() -> None:
    """Parse the command line, run, and print."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--backend", choices=("asyncio", "uvloop", "trio"), default="asyncio")
    parser.add_argument("--share", type=float, default=1.0, help="of the work")
    given = parser.parse_args()
    # Thousands of repetitions: they are what it is about, and no news.
    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(
        wrapper_class=quiet, logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    uvloop = given.backend == "uvloop"
    options = {"use_uvloop": True} if uvloop else {}
    name = "asyncio" if uvloop else given.backend
    found = anyio.run(soaks, given.backend, given.share, backend=name, backend_options=options)
    if given.json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        return
    for one in found:
        again = f"{one.delivered_again} delivered again" if one.server == "toy" else "no ledger"
        sys.stdout.write(
            f"\n{one.server}, {one.protocol}, {one.backend}: {one.steps} steps and {one.samples} "
            f"samples in {one.seconds:g} s\n"
            f"  done again after the restart: {one.steps_run - one.steps} steps, "
            f"{one.samples_run - one.samples} samples ({'; '.join(one.ended_by)})\n"
            f"  {sum(one.faults.values())} faults in {one.requests} requests; {again}\n"
            f"  memory by quarter: {', '.join(f'{size:.1f}' for size in one.memory_mb)} MiB\n"
            f"  weights: {one.weights}, the same as without faults\n"
        )


if __name__ == "__main__":
    main()
