"""Messages on their way to nodes and the replies to them. Pure: no clock, lock or socket.

Every message gets exactly one reply in the end: the node's, or a Flower Error that the line makes for it. A node's own
reply that comes late still replaces that Error, as long as it was not collected.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Error, Message

from fedops_mqtt.line import flwr_private
from fedops_mqtt.line.codec import Frame
from fedops_mqtt.line.reply_check import ReplyCheck


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundMessage:
    """A message to one node, encoded; `message` is kept for what a reply has to refer to."""

    message_id: str
    node_id: int
    message: Message
    frame: Frame
    round: int | None = None
    posted_at: float = 0.0
    """Monotonic seconds."""
    check: ReplyCheck | None = None
    """What its reply has to be; None: whatever the line can carry."""


class MessageQueue:
    """What is outstanding, per node in order, and what has been answered and not yet collected."""

    def __init__(self) -> None:
        self._messages: dict[str, OutboundMessage] = {}
        self._queues: dict[int, list[str]] = {}
        self._replies: dict[str, Message] = {}
        self._last_answered: dict[int, str] = {}

    def post(self, outbound_message: OutboundMessage) -> None:
        """Queue a message for its node."""
        self._messages[outbound_message.message_id] = outbound_message
        self._queues.setdefault(outbound_message.node_id, []).append(outbound_message.message_id)

    def head(self, node_id: int) -> OutboundMessage | None:
        """Return the message that a node has to answer next; it stays until it is answered."""
        queue = self._queues.get(node_id)
        return self._messages[queue[0]] if queue else None

    def outbound_message(self, message_id: str) -> OutboundMessage | None:
        """Return a message that is outstanding."""
        return self._messages.get(message_id)

    def expects(self, node_id: int, message_id: str) -> bool:
        """Return whether a node's reply to this message would be taken."""
        outbound_message = self._messages.get(message_id)
        return (
            outbound_message is not None
            and outbound_message.node_id == node_id
            and not self._is_answered_by_node(message_id)
        )

    def was_answered(self, node_id: int, message_id: str) -> bool:
        """Return whether this is the message that the node answered last: its repetition is no news."""
        return self._last_answered.get(node_id) == message_id

    def answer(self, node_id: int, message_id: str, reply: Message) -> bool:
        """Take a node's reply; False if it is not waited for (any more)."""
        if not self.expects(node_id, message_id):
            return False
        self._last_answered[node_id] = message_id
        self._settle(self._messages[message_id], reply)
        return True

    def fail(self, node_id: int, reason: str) -> int:
        """Answer everything a node still owes with a Flower Error; returns how many messages that were."""
        queue = list(self._queues.get(node_id, ()))
        for message_id in queue:
            self._settle_with_error(self._messages[message_id], reason)
        return len(queue)

    def refuse(self, outbound_message: OutboundMessage, reason: str) -> None:
        """Answer a message to a node that is not there, without queueing it."""
        self._messages[outbound_message.message_id] = outbound_message
        self._settle_with_error(outbound_message, reason)

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Forget messages: their late replies will not be taken."""
        for message_id in message_ids:
            outbound_message = self._messages.pop(message_id, None)
            self._replies.pop(message_id, None)
            if outbound_message is not None:
                self._unqueue(outbound_message)

    def owing(self, message_ids: Iterable[str]) -> list[OutboundMessage]:
        """Return the messages among these that are not answered."""
        return [self._messages[i] for i in message_ids if i in self._messages and i not in self._replies]

    def collect(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there; the queue keeps nothing of them."""
        done = [message_id for message_id in message_ids if message_id in self._replies]
        replies = [self._replies[message_id] for message_id in done]
        self.withdraw(done)
        return replies

    @property
    def is_empty(self) -> bool:
        """True when nothing is outstanding or waiting to be collected."""
        return not self._messages

    def _is_answered_by_node(self, message_id: str) -> bool:
        outbound_message, reply = self._messages[message_id], self._replies.get(message_id)
        return reply is not None and self._last_answered.get(outbound_message.node_id) == message_id

    def _settle_with_error(self, outbound_message: OutboundMessage, reason: str) -> None:
        self._settle(
            outbound_message, Message(Error(flwr_private.NODE_UNAVAILABLE, reason), reply_to=outbound_message.message)
        )

    def _settle(self, outbound_message: OutboundMessage, reply: Message) -> None:
        self._replies[outbound_message.message_id] = reply
        self._unqueue(outbound_message)

    def _unqueue(self, outbound_message: OutboundMessage) -> None:
        queue = self._queues.get(outbound_message.node_id, [])
        if outbound_message.message_id in queue:
            queue.remove(outbound_message.message_id)
