"""One question a file: each has `ask(bench)`, which measures and returns rows of the results."""

from __future__ import annotations

CLIENT = (
    "sample_cpu",
    "sample_throughput",
    "lateness",
    "held_polls",
    "in_flight",
    "training_calls",
    "encoding",
    "loop_stalls",
    "pipelined_steps",
    "durable_overhead",
    "threads",
    "imports",
    "installed_size",
    "client_processes",
)
ENGINE = (
    "engine_sampling",
    "engine_mixed_adapters",
    "engine_first_token",
    "engine_training",
    "engine_steps",
    "engine_server_cpu",
    "engine_memory",
)
"""In the order in which they are asked and shown."""
