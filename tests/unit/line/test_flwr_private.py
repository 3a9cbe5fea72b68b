"""If one of these fails, flwr has moved: mend fedops_mqtt/line/flwr_private.py (and its list), nothing else."""

import re
import socket
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import flwr.server.compat.app_utils as classic
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.server import SimpleClientManager
from flwr.serverapp import Grid
from packaging.requirements import Requirement

import fedops_mqtt
from fedops_mqtt.line import flwr_private
from fedops_mqtt.line.grid import LineGrid

PACKAGE = Path(fedops_mqtt.__file__).parent
PRIVATE = re.compile(
    r"flwr\.(supercore|proto|superlink|supernode|compat|server\.superlink)\b|flwr\.common\.(?!typing)|import _|\._"
)
"""`flwr.common` and its types are documented; what else lies under it is not."""
READ_IN = ["1.41", "1.42"]
"""make test runs with one of them, make test-flwr with the other."""


def message() -> Message:
    flwr_private.set_identity(run_id=5, node_id=1)
    return Message(RecordDict(), 7, "train")


def test_a_flwr_that_these_names_were_read_in_is_installed_and_no_other_is_admitted() -> None:
    assert version("flwr").rpartition(".")[0] in READ_IN
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [admitted] = [Requirement(text) for text in project["dependencies"] if text.startswith("flwr")]
    minors = [f"1.{minor}" for minor in range(100)]
    assert [minor for minor in minors if f"{minor}.0" in admitted.specifier] == READ_IN


def test_messages_are_built_with_the_identity_we_set() -> None:
    flwr_private.set_identity(run_id=11, node_id=12)
    metadata = Message(RecordDict(), 7, "train").metadata
    assert (metadata.run_id, metadata.src_node_id) == (11, 12)


def test_a_message_can_be_stamped() -> None:
    stamped = message()
    flwr_private.stamp(stamped, message_id="m1", run_id=6, src_node_id=3)
    metadata = stamped.metadata
    assert (metadata.message_id, metadata.run_id, metadata.src_node_id) == ("m1", 6, 3)
    assert Message(RecordDict(), reply_to=stamped).metadata.reply_to_message_id == "m1"


def test_a_message_can_be_built_around_metadata() -> None:
    metadata = message().metadata
    assert flwr_private.make_message(metadata, content=RecordDict()).metadata is metadata
    assert flwr_private.make_message(metadata, error=Error(1, "x")).error.reason == "x"


def test_a_run_has_the_id_that_start_grid_reads() -> None:
    assert flwr_private.make_run(9).run_id == 9


def test_the_end_of_a_run_ends_the_background_thread_of_start_grid() -> None:
    assert classic.RunNotRunningException is flwr_private.RunNotRunningException
    assert not issubclass(flwr_private.RunNotRunningException, Exception)


def test_our_grid_is_a_whole_grid() -> None:
    assert Grid.__abstractmethods__ <= set(vars(LineGrid))
    assert not LineGrid.__abstractmethods__


def test_error_codes_and_node_ids_are_those_of_the_line() -> None:
    codes = (flwr_private.CLIENT_APP_RAISED, flwr_private.NODE_UNAVAILABLE, flwr_private.SERVER_NODE_ID)
    assert codes == (2, 5, 1)
    assert flwr_private.NUMPY_STYPE == "numpy.ndarray"


def test_no_other_module_touches_private_names() -> None:
    touching = {file.name for file in PACKAGE.rglob("*.py") if any(map(PRIVATE.search, flwr_imports(file)))}
    assert touching == {"flwr_private.py"}


def flwr_imports(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if re.match(r"\s*(from|import) flwr", line)]


def test_the_manager_can_make_tokens_without_flwr() -> None:
    code = "import sys, fedops_mqtt.line.access, fedops_mqtt.line.identity; assert 'flwr' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_flwr_is_set_to_be_quiet_before_it_is_imported() -> None:
    code = (
        "import os, fedops_mqtt.line.codec;"
        "assert os.environ['FLWR_TELEMETRY_ENABLED'] == '0' and os.environ['FLWR_DISABLE_UPDATE_CHECK'] == '1'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env={"PATH": ""})


def test_unknown_peers_cannot_exhaust_the_process_that_listens_for_a_classic_client() -> None:
    server, port = flwr_private.serve_classic(client_manager=SimpleClientManager(), address="127.0.0.1:0")
    try:
        with pytest.raises(OSError, match=str(port)):
            flwr_private.serve_classic(client_manager=SimpleClientManager(), address=f"127.0.0.1:{port}")
        with ExitStack() as stack:
            unknown_servers = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(60)]
            refused = [stranger for stranger in unknown_servers[20:] if _is_refused(stranger)]
            assert len(refused) == 40
    finally:
        server.stop(0)


def _is_refused(stranger: socket.socket) -> bool:
    stranger.settimeout(30)
    try:
        while data := stranger.recv(1024):  # HTTP/2 settings of those who were let in
            assert data
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True
