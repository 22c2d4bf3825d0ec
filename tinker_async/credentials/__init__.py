"""What proves who we are: keys, tokens, the command that prints one, and the stored file."""
