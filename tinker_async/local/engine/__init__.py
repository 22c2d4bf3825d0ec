"""torch code: no async, no HTTP. Everything here runs in one thread, except `jobs` and `thread`."""
