"""The privileged daemon that runs on every node."""
