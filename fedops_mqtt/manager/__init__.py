"""The manager: it watches the fleet, decides what has to be done about each run, and does it."""
