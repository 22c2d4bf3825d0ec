"""Training runs that survive: checkpoints by policy, the record of a run, recovery."""
