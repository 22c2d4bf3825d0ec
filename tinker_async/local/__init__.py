"""The embedded Tinker server: a real LoRA engine on this machine (extra `local`)."""
