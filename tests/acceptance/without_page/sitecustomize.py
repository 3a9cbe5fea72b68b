"""On `PYTHONPATH`: an installation without the extra `dashboard`. With it a manager takes twice as long to start."""

import sys

sys.modules["nicegui"] = None  # type: ignore[assignment]  # as importlib takes it: there is no such module
