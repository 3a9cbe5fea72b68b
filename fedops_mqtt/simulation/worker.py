"""A worker process of a simulation (`python -m fedops_mqtt.simulation.worker`): plays some clients, a thread each.

One of them trains at a time: a worker takes one core and the memory of one training, however many clients it plays.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Annotated

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from pydantic import BaseModel, BeforeValidator, ConfigDict

from fedops_mqtt.client.registered_client import make_register
from fedops_mqtt.line.client_session import RunEnd
from fedops_mqtt.line.runner import Joined, LineRunner, make_context
from fedops_mqtt.protocol import Outcome, clip
from fedops_mqtt.training.app_loading import AppError, Keeping, KeptState, load_app, make_node_config, make_run_config
from fedops_mqtt.training.pipe import Job


class Work(BaseModel):
    """What a worker is printing, in one line on stdin."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    jobs: tuple[Job, ...]
    """One for each client that it plays."""


class Result(BaseModel):
    """How it ended for one client, in one line on stdout."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    client_mac: str
    outcome: Outcome
    reason: Annotated[str, BeforeValidator(clip)]


logger = logging.getLogger(__name__)


def main() -> int:
    """Play the clients that stdin lists, until the run has ended for all of them."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    work = Work.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, name="parent", daemon=True).start()
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the app prints
    turn, printing = threading.Lock(), threading.Lock()

    def play(job: Job) -> None:
        result = _play(job, turn)
        with printing:
            print(result.model_dump_json(), file=results, flush=True)

    players = [threading.Thread(target=play, args=(job,), name=job.identity.client_name) for job in work.jobs]
    for player in players:
        player.start()
    for player in players:
        player.join()
    return 0


def _play(job: Job, turn: threading.Lock) -> Result:
    def result(outcome: Outcome, reason: str) -> Result:
        return Result(client_mac=job.identity.client_mac, outcome=outcome, reason=reason)

    job.state_folder.mkdir(parents=True, exist_ok=True)
    try:
        with turn:
            app = load_app(job, make_register)
    except AppError as error:
        return result(Outcome.FAILED, error.reason)
    kept = KeptState(job.state_folder / "context.bin")
    keeping = Keeping(_in_turn(app, turn), kept)
    end = _run(job, keeping, kept)
    return result(Outcome.FAILED, keeping.failure) if keeping.failure else result(end.outcome, end.reason)


def _run(job: Job, keeping: Keeping, kept: KeptState) -> RunEnd:
    def make(joined: Joined) -> Context:
        context = make_context(joined, node_config=make_node_config(job), run_config=make_run_config(job.run_config))
        context.state = kept.load()
        return context

    runner = LineRunner(
        server_ip=job.start.server_ip,
        client_mac=job.identity.client_mac,
        instance=job.identity.instance,
        attempt=job.start.attempt,
        join_s=job.join_s,
        rejoin_s=job.rejoin_s,
    )
    app: ClientApp = keeping  # type: ignore[assignment]  # LineRunner only calls it
    return runner.run(app, make)


def _in_turn(app: ClientApp, turn: threading.Lock) -> Callable[[Message, Context], Message]:
    def answer(message: Message, context: Context) -> Message:
        with turn:
            return app(message, context)

    return answer


def _die_with_parent() -> None:
    while sys.stdin.readline():
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
