"""mosquitto's ACL file: the shipped base, kept as a person may have changed it, and one section for each identity."""

from collections.abc import Iterable

from fedops_mqtt.enrolment.register import Identity
from fedops_mqtt.enrolment.roles import Role, device_extras, rules_of

MARK = "# ---- below: written by `fedops-mqtt fleet`, at every change; put rules of your own above ----"
"""What stands above this line is a person's, what stands below is ours."""

FIRST_MANAGER = "manager"
"""Its section is in the base file."""


def render_acl(present: str, identities: Iterable[Identity]) -> str:
    """Return the ACL file for a fleet; `present` is what the file says now."""
    base = present.partition(MARK)[0].rstrip("\n")
    sections = [_section(each) for each in sorted(identities, key=lambda each: each.name)]
    return "\n".join([base, "", MARK, *filter(None, sections)]) + "\n"


def _section(identity: Identity) -> str:
    if identity.is_revoked:
        # Asked before the patterns, and for living connections too as soon as the broker reads this.
        return f"\nuser {identity.name}\ntopic deny #"
    if identity.role is Role.DEVICE:
        rules = device_extras(identity.tasks)
    elif identity.name == FIRST_MANAGER:
        return ""
    else:
        rules = rules_of(identity.role, identity.name, identity.tasks)
    lines = [f"topic {rule.access} {rule.topic_filter}" for rule in rules]
    if identity.role is not Role.DEVICE:
        # The patterns of the base file are asked too: by its name alone it would be a device.
        lines.insert(0, f"topic deny fedops/v1/+/clients/{identity.name}/#")
    return "\n".join([f"\nuser {identity.name}", *lines])
