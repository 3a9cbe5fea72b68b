"""The number that says how a model does, whatever its app calls it."""

from fedops_mqtt.core.run import ACCURACY, LOSS, measure, measure_name


def test_accuracy_is_found_under_its_own_name_first() -> None:
    assert measure({"eval_accuracy": 0.5, "accuracy": 0.9}, ACCURACY) == 0.9
    assert measure({"eval_accuracy": 0.5, "accuracy": None}, ACCURACY) == 0.5
    assert measure({"loss": 1.0}, ACCURACY) is None


def test_of_several_names_the_shortest_counts_and_then_the_first() -> None:
    assert measure_name({"train_loss": 1.0, "eval_loss": 2.0, "test_loss": 3.0}, LOSS) == "eval_loss"
