"""What every ring of tests shares: a real broker, and names that no other test uses."""

import logging
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest
from leftovers import pytest_configure, pytest_sessionfinish  # noqa: F401  (pytest finds hooks by their names here)
from loops import play  # noqa: F401
from parsing import serialize_literal_eval
from postgres import database_url, own_postgres, postgres  # noqa: F401
from processor_time import (  # noqa: F401
    pytest_addoption,
    pytest_runtest_makereport,
    pytest_runtest_protocol,
    pytest_terminal_summary,
)
from sendable import pytest_report_to_serializable  # noqa: F401
from time_limit import (  # noqa: F401
    pytest_runtest_call,
    pytest_runtest_setup,
    pytest_runtest_teardown,
    pytest_timeout_cancel_timer,
    pytest_timeout_set_timer,
)

from fedops_mqtt.bus import Mosquitto
from fedops_mqtt.runtime.logs import FactsFormatter

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in its background with SIGINT ignored, and children inherit that: no Ctrl-C would work.
    signal.signal(signal.SIGINT, signal.default_int_handler)

serialize_literal_eval()

# By default an example that takes 0.2 s is a failure: not on a machine that does other work too.
for profile, max_examples in {"short": 50, "long": 1000}.items():
    hypothesis.settings.register_profile(
        profile, max_examples=max_examples, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
hypothesis.settings.load_profile("short")  # make test-fuzz takes the long one


def pytest_sessionstart(session: pytest.Session) -> None:
    """Show the log of a failed test with its facts: pytest's own format leaves out why something ended."""
    plugin = session.config.pluginmanager.get_plugin("logging-plugin")
    assert plugin is not None
    for handler in (plugin.report_handler, plugin.caplog_handler):
        handler.setFormatter(FactsFormatter())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave files of the long ring unread where it is left out: each worker would import their browsers and fuzzers."""
    if config.option.markexpr != "not long" or collection_path.suffix != ".py":
        return None
    return "\npytestmark = pytest.mark.long\n" in collection_path.read_text(encoding="utf-8") or None


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A front door that a test opens in this process configures logging for it: not for the tests after it."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
async def broker() -> AsyncIterator[Mosquitto]:
    """A real mosquitto on a free port, with the shipped configuration."""
    async with Mosquitto() as mosquitto:
        yield mosquitto


@pytest.fixture
def task_id() -> str:
    """A task that no other test knows."""
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture
def mac() -> str:
    """The MAC of the test's first client."""
    return "02:00:00:00:00:01"
