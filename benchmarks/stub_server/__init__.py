"""A server that speaks enough of the protocol to measure a client, and answers at once.

A process of its own: `python -m benchmarks.stub_server`. It is lighter than any client that it
serves: requests are cut out of the bytes by hand, answers are made once, headers are cached.
"""
