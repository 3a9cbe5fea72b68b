"""A federated run on one machine: the same FL server program, the same app, N virtual clients, no broker.

The line is the real one; worker processes play the clients; what the server publishes on the bus else goes to a pipe.
"""
