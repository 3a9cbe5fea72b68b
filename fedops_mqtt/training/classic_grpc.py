"""Trains with a classic gRPC server (`flwr.server.start_server`), which FedOps' servers are.

Flower's own client gives up after about a second without a server and ignores its limits (seen in 1.41); we wait here.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc  # type: ignore[import-untyped]
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from fedops_mqtt.line import flwr_private
from fedops_mqtt.line.client_session import RunEnd
from fedops_mqtt.line.identity import flower_run_id_of, node_id_of
from fedops_mqtt.line.rounds import kind_of, metrics_of, round_of
from fedops_mqtt.line.runner import Joined, MessageAnswered, Progress
from fedops_mqtt.protocol import Outcome, Phase, ReasonCode, describe_error

logger = logging.getLogger(__name__)

_RETRY_S = 0.5


class ClassicRunner:
    """One client's part in a classic server's training; same use as `LineRunner`.

    A classic server has no run id to give: `run_id` is what this client's start is called.
    """

    def __init__(
        self,
        *,
        run_id: str,
        client_mac: str,
        server_ip: str,
        ca_file: Path | None,
        join_s: float,
        rejoin_s: float,
        on_progress: Callable[[Progress], None],
        on_answered: Callable[[MessageAnswered], None],
    ) -> None:
        self._run_id = run_id
        self._client_mac = client_mac
        self._server_ip = server_ip
        self._ca = ca_file.read_bytes() if ca_file else None
        self._join_s = join_s
        self._rejoin_s = rejoin_s
        self._on_progress = on_progress
        self._on_answered = on_answered
        self._stop_reason: str | None = None
        self._stop_code: ReasonCode | None = None
        self._changed = threading.Event()
        self._app_error: Exception | None = None
        self._last_contact_at: float | None = None
        self._bytes_in = 0
        self._bytes_out = 0

    def run(self, app: ClientApp, context_factory: Callable[[Joined], Context]) -> RunEnd:
        """Train until the server ends the run; waits for it within the limits."""
        joined = Joined(
            run_id=self._run_id,
            flower_run_id=flower_run_id_of(self._run_id),
            node_id=node_id_of(self._client_mac),
            launch=0,
            server_ip=self._server_ip,
        )
        self._context, self._app = context_factory(joined), app
        self._enter(Phase.JOINING, None)
        started = time.monotonic()
        while True:
            try:
                flwr_private.run_classic_client(app=self._answer, server_address=self._server_ip, ca=self._ca)
            except grpc.RpcError as error:
                if self._app_error is not None:
                    return self._raised(self._app_error)
                since, limit_s = (
                    (started, self._join_s)
                    if self._last_contact_at is None
                    else (self._last_contact_at, self._rejoin_s)
                )
                if time.monotonic() - since > limit_s:
                    return RunEnd(outcome=Outcome.FAILED, reason=self._lost(error, limit_s))
            except Exception as error:  # the user's code, through Flower
                return self._raised(self._app_error or error)
            else:
                return RunEnd(outcome=Outcome.FINISHED, reason="the server ended the run")
            if self._stop_reason is not None:
                return RunEnd(outcome=Outcome.STOPPED, reason=self._stop_reason, reason_code=self._stop_code)
            self._changed.wait(_RETRY_S)
            self._changed.clear()

    def redirect(self, server_ip: str, launch: int) -> None:
        """Try the next connection at another address."""
        self._server_ip = server_ip
        self._changed.set()

    def stop(self, reason: str, code: ReasonCode | None = None) -> None:
        """End once Flower returns; a message that is being answered is not interrupted."""
        self._stop_reason, self._stop_code = reason, code
        self._changed.set()

    def _lost(self, error: grpc.RpcError, limit_s: float) -> str:
        what = "no FL server" if self._last_contact_at is None else "lost the FL server, none again"
        return f"{what} at {self._server_ip} within {limit_s:g} s (gRPC {error.code().name})"

    def _raised(self, error: Exception) -> RunEnd:
        logger.error("ClientApp raised", exc_info=error)
        return RunEnd(outcome=Outcome.FAILED, reason=describe_error(error))

    def _answer(self, message: Message, context: Context) -> Message:
        """Answer with the line's own context: Flower's has neither the kept state nor the configuration."""
        kind, round_ = kind_of(message), round_of(message)
        self._last_contact_at = started = time.monotonic()
        self._bytes_in += _array_bytes(message)
        self._enter(Phase.TRAINING if kind == "train" else Phase.EVALUATING, round_)
        try:
            reply = self._app(message, self._context)
        except Exception as error:
            self._app_error = error
            raise
        self._last_contact_at = time.monotonic()
        self._bytes_out += _array_bytes(reply)
        seconds = self._last_contact_at - started
        self._on_answered(MessageAnswered(kind=kind, round=round_, seconds=seconds, metrics=metrics_of(reply.content)))
        self._enter(Phase.WAITING, round_)
        return reply

    def _enter(self, phase: Phase, round_: int | None) -> None:
        progress = Progress(phase=phase, round=round_, bytes_in=self._bytes_in, bytes_out=self._bytes_out)
        self._on_progress(progress)


def _array_bytes(message: Message) -> int:
    """Return the size of a message's arrays; Flower does not expose what gRPC puts around them."""
    if not message.has_content():
        return 0
    records = [record for record in message.content.values() if isinstance(record, ArrayRecord)]
    return sum(len(array.data) for record in records for array in record.values())
