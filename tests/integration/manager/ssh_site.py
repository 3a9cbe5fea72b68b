"""A machine behind ssh: a real sshd on loopback, with its own keys, port and configuration in a folder of the test."""

import getpass
import os
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
from leftovers import MARK
from ports import free_port

SSHD = "/usr/sbin/sshd"
PATIENCE_S = 300.0


class SshSite:
    """An sshd; `command` reaches it and runs what follows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        folder.chmod(0o700)
        for key in ("host", "user"):
            arguments = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            subprocess.run(arguments, check=True, timeout=PATIENCE_S)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        self.port = free_port()
        host_key = " ".join((folder / "host.pub").read_text().split()[:2])
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {host_key}\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def command(self) -> list[str]:
        """What comes before the remote command."""
        options = {
            "BatchMode": "yes", "IdentityFile": str(self.folder / "user"), "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.folder / "known"), "StrictHostKeyChecking": "yes", "ConnectTimeout": "5",
        }  # fmt: skip
        given = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", *given, "-p", str(self.port), f"{getpass.getuser()}@127.0.0.1"]

    def start(self) -> None:
        """Let the machine be reached."""
        settings = {
            "Port": self.port, "ListenAddress": "127.0.0.1", "HostKey": self.folder / "host",
            "AuthorizedKeysFile": self.folder / "authorized", "PidFile": "none", "UsePAM": "no",
            "PasswordAuthentication": "no", "StrictModes": "no", "PermitRootLogin": "yes",
            "SetEnv": f"{MARK}={os.environ[MARK]}",  # sessions inherit nothing; the test run's keeper looks for it
        }  # fmt: skip
        given = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own privilege separation folder
        log = (self.folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen([SSHD, "-D", "-e", "-f", "/dev/null", *given], stderr=log)
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(f"sshd does not listen: {(self.folder / 'log').read_text()}")

    def lose(self) -> None:
        """The machine vanishes from the network: its sshd is killed, with every connection; processes live on."""
        if self._process is None:
            return
        listener = psutil.Process(self._process.pid)
        for process in [listener, *listener.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # a connection that has ended meanwhile
                if process.name() == "sshd":
                    process.kill()
        self._process.wait(PATIENCE_S)
        self._process = None
