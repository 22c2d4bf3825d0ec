"""Background parts that live in the session's nursery: heartbeat, training queue, sampling pool."""
