"""What runs inside the training process on a device; flwr and the user's app are imported here."""
