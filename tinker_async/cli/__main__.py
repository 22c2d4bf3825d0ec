"""`python -m tinker_async.cli`, the same as the command `tinker-async`."""

from __future__ import annotations

from tinker_async.cli import main

main(prog_name="tinker-async")
