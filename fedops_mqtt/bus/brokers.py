"""The brokers of one connection: several URLs, or a host with several IP addresses, and which of them is tried when.

They are tried in the order of preference, once each in a round. Where there are several, every other round is a quick
one, so that a frozen broker costs seconds; one that is slow, or hangs on MQTT 5, is given its time in the next round.
"""

import logging
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from fedops_mqtt.bus.address import BrokerAddress, BusOptions, make_tls_context, parse_broker_urls
from fedops_mqtt.bus.errors import BrokerUrlError, BusError, ConnectError, CredentialsError
from fedops_mqtt.bus.session import open_session

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One CONNECT that is to be tried."""

    endpoint: BrokerAddress
    options: BusOptions
    is_quick: bool
    """A time-out does not show the broker's MQTT version."""
    better: Sequence[BrokerAddress]
    """The brokers that are preferred to this one."""


class Brokers:
    """The brokers that `urls` names, the preferred one first.

    Raises:
        BrokerUrlError: a URL or a TLS file cannot be used.
    """

    def __init__(self, urls: str, options: BusOptions) -> None:
        self._addresses = parse_broker_urls(urls)
        self._options = options
        self._quick = replace(options, connect_timeout_s=min(options.first_try_s, options.connect_timeout_s))
        self._tls = {each.is_tls: make_tls_context(each, options) for each in self._addresses}
        self._failures: list[ConnectError] = []
        self._is_next_quick = True
        self.last = str(self._addresses[0])
        """The broker that was connected last, without user and password; before that the preferred one."""

    def tls(self, address: BrokerAddress) -> ssl.SSLContext | None:
        """Read certificate and key again: renewed ones are used without a restart, half-written ones are not."""
        try:
            self._tls[address.is_tls] = make_tls_context(address, self._options)
        except BrokerUrlError as error:
            logger.warning("TLS files cannot be used, going on with those read before", extra={"why": str(error)})
        return self._tls[address.is_tls]

    async def round(self) -> AsyncGenerator[Attempt, None]:
        """Yield what to try, one after the other; stop when one came about, else give `failed` its error."""
        self._failures = []
        is_quick_round, self._is_next_quick = self._is_next_quick, not self._is_next_quick
        for number, address in enumerate(self._addresses):
            endpoints = await address.resolve(self._options.connect_timeout_s)
            is_quick = is_quick_round and (len(self._addresses) > 1 or len(endpoints) > 1)
            for endpoint in endpoints:
                options = self._quick if is_quick else self._options
                yield Attempt(endpoint=endpoint, options=options, is_quick=is_quick, better=self._addresses[:number])

    def failed(self, error: ConnectError) -> None:
        """Note how an attempt ended."""
        self._failures.append(error)

    def connected(self, attempt: Attempt) -> None:
        """Note that an attempt came about: the next round is a quick one."""
        self._is_next_quick = True
        self.last = str(attempt.endpoint)
        if attempt.better:
            facts = {"broker": self.last, "passed_over": "; ".join(map(str, self._failures))}
            logger.warning("the preferred broker cannot be used, going on with another one", extra=facts)

    def problem(self) -> ConnectError:
        """Return what went wrong in a round as one error: that a broker refuses us, or else all of it."""
        refusals = [error for error in self._failures if isinstance(error, CredentialsError)]
        if refusals or len(self._failures) == 1:
            return (refusals or self._failures)[0]
        problems = dict.fromkeys(error.problem for error in self._failures)
        return ConnectError(", ".join(error.broker for error in self._failures), "; ".join(problems))

    async def can_connect(self, addresses: Sequence[BrokerAddress], *, is_mqtt5: bool) -> bool:
        """Return whether one of the brokers takes a connection now, and leave it at once."""
        for address in addresses:
            with suppress(BusError):  # it cannot be used now
                async with open_session(
                    address,
                    self._quick,
                    client_id=None,  # with our own it would end our connection, where the brokers are one cluster
                    is_mqtt5=is_mqtt5,
                    tls=self.tls(address),
                    will=None,
                    on_message=lambda topic, payload, is_retained: None,
                ):
                    return True
        return False
