"""A FedOps client re-enacted from its behaviour: same endpoints, same questions in the same order, no torch.

`/start` blocks while it asks its managers back, training has a thread of its own, `trainFin` comes before idleness.
First generation: `--first`, with the names of then and the FL server's address in the start.
"""

import argparse
import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import flwr as fl

FIRST_NAMES = {
    "task_id": "FL_task_id",
    "client_mac": "FL_client_mac",
    "client_online": "FL_client_online",
    "client_start": "FL_client_start",
    "client_fail": "FL_client_fail",
    "server_IP": "FL_server_IP",
    "gl_model": "FL_next_gl_model",
}


class Numpy(fl.client.NumPyClient):
    """Adds one to every weight; reports as FedOps' FLClient does."""

    def __init__(self, device: "Device") -> None:
        self._device = device
        self._round = 1

    def fit(self, parameters, config):
        self._device.in_round.set()
        if self._device.holds:
            self._device.release.wait()
        if self._device.raises:
            raise ValueError("out of data")
        report = self._device.report | {"round": self._round, "train_loss": 0.5, "train_accuracy": 0.75}
        self._device.put(f"client_perf/train_result/{self._device.status['task_id']}", report)
        return [array + 1 for array in parameters], 10, {"accuracy": 0.75}

    def evaluate(self, parameters, config):
        report = self._device.report | {"round": self._round, "test_loss": 0.25, "test_accuracy": 0.5}
        self._device.put(f"client_perf/test_result/{self._device.status['task_id']}", report)
        self._round += 1
        return 0.25, 10, {"accuracy": 0.5}


class Device:
    """One FedOps client and where its managers are."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.holds, self.raises = arguments.holds, arguments.raises
        self.in_round, self.release = threading.Event(), threading.Event()
        self.status = {
            "task_id": arguments.task,
            "client_num": 0,
            "client_mac": arguments.mac,
            "client_name": "old-pi",
            "client_online": True,
            "client_start": False,
            "client_fail": False,
            "server_IP": None,
            "gl_model": 0,
        }

    @property
    def report(self):
        named = {"client_mac": self.status["client_mac"], "client_name": self.status["client_name"]}
        return {"fl_task_id": self.status["task_id"], "gl_model_v": self.status["gl_model"], "wandb_name": ""} | named

    def get(self, path):
        with urllib.request.urlopen(self._request(path), timeout=300) as answer:
            return json.load(answer)

    def put(self, path, fields):
        request = self._request(path, data=json.dumps(fields).encode(), method="PUT")
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def _request(self, path, **more):
        is_for_client_manager = not path.startswith(("FLSe", "client_perf"))
        managers = (is_for_client_manager and self.arguments.client_manager) or self.arguments.managers
        request = urllib.request.Request(f"{managers}/{path}", **more)
        if self.arguments.credentials:
            request.add_header("Authorization", f"Basic {self.arguments.credentials}")
        return request

    def start(self):
        self.status["gl_model"] = self.get("info/")["GL_Model_V"]
        self.status["client_start"] = True
        port = self.get(f"FLSe/getPort/{self.status['task_id']}")["port"]
        self.status["server_IP"] = f"127.0.0.1:{port}"
        threading.Thread(target=self.train, daemon=True).start()

    def train(self):
        try:
            fl.client.start_numpy_client(server_address=self.status["server_IP"], client=Numpy(self))
            self.put(f"client_perf/client_time_result/{self.status['task_id']}", self.report | {"operation_time": 1.5})
            if not self.arguments.mute:
                self.get("trainFin")
        except Exception:
            self.status["client_fail"] = True
            if not self.arguments.mute:
                self.get("trainFail")
        self.status["client_start"] = False

    def view(self):
        return (
            {FIRST_NAMES[k]: v for k, v in self.status.items() if k in FIRST_NAMES}
            if self.arguments.first
            else self.status
        )


class Handler(BaseHTTPRequestHandler):
    device: Device

    def do_GET(self):
        if self.path == "/release":  # not FedOps': lets a held round go on
            self.device.release.set()
        self.answer(200, self.device.view()) if self.path in ("/online", "/release") else self.answer(404, {})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            self.device.start()
        except OSError as error:
            self.device.status["client_start"] = False
            self.answer(500, {"detail": str(error)})
        else:
            self.answer(200, self.device.view())

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Say nothing."""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", required=True)
    parser.add_argument("--mac", required=True)
    parser.add_argument("--managers", required=True)
    parser.add_argument("--client-manager", help="default: the same as the others")
    parser.add_argument("--credentials")
    parser.add_argument("--port", type=int, default=0)
    for flag in ("--first", "--holds", "--raises", "--mute"):
        parser.add_argument(flag, action="store_true")
    device = Device(parser.parse_args())
    server = ThreadingHTTPServer(
        ("127.0.0.1", device.arguments.port), type("OneDevice", (Handler,), {"device": device})
    )
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        device.get("flclient_out")


if __name__ == "__main__":
    main()
