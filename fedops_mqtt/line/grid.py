"""The Grid that Flower strategies of both families work on, fed by the line.

It never waits for ever: a message is answered within the round limit whatever the strategy asks for, and too few
clients for longer than the join limit end the run with an error from `get_node_ids`. Its errors are `BaseException`s,
as Flower's own end of a run is, so that no strategy's `except Exception` takes them for a failed client.
"""

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedops_mqtt.line import flwr_private
from fedops_mqtt.line.codec import EncodedContent, encode_content, encode_error, encode_message
from fedops_mqtt.line.errors import MessageTooLargeError
from fedops_mqtt.line.identity import flower_run_id_of
from fedops_mqtt.line.message_queue import OutboundMessage
from fedops_mqtt.line.records import CompressOnce, CycleCollector
from fedops_mqtt.line.reply_check import ReplyCheck, refusal_of
from fedops_mqtt.line.rounds import kind_of, round_of
from fedops_mqtt.line.run_state import RunState
from fedops_mqtt.line.wire import LineCompression, LineLimits
from fedops_mqtt.protocol import Outcome, ReasonCode, RunOutcome

_log = logging.getLogger(__name__)
_MAX_FAILURES = 5
_PREFIX_BYTES = 4
"""Message ids start with a random prefix: a relaunched server never takes a reply to its predecessor's message."""


class RunEndedError(flwr_private.RunNotRunningException):
    """The run cannot go on, and what to report of it (a BaseException, see the module)."""

    def __init__(self, outcome: RunOutcome, reason: str, reason_code: ReasonCode | None = None) -> None:
        self.outcome = outcome
        self.reason = reason
        self.reason_code = reason_code
        super().__init__(f"run {outcome}: {reason}")


class BelowQuorumError(RunEndedError):
    """Not enough clients within a limit (None: no others can come); `missing` lists how each of the others left."""

    def __init__(self, present: int, needed: int | None, limit_s: float | None, missing: list[str]) -> None:
        self.present = present
        self.needed = needed
        self.missing = missing
        wanted = "the strategy waits for more" if needed is None else f"{needed} needed"
        suffix = f"; absent: {', '.join(missing)}" if missing else ""
        when = "left" if limit_s is None else f"after {limit_s:g} s"
        reason = f"too few clients: {present} {when}, {wanted}{suffix}"
        super().__init__(RunOutcome.FAILED, reason, ReasonCode.TOO_FEW_CLIENTS)


class TrainingSeen:
    """What a run's training messages came to, whoever sent them: a strategy of either family, a loop of its own."""

    def __init__(self) -> None:
        self.num_sent = 0
        self.num_answered = 0
        """Replies that are no errors."""
        self.has_arrays = False
        """A reply had arrays in it: a stage of secure aggregation has none."""
        self.round = 0
        """The last round with such a reply; messages that name no round count as one more each time all are over."""
        self.wants_model = False
        self.first_model: bytes | None = None
        """Where it is wanted, the digest (`digest_of`) of the first model that was sent."""
        self.failures: list[str] = []
        """What was answered in the place of results, each text once; the first few."""
        self._rounds: dict[str, int] = {}
        self._unnumbered = 0

    def sent(self, outbound_messages: Iterable[OutboundMessage]) -> None:
        """Messages go out."""
        mine = [
            outbound_message for outbound_message in outbound_messages if kind_of(outbound_message.message) == "train"
        ]
        if mine and not self._rounds and mine[0].round is None:
            self._unnumbered += 1
        for outbound_message in mine:
            self.num_sent += 1
            self._rounds[outbound_message.message_id] = (
                self._unnumbered if outbound_message.round is None else outbound_message.round
            )
            if self.wants_model and self.first_model is None:
                records = (
                    outbound_message.message.content.values()
                )  # not `.array_records`: a reference cycle around the arrays
                self.first_model = next((digest_of(each) for each in records if isinstance(each, ArrayRecord)), None)

    def over(self, message_ids: Iterable[str], replies: Iterable[Message]) -> None:
        """Nobody waits for replies to these any longer; these are the replies that came."""
        for reply in replies:
            round_ = self._rounds.get(reply.metadata.reply_to_message_id)
            if round_ is None:
                continue
            if reply.has_error():
                reason = reply.error.reason or f"error {reply.error.code} without a reason"
                if reason not in self.failures and len(self.failures) < _MAX_FAILURES:
                    self.failures.append(reason)
            else:
                self.num_answered += 1
                self.has_arrays = self.has_arrays or any(
                    isinstance(record, ArrayRecord) for record in reply.content.values()
                )
                self.round = max(self.round, round_)
        for message_id in message_ids:
            self._rounds.pop(message_id, None)


def digest_of(record: ArrayRecord) -> bytes:
    """Return what is the same for two models of the same arrays in the same order, whatever their names."""
    digest = hashlib.blake2b()
    for array in record.values():
        digest.update(hashlib.blake2b(array.data).digest())
    return digest.digest()


class LineGrid(Grid):
    """`flwr.serverapp.Grid` over one line; made by LineServer.

    `on_round` gets each new round as it is sent. `max_clients`, where it is given, is how many ever come: once they
    came, none replaces one that has ended, and one that is lost is waited for no longer than the rejoin limit.
    """

    def __init__(
        self,
        *,
        run_state: RunState,
        run_id: str,
        limits: LineLimits,
        min_clients: int = 1,
        max_clients: int | None = None,
        compression: LineCompression | None = None,
        on_round: Callable[[int], None] | None = None,
    ) -> None:
        self._run_state = run_state
        self._max_clients = max_clients
        self._run = flwr_private.make_run(flower_run_id_of(run_id))
        self._limits = limits
        self._min_clients = min_clients
        self._compress = CompressOnce(compression)
        self._on_round = on_round
        self.reply_check: ReplyCheck | None = None
        """What the replies to messages from now on have to be; set by whoever runs a strategy."""
        self._prefix = secrets.token_hex(_PREFIX_BYTES)
        self._lock = threading.Lock()
        self._garbage = CycleCollector()
        self._num_messages = 0
        self._round: int | None = None
        self._run_deadline = time.monotonic() + limits.run_s
        self._short_since: float | None = None
        self._asked_since: float | None = None
        self._owner = threading.get_ident()
        self.training = TrainingSeen()
        flwr_private.set_identity(run_id=self._run.run_id, node_id=flwr_private.SERVER_NODE_ID)

    def set_run(self, run: flwr_private.Run) -> None:
        """Take another `Run` to show (Flower's ServerApp runner calls this); nothing else changes."""
        self._run = run

    @property
    def run(self) -> flwr_private.Run:
        """The run; `start_grid` reads its id."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message, as Flower's Grid does (Flower 1.41 Grid.create_message)."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """Return who can be given work right now; waits for the minimum first, up to the join limit.

        Raises:
            BelowQuorumError: the minimum is not there (any more) within the join limit.
            RunEndedError: the run was interrupted, or is over its limit.
        """
        with self._lock:  # strategies ask between their phases: a good moment
            self._garbage.look(sum(member.bytes_in for member in self._run_state.members.values()))
        return self.wait_for_clients(self._min_clients, is_minimum=True)

    def wait_for_clients(self, num_clients: int, *, is_minimum: bool = False) -> list[int]:
        """Wait until `num_clients` are present, up to the join limit; return who is there. Raises as get_node_ids."""
        now = time.monotonic()
        nodes = self._run_state.present_node_ids()
        if len(nodes) >= num_clients:
            self._short_since = None
        else:
            since = self._short_since = self._short_since or now

            def deadline() -> float:
                return min(self._gives_up_at(since, num_clients), self._run_deadline)

            nodes = self._run_state.wait_for_present(num_clients, deadline, max_clients=self._max_clients)
        self._check_running()
        if len(nodes) < num_clients:
            raise self._too_few(len(nodes), num_clients)
        self._short_since = None
        if is_minimum:
            self._check_progress(now, len(nodes))
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages for their nodes; content that several of them share is encoded once. Returns their ids.

        Raises:
            MessageTooLargeError: a message is over the line's limit.
            RunEndedError: as for `get_node_ids`.
        """
        self._check_running()
        outbound_messages = list(self._outbound(messages))
        with self._lock:
            self.training.sent(outbound_messages)
        self._run_state.post(outbound_messages)
        self._asked_since = None
        return [outbound_message.message_id for outbound_message in outbound_messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Take the replies that are there; the round limit holds here too.

        Raises:
            RunEndedError: as for `get_node_ids`.
        """
        self._check_running()
        ids = list(message_ids)
        self._drop_overdue([x for x in self._run_state.owing(ids) if time.monotonic() >= self._round_deadline(x)])
        replies = self._run_state.collect(ids)
        with self._lock:
            self.training.over([reply.metadata.reply_to_message_id for reply in replies], replies)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Queue messages and wait for the replies (Flower 1.41 Grid.send_and_receive).

        A client that is offline is answered for with a Flower Error. What is not answered within `timeout` is left
        out of the result; what is not answered within the round limit is an Error, and its client is dropped.

        Raises:
            MessageTooLargeError, RunEndedError: as for `push_messages`.
        """
        messages = list(messages)
        started = time.monotonic()
        limits_s = [message.metadata.ttl for message in messages] + ([timeout] if timeout is not None else [])
        ids = self.push_messages(messages)
        round_deadline = started + self._limits.round_s
        strategy_deadline = started + min(limits_s, default=self._limits.round_s)
        owed = self._run_state.wait_for_replies(ids, min(strategy_deadline, round_deadline, self._run_deadline))
        self._check_running()
        if owed and round_deadline <= strategy_deadline:
            self._drop_overdue(owed)
        replies = self._drop_odd_ones(messages, self._run_state.collect(ids))
        self._run_state.withdraw(ids)
        with self._lock:
            self.training.over(ids, replies)
        return replies

    def _drop_odd_ones(self, messages: list[Message], replies: list[Message]) -> list[Message]:
        """Replies that would fail the strategy for everybody become errors; clients whose updates they are fail."""
        odd = self.reply_check.odd_ones(messages, replies) if self.reply_check is not None else {}
        asked = {message.metadata.message_id: message for message in messages} if odd else {}
        macs = {member.node_id: member.mac for member in self._run_state.members.values()} if odd else {}
        kept = [reply for reply in replies if reply.metadata.reply_to_message_id not in odd]
        for message_id, problem in odd.items():
            sent = asked[message_id]
            mac, reason = macs[sent.metadata.dst_node_id], refusal_of(sent, problem)
            _log.warning("reply refused", extra={"client_mac": mac, "reason": reason})
            if kind_of(sent) == "train":
                self._run_state.drop(mac, Outcome.FAILED, reason)
            kept.append(Message(Error(flwr_private.CLIENT_APP_RAISED, f"{mac}: {reason}"), reply_to=sent))
        return kept

    def _outbound(self, messages: Iterable[Message]) -> Iterator[OutboundMessage]:
        encoded: dict[int, tuple[RecordDict, EncodedContent]] = {}
        if self._run_state.is_idle():
            self._compress.forget()
        for message in messages:
            message_id = self._next_id()
            flwr_private.stamp(
                message, message_id=message_id, run_id=self._run.run_id, src_node_id=flwr_private.SERVER_NODE_ID
            )
            frame = encode_message(message, self._encode_once(message, encoded))
            if frame.message_bytes > self._limits.max_message_bytes:
                raise MessageTooLargeError(frame.message_bytes, self._limits.max_message_bytes)
            yield OutboundMessage(
                message_id=message_id,
                node_id=message.metadata.dst_node_id,
                message=message,
                frame=frame,
                round=self._enter_round(round_of(message)),
                posted_at=time.monotonic(),
                check=self.reply_check,
            )

    def _encode_once(self, message: Message, encoded: dict[int, tuple[RecordDict, EncodedContent]]) -> EncodedContent:
        """Encode content by identity: message strategies send the same RecordDict to every node.

        (Classic ones send the same arrays in a record of its own to each, from many threads: nothing is encoded there
        but the small header, and `self._compress` compresses each array once.)
        """
        if message.has_error():
            return encode_error(message.error)
        content = message.content
        if id(content) not in encoded:
            encoded[id(content)] = (content, encode_content(content, self._compress))
        return encoded[id(content)][1]

    def _next_id(self) -> str:
        with self._lock:
            self._num_messages += 1
            return f"{self._prefix}-{self._num_messages}"

    def _enter_round(self, round_: int | None) -> int | None:
        if round_ is not None and round_ != self._round:
            self._round = round_
            if self._on_round is not None:
                self._on_round(round_)
        return round_

    def _round_deadline(self, outbound_message: OutboundMessage) -> float:
        return outbound_message.posted_at + self._limits.round_s

    def _drop_overdue(self, outbound_messages: list[OutboundMessage]) -> None:
        macs = {member.node_id: member.mac for member in self._run_state.members.values()}
        for outbound_message in outbound_messages:
            reason = f"no reply within the round limit of {self._limits.round_s:g} s"
            self._run_state.drop(macs[outbound_message.node_id], Outcome.FAILED, reason)

    def _check_running(self) -> None:
        if (over := self._run_state.over) is not None:
            raise RunEndedError(over.outcome, over.reason)
        if time.monotonic() >= self._run_deadline:
            raise RunEndedError(RunOutcome.FAILED, f"run is over its limit of {self._limits.run_s:g} s")

    def _check_progress(self, now: float, present: int) -> None:
        """End a strategy's own endless wait for more clients than our minimum (`sample_nodes` asks once a second).

        Only the thread that runs the strategy is judged: classic Flower asks from a thread of its own, all the time.
        """
        if threading.get_ident() != self._owner:
            return
        self._asked_since = self._asked_since or now
        if now - self._waiting_since(self._asked_since) > self._limits.join_s:
            raise self._too_few(present, None)

    def _waiting_since(self, began: float) -> float:
        # A client that still receives the run's app cannot have joined yet, however slow its link is.
        return max(began, self._run_state.app_sent_at)

    def _gives_up_at(self, began: float, num_clients: int) -> float:
        began = self._waiting_since(began)
        missing_since = self._run_state.missing_since(num_clients, self._max_clients)
        if missing_since is None:
            return began + self._limits.join_s
        return max(began, missing_since) + self._limits.rejoin_s

    def _too_few(self, present: int, needed: int | None) -> BelowQuorumError:
        absent = [
            f"{member.mac} ({member.reason or member.outcome or member.phase})"
            for member in self._run_state.members.values()
            if not member.is_present
        ]
        limit_s: float | None = self._limits.join_s
        if needed is not None and self._run_state.is_hopeless(needed, self._max_clients):
            limit_s = None
        elif needed is not None and self._run_state.missing_since(needed, self._max_clients) is not None:
            limit_s = self._limits.rejoin_s
        return BelowQuorumError(present, needed, limit_s, absent)
