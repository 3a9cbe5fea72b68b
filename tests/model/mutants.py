"""Rules, each broken on purpose: what the model must be able to find guilty.

A mutant replaces one function, of the core or of the model's database, in its place; what else there is stays as it is.
Five more were played in 400 schedules each and not found; another rule stands behind each: a will that drops what it
omits (the server's word and the next heartbeat tell it), owners that do not take a higher epoch over (the comeback),
triggers for another instance and triggers of an old term (the answers on disk), servers that are not launched again
(the limits end the run).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import model_device
import model_manager

from fedops_mqtt.core import client, fleet, ownership, run, run_plan
from fedops_mqtt.core.client import Step
from fedops_mqtt.core.fleet import Fleet
from fedops_mqtt.core.ownership import Ignore


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One broken rule; `breaks` is the guarantee that falls first."""

    rule: str
    where: ModuleType | type
    name: str
    broken: Callable[..., Any]
    breaks: str


def _believe_everything(view: Any, status: Any, *, now: float, is_retained: bool) -> Any:
    return _apply_status(None, status, now=now, is_retained=is_retained)


def _listen_without_new_leases(self: Fleet, now: float) -> None:
    if self.listening_since is None:
        _listen(self, now if self.manager is None and not self.clients else float("-inf"))


def _forget_the_result(mine: Any, event: Any) -> Any:
    ended = _end(mine, event)
    return replace(ended, facts=replace(ended.facts, last_run=mine.facts.last_run))


def _answer_anew(mine: Any, trigger: Any, _app_refusal: Any) -> Step:
    return _accept(mine, trigger) if mine.facts.active_training is None else Step(client=mine)


def _read_without_attempts(state: str, members: Any) -> Any:
    mine = _load_run(state, members)
    return replace(mine, members={mac: replace(member, last_attempt=0) for mac, member in mine.members.items()})


def _without_heartbeat(*facts: Any, **more: Any) -> Any:
    return _snapshot(*facts, **more).model_copy(update={"heartbeat_s": None})


_snapshot = model_device.snapshot
_apply_status, _listen, _end = fleet.apply_status, Fleet.listen, client._end
_accept, _load_run = client._accept, model_manager.load_run

MUTANTS = [
    Mutant(rule="fencing", where=fleet, name="apply_status", broken=_believe_everything, breaks="G-4"),
    Mutant(
        rule="leases start anew when the reader hears again",
        where=Fleet, name="listen", broken=_listen_without_new_leases, breaks="G-4",
    ),
    Mutant(
        rule="a client's status carries its heartbeat",
        where=model_device, name="snapshot", broken=_without_heartbeat, breaks="G-4",
    ),
    Mutant(rule="leases end", where=Fleet, name="expire", broken=lambda self, now: [], breaks="G-4"),
    Mutant(rule="a comeback is believed", where=fleet, name="_come_back", broken=lambda *_, **__: None, breaks="G-4"),
    Mutant(
        rule="owners repair their topic",
        where=ownership, name="_schedule_repair", broken=lambda owner, now: (owner, Ignore()), breaks="G-4",
    ),
    Mutant(rule="tombstones", where=client, name="is_stopped", broken=lambda *_: False, breaks="G-1"),
    Mutant(rule="answers are remembered", where=client, name="_take_trigger", broken=_answer_anew, breaks="G-1"),
    Mutant(rule="the result is kept", where=client, name="_end", broken=_forget_the_result, breaks="G-2"),
    Mutant(rule="a finished training is a result", where=run, name="_is_about", broken=lambda *_: False, breaks="G-2"),
    Mutant(
        rule="an attempt is for one daemon",
        where=run_plan, name="_needs_new_attempt", broken=lambda *_: False, breaks="G-1",
    ),
    Mutant(
        rule="closed runs are stopped",
        where=run_plan, name="_after_the_end", broken=lambda *_: iter(()), breaks="G-3",
    ),
    Mutant(
        rule="a frozen leader is fenced",
        where=model_manager.Database, name="check", broken=lambda self, term: None, breaks="G-6",
    ),
    Mutant(
        rule="a run is read as it was written",
        where=model_manager, name="load_run", broken=_read_without_attempts, breaks="G-6",
    ),
]  # fmt: skip
