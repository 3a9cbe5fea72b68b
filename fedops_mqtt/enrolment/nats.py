"""The fleet for a cluster of NATS servers: for each certificate a user with permissions, from the roles of the ACL.

NATS has subjects in the place of topics: `/` between levels is `.`, a dot in a level is `//`, `+` is `*`, `#` is `>`
(NATS 2.15, MQTT topics and NATS subjects). It maps a certificate to the user that has its subject as name.
"""

import json
from collections.abc import Iterable
from typing import Any

from fedops_mqtt.enrolment.register import EnrolledIdentity
from fedops_mqtt.enrolment.roles import BROKER_STATISTICS, rules_of

_DELIVERIES = "$MQTT.sub.>"
"""Where NATS delivers a subscription at QoS 1 to; a server makes these subjects, no client can guess one."""


def render_nats_users(identities: Iterable[EnrolledIdentity]) -> str:
    """Return the users and permissions for nats.conf to include; nobody revoked, nobody with a password."""
    users = [_user(each) for each in sorted(identities, key=lambda each: each.name) if can_use_nats(each)]
    mark = "# Written by `fedops-mqtt fleet nats`, and again at every change of the fleet.\n"
    return f"{mark}authorization: {json.dumps({'users': users}, indent=2)}\n"


def can_use_nats(identity: EnrolledIdentity) -> bool:
    """Return whether an identity is a user there: NATS takes certificates, and passwords in another form than ours."""
    return not identity.is_revoked and identity.password is None


def _user(identity: EnrolledIdentity) -> dict[str, Any]:
    rules = [
        rule
        for rule in rules_of(identity.role, identity.name, identity.tasks)
        if rule.topic_filter != BROKER_STATISTICS  # mosquitto's
    ]
    read = [subject for rule in rules if rule.can_read for subject in subjects_of(rule.topic_filter)]
    written = [subject for rule in rules if rule.can_write for subject in subjects_of(rule.topic_filter)]
    return {
        "user": f"CN={identity.name}",
        "permissions": {
            "publish": {"allow": written} if written else {"deny": [">"]},
            "subscribe": {"allow": [*read, _DELIVERIES]},
        },
    }


def subjects_of(topic_filter: str) -> list[str]:
    """Return the NATS subjects that an MQTT filter means; `a/#` is `a` too (MQTT 5, 4.7.1.2)."""
    subject = ".".join(level.replace(".", "//") for level in topic_filter.split("/"))
    subject = subject.replace("+", "*").replace("#", ">")
    return [subject.removesuffix(".>"), subject] if subject.endswith(".>") else [subject]
