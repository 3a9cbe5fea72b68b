"""A stand-in for a Kubernetes API server: no cluster, but what is sent to it is checked against the published schemas.

It knows the few calls that the manager makes. A Job's pod is a real process on this machine: the container's command,
with the folders of its volumes put in place of their mount paths. No kubelet, no scheduler and no controller is here.
"""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate

VERSION = "1.32"
Object = dict[str, Any]


class Pod:
    """A pod of a Job, as a process."""

    def __init__(self, job: Object, folder: Path, secrets: dict[str, Object]) -> None:
        self.job_name = job["metadata"]["name"]
        self.name = f"{self.job_name}-x1y2z"
        self.template = job["spec"]["template"]
        self.eviction: str | None = None
        self.deleted_at: str | None = None
        self.waiting: str | None = None
        self.lines: list[tuple[str, bytes]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.news = threading.Condition()
        container = self.template["spec"]["containers"][0]
        if container["image"].startswith("no-such"):
            self.waiting = "ImagePullBackOff"
            return
        places = self._volumes(folder, secrets)
        command = [self._placed(part, places) for part in container["command"]]
        command[0] = sys.executable if command[0] == "python3" else command[0]
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, env=dict(os.environ),
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def _volumes(self, folder: Path, secrets: dict[str, Object]) -> dict[str, Path]:
        mounts = {each["name"]: each["mountPath"] for each in self.template["spec"]["containers"][0]["volumeMounts"]}
        places = {path: folder / name for name, path in mounts.items()}
        for volume in self.template["spec"]["volumes"]:
            place = folder / volume["name"]
            place.mkdir(parents=True)
            for source in volume.get("projected", {"sources": []})["sources"]:
                secret = secrets[source["secret"]["name"]]
                for key, value in secret["stringData"].items():
                    (place / key).write_text(self._placed(value, places))
        return places

    @staticmethod
    def _placed(text: str, places: dict[str, Path]) -> str:
        for mount, place in places.items():
            text = text.replace(mount, str(place))
        return text

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                at = datetime.now(UTC).isoformat(timespec="microseconds") + f"{len(self.lines):09d}"
                with self.news:
                    self.lines.append((at, line))
                    self.news.notify_all()
        self.process.wait()
        with self.news:
            self.news.notify_all()

    @property
    def phase(self) -> str:
        if self.process is None:
            return "Failed" if self.deleted_at else "Pending"
        if (status := self.process.poll()) is None:
            return "Running"
        return "Succeeded" if status == 0 and self.eviction is None else "Failed"

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def as_object(self) -> Object:
        state: Object = {"waiting": {"reason": self.waiting, "message": "Back-off pulling image"}}
        if self.process is not None:
            status = self.process.poll()
            state = {"running": {}} if status is None else {"terminated": _terminated(status)}
        metadata = {"name": self.name, "labels": self.template["metadata"]["labels"]}
        if self.deleted_at and self.phase == "Running":
            metadata["deletionTimestamp"] = self.deleted_at
        container = {
            "name": "fl-server",
            "image": "i",
            "imageID": "i",
            "ready": False,
            "restartCount": 0,
            "state": state,
        }
        told: Object = {"phase": self.phase, "containerStatuses": [container]}
        if self.eviction is not None:
            told |= {"reason": "Evicted", "message": self.eviction}
        spec = {"nodeName": "node-7", "containers": [{"name": "fl-server", "image": "i"}]}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": told}


def _terminated(status: int) -> Object:
    code = 128 - status if status < 0 else status
    return {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}


class KubernetesStandIn:
    """The server; `refused` holds what the schemas said of what was sent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: dict[str, Object] = {}
        self.secrets: dict[str, Object] = {}
        self.pods: dict[str, Pod] = {}
        self.refused: list[str] = []
        self.asked: set[tuple[str, str]] = set()
        """Verb and resource of each request, as a Role has them."""
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        folder.mkdir()
        self.start()

    def write_kubeconfig(self, path: Path) -> None:
        """Write the file with which a client comes here."""
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "fleet"}}
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [cluster], "contexts": [context],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))

    def start(self) -> None:
        stand_in = self

        class Handler(_Handler):
            site = stand_in

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def lose(self) -> None:
        """The API server is away; what runs, runs on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        self.lose()
        for pod in self.pods.values():
            pod.end(signal.SIGKILL)

    # What a cluster does

    def create(self, kind: str, body: Object) -> tuple[int, Object]:
        try:
            kubernetes_validate.validate(body, VERSION, strict=True)
        except Exception as error:
            self.refused.append(str(error))
            return 422, _status(422, "Invalid", str(error))
        name, table = body["metadata"]["name"], self.jobs if kind == "jobs" else self.secrets
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 63:
            self.refused.append(name)
            return 422, _status(422, "Invalid", f"{name} is no DNS label")
        if kind == "secrets" and sum(len(value.encode()) for value in body["stringData"].values()) > 1024 * 1024:
            return 422, _status(422, "Invalid", "data: Too long: must have at most 1048576 bytes")
        if name in table:
            return 409, _status(409, "AlreadyExists", f"{kind} {name!r} already exists")
        body["metadata"]["uid"] = str(uuid.uuid4())
        table[name] = body
        if kind == "jobs":
            labels = body["spec"]["template"]["metadata"]["labels"]
            labels |= {"batch.kubernetes.io/job-name": name}
            self.pods[name] = Pod(body, self.folder / name, self.secrets)
        return 201, body

    def read(self, kind: str, name: str) -> tuple[int, Object]:
        job = self.jobs.get(name)
        if kind != "jobs" or job is None:
            return 404, _status(404, "NotFound", f"{kind} {name!r} not found")
        phase = self.pods[name].phase
        done = {"Succeeded": "Complete", "Failed": "Failed"}.get(phase)
        reason = {"reason": "BackoffLimitExceeded", "message": "Job has reached the specified backoff limit"}
        conditions = [{"type": done, "status": "True", **(reason if done == "Failed" else {})}] if done else []
        return 200, {**job, "status": {"conditions": conditions}}

    def list(self, kind: str, selector: str) -> Object:
        wanted = dict(part.split("=") for part in selector.split(","))
        found = [pod.as_object() for pod in self.pods.values()] if kind == "pods" else list(self.jobs.values())
        items = [each for each in found if wanted.items() <= each["metadata"].get("labels", {}).items()]
        return {"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items}

    def delete(self, kind: str, name: str) -> tuple[int, Object]:
        table = self.jobs if kind == "jobs" else self.secrets
        if table.pop(name, None) is None:
            return 404, _status(404, "NotFound", f"{kind} {name!r} not found")
        if kind == "jobs":
            self._delete_pod(name)
        return 200, _status(200, "", "")

    def _delete_pod(self, name: str) -> None:
        pod = self.pods[name]
        pod.deleted_at = datetime.now(UTC).isoformat()
        pod.end()
        grace_s = pod.template["spec"]["terminationGracePeriodSeconds"]

        def see_to_the_end() -> None:
            if pod.process is not None:
                try:
                    pod.process.wait(grace_s)
                except subprocess.TimeoutExpired:
                    kill_session(pod)
            self.pods.pop(name, None)

        threading.Thread(target=see_to_the_end, daemon=True).start()


def kill_session(pod: Pod) -> None:
    """End everything of a pod at once, as the end of a container's first process does."""
    record = next((pod.process and Path("/proc", str(pod.process.pid), "task").glob("*/children")) or [], None)
    children = [int(each) for each in record.read_text().split()] if record is not None else []
    pod.end(signal.SIGKILL)
    for child in children:
        os.killpg(child, signal.SIGKILL)


def _status(code: int, reason: str, message: str) -> Object:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": code, "reason": reason, "message": message}


class _Handler(BaseHTTPRequestHandler):
    site: KubernetesStandIn
    protocol_version = "HTTP/1.1"

    def _parts(self) -> tuple[str, str | None, str | None, dict[str, list[str]]]:
        url = urlsplit(self.path)
        found = re.fullmatch(r"/(?:api|apis/batch)/v1/namespaces/fleet/(\w+)(?:/([^/]+))?(?:/(\w+))?", url.path)
        assert found, self.path
        return found[1], found[2], found[3], parse_qs(url.query)

    def _answer(self, code: int, body: Object) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> Object:
        body: Object = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        return body

    def do_POST(self) -> None:
        kind, _, _, _ = self._parts()
        self.site.asked.add(("create", kind))
        body = self._body()
        if kind == "secrets" and "data" in body and body["data"]:
            body["stringData"] = {key: base64.b64decode(value).decode() for key, value in body.pop("data").items()}
        self._answer(*self.site.create(kind, body))

    def do_PATCH(self) -> None:
        kind, name, _, _ = self._parts()
        self.site.asked.add(("patch", kind))
        owner = self._body()["metadata"]["ownerReferences"][0]
        assert kind == "secrets"
        assert owner["uid"] == self.site.jobs[owner["name"]]["metadata"]["uid"]
        self._answer(200, self.site.secrets[str(name)])

    def do_DELETE(self) -> None:
        kind, name, _, _ = self._parts()
        self.site.asked.add(("delete", kind))
        self._body()
        self._answer(*self.site.delete(kind, str(name)))

    def do_GET(self) -> None:
        kind, name, part, query = self._parts()
        self.site.asked.add(("list" if name is None else "get", f"{kind}/{part}" if part else kind))
        if part == "log":
            self._log(str(name))
        elif name is None:
            self._answer(200, self.site.list(kind, query["labelSelector"][0]))
        else:
            self._answer(*self.site.read(kind, name))

    def _log(self, name: str) -> None:
        pod = next(each for each in self.site.pods.values() if each.name == name)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        while True:
            with pod.news:
                if len(pod.lines) == sent and pod.phase == "Running":
                    pod.news.wait(0.2)
                new, is_over = pod.lines[sent:], pod.phase != "Running"
            for at, line in new:
                text = at.encode() + b" " + line
                self.wfile.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")
            sent += len(new)
            if is_over and not new:
                break
            if self.site._server is None:
                self.connection.close()
                return
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        pass
