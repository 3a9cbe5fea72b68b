"""What follows from messages: clients, fleet and runs as pure machines, with no clock, socket, log or await."""
