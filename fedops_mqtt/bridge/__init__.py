"""Puts FedOps clients and servers that use HTTP and gRPC only on the bus."""
