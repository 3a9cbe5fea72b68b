"""What each enrolled identity may publish and read, as brokers take it: an ACL file, dynamic security, NATS users.

mosquitto's ACL file is the shipped base, kept as a person may have changed it, and one section an identity. Its
dynamic-security plugin gets one role an identity (it does not fill in `%u`; seen with 2.0.11), starts from this and
then takes changes from managers; a reload does not read it again. A NATS cluster has subjects in the place of topics:
`/` between levels is `.`, a dot in a level is `//`, `+` is `*`, `#` is `>` (NATS 2.15); a certificate is the user that
has its subject as name.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from fedops_mqtt.enrolment.register import EnrolledIdentity
from fedops_mqtt.enrolment.roles import BROKER_STATISTICS, Permission, Role, Rule, rules_of

MARK = "# ---- below: written by `fedops-mqtt fleet`, at every change; put rules of your own above ----"
"""What stands above this line is a person's, what stands below is ours."""

FIRST_MANAGER = "manager"
"""Its section is in the base file."""

_DEVICE_PATTERN = re.compile(r"pattern (read|write) fedops/v1/\+/clients/%u/\w+")


def render_acl(present: str, identities: Iterable[EnrolledIdentity]) -> str:
    """Return the ACL file for a fleet; `present` is the file's present content.

    The patterns by which a device had every task's topics are taken out of a file of before: its own section has those
    of the tasks that it is enrolled for.
    """
    lines = present.partition(MARK)[0].rstrip("\n").splitlines()
    base = "\n".join(line for line in lines if not _DEVICE_PATTERN.fullmatch(line))
    sections = [_section(each) for each in sorted(identities, key=lambda each: each.name)]
    return "\n".join([base, "", MARK, *filter(None, sections)]) + "\n"


def _section(identity: EnrolledIdentity) -> str:
    if identity.is_revoked:
        # For living connections too, as soon as the broker reads this.
        return f"\nuser {identity.name}\ntopic deny #"
    if identity.name == FIRST_MANAGER:
        return ""
    rules = rules_of(identity.role, identity.name, identity.tasks)
    lines = [f"topic {rule.access} {rule.topic_filter}" for rule in rules]
    return "\n".join([f"\nuser {identity.name}", *lines])


CONTROL = "$CONTROL/dynamic-security/#"
"""Write access to it changes all permissions; without it the plugin could not be changed."""

_ACL_TYPES = ("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe")


def render_dynamic_security(identities: Iterable[EnrolledIdentity]) -> str:
    """Return the plugin's JSON file; revoked identities are disabled."""
    everybody = sorted(identities, key=lambda each: each.name)
    return json.dumps(
        {
            "defaultACLAccess": dict.fromkeys(_ACL_TYPES, False) | {"unsubscribe": True},
            "clients": [_client(each) for each in everybody],
            "groups": [],
            "roles": [_role(each) for each in everybody],
        },
        indent=2,
    )


def _client(identity: EnrolledIdentity) -> dict[str, Any]:
    client: dict[str, Any] = {"username": identity.name, "roles": [{"rolename": identity.name}]}
    if identity.password is not None:
        client |= {
            "password": identity.password.hash,
            "salt": identity.password.salt,
            "iterations": identity.password.iterations,
        }
    if identity.is_revoked:
        client["disabled"] = True
    return client


def _role(identity: EnrolledIdentity) -> dict[str, Any]:
    rules = [] if identity.is_revoked else rules_of(identity.role, identity.name, identity.tasks)
    if rules and identity.role is Role.MANAGER:
        rules.append(Rule(Permission.READWRITE, CONTROL))
    return {"rolename": identity.name, "acls": [acl for rule in rules for acl in _acls(rule)]}


def _acls(rule: Rule) -> Iterable[dict[str, Any]]:
    kinds = ("publishClientSend",) if rule.can_write else ()
    if rule.can_read:
        kinds = (*kinds, "publishClientReceive", "subscribePattern")
    for kind in kinds:
        yield {"acltype": kind, "topic": rule.topic_filter, "priority": 0, "allow": True}


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
