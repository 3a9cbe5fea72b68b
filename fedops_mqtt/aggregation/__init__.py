"""The FL server's engine: one run of a strategy over the data plane, its checkpoints and statuses."""
