"""mosquitto's ACL file: the shipped base, kept as a person may have changed it, and one section for each identity."""

import re
from collections.abc import Iterable

from fedops_mqtt.enrolment.register import EnrolledIdentity
from fedops_mqtt.enrolment.roles import rules_of

MARK = "# ---- below: written by `fedops-mqtt fleet`, at every change; put rules of your own above ----"
"""What stands above this line is a person's, what stands below is ours."""

FIRST_MANAGER = "manager"
"""Its section is in the base file."""

_DEVICE_PATTERN = re.compile(r"pattern (read|write) fedops/v1/\+/clients/%u/\w+")


def render_acl(present: str, identities: Iterable[EnrolledIdentity]) -> str:
    """Return the ACL file for a fleet; `present` is what the file says now.

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
