"""What the official client is told of a full batch and of sizes; run as a process of its own.

Usage: python observed_queue.py URL KEY. Prints one JSON object.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any, ClassVar

import tinker
from tinker import types
from tinker.lib import api_future_impl

PROMPT = types.ModelInput.from_ints([10, 20, 30])
LONG = types.SamplingParams(max_tokens=500, stop=[])
SHORT = types.SamplingParams(max_tokens=1)


class Said(logging.Handler):
    """What the client writes into its log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Sized(api_future_impl._MetadataOnly):
    """Notes each size that comes in place of a result."""

    told: ClassVar[list[int]] = []

    def __init__(self, payload_size: int) -> None:
        super().__init__(payload_size=payload_size)
        self.told.append(payload_size)


class Observed:
    """Stands where the client's own observer is, and passes on to it."""

    def __init__(self, sampler: Any) -> None:
        self.states: list[list[str | None]] = []
        self._own = sampler.on_queue_state_change

    def __call__(self, state: Any, reason: str | None) -> None:
        if [state.value, reason] not in self.states[-1:]:
            self.states.append([state.value, reason])
        self._own(state, reason)


def main() -> None:
    url, key = sys.argv[1:]
    said = Said()
    api_future_impl._MetadataOnly = Sized  # type: ignore[misc]  # the very point
    logging.getLogger("tinker").addHandler(said)
    with tinker.ServiceClient(base_url=url, api_key=key) as service:
        filling = service.create_sampling_client(base_model="tiny").result()
        waiting = service.create_sampling_client(base_model="tiny").result()
        observed = Observed(waiting)
        waiting.on_queue_state_change = observed  # type: ignore[assignment, method-assign]  # as above
        long = filling.sample(prompt=PROMPT, num_samples=2, sampling_params=LONG)
        for _ in range(1000):  # until the long ones have begun, this one does not wait
            waiting.sample(prompt=PROMPT, num_samples=1, sampling_params=SHORT).result()
            if any(state != "active" for state, _ in observed.states):
                break
        sequences = long.result().sequences
    found = {
        "drawn": [len(sequence.tokens) for sequence in sequences],
        "sizes": Sized.told,
        "states": observed.states,
        "sampler": waiting._sampling_session_id,
        "said": [line for line in said.lines if line.startswith("Sampling is paused")],
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
