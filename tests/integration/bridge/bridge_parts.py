"""The bridge and FedOps clients as processes, around a broker and a manager."""

import base64
import sys
from dataclasses import dataclass
from pathlib import Path

from ports import free_port
from yard import Installed, Site

HERE = Path(__file__).parent
NEW = "02:00:00:00:03:01"
"""A device that has moved to MQTT."""
MACS = tuple(f"02:00:00:00:02:{number:02x}" for number in range(1, 5))


@dataclass(frozen=True, kw_only=True)
class OldDevice:
    """A re-enacted FedOps client; `url` is where it listens."""

    process: Installed
    mac: str
    url: str


class Crossing:
    """One test's bridge, and what is on both sides of it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.port = 0
        self.url = ""
        self.bridge: Installed | None = None

    async def start_manager(
        self, *, min_clients: int = 1, adopt: bool = False, server: Path = HERE / "linear_server.py", **settings: object
    ) -> Installed:
        """Start a manager whose task is served by a program, or adopts a server."""
        how = "adopt = true" if adopt else f'command = ["{sys.executable}", "{server}"]'
        tasks = self.site.yard.folder / "tasks.toml"
        tasks.write_text(f"[tasks.{self.site.task_id}]\n{how}\nnum_rounds = 2\nmin_clients = {min_clients}\n")
        manager = await self.site.yard.start(
            "manager",
            broker=self.site.broker,
            tasks_file=tasks,
            http="127.0.0.1:0",
            state_dir=self.site.yard.folder / "manager",
            store=self.site.yard.folder / "models",
            heartbeat_s=5,
            **settings,
        )
        self.site.manager_url = (await manager.until_printed(r"API at (\S+)")).group(1)
        return manager

    async def start_bridge(self, *clients: str, http: str = "127.0.0.1:0", **settings: object) -> Installed:
        """Start the bridge and wait until it listens."""
        fields = {"poll_s": 0.2, "heartbeat_s": 5, "join_limit_s": 20, "report_limit_s": 10}
        self.bridge = await self.site.yard.start(
            "bridge",
            broker=self.site.broker,
            clients=",".join(clients),
            http=http,
            state_dir=self.site.yard.folder / "bridge",
            **fields | settings,
        )
        self.url = (await self.bridge.until_printed(r"^(http://\S+)$")).group(1)
        return self.bridge

    async def start_old(
        self, mac: str, *flags: str, managers: str, port: int = 0, says_who: bool = False, token: str = "x"
    ) -> OldDevice:
        """Start a FedOps client; `says_who` puts its MAC into its managers' address."""
        arguments = ["--task", self.site.task_id, "--mac", mac, "--managers", managers, "--port", str(port), *flags]
        if says_who:
            arguments += ["--credentials", base64.b64encode(f"{mac.replace(':', '-')}:{token}".encode()).decode()]
        process = await self.site.yard.start(str(HERE / "reenacted_client.py"), *arguments, command=sys.executable)
        url = (await process.until_printed(r"^(http://\S+)$")).group(1)
        return OldDevice(process=process, mac=mac, url=url)

    async def start_new(
        self, mac: str = NEW, *, app: str = "new_app:app", folder: Path = HERE, **settings: object
    ) -> Installed:
        """Start the daemon of a device that has moved."""
        state_dir = self.site.yard.folder / "new"
        fields = {"broker": self.site.broker, "task_id": self.site.task_id, "mac": mac, "state_dir": state_dir}
        return await self.site.yard.start("client", cwd=folder, app=app, **fields, **settings)

    async def start_open_server(self) -> str:
        """Start an FL server of ours by hand, open to whoever comes on this machine; returns its port."""
        folder = self.site.yard.folder / "server"
        fields = {"broker": self.site.broker, "task_id": self.site.task_id, "run_id": "by-hand", "join": "open"}
        fields |= {"num_rounds": 2, "min_clients": 1, "store": folder, "state_dir": folder}
        port = str(free_port())
        program = str(HERE / "linear_server.py")
        await self.site.yard.start(program, command=sys.executable, listen=f"127.0.0.1:{port}", **fields)
        return port

    async def start_old_manager(self, generation: int, client: str, mac: str, **options: object) -> OldDevice:
        """Start a re-enacted FedOps client manager."""
        said = {"generation": generation, "client": client, "mac": mac} | options
        arguments = [part for name, value in said.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        process = await self.site.yard.start(str(HERE / "reenacted_manager.py"), *arguments, command=sys.executable)
        url = (await process.until_printed(r"^(http://\S+)$")).group(1)
        return OldDevice(process=process, mac=mac, url=url)

    async def start_server(self, *flags: str, port: int) -> Installed:
        """Start a FedOps FL server."""
        arguments = ["--task", self.site.task_id, "--port", str(port), *flags]
        program = str(HERE / "reenacted_server.py")
        proxy = f"http_proxy={self.url}"
        return await self.site.yard.start(proxy, sys.executable, program, *arguments, command="/usr/bin/env")
