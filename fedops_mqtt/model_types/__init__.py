"""FedOps' model types, one module a framework: what a model shares, how it trains, how it is saved.

A framework is imported by its own adapter when a model of it is used, and nowhere else.
"""

from fedops_mqtt.model_types.model_type import Adapter, Arrays, RegistrationError, TrainPlan, make_adapter

__all__ = ["Adapter", "Arrays", "RegistrationError", "TrainPlan", "make_adapter"]
