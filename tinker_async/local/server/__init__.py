"""HTTP code: no torch. Decodes requests, orders them, asks the engine thread, encodes answers."""
