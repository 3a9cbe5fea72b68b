"""The doctor's checks of the broker: does it answer, who may connect, publish and read what, does it drop messages.

Questions about forbidden things are put so that a broker without an ACL does no harm: to a task and a device that do
not exist, not retained, without a payload. For publishing the broker's reason codes (MQTT 5) decide; for
reading only deliveries count, since mosquitto grants every subscription.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fedops_mqtt.bus import (
    BusError,
    BusOptions,
    ClientIdError,
    ConnectError,
    CredentialsError,
    PublishRefusedError,
    VersionError,
    client_id_of,
)
from fedops_mqtt.bus.address import BrokerAddress, make_tls_context, parse_broker_urls
from fedops_mqtt.bus.events import DROPPED_TOPIC
from fedops_mqtt.bus.session import MqttSession, open_session
from fedops_mqtt.cli.doctor_local import Finding, Level, ok, problem, unknown, warning
from fedops_mqtt.cli.fleet import WARN_DAYS
from fedops_mqtt.core.fencing import ADVICE
from fedops_mqtt.enrolment.roles import BROKER_STATISTICS, Role, Rule, rules_of
from fedops_mqtt.protocol import mac_to_level, topics
from fedops_mqtt.runtime.settings import DoctorSettings

PROBE_TASK = "doctor-probe"
PROBE_MAC = "02:d0:c7:04:00:01"
_LISTEN_S = 1.0
"""What is retained is delivered right after the subscription."""


@dataclass(slots=True)
class _ReceivedMessages:
    topics: dict[str, bytes] = field(default_factory=dict)

    def __call__(self, topic: str, payload: bytes, is_retained: bool) -> None:
        self.topics[topic] = payload


async def look_at_bus(settings: DoctorSettings, role: Role) -> list[Finding]:
    """Connect to each broker as the identity does, and find out what it may do there."""
    addresses = parse_broker_urls(settings.broker)
    return [finding for address in addresses for finding in await _look_at(address, settings, role)]


async def _look_at(address: BrokerAddress, settings: DoctorSettings, role: Role) -> list[Finding]:
    findings = [await asyncio.to_thread(_reach, address, settings.connect_timeout_s)]
    if findings[0].level is Level.PROBLEM:
        return findings
    options = BusOptions.from_settings(settings)
    if address.is_tls:
        findings.append(await asyncio.to_thread(_greet, address, options))
        if findings[-1].level is Level.PROBLEM:
            return findings
    received = _ReceivedMessages()
    try:
        async with _session(address, options, received) as session:
            findings.append(ok("credentials", f"{_who(address, options)} is known, MQTT {session.protocol_version}"))
            findings += [each async for each in _ask(session, settings, role, received, options.user or address.user)]
    except VersionError:
        findings.append(
            warning("credentials", "the broker supports MQTT 3.1.1 only", "use one with MQTT 5: it reports refusals")
        )
    except CredentialsError as error:
        findings.append(problem("credentials", str(error), "enrol this identity again, or copy its bundle here again"))
    except ClientIdError as error:
        findings.append(problem("credentials", str(error), "see the broker's log for what it takes"))
    except ConnectError as error:
        found = error.problem
        if address.is_tls and not any(sign in found.lower() for sign in _SIGNS):
            found = await asyncio.to_thread(_alert, address, options, found)
        findings.append(problem("credentials", found, _advise(found)))
    except BusError as error:
        findings.append(problem("bus", str(error), "look at the broker's log"))
    return findings


def _session(
    address: BrokerAddress, options: BusOptions, received: _ReceivedMessages
) -> AbstractAsyncContextManager[MqttSession]:
    return open_session(
        address,
        options,
        client_id=client_id_of(options.user or address.user),
        is_mqtt5=True,
        tls=make_tls_context(address, options),
        will=None,
        on_message=received,
    )


def _reach(address: BrokerAddress, timeout_s: float) -> Finding:
    try:
        with socket.create_connection((address.host, address.port), timeout=timeout_s):
            return ok("broker", f"{address} answers")
    except socket.gaierror:
        return problem("broker", f"the name {address.host} is unknown", "correct `broker`, or the name service")
    except TimeoutError:
        return problem("broker", f"{address} does not answer", "a firewall? Devices need this one port outwards")
    except OSError as error:
        return problem(
            "broker", f"{address}: {error.strerror}", "is mosquitto running there? systemctl status mosquitto"
        )


def _greet(address: BrokerAddress, options: BusOptions) -> Finding:
    """Look at the certificate that the broker shows."""
    try:
        with _handshake(address, options) as secure:
            shown = secure.getpeercert() or {}
    except OSError as error:
        return problem("TLS", str(error), _advise(str(error)))
    ends_at = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
    days_left = (ends_at - datetime.now(UTC)).days
    if days_left < WARN_DAYS:
        advice = "`fedops-mqtt fleet renew broker`, bring it there, `systemctl reload mosquitto`"
        return warning("TLS", f"the broker's certificate expires in {days_left} days", advice)
    return ok("TLS", f"the broker is authenticated; its certificate is good until {ends_at:%Y-%m-%d}")


def _alert(address: BrokerAddress, options: BusOptions, otherwise: str) -> str:
    """Return why a broker refuses this certificate, if it does.

    With TLS 1.3 that comes after the handshake, and who writes meanwhile may read of a reset connection in its place.
    """
    try:
        with _handshake(address, options) as secure:
            secure.recv(1)
    except ssl.SSLError as error:
        return str(error)
    except OSError:
        pass
    return otherwise


@contextmanager
def _handshake(address: BrokerAddress, options: BusOptions) -> Iterator[ssl.SSLSocket]:
    context = make_tls_context(address, options)
    assert context is not None
    context.sslsocket_class = ssl.SSLSocket
    with (
        socket.create_connection((address.host, address.port), timeout=options.connect_timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=address.host) as secure,
    ):
        yield secure


def _advise(trouble: str) -> str:
    """Return what to do about a connection that came about and then failed."""
    for sign, advice in _SIGNS.items():
        if sign in trouble.lower():
            return advice
    return "look at the broker's log"


_SIGNS = {
    "hostname mismatch": "reach it under a name of its certificate, or make one with that name: fleet init --host",
    "ip address mismatch": "reach it under a name of its certificate, or make one with that name: fleet init --host",
    "self-signed": "broker_ca_file is not this broker's CA: copy the bundle here again",
    "unable to get local issuer": "broker_ca_file is not this broker's CA: copy the bundle here again",
    "no retained messages": "let the broker keep them: `retain_available true` in mosquitto.conf",
    "qos 0 only": "let the broker take QoS 1: `max_qos 2` in mosquitto.conf",
    "revoked": "this certificate was taken back: enrol the identity again",
    "expired": "a certificate has expired: `fedops-mqtt fleet renew`, then copy the bundle",
    "wrong version number": "this port is without TLS: use mqtt://, or the TLS port",
    "unknown ca": "the broker does not know this certificate's CA: copy the bundle of this fleet here",
    "certificate required": "this port wants a certificate: set broker_cert_file, or use the port for passwords",
}


def _who(address: BrokerAddress, options: BusOptions) -> str:
    return options.user or address.user or "a client without a name"


async def _ask(
    session: MqttSession, settings: DoctorSettings, role: Role, received: _ReceivedMessages, user: str | None
) -> AsyncIterator[Finding]:
    if user is None:
        advice = "fine on one machine; for a fleet use broker-config/mosquitto.conf and `fedops-mqtt fleet init`"
        yield warning("ACL", "this broker accepts any client, so any client may publish anything", advice)
        return
    if not session.is_mqtt5:
        yield unknown("ACL", "MQTT 3.1.1 does not report what is denied")
        return
    name = mac_to_level(settings.mac) if settings.mac else user
    # Others than an FL server may have tasks that their settings do not name: for reading, every task is theirs.
    rules = rules_of(role, name, [settings.task_id] if settings.task_id and role is Role.SERVER else [])
    for topic in _own_topics(settings, role, name):
        if await _may_publish(session, topic):
            yield ok("ACL", f"may publish {topic}")
        else:
            yield problem("ACL", f"may not publish {topic}", f"is {user} enrolled as {role}? `fedops-mqtt fleet list`")
    for topic in _forbidden_topics(role):
        if await _may_publish(session, topic):
            yield problem("ACL", f"may publish {topic}", "only its owner may: bring broker-config/acl to the broker")
        else:
            yield ok("ACL", f"may not publish {topic}")
    for finding in await _read(session, received, role, rules):
        yield finding


async def _may_publish(session: MqttSession, topic: str) -> bool:
    try:
        await session.publish(topic, b"", qos=1, is_retained=False)
    except PublishRefusedError:
        return False
    return True


def _own_topics(settings: DoctorSettings, role: Role, name: str) -> Sequence[str]:
    task = settings.task_id or PROBE_TASK
    match role:
        case Role.DEVICE:
            return [f"fedops/v1/{task}/clients/{name}/metrics"]
        case Role.SERVER:
            return [str(topics.server_metrics(task))]
        case Role.MANAGER:
            return [str(topics.client_stop(PROBE_TASK, PROBE_MAC)), str(topics.run_status(PROBE_TASK, "probe"))]
        case Role.BRIDGE:
            return [str(topics.client_metrics(task, PROBE_MAC))]
        case Role.DASHBOARD:
            return []


def _forbidden_topics(role: Role) -> Sequence[str]:
    others = {
        Role.DEVICE: [topics.client_status(PROBE_TASK, PROBE_MAC), topics.client_start(PROBE_TASK, PROBE_MAC)],
        Role.SERVER: [topics.client_start(PROBE_TASK, PROBE_MAC), topics.client_status(PROBE_TASK, PROBE_MAC)],
        Role.DASHBOARD: [topics.client_start(PROBE_TASK, PROBE_MAC), topics.client_status(PROBE_TASK, PROBE_MAC)],
        Role.BRIDGE: [topics.client_start(PROBE_TASK, PROBE_MAC)],
        Role.MANAGER: [],
    }
    return [str(topic) for topic in (*others[role], topics.server_status(PROBE_TASK))]


async def _read(session: MqttSession, received: _ReceivedMessages, role: Role, rules: Sequence[Rule]) -> list[Finding]:
    """Ask for everything that is retained, and see whether more comes than should."""
    filters = ["fedops/v1/#", *([BROKER_STATISTICS] if role is Role.MANAGER else [])]
    refusals = await session.subscribe(filters)
    await asyncio.sleep(_LISTEN_S)
    readable = [rule.topic_filter for rule in rules if rule.can_read]
    ours = [topic for topic in received.topics if topic.startswith("fedops/")]
    too_much = [topic for topic in ours if not any(_matches(each, topic) for each in readable)]
    findings = []
    if too_much:
        advice = "bring broker-config/acl to the broker, and `systemctl reload mosquitto`"
        findings.append(
            problem("ACL", f"may read {too_much[0]} and {len(too_much) - 1} more that it should not", advice)
        )
    elif refusals and role is Role.MANAGER:
        findings.append(problem("ACL", str(refusals[0]), "the manager reads everything: bring broker-config/acl"))
    else:
        findings.append(ok("ACL", f"reads nothing that it should not; {len(ours)} retained statuses that it may"))
    return findings + list(_look_at_drops(received.topics, role))


def _look_at_drops(statistics: dict[str, bytes], role: Role) -> Iterator[Finding]:
    if role is not Role.MANAGER:
        yield unknown("queues", "only a manager reads the count of drops; on the broker's machine: --broker-conf")
        return
    dropped = statistics.get(DROPPED_TOPIC)
    if dropped is None:
        yield unknown("queues", "the broker does not publish how many messages it drops")
    elif int(dropped) > 0:
        yield warning("queues", f"the broker has dropped {int(dropped)} messages since its start", ADVICE)
    else:
        yield ok("queues", "the broker has dropped nothing since its start")


def _matches(topic_filter: str, topic: str) -> bool:
    """Return whether a filter means a topic (MQTT 5, 4.7)."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted, levels = wanted[:-1], levels[: len(wanted) - 1]
    return len(wanted) == len(levels) and all(want in ("+", level) for want, level in zip(wanted, levels, strict=True))
