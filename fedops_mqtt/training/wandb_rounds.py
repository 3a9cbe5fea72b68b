"""What W&B shows of a client's rounds: training and evaluation of one round come together there. Pure."""

from fedops_mqtt.line.runner import MessageAnswered


class ShownRounds:
    """The rounds of one training, in order."""

    def __init__(self) -> None:
        self._round: int | None = None
        self._began_at = 0.0
        self._before = (0, 0)
        self._told = (0, 0)

    def show(
        self, answered: MessageAnswered, *, began_at: float, now: float, bytes_so_far: tuple[int, int]
    ) -> dict[str, float]:
        """Return the round as it stands after one more answer.

        Args:
            answered: what was answered; its upload is over.
            began_at: when the app began to compute it, monotonic seconds; as `now` is.
            now: when this is shown.
            bytes_so_far: received and sent by the training as a whole.
        """
        round_ = answered.round or 0
        if round_ != self._round:
            self._round, self._began_at, self._before = round_, began_at, self._told
        self._told = bytes_so_far
        bytes_in, bytes_out = (after - before for after, before in zip(bytes_so_far, self._before, strict=True))
        times = {f"{answered.kind}_seconds": answered.seconds, "round_seconds": now - self._began_at}
        return {**answered.metrics, **times, "bytes_in": bytes_in, "bytes_out": bytes_out, "round": round_}
