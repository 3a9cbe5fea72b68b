"""What the replies to a strategy have to be, by its kind, its attributes and the settings."""

from typing import Any

import pytest
from flwr.server.strategy import DifferentialPrivacyServerSideFixedClipping as ClassicPrivacy
from flwr.server.strategy import FedAvg as ClassicFedAvg
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, FedXgbBagging, Krum

from fedops_mqtt.aggregation.run_settings import check_of
from fedops_mqtt.line.reply_check import ReplyCheck
from fedops_mqtt.runtime.settings import ServerSettings

BOTH = frozenset({"train", "evaluate"})


class Own(FedAvg):
    accept_any_shape = True

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return None, None


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (FedAvg(weighted_by_key="n"), ReplyCheck(weight_key="n", averaged=BOTH)),
        (Krum(num_malicious_nodes=0), ReplyCheck(weight_key="num-examples", averaged=BOTH)),
        (FedXgbBagging(), ReplyCheck(weight_key="num-examples", averaged=BOTH)),
        (
            DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 2),
            ReplyCheck(weight_key="num-examples", averaged=BOTH),
        ),
        (Own(), ReplyCheck(any_shape=True, weight_key="num-examples", averaged=frozenset({"evaluate"}))),
        (
            DifferentialPrivacyServerSideFixedClipping(Own(), 1.0, 1.0, 2),
            ReplyCheck(any_shape=True, weight_key="num-examples", averaged=frozenset({"evaluate"})),
        ),
        (ClassicFedAvg(), ReplyCheck(weight_key="num_examples")),
        (ClassicPrivacy(ClassicFedAvg(), 1.0, 1.0, 2), ReplyCheck(weight_key="num_examples")),
        (None, ReplyCheck()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_check_is_made_for_each_kind_of_strategy(strategy: Any, expected: ReplyCheck) -> None:
    assert check_of(strategy, ServerSettings()) == expected


def test_settings_take_more_whatever_the_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDOPS_MQTT_ACCEPT_ANY_SHAPE", "true")
    monkeypatch.setenv("FEDOPS_MQTT_ACCEPT_NONFINITE", "1")
    check = check_of(FedAvg(), ServerSettings())
    assert (check.any_shape, check.nonfinite) == (True, True)
