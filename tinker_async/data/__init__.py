"""The user's nouns: what is trained on, how, and what comes back. No I/O."""
