"""What follows from what was said: clients, fleet and runs as pure machines, with no clock, socket, log or await."""
