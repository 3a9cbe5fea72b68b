"""The daemon on a device: one identity on the bus, one training process at a time."""
