"""Speaks on the bus for FedOps clients and servers that know HTTP and gRPC only."""
