"""Every FedOps client that the bridge speaks for, and which of them a request is from.

FedOps' calls do not say who calls: there a client manager has one client only. So what can be known is asked in turn:
the user name in the caller's URL, the MAC and task in the call, where it comes from, and who is expected to call.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from fedops_mqtt.bridge.peer_state import PeerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What a request tells of who made it."""

    host: str | None = None
    client_mac: str | None = None
    """The user name in its URL."""
    own_mac: str | None = None
    """The MAC in its body."""
    task_id: str | None = None


class Peers:
    """All links, in the order in which they came to be known."""

    def __init__(self, links: Iterable[PeerState] = ()) -> None:
        self._links = list(links)

    def __iter__(self) -> Iterator[PeerState]:
        return iter(self._links)

    def add(self, link: PeerState) -> None:
        """Take one more in."""
        self._links.append(link)

    def of_mac(self, own_mac: str) -> PeerState | None:
        """Return who says this MAC of itself."""
        return next((link for link in self._links if own_mac in (link.own_mac, link.client_mac)), None)

    def find(self, caller: Caller, *, expected: Callable[[PeerState], bool]) -> PeerState | None:
        """Return who calls; None where it cannot be told."""
        if caller.client_mac is not None:
            return next((link for link in self._links if link.client_mac == caller.client_mac), None)
        found = [link for link in self._links if caller.task_id in (None, link.task_id)]
        for sieve in (
            lambda link: caller.own_mac in (link.own_mac, link.client_mac),
            lambda link: caller.host in link.hosts,
            expected,
        ):
            if len(found) > 1:
                found = list(filter(sieve, found)) or found
        return found[0] if len(found) == 1 else None
