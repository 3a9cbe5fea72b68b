"""The door: topic strings and bytes become events here, and nothing above the bus ever sees them.

One bad message is counted, logged and dropped; it never ends anything.
"""

import logging
import time
from functools import lru_cache

from fedops_mqtt.bus.events import BusEvent, Cleared, Dropped, Malformed, Received
from fedops_mqtt.core.ownership import latest_epoch
from fedops_mqtt.protocol import MalformedMessageError, OwnedStatus, ProtocolError, decode, parse_topic

logger = logging.getLogger(__name__)

_TOPICS_REMEMBERED = 65_536
"""Parsed topics kept: a fleet says the same few thousand topics again and again, and parsing is half of decoding."""


DROPPED_TOPIC = "$SYS/broker/publish/messages/dropped"
"""mosquitto's own statistic (mosquitto 2, `man 8 mosquitto`), renewed every `sys_interval` (10 s)."""


_EPOCH_OF_ANY_CLOCK = latest_epoch(0)
"""Up to here no clock has to be asked."""


class Intake:
    """Turns what arrives into events.

    Attributes:
        num_malformed: messages dropped since the start.
    """

    def __init__(self) -> None:
        self.num_malformed = 0
        self._topic_of = lru_cache(maxsize=_TOPICS_REMEMBERED)(parse_topic)

    def read(self, topic_text: str, payload: bytes, *, is_retained: bool) -> BusEvent:
        """Return the event that a message from the broker is."""
        if topic_text == DROPPED_TOPIC and payload.isdigit():
            return Dropped(int(payload))
        try:
            topic = self._topic_of(topic_text)
            if not payload and topic.channel.is_retained:
                return Cleared(topic)
            message = decode(topic, payload)
            if isinstance(message, OwnedStatus) and message.epoch > _EPOCH_OF_ANY_CLOCK and not _is_plausible(message):
                raise MalformedMessageError(
                    topic_text, f"epoch: {message.epoch} is over 100 years from now, in Unix ms"
                )
            return Received(topic, message, is_retained)
        except ProtocolError as error:
            return self._drop(topic_text, error)

    def _drop(self, topic_text: str, error: ProtocolError) -> Malformed:
        self.num_malformed += 1
        # A flood of garbage must not become a flood of log lines: the 1st, 2nd, 4th, 8th, … is a warning.
        is_told = self.num_malformed & (self.num_malformed - 1) == 0
        logger.log(
            logging.WARNING if is_told else logging.DEBUG,
            "dropped a message that is not of the protocol",
            extra={"topic": topic_text, "problem": str(error), "dropped_so_far": self.num_malformed},
        )
        return Malformed(topic_text, error)


def _is_plausible(status: OwnedStatus) -> bool:
    return status.epoch <= latest_epoch(time.time_ns() // 1_000_000)
