"""Other servers of the protocol, run for real beside this engine and asked by the same clients.

Each has an environment of its own that `make rivals` creates from pinned requirements, a server
process on a free loopback port, and an end that leaves nothing running.
"""
