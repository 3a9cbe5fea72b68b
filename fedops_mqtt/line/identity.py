"""Flower's numbers for our names: node ids from MACs, run ids from run names. Imports no flwr.

The same name gives the same number in every process and launch, so a relaunched server recognises its clients.
"""

import hashlib

_FIRST_FREE_ID = 2
"""Flower's own ids: 0 means unset and 1 is the server's node (flwr.common.constant.SUPERLINK_NODE_ID)."""

_BITS = 53
"""Flower takes 63; these are what a client in a language whose numbers are doubles reads and echoes unchanged."""


def node_id_of(client_mac: str) -> int:
    """Return the Flower node id of a client: positive, the same in every launch."""
    return _number("node", client_mac)


def flower_run_id_of(run_id: str) -> int:
    """Return the Flower run id (a number) of our run id (a name)."""
    return _number("run", run_id)


def _number(kind: str, name: str) -> int:
    digest = hashlib.sha256(f"{kind}:{name}".encode()).digest()
    return max(int.from_bytes(digest[:8], "big") >> (64 - _BITS), _FIRST_FREE_ID)
