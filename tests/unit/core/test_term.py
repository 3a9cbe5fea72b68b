from hypothesis import given
from hypothesis import strategies as st

from fedops_mqtt.core.fencing import next_term, start_of


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_term_is_above_the_last_and_not_below_the_clock(persisted: int, unix_s: int) -> None:
    assert next_term(persisted, unix_s) > persisted
    assert next_term(persisted, unix_s) >= unix_s


@given(st.integers(1, 2**30), st.integers(1, 1000), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_higher_term_is_newer_by_any_clock(term: int, more: int, before_ms: int, after_ms: int) -> None:
    assert start_of(term, before_ms) < start_of(term + more, after_ms)


@given(st.integers(1, 2**30), st.integers(0, 999), st.integers(0, 999))
def test_of_two_that_share_no_database_and_begin_in_one_second_the_later_is_newer(unix_s: int, a: int, b: int) -> None:
    first, second = sorted((a, b))
    begun = [start_of(unix_s, unix_s * 1000 + ms) for ms in (first, second)]
    assert begun == sorted(begun)
    assert (begun[0] < begun[1]) == (first < second)
