"""One module per noun of the protocol: parse, ask the service, answer. No state of their own."""
