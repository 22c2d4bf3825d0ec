"""What the library costs, measured: `python -m benchmarks` runs all of it (see README.md)."""
