from hypothesis import given
from hypothesis import strategies as st

from fedops_mqtt.core.term import next_term


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_term_is_above_the_last_and_not_below_the_clock(persisted: int, unix_s: int) -> None:
    assert next_term(persisted, unix_s) > persisted
    assert next_term(persisted, unix_s) >= unix_s
