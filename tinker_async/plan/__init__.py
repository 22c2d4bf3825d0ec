"""Decisions about training calls, without I/O: what is sound, how it is cut, how it is merged."""
