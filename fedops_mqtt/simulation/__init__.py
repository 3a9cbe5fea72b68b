"""A federated run on one machine: the same FL server program, the same app, N virtual clients, no broker.

The line is the real one; worker processes play the clients, and the server says on a pipe what it else says on the bus.
"""
