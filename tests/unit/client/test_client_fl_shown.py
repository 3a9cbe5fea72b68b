"""What W&B shows of a round: both of its messages, its time, and the bytes that are its own."""

from fedops_mqtt.line.runner import MessageAnswered
from fedops_mqtt.training.run import ShownRounds


def answered(kind: str, round_: int) -> MessageAnswered:
    return MessageAnswered(kind=kind, round=round_, seconds=2.0, metrics={f"{kind}_loss": 0.5})


def test_a_rounds_time_and_bytes_are_its_own() -> None:
    rounds = ShownRounds()
    trained = rounds.show(answered("train", 1), began_at=10.0, now=13.0, bytes_so_far=(100, 90))
    assert trained == {
        "train_loss": 0.5,
        "train_seconds": 2.0,
        "round_seconds": 3.0,
        "bytes_in": 100,
        "bytes_out": 90,
        "round": 1,
    }
    evaluated = rounds.show(answered("evaluate", 1), began_at=14.0, now=16.5, bytes_so_far=(200, 95))
    assert (evaluated["round_seconds"], evaluated["bytes_in"], evaluated["bytes_out"]) == (6.5, 200, 95)
    after = rounds.show(answered("train", 2), began_at=20.0, now=22.5, bytes_so_far=(300, 185))
    assert (after["round_seconds"], after["bytes_in"], after["bytes_out"], after["round"]) == (2.5, 100, 90, 2)
