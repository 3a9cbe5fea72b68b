"""A server and its clients on one transport, gated: every round begins when the benchmark says so.

All three teams run the app of `line_app`, so two of them can stand side by side and take turns.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import line_app
import psutil
from bench_processes import Processes, family, free_port, is_connected, kill_family, peak_mib, resident_mib, wait_until

START_S = 180.0
"""From the first process to the first round; fifty Pythons that import flwr take their time on two cores."""
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Three clients share the processors: BLAS threads that spin for more work would take them from the others."""
_LOOK_S = 0.1
"""An app process of a SuperNode lives for seconds."""
ROUND_S = 240.0
"""Longer than any round: SuperLink needs a minute to miss a client."""


class Gate:
    """The benchmark's side of the turnstile between rounds."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(1)
        self._connection: socket.socket | None = None

    def arrive(self, check: Callable[[], None]) -> dict:
        """Wait for the server before its first round."""
        end = time.monotonic() + START_S
        self._socket.settimeout(0.5)
        while self._connection is None:
            check()
            try:
                self._connection, _ = self._socket.accept()
            except TimeoutError:
                if time.monotonic() > end:
                    raise
        self._connection.settimeout(ROUND_S)
        self._lines = self._connection.makefile("r")
        return self.reported()

    def go(self) -> None:
        """Let the next round begin."""
        assert self._connection is not None
        self._connection.sendall(b"go\n")

    def reported(self) -> dict:
        """Wait for the end of a round."""
        line = self._lines.readline()
        if not line:
            raise RuntimeError("the server has gone")
        return json.loads(line)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._socket.close()


class Team(AbstractContextManager):
    """A server and its clients. Enter it, `ready`, then `rounds`; leaving it kills them all."""

    name = ""

    def __init__(self, folder: Path, *, num_clients: int = 3, num_floats: int = 0, quorum: int | None = None) -> None:
        self.folder = folder / f"{self.name}-{time.monotonic_ns()}"
        self.folder.mkdir()
        os.link(folder / "digits.npz", self.folder / "digits.npz")
        self.num_clients = num_clients
        self.processes = Processes(self.folder)
        self.clients: list[int] = []
        self.gate = Gate(self.folder / "gate")
        self.env = {
            line_app.FOLDER: str(self.folder),
            line_app.GATE: str(self.folder / "gate"),
            line_app.NUM_FLOATS: str(num_floats),
            line_app.QUORUM: str(quorum or num_clients),
            "FLWR_HOME": str(self.folder / "flwr"),
            **_ONE_THREAD,
        }

    def ready(self) -> None:
        """Start everything; returns when the server stands before its first round."""
        self.start()
        self.gate.arrive(self.processes.check)

    def start(self) -> None:
        raise NotImplementedError

    def rounds(self, number: int) -> list[float]:
        """Do rounds and return the seconds of each."""
        durations = []
        for _ in range(number):
            self.gate.go()
            durations.append(self.gate.reported()["duration_s"])
        return durations

    def peak_mib(self) -> float:
        """Return the mean of the clients' largest memory so far, of what has to stay while they train."""
        return sum(peak_mib(pid) for pid in self.clients) / len(self.clients)

    def kill_one_in_round(self) -> float:
        """Kill a client with -9 while it trains; return the seconds until the round was over without it."""
        while not all((self.folder / f"seen-{number}").exists() for number in range(self.num_clients)):
            self.rounds(1)  # the quorum is smaller than the team: rounds begin before everybody is there
        (self.folder / "hold-0").touch()
        self.gate.go()
        wait_until((self.folder / "held-0").exists, limit_s=ROUND_S, what="the client to be killed trains")
        killed_at = time.monotonic()
        self.kill(self.clients[0])
        return self.gate.reported()["called_at"] - killed_at

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def __exit__(self, *_) -> None:
        self.gate.close()
        self.processes.__exit__()


class Ours(Team):
    """`FLServer` as a program, and training processes just as the daemon starts them; a broker for the server."""

    name = "ours"

    def __init__(self, folder: Path, *, broker: str, **more) -> None:
        super().__init__(folder, **more)
        self.env |= {
            "FEDOPS_MQTT_BROKER": broker,
            "FEDOPS_MQTT_STORE": str(self.folder / "store"),
            "FEDOPS_MQTT_STATE_DIR": str(self.folder / "state"),
            "FEDOPS_MQTT_LISTEN": f"127.0.0.1:{free_port()}",
        }

    def start(self) -> None:
        self.processes.module("line_roles", "ours-server", name="server", env=self.env)
        for number in range(self.num_clients):
            self.clients.append(self._start_client(number))

    def _start_client(self, number: int) -> int:
        pipes = {"stdin": -1, "stdout": None}
        with (self.folder / f"reports-{number}").open("wb") as reports:
            pipes["stdout"] = reports
            process = self.processes.module(
                "fedops_mqtt.training.process", name=f"client-{number}", env=self.env, **pipes
            )
        process.stdin.write(self._job(number))
        process.stdin.flush()
        return process.pid

    def _job(self, number: int) -> bytes:
        from fedops_mqtt.core.client import Identity
        from fedops_mqtt.protocol import RunStart
        from fedops_mqtt.training.pipe import Job, to_line

        state = self.folder / f"state-{number}"
        state.mkdir()
        return to_line(
            Job(
                app="line_app:app",
                import_paths=(),
                identity=Identity(
                    task_id="bench",
                    client_mac=f"02:00:00:00:00:{number:02x}",
                    client_name=f"client-{number}",
                    instance=f"bench-{number}",
                ),
                start=RunStart(run_id="bench", attempt=1, launch=0, server_ip=self.env["FEDOPS_MQTT_LISTEN"]),
                state_folder=state,
                join_s=START_S,
                rejoin_s=START_S,
                partition_id=number,
                num_partitions=self.num_clients,
            )
        )


class ClassicGrpc(Team):
    """`start_server` and `start_client`."""

    name = "classic-grpc"

    def start(self) -> None:
        self.port = free_port()
        address = f"127.0.0.1:{self.port}"
        self.processes.module("line_roles", "grpc-server", address, name="server", env=self.env)
        wait_until(lambda: _listens(self.port), limit_s=START_S, what="the classic server listens")
        for number in range(self.num_clients):
            name = f"client-{number}"
            process = self.processes.module("line_roles", "grpc-client", address, str(number), name=name, env=self.env)
            self.clients.append(process.pid)

    def idle_mib(self) -> float:
        """Return what a client weighs that is connected and has nothing to do yet."""
        for pid in self.clients:
            wait_until(lambda pid=pid: is_connected(pid, self.port), limit_s=START_S, what="clients connect")
        return resident_mib(self.clients) / self.num_clients


class SuperLink(Team):
    """`flower-superlink`, one `flower-supernode` a client, `flwr run`."""

    name = "superlink"
    _peak_mib = 0.0

    def start(self) -> None:
        self.port = free_port()
        address = f"127.0.0.1:{self.port}"
        self.processes.command(
            *("flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--port", str(self.port)),
            name="superlink",
            env=self.env,
        )
        wait_until(lambda: _listens(self.port), limit_s=START_S, what="SuperLink listens")
        self.clients = [self._start_node(address, number) for number in range(self.num_clients)]
        for number in range(self.num_clients):
            self._wait_for_node(address, number)
        self._run(address)

    def _start_node(self, address: str, number: int) -> int:
        process = self.processes.command(
            *("flower-supernode", "--insecure", "--superlink", address, "--port", str(free_port())),
            *("--node-config", f"partition-id={number}"),
            name=f"supernode-{number}",
            env=self.env,
        )
        return process.pid

    def _wait_for_node(self, address: str, number: int) -> None:
        """Wait until a node is registered: its log tells, it keeps no connection open.

        On a busy machine a node gives up when its own HTTP API is not up within seconds; it is started again.
        """

        def is_there() -> bool:
            if self.processes.has_ended(self.clients[number]):
                self.clients[number] = self._start_node(address, number)
            return "SuperNode ID:" in self.processes.log_of(f"supernode-{number}")

        wait_until(is_there, limit_s=START_S, what=f"supernode {number} is registered", poll_s=0.1)

    def _run(self, address: str) -> None:
        app = self.folder / "app"
        (app / "bench").mkdir(parents=True)
        (app / "bench" / "__init__.py").write_text(_APP)
        (app / "pyproject.toml").write_text(_PROJECT)
        home = Path(self.env["FLWR_HOME"])
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "{address}"\ninsecure = true\n'
        )
        self.processes.command("flwr", "run", str(app), "bench", name="flwr-run", env=self.env)

    def idle_mib(self) -> float:
        """Return what a node weighs that has been given nothing to do yet."""
        return resident_mib(self.clients) / self.num_clients

    def rounds(self, number: int) -> list[float]:
        """Do rounds, and look what nodes and app processes weigh together: those come and go with each message."""
        is_over = threading.Event()
        looking = threading.Thread(target=self._look, args=(is_over,))
        looking.start()
        try:
            return super().rounds(number)
        finally:
            is_over.set()
            looking.join()

    def peak_mib(self) -> float:
        """Return the most that was seen, a client."""
        return self._peak_mib

    def _look(self, is_over: threading.Event) -> None:
        while not is_over.wait(_LOOK_S):
            with suppress(psutil.NoSuchProcess):
                self._peak_mib = max(self._peak_mib, resident_mib(self.clients) / self.num_clients)

    def kill(self, pid: int) -> None:
        """Kill the node with the app it runs, as a host that loses power would."""
        os.kill(pid, signal.SIGSTOP)
        for each in family(pid)[1:]:
            each.kill()
        kill_family(pid)


_APP = "import line_app\n\napp = line_app.app\nserver_app = line_app.server_app\n"
"""`flwr run` reads the text for assignments before it sends it."""
_PROJECT = """[project]
name = "bench"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "bench:server_app"
clientapp = "bench:app"
"""


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Broker(AbstractContextManager):
    """The broker of this project on a free port: ours needs one, as in use."""

    def __init__(self, folder: Path) -> None:
        self._processes = Processes(folder)
        port = free_port()
        self.url = f"mqtt://127.0.0.1:{port}"
        env = {"FEDOPS_MQTT_BROKER_PORT": str(port)}
        self._processes.module("fedops_mqtt.cli", "broker", name="broker", env=env)
        wait_until(lambda: _listens(port), limit_s=START_S, what="the broker listens")

    def __exit__(self, *_) -> None:
        self._processes.__exit__()


class Daemons(AbstractContextManager):
    """Client daemons of ours that are online and have nothing to do."""

    def __init__(self, folder: Path, *, broker: str, number: int) -> None:
        self._processes = Processes(folder)
        self._port = int(broker.rpartition(":")[2])
        self._pids = []
        for each in range(number):
            env = {
                "FEDOPS_MQTT_BROKER": broker,
                "FEDOPS_MQTT_TASK_ID": "idle",
                "FEDOPS_MQTT_APP": "line_app:app",
                "FEDOPS_MQTT_MAC": f"02:00:00:00:01:{each:02x}",
                "FEDOPS_MQTT_STATE_DIR": str(folder / f"daemon-{each}"),
            }
            process = self._processes.module("fedops_mqtt.cli", "client", name=f"daemon-{each}", env=env)
            self._pids.append(process.pid)

    def idle_mib(self) -> float:
        """Return the mean of what they weigh once all are connected."""
        for pid in self._pids:
            wait_until(lambda pid=pid: is_connected(pid, self._port), limit_s=START_S, what="daemons connect")
        return resident_mib(self._pids) / len(self._pids)

    def __exit__(self, *_) -> None:
        self._processes.__exit__()
