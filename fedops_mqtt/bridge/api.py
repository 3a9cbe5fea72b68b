"""The HTTP endpoints that FedOps' programs call: those of its client manager, server manager and performance services.

An endpoint notes what it was sent and answers in FedOps' own fields; what follows is decided elsewhere. A call whose
sender cannot be identified is answered all the same, because FedOps does nothing with an error: polling shows it.
"""

import logging
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError

from fedops_mqtt.bridge import peer_registry
from fedops_mqtt.bridge.peer_registry import Caller, PeerRegistry
from fedops_mqtt.bridge.peer_state import OnlineAnswer, PeerState
from fedops_mqtt.protocol import Outcome, TaskId, count_of

logger = logging.getLogger(__name__)

Json = dict[str, Any]


class FLTask(BaseModel):
    """What a FedOps client manager registers (FedOps server manager, `FLTask`)."""

    model_config = ConfigDict(extra="ignore")

    FL_task_ID: str = ""
    Device_mac: str = ""
    Device_hostname: str = ""
    Device_online: bool = False
    Device_training: bool = False


def make_api(registry: PeerRegistry) -> FastAPI:
    """Return the application over the bridge's state."""
    app = FastAPI(title="fedops-mqtt bridge", docs_url=None, redoc_url=None)
    app.include_router(_client_manager(registry))
    app.include_router(_server_manager_for_clients(registry))
    app.include_router(_server_manager_for_servers(registry))
    app.include_router(_performance(registry))

    @app.exception_handler(peer_registry.ReportError)
    @app.exception_handler(ValidationError)
    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: Exception) -> JSONResponse:
        problem = str(error).splitlines()[0]
        logger.warning("a call that is not FedOps'", extra={"path": request.url.path, "problem": problem})
        return JSONResponse({"detail": problem}, status.HTTP_422_UNPROCESSABLE_CONTENT)

    return app


def _client_manager(registry: PeerRegistry) -> APIRouter:
    """FedOps' client manager, as its client calls it (FedOps client_api.ClientMangerAPI)."""
    router = APIRouter()

    @router.get("/info")
    @router.get("/info/", include_in_schema=False)
    async def info(request: Request) -> Json:
        """Return which global model its training will make."""
        return _manager_view(registry.find(_caller(request), expected=lambda peer: peer.has_start_pending))

    @router.get("/trainFin")
    async def train_fin(request: Request) -> Json:
        """One client has finished; no other client's run ends by that."""
        return await _take_outcome(registry, request, Outcome.FINISHED)

    @router.get("/trainFail")
    async def train_fail(request: Request) -> Json:
        """One client has failed."""
        return await _take_outcome(registry, request, Outcome.FAILED)

    @router.get("/flclient_out")
    async def flclient_out(request: Request) -> Json:
        """A client leaves."""
        peer_state = registry.find(_caller(request), expected=lambda peer: peer.is_here)
        if peer_state is not None:
            registry.client_out(peer_state)
        return _manager_view(peer_state)

    return router


async def _take_outcome(registry: PeerRegistry, request: Request, outcome: Outcome) -> Json:
    peer_state = registry.find(_caller(request), expected=lambda peer: peer.is_training)
    if peer_state is None:
        logger.warning("cannot identify the client", extra={"path": request.url.path})
    else:
        await peer_state.note_outcome(outcome)
    return _manager_view(peer_state)


def _server_manager_for_clients(registry: PeerRegistry) -> APIRouter:
    """FedOps' server manager, as a device calls it: a client itself, or the client manager before it."""
    router = APIRouter(prefix="/FLSe")

    @router.get("/getPort/{task_id}")
    async def get_port(task_id: TaskId, request: Request) -> Json:
        """Return the port of the FL server, or of the gateway that stands for it."""
        caller = _caller(request, task_id=task_id)
        port = await registry.port_for(caller)
        if port is None:
            raise HTTPException(status.HTTP_404_NOT_FOUND, f"nothing is to be trained for task {task_id} now")
        return {"task_id": task_id, "port": port}

    @router.get("/info/{task_id}/{device_mac}")
    async def server_info(task_id: TaskId, device_mac: str) -> Json:
        """Answer a client manager whether its client shall start."""
        return {"Server_Status": registry.server_view(task_id, device_mac)}

    @router.put("/RegisterFLTask")
    async def register(request: Request) -> list[Json]:
        """Take in how a device is; the answer is that device alone, not the whole fleet."""
        # Read by hand: FedOps sends its JSON without a content type.
        task = FLTask.model_validate(peer_registry.parse_report(await request.body()))
        if task.FL_task_ID and task.Device_mac:
            await registry.register(_as_answer(task), host=request.client.host if request.client else None)
        return [task.model_dump()]

    @router.put("/FLSeClosed/{task_id}")
    async def closed(task_id: TaskId, request: Request) -> Json:
        """A client manager calls this at trainFin and trainFail alike; only its own client's training ends."""
        peer_state = registry.find(_caller(request, task_id=task_id), expected=lambda peer: peer.is_training)
        if peer_state is not None and peer_state.peer is None:
            await peer_state.note_outcome(Outcome.FINISHED if peer_state.has_time_result else Outcome.FAILED)
        return {"Server_Status": registry.server_view(task_id, peer_state.own_mac if peer_state else None)}

    @router.put("/cluster/{task_id}")
    async def cluster(task_id: TaskId) -> Json:
        """Cluster assignments are a matter between FedOps' server and its clients."""
        return {"ok": True}

    return router


def _as_answer(task: FLTask) -> OnlineAnswer:
    try:
        return OnlineAnswer.model_validate(
            {
                "task_id": task.FL_task_ID,
                "client_mac": task.Device_mac,
                "client_name": task.Device_hostname,
                "client_online": task.Device_online,
                "client_start": task.Device_training,
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, str(first["msg"])) from error


def _server_manager_for_servers(registry: PeerRegistry) -> APIRouter:
    """FedOps' server manager, as its FL server calls it (FedOps server_api.ServerAPI)."""
    router = APIRouter(prefix="/FLSe")

    @router.put("/FLSeUpdate/{task_id}")
    async def update(task_id: TaskId, request: Request) -> Json:
        """A FedOps server is there, or something went wrong with it."""
        fields = peer_registry.parse_report(await request.body())
        host = request.client.host if request.client else "127.0.0.1"
        if fields.get("FLSeReady") is True:
            await registry.server_ready(task_id, host=host, gl_model=count_of(fields.get("GL_Model_V")))
        else:
            registry.server_problem(task_id)
        return {"Server_Status": registry.server_view(task_id, None)}

    @router.put("/FLRoundFin/{task_id}")
    async def round_fin(task_id: TaskId) -> Json:
        """A FedOps server ends, well or not."""
        registry.server_ends(task_id)
        return {"Server_Status": registry.server_view(task_id, None)}

    return router


def _performance(registry: PeerRegistry) -> APIRouter:
    """FedOps' performance services."""
    router = APIRouter()

    @router.put("/client_perf/{kind}/{task_id}")
    async def client_perf(kind: str, task_id: TaskId, request: Request) -> Json:
        """A client's peer_registry."""
        fields = peer_registry.parse_report(await request.body())
        known = peer_registry.CLIENT_KINDS.get(kind)
        if known is None:
            raise HTTPException(status.HTTP_404_NOT_FOUND, f"no report of kind {kind}")
        caller = _caller(request, task_id=task_id, own_mac=fields.get("client_mac"))
        peer_state = registry.find(caller, expected=lambda peer: peer.is_training)
        if peer_state is None or peer_state.report is None:
            return {"taken": False}
        peer_state.has_time_result = peer_state.has_time_result or kind == "client_time_result"
        peer_state.report(peer_registry.client_report(known, fields, registry.cutter))
        return {"taken": True}

    @router.put("/server_perf/gl_model_evaluation/{task_id}")
    async def evaluation(task_id: TaskId, request: Request) -> Json:
        """A FedOps server's round is done."""
        return {"taken": registry.server_round(task_id, peer_registry.parse_report(await request.body()))}

    @router.put("/server_perf/server_time_result/{task_id}")
    async def time_result(task_id: TaskId, request: Request) -> Json:
        """A FedOps server's last round is done."""
        peer_registry.parse_report(await request.body())
        return {"taken": registry.server_rounds_done(task_id)}

    return router


def _caller(request: Request, *, task_id: str | None = None, own_mac: object = None) -> Caller:
    client_mac = request.scope.get("state", {}).get("client_mac")
    return Caller(
        host=request.client.host if request.client else None,
        client_mac=client_mac,
        own_mac=own_mac if isinstance(own_mac, str) else None,
        task_id=task_id,
    )


def _manager_view(peer_state: PeerState | None) -> Json:
    """A FedOps client manager's own status (FedOps client manager, `manager_status`)."""
    return {
        "GL_Model_V": peer_state.gl_model if peer_state else 0,
        "FL_ready": peer_state.wanted is not None if peer_state else False,
        "client_online": peer_state.is_here if peer_state else False,
        "client_training": peer_state.is_training if peer_state else False,
        "task_id": (peer_state.task_id if peer_state else None) or "",
        "client_mac": (peer_state.own_mac if peer_state else None) or "",
        "client_name": peer_state.client_name if peer_state else "",
        "S3_bucket": "",
        "s3_ready": False,
        "task_status": None,
    }
