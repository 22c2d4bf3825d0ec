"""Downloading checkpoints: what may reach the disk, how to go on after a break, and the transfer."""
