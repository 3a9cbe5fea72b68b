"""Short makers of statuses for the tests of fleet and run, and a world that drives one run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedops_mqtt.core.fencing import LAST_SEQ
from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.core.limits import RunLimits
from fedops_mqtt.core.run import Run, RunSpec, apply_all
from fedops_mqtt.core.run_member import (
    RunEvent,
)
from fedops_mqtt.core.run_plan import Action, EndServer, plan
from fedops_mqtt.protocol import (
    Answer,
    ClientCondition,
    ClientStatus,
    CurrentRun,
    LastRun,
    LastTrigger,
    Outcome,
    Phase,
    ReasonCode,
    ServerClient,
    ServerCondition,
    ServerStatus,
    utc_now,
)

TASK = "digits"
RUN = "run-1"
A, B, C, D = (f"02:00:00:00:00:0{n}" for n in range(1, 5))
AT = utc_now()
LIMITS = RunLimits(trigger_answer_s=30, trigger_retry_s=5, server_start_s=60, join_s=120, run_s=3600, close_grace_s=10)


def client(
    mac: str = A,
    status: ClientCondition = ClientCondition.ONLINE,
    *,
    epoch: int = 1,
    seq: int = 1,
    instance: str = "i1",
    reason: str | None = None,
    hand: CurrentRun | None = None,
    last_run: LastRun | None = None,
    answer: LastTrigger | None = None,
    heartbeat_s: float | None = None,
) -> ClientStatus:
    return ClientStatus(
        task_id=TASK,
        client_mac=mac,
        status=status,
        epoch=epoch,
        seq=seq,
        instance=instance,
        reason=reason,
        run=hand,
        last_run=last_run,
        last_trigger=answer,
        heartbeat_s=heartbeat_s,
        at=AT,
    )


def will(mac: str = A, *, epoch: int = 1, instance: str = "i1") -> ClientStatus:
    return client(mac, ClientCondition.CLIENT_OUT, epoch=epoch, seq=LAST_SEQ, instance=instance, reason="lost")


def hand(attempt: int = 1, launch: int = 1, phase: Phase = Phase.TRAINING, run_id: str = RUN) -> CurrentRun:
    return CurrentRun(run_id=run_id, attempt=attempt, launch=launch, phase=phase)


def answer(
    attempt: int = 1, decision: Answer = Answer.ACCEPTED, reason: str | None = None, code: ReasonCode | None = None
) -> LastTrigger:
    return LastTrigger(run_id=RUN, attempt=attempt, launch=1, answer=decision, reason=reason, reason_code=code)


def ended(
    outcome: Outcome = Outcome.FINISHED, attempt: int = 1, reason: str | None = None, code: ReasonCode | None = None
) -> LastRun:
    return LastRun(run_id=RUN, attempt=attempt, outcome=outcome, reason=reason, reason_code=code)


def interrupted(attempt: int = 1, reason: str = "interrupted") -> LastRun:
    return ended(Outcome.FAILED, attempt, reason, ReasonCode.INTERRUPTED)


def server(
    status: ServerCondition = ServerCondition.READY,
    *,
    launch: int = 1,
    epoch: int = 1,
    seq: int = 1,
    reason: str | None = None,
    code: ReasonCode | None = None,
    clients: Mapping[str, ServerClient] | None = None,
    run_id: str | None = RUN,
) -> ServerStatus:
    return ServerStatus(
        task_id=TASK,
        run_id=run_id,
        launch=launch,
        status=status,
        reason=reason,
        reason_code=code,
        server_ip="127.0.0.1:9000",
        instance=f"s{launch}",
        epoch=epoch,
        seq=seq,
        clients=dict(clients or {}),
        at=AT,
    )


def spec(**changes: object) -> RunSpec:
    known = RunSpec(run_id=RUN, task_id=TASK, num_rounds=3, min_clients=2, limits=LIMITS)
    return replace(known, **changes)  # type: ignore[arg-type]


@dataclass
class World:
    """One run, one fleet and one clock; what is planned is done, and what was done is remembered."""

    run: Run
    now: float = 1000.0
    fleet: Fleet = field(default_factory=Fleet)
    done: list[Action] = field(default_factory=list)
    _seq: dict[str, int] = field(default_factory=dict)

    @classmethod
    def at_start(cls, **changes: object) -> "World":
        world = cls(run=Run(spec=spec(**changes), created_at=1000.0))
        world.fleet.listen(1000.0)
        return world

    def happens(self, *events: RunEvent) -> None:
        self.run = apply_all(self.run, events, self.now)

    def publishes(self, *statuses: ClientStatus | ServerStatus, is_retained: bool = False) -> None:
        """Statuses come in with rising stamps, as from living owners."""
        for status in statuses:
            self.receives(self._stamped(status), is_retained=is_retained)

    def receives(self, status: ClientStatus | ServerStatus, *, is_retained: bool = False) -> None:
        """A status comes in as it is."""
        if not self.fleet.apply(status, now=self.now, is_retained=is_retained):
            return
        if isinstance(status, ServerStatus):
            self.happens(self.fleet.servers[status.task_id].status)
        else:
            self.happens(self.fleet.clients[status.task_id, status.client_mac])

    def waits(self, seconds: float) -> None:
        self.now += seconds
        self.happens(*self.fleet.expire(self.now))

    def acts(self) -> list[Action]:
        """Plan and do until there is only waiting; return what was done."""
        done: list[Action] = []
        for _ in range(4):
            actions = plan(self.run, self.fleet, self.now)
            done += actions
            events = [action for action in actions if not isinstance(action, EndServer)]
            if not events:
                break
            self.happens(*events)
        self.done += done
        return done

    def reaches_training(self, *macs: str) -> None:
        """The run goes its usual way until these clients train."""
        self.publishes(*(client(mac) for mac in macs))
        self.acts()
        self.publishes(server())
        self.acts()
        self.publishes(*(trains(mac) for mac in macs))

    def _stamped(self, word: ClientStatus | ServerStatus) -> ClientStatus | ServerStatus:
        who = word.client_mac if isinstance(word, ClientStatus) else "server"
        self._seq[who] = self._seq.get(who, 0) + 1
        epoch = self._seq[who] if word.seq == LAST_SEQ else max(word.epoch, self._seq[who])
        return word.model_copy(update={"epoch": epoch, "seq": word.seq})


def trains(mac: str, attempt: int = 1, launch: int = 1, instance: str = "i1") -> ClientStatus:
    started = ClientCondition.TRAIN_STARTED
    return client(mac, started, instance=instance, hand=hand(attempt, launch), answer=answer(attempt))
