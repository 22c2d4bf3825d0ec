"""A typed coroutine per endpoint, the one retry policy, and what the server can do."""
