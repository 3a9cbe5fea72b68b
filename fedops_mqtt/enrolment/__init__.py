"""Enrolment: a private authority, credentials for every role, and the broker's files that follow from them.

Nothing here is needed to run a client, a manager or a server; those only read the bundle made here.
"""

from fedops_mqtt.enrolment.errors import (
    EnrolmentError,
    FleetExistsError,
    IdentityExistsError,
    NameRefusedError,
    NoFleetError,
    RegisterError,
    UnknownIdentityError,
)
from fedops_mqtt.enrolment.fleet import DEVICE_DAYS, EnrolmentRequest, FleetFolder, init_fleet
from fedops_mqtt.enrolment.register import EnrolledIdentity, IssuedCertificate, Ports, Register
from fedops_mqtt.enrolment.roles import Permission, Role, Rule, check_name, rules_of

__all__ = [
    "DEVICE_DAYS",
    "EnrolledIdentity",
    "EnrolmentError",
    "EnrolmentRequest",
    "FleetExistsError",
    "FleetFolder",
    "IdentityExistsError",
    "IssuedCertificate",
    "NameRefusedError",
    "NoFleetError",
    "Permission",
    "Ports",
    "Register",
    "RegisterError",
    "Role",
    "Rule",
    "UnknownIdentityError",
    "check_name",
    "init_fleet",
    "rules_of",
]
