"""The verdict can be guilty: each lie that is put into two journals that agree is told."""

from dataclasses import replace
from types import MappingProxyType

import pytest
from chaos_journals import (
    ManagerJournal,
    Told,
    begun_without_start,
    changed_decisions,
    disagreements,
    overlapping_runs,
    runs_without_end,
)

from fedops_mqtt.core.client_state import ClientState, TriggerReply
from fedops_mqtt.core.run import Run, RunSpec
from fedops_mqtt.core.run_member import Member
from fedops_mqtt.protocol import Answer, MemberCondition, Outcome, RunOutcome

MAC = "02:00:00:00:00:01"
MEMBER = Member(status=MemberCondition.FINISHED, attempt=1, last_attempt=1)
RUN = replace(
    Run(spec=RunSpec(run_id="r", task_id="t", num_rounds=1, min_clients=1), created_at=0.0),
    outcome=RunOutcome.COMPLETED,
    reason="all rounds done",
    ended_at=5.0,
    members=MappingProxyType({MAC: MEMBER}),
)
FIRED = Told(id=1, kind="TriggerFired", run_id="r", client_mac=MAC, detail={"attempt": 1, "instance": "i", "launch": 1})
CLOSED = Told(
    id=2, kind="RunClosed", run_id="r", client_mac=None, detail={"outcome": "completed", "reason": "all rounds done"}
)
JOURNAL = ManagerJournal(runs=(RUN,), events=(FIRED, CLOSED))
ANSWERED = TriggerReply(run_id="r", attempt=1, launch=1, answer=Answer.ACCEPTED, outcome=Outcome.FINISHED)
FACTS = ClientState(answers=(ANSWERED,))


def decision(
    journal: ManagerJournal, facts: ClientState = FACTS, begun: tuple[tuple[str, int], ...] = (("r", 1),)
) -> str:
    return "\n".join(
        [
            *runs_without_end(journal),
            *changed_decisions(journal),
            *overlapping_runs(journal),
            *disagreements(journal, MAC, facts),
            *begun_without_start(MAC, begun, facts),
        ]
    )


def test_what_agrees_is_not_guilty() -> None:
    assert decision(JOURNAL) == ""


def of(run: Run = RUN, *events: Told) -> ManagerJournal:
    return ManagerJournal(runs=(run,), events=events or (FIRED, CLOSED))


def with_member(**changes: object) -> Run:
    return replace(RUN, members=MappingProxyType({MAC: replace(MEMBER, **changes)}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("journal", "sentence"),
    [
        (ManagerJournal(runs=(), events=()), "no run at all"),
        (of(replace(RUN, outcome=None)), "has no end"),
        (of(with_member(status=MemberCondition.FAILED)), "nobody knows why"),
        (of(with_member(status=MemberCondition.FAILED, reason="Traceback")), "by a traceback"),
        (of(with_member(status=MemberCondition.TRAINING)), "the manager has it as"),
        (of(RUN, CLOSED), "which was never fired"),
        (of(RUN, CLOSED, FIRED), "was closed by event 2, then came"),
        (of(RUN, FIRED, replace(FIRED, detail={**FIRED.detail, "instance": "j"}), CLOSED), "for two instances"),
        (of(replace(RUN, reason="other")), "the journal told"),
        (ManagerJournal(runs=(RUN, replace(RUN, created_at=1.0)), events=(FIRED, CLOSED)), "before r had ended"),
    ],
)
def test_a_false_status_of_the_manager_is_reported(journal: ManagerJournal, sentence: str) -> None:
    assert sentence in decision(journal)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (ClientState(answers=(replace(ANSWERED, outcome=None),)), "it has come to nothing"),
        (ClientState(answers=(replace(ANSWERED, outcome=Outcome.STOPPED),)), "the manager has it as finished"),
        (ClientState(answers=(ANSWERED, replace(ANSWERED, attempt=2))), "finished run r twice"),
        (ClientState(), "of which its journal knows nothing"),
    ],
)
def test_a_false_status_of_a_client_is_reported(facts: ClientState, sentence: str) -> None:
    assert sentence in decision(JOURNAL, facts)
