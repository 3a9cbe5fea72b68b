"""Flower messages over HTTP/1.1: Grid and endpoints on the FL server, runner in the training process.

This file imports no flwr (the manager needs `line.access` only); the parts are imported by their modules. flwr reads
its switches once, at import, so they are set here, before any module below can import it: the one place in the package
that writes to the environment, and it never overrides what is already set.
"""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
