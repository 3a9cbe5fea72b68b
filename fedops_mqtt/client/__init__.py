"""On the device: a small daemon that lives on the bus, and a training process of its own for each run."""
