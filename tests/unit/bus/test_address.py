"""Broker URLs, back-off and the choice of MQTT version."""

import re
import traceback
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedops_mqtt.bus.address import (
    BusOptions,
    VersionChoice,
    client_id_of,
    make_tls_context,
    parse_broker_url,
    parse_broker_urls,
    without_password,
)
from fedops_mqtt.bus.errors import BrokerUrlError
from fedops_mqtt.runtime.backoff import Backoff
from fedops_mqtt.runtime.settings import BusSettings


@pytest.mark.parametrize(
    ("url", "host", "port", "is_tls"),
    [
        ("mqtt://localhost", "localhost", 1883, False),
        ("mqtts://broker.example.org", "broker.example.org", 8883, True),
        ("mqtt://10.0.0.1:2883/", "10.0.0.1", 2883, False),
        ("mqtts://[::1]:9", "::1", 9, True),
    ],
)
def test_a_url_is_taken_apart(url: str, host: str, port: int, is_tls: bool) -> None:
    address = parse_broker_url(url)
    assert (address.host, address.port, address.is_tls) == (host, port, is_tls)


def test_user_and_password_may_hold_any_character() -> None:
    address = parse_broker_url("mqtt://al%40ice:p%3A%2Fw@host")
    assert (address.user, address.password) == ("al@ice", "p:/w")


def test_a_password_is_never_shown() -> None:
    address = parse_broker_url("mqtt://alice:hush@host")
    assert "hush" not in f"{address!r} {address} {BusOptions(password='hush')!r}"
    with pytest.raises(BrokerUrlError) as caught:
        parse_broker_url("http://alice:hush@host")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["mqtt://", "mqtts://", "http://", "", "mqtt:", "mqtt:/"])
@pytest.mark.parametrize(
    "rest",
    ["u:S3cr#et@h", "u:S3cr/et@h", "u:S3cr?et@h", "u:S3cr@#et@h:1", "u:#S3cret@h", "u:S3cr[et@h", "u:S3cr]et@h:x",
     "u:S3cr\N{FULLWIDTH NUMBER SIGN}et@h", "S3cr#et@h", "u:S3cr://et@h:x", "u:S3cr#et", "u:S3cret@h:port"],
)  # fmt: skip
def test_no_part_of_a_password_is_in_an_error(scheme: str, rest: str) -> None:
    with pytest.raises(BrokerUrlError) as caught:
        parse_broker_url(scheme + rest)
    shown = "".join(traceback.format_exception(caught.value))
    assert not re.search("S3cr|et@|et$|#et", str(caught.value))
    assert "S3cr" not in shown


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "localhost:1883", "http://host", "mqtt://", "mqtt://:1883", "mqtt://h:0", "mqtt://h:99999",
     "mqtt://h:x", "mqtt://h/path", "mqtt://h?x=1", "mqtt://a..b", f"mqtt://{'a' * 64}", "mqtt://[::1"],
)  # fmt: skip
def test_what_is_no_broker_url(url: str) -> None:
    with pytest.raises(BrokerUrlError, match="expected mqtt://"):
        parse_broker_url(url)


def test_several_urls_have_a_comma_between_them_and_keep_their_order() -> None:
    several = parse_broker_urls("mqtts://a, mqtt://al,ice:p%2Cw@b:9,mqtts://a")
    assert [str(each) for each in several] == ["mqtts://a:8883", "mqtt://b:9"]
    assert several[1].password == "p,w"


@pytest.mark.parametrize(
    "urls", ["mqtt://a,b", "mqtt://a,", "mqtt://a,,mqtt://b", "mqtt://a,http://b", ",mqtt://a", ""]
)
def test_what_is_no_list_of_broker_urls(urls: str) -> None:
    with pytest.raises(BrokerUrlError, match="expected mqtt://"):
        parse_broker_urls(urls)


def test_no_password_of_several_urls_is_shown() -> None:
    assert without_password("mqtt://u:hush@a,mqtts://u:hu,sh@b:9") == "mqtt://a,mqtts://b:9"


@given(st.text(max_size=40).map("mqtt://{}".format) | st.text(max_size=40))
def test_any_text_is_an_address_or_our_error(url: str) -> None:
    with suppress(BrokerUrlError):
        assert 0 < parse_broker_url(url).port < 65536


def test_a_missing_ca_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokerUrlError, match="nowhere"):
        make_tls_context(parse_broker_url("mqtts://host"), BusOptions(ca_file=tmp_path / "nowhere"))


def test_certificates_for_a_plain_url_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(BrokerUrlError, match="use mqtts"):
        make_tls_context(parse_broker_url("mqtt://host"), BusOptions(ca_file=tmp_path / "ca"))


def test_options_come_from_settings_with_the_same_defaults() -> None:
    assert BusOptions.from_settings(BusSettings()) == BusOptions()


@given(st.integers(0, 2**32), st.integers(1, 200))
def test_waits_are_full_jitter_under_a_capped_bound(seed: int, num_waits: int) -> None:
    backoff = Backoff(initial_s=0.5, max_s=30.0, draw=Random(seed))
    waits = [backoff.next_wait_s() for _ in range(num_waits)]
    assert all(0 <= wait <= min(30.0, 0.5 * 2**n) for n, wait in enumerate(waits))
    backoff.reset()
    assert backoff.next_wait_s() <= 0.5


def test_clients_of_one_broker_draw_waits_that_are_spread_over_the_whole_bound() -> None:
    waits = [Backoff(initial_s=4.0, max_s=4.0).next_wait_s() for _ in range(1000)]
    in_quarters = [sum(quarter <= wait < quarter + 1 for wait in waits) for quarter in range(4)]
    assert min(in_quarters) > 150  # seven standard deviations below what is expected


def test_311_follows_a_refused_5_once_and_5_is_asked_again() -> None:
    choice = VersionChoice(is_mqtt5_tried=True)
    assert choice.is_mqtt5
    assert choice.failed(is_version_doubtful=True)
    assert not choice.is_mqtt5
    assert not choice.failed(is_version_doubtful=True)
    assert choice.is_mqtt5


def test_an_ended_311_connection_is_followed_by_5() -> None:
    choice = VersionChoice(is_mqtt5_tried=True)
    choice.failed(is_version_doubtful=True)
    choice.ended()
    assert choice.is_mqtt5


def test_a_broker_that_is_away_is_no_reason_for_311() -> None:
    choice = VersionChoice(is_mqtt5_tried=True)
    assert not choice.failed(is_version_doubtful=False)
    assert choice.is_mqtt5


def test_311_from_the_start_stays_311() -> None:
    choice = VersionChoice(is_mqtt5_tried=False)
    assert not choice.failed(is_version_doubtful=True)
    assert not choice.is_mqtt5


@pytest.mark.parametrize("name", ["aa-bb-cc-dd-ee-ff", "digits-02-00-00-00-00-01", "Lab_7", "x" * 100])
def test_a_plain_name_is_its_own_client_id(name: str) -> None:
    assert client_id_of(name) == name


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_client_id_has_letters_digits_hyphens_and_underscores_and_is_as_unique_as_its_name(a: str, b: str) -> None:
    ids = [client_id_of(a), client_id_of(b)]
    assert all(re.fullmatch("[A-Za-z0-9_-]+", each or "") for each in ids)
    assert (a == b) == (ids[0] == ids[1])
    assert client_id_of("task.a") != client_id_of("task_a")


def test_no_name_leaves_the_client_id_to_the_broker() -> None:
    assert client_id_of(None) is None
