"""Bytes of the protocol: the JSON messages, the protobuf codec and its tables. No I/O."""
