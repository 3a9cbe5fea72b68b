"""The fleet for mosquitto's dynamic-security plugin: one role an identity, because `%u` is not filled in there.

While it runs, the plugin takes changes from managers (`mosquitto_ctrl dynsec`, or topics below `$CONTROL`); this is
what it starts from, and a reload does not read it again. Seen with mosquitto 2.0.11.
"""

import json
from collections.abc import Iterable
from typing import Any

from fedops_mqtt.enrolment.register import EnrolledIdentity
from fedops_mqtt.enrolment.roles import Permission, Role, Rule, rules_of

CONTROL = "$CONTROL/dynamic-security/#"
"""Whoever may write here changes who may do what; without anybody the plugin could not be told anything."""

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
