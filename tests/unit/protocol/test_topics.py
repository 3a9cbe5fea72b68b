"""Topics to text and back, and who may be named in them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedops_mqtt.protocol import (
    Channel,
    IdentityError,
    Topic,
    TopicError,
    check_task_id,
    filter_for,
    level_to_mac,
    mac_to_level,
    normalise_mac,
    parse_topic,
    topics,
)

names = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True).filter(lambda name: name.strip("."))
macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
every_topic = st.one_of(
    st.builds(topics.client_status, names, macs),
    st.builds(topics.client_start, names, macs),
    st.builds(topics.client_stop, names, macs),
    st.builds(topics.client_metrics, names, macs),
    st.builds(topics.server_status, names),
    st.builds(topics.server_metrics, names),
    st.builds(topics.run_status, names, names),
    st.just(topics.manager_status()),
)


@given(every_topic)
def test_parse_of_text_is_the_topic(topic: Topic) -> None:
    assert parse_topic(str(topic)) == topic


@given(every_topic)
def test_a_topic_is_matched_by_the_filter_of_its_channel(topic: Topic) -> None:
    text, pattern = str(topic).split("/"), filter_for(topic.channel).split("/")
    assert len(text) == len(pattern)
    assert all(wanted in ("+", level) for level, wanted in zip(text, pattern, strict=True))


@given(
    st.text(max_size=80) | st.lists(st.sampled_from(["fedops", "v1", "v2", "clients", "status", "a", ""])).map("/".join)
)
def test_any_text_is_a_topic_or_our_error(text: str) -> None:
    with contextlib.suppress(TopicError):
        assert str(parse_topic(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "fedops/v2/t/server/status",
        "fedops/v1/t/clients/AA-BB-CC-DD-EE-FF/status",
        "fedops/v1/t/clients/aa:bb:cc:dd:ee:ff/status",
        "fedops/v1/t/clients/aa-bb-cc-dd-ee-ff/start/now",
        "fedops/v1/../server/status",
        "fedops/v1/t u/server/status",
        "$SYS/broker/uptime",
    ],
)
def test_other_topics_are_refused(text: str) -> None:
    with pytest.raises(TopicError):
        parse_topic(text)


@pytest.mark.parametrize("task_id", ["", "a/b", "a+b", "#", "a b", "x" * 65, ".", "..", "é", "a\n"])
def test_a_task_id_that_would_break_topics_or_paths_is_refused(task_id: str) -> None:
    with pytest.raises(IdentityError):
        check_task_id(task_id)


@given(macs)
def test_a_mac_as_a_topic_level_comes_back(mac: str) -> None:
    assert level_to_mac(mac_to_level(mac)) == mac


@pytest.mark.parametrize("typed", ["AA:BB:CC:DD:EE:FF", "aa-bb-cc-dd-ee-ff", "aabb.ccdd.eeff", "aabbccddeeff"])
def test_every_usual_spelling_of_a_mac_is_one_mac(typed: str) -> None:
    assert normalise_mac(typed) == "aa:bb:cc:dd:ee:ff"


def test_only_statuses_are_retained() -> None:
    retained = {channel for channel in Channel if channel.is_retained}
    assert retained == {Channel.CLIENT_STATUS, Channel.SERVER_STATUS, Channel.RUN_STATUS, Channel.MANAGER_STATUS}
