"""The runs that are not archived, as they are now, and what of it the journal does not hold yet.

Nothing is done about a run before `take_batch` was written.
"""

from collections.abc import Callable, Iterator, Sequence

from fedops_mqtt.core.run import Run, apply_all
from fedops_mqtt.core.run_events import RunEvent
from fedops_mqtt.manager.journal import Batch, JournaledRun, JournalEvent
from fedops_mqtt.manager.run_history import tell
from fedops_mqtt.manager.tasks import TaskConfig
from fedops_mqtt.protocol import ClientMetrics, ServerMetrics

_MAX_ROUND = 2**31 - 1
"""Of the journal's columns, in a database that counts the bits."""


class OpenRuns:
    """Open runs; `listener`, when there is one, is told the id of each that is not as it was."""

    def __init__(self, runs: Sequence[JournaledRun]) -> None:
        self.listener: Callable[[str], None] = lambda run_id: None
        self._runs = {each.run.run_id: each.run for each in runs}
        self._kept = {each.run.run_id: each for each in runs}
        self._batch = Batch()

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def __getitem__(self, run_id: str) -> Run:
        return self._runs[run_id]

    def get(self, run_id: str) -> Run | None:
        """Return an open run."""
        return self._runs.get(run_id)

    def secret(self, run_id: str) -> bytes:
        """Return a run's secret; empty for an adopted one."""
        return self._kept[run_id].secret if run_id in self._kept else b""

    def task(self, run_id: str) -> TaskConfig | None:
        """Return a run's task as it was when the run began; None where an older program did not keep it."""
        return self._kept[run_id].task if run_id in self._kept else None

    def of_task(self, task_id: str) -> list[Run]:
        """Return a task's open runs, ended ones included."""
        return [run for run in self._runs.values() if run.spec.task_id == task_id]

    def active(self, task_id: str) -> Run | None:
        """Return the run of a task that has not ended; there is at most one."""
        return next((run for run in self.of_task(task_id) if not run.has_ended), None)

    def add(self, journaled: JournaledRun) -> None:
        """Take in a run that is in the journal."""
        run_id = journaled.run.run_id
        self._runs[run_id], self._kept[run_id] = journaled.run, journaled
        self.listener(run_id)

    def drop(self, run_id: str) -> None:
        """Let go of a run that is archived."""
        self._runs.pop(run_id, None)
        self._kept.pop(run_id, None)

    def apply(self, run_id: str, events: Sequence[RunEvent], now: float) -> None:
        """Apply what happened to a run, and remember it for the journal."""
        before = self._runs.get(run_id)
        if before is None:
            return
        after = apply_all(before, events, now)
        if after == before:
            return
        self._runs[run_id] = after
        written = self._batch.runs[run_id][0] if run_id in self._batch.runs else before
        self._batch.runs[run_id] = (written, after)
        self._batch.events.extend(tell(before, after, events, now))
        self.listener(run_id)

    def note(self, event: JournalEvent) -> None:
        """Remember something that is about no run."""
        self._batch.events.append(event)

    def note_round(self, said: ServerMetrics, now: float) -> None:
        """Remember a round's numbers, if the run is ours and of the task whose server it is."""
        run = self._runs.get(said.run_id)
        if run is not None and run.spec.task_id == said.task_id and max(said.round, said.launch) <= _MAX_ROUND:
            row = said.model_dump(
                include={"run_id", "launch", "round", "metrics", "duration_s", "bytes_in", "bytes_out"}
            )
            self._batch.rounds.append({**row, "gl_model": said.gl_model, "at": now})

    def note_metrics(self, said: ClientMetrics, now: float) -> None:
        """Remember a client's numbers, under a run only where the client is a member of it.

        Those of a training without a manager's run are the client's own; a client that names a run of others is not
        believed.
        """
        run = self._runs.get(said.run_id or "")
        if run is not None and (run.spec.task_id != said.task_id or said.client_mac not in run.members):
            return
        row = said.model_dump(include={"task_id", "client_mac", "round", "values"})
        row["run_id"] = run.run_id if run is not None else None
        self._batch.client_metrics.append({**row, "kind": said.kind.value, "at": now})

    def take_batch(self) -> Batch:
        """Return what has to be written now, and begin a new batch."""
        batch, self._batch = self._batch, Batch()
        return batch
