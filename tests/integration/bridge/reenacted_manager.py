"""A FedOps client manager re-enacted from its behaviour, in each generation, polling faster than FedOps does.

The programs are in no package. Generation 1 reads `FL_client_online` and starts by `GET /start/HOST:PORT`; those of 2
read the same and start by `POST /start`, with a host that is built in and no port, as those of 3, today's, which read
`client_online`, `client_start` and `task_id`.

It polls its client while that does not train, asks its server manager whether there is something to train, starts its
client once, and then waits for that client's `trainFin` or `trainFail`, for ever. `--ready PORT` makes it its own
server manager, with an FL server at that port.
"""

import argparse
import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError

BUILT_IN_HOST = "fl.example.invalid"


def ask(url, method="GET", fields=None):
    data = json.dumps(fields).encode() if fields is not None else None
    headers = {"content-type": "application/json"} if method == "POST" else {}
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


class Manager:
    def __init__(self, arguments):
        self.arguments = arguments
        self.is_first = arguments.generation == 1
        self.prefix = "client" if arguments.generation == 3 else "FL_client"
        self.client, self.server_manager = arguments.client, arguments.server_manager
        self.server_is_ready = arguments.ready is not None
        self.state = {"GL_Model_V": 0, "FL_ready": False, "client_online": False, "client_training": False}
        self.task_id = ""
        self.num_starts = 0
        self.told = threading.Event()

    def poll(self):
        while not self.told.wait(self.arguments.interval):
            for step in (self.check_client, self.check_server, self.start_training):
                try:
                    step()
                except (URLError, OSError, KeyError) as error:
                    print(f"{step.__name__}: {error!r}", flush=True)

    def check_client(self):
        if self.state["client_training"]:
            return
        online = ask(f"{self.client}/online")
        self.state["client_online"] = online[f"{self.prefix}_online"]
        self.state["client_training"] = online[f"{self.prefix}_start"]
        if self.prefix == "FL_client":
            assert online["FL_client_num"] >= 0
        if self.is_first:
            return
        self.task_id = online["task_id"] if self.prefix == "client" else self.arguments.task
        device = {"FL_task_ID": self.task_id, "Device_mac": self.arguments.mac, "Device_hostname": "old-site"}
        device |= {"Device_online": True, "Device_training": self.state["client_training"]}
        ask(f"{self.server_manager}/FLSe/RegisterFLTask", "PUT", device)

    def check_server(self):
        if self.state["client_training"] or not self.state["client_online"]:
            return
        where = "" if self.is_first else f"/{self.task_id}/{self.arguments.mac}"
        said = ask(f"{self.server_manager}/FLSe/info{where}")["Server_Status"]
        if said["FLSeReady"] and (self.is_first or said["Task_status"] is not None):
            self.state |= {"FL_ready": True, "GL_Model_V": said["GL_Model_V"]}

    def start_training(self):
        if not (self.state["client_online"] and self.state["FL_ready"]) or self.state["client_training"]:
            return
        self.num_starts += 1
        if self.is_first:
            answer = ask(f"{self.client}/start/127.0.0.1:{self.arguments.ready}")
            assert answer["FL_client_start"]
        else:  # the port is the client's own question, to getPort
            where = {"server_ip": BUILT_IN_HOST, "client_mac": self.arguments.mac}
            assert ask(f"{self.client}/start", "POST", where)[f"{self.prefix}_start"]
        self.state["client_training"] = True
        print("started", flush=True)

    def end(self, word):
        self.state |= {"client_training": False, "FL_ready": False}
        print(word, flush=True)
        if self.arguments.ready is None:
            ask(f"{self.server_manager}/FLSe/FLSeClosed/{self.task_id}?FLSeReady=false", "PUT", {})
        self.server_is_ready = False

    def answer(self, path):
        if path.rstrip("/") == "/info":
            return self.state
        if path in ("/trainFin", "/trainFail", "/flclient_out"):
            self.end(path[1:])
            return self.state
        if path.startswith("/FLSe/getPort"):
            return {"port": int(self.arguments.ready)}
        if path.startswith("/FLSe/info"):
            device = {"FL_task_ID": self.task_id}
            return {"Server_Status": {"FLSeReady": self.server_is_ready, "GL_Model_V": 7, "Task_status": device}}
        return {}


class Handler(BaseHTTPRequestHandler):
    manager: Manager

    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        data = json.dumps(self.manager.answer(self.path)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_PUT = do_GET

    def log_message(self, *_):
        """Say nothing."""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--generation", type=int, required=True)
    parser.add_argument("--client", required=True)
    parser.add_argument("--server-manager")
    parser.add_argument("--mac", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--interval", type=float, default=0.2)
    parser.add_argument("--ready")
    parser.add_argument("--task", default="")
    Handler.manager = manager = Manager(parser.parse_args())
    server = ThreadingHTTPServer(("127.0.0.1", manager.arguments.port), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    manager.server_manager = manager.server_manager or url
    print(url, flush=True)
    threading.Thread(target=manager.poll, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
