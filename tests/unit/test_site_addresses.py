"""Several managers in one setting: names, standbys, tokens, and what is refused."""

import pytest

from fedops_mqtt.runtime.settings import CliSettings, ManagerSettings
from fedops_mqtt.runtime.site_addresses import SiteUrlError, parse_sites


@pytest.mark.parametrize(
    ("managers", "sites"),
    [
        ("http://a:1", {"a": ("http://a:1",)}),
        ("http://a:1,https://b", {"a": ("http://a:1",), "b": ("https://b",)}),
        ("http://a:1,http://a:2", {"a:1": ("http://a:1",), "a:2": ("http://a:2",)}),
        ("https://p/north,https://p/south", {"p/north": ("https://p/north",), "p/south": ("https://p/south",)}),
        ("http://[::1]:80,http://127.0.0.1", {"::1": ("http://[::1]:80",), "127.0.0.1": ("http://127.0.0.1",)}),
        ("north=http://a, south = http://b ,", {"north": ("http://a",), "south": ("http://b",)}),
        ("north=http://a,north=http://b", {"north": ("http://a", "http://b")}),
        ("http://a,http://a/,http://a", {"a": ("http://a",)}),
        (["north=http://a", "http://b"], {"north": ("http://a",), "b": ("http://b",)}),
    ],
)
def test_each_site_has_a_name_and_the_urls_of_its_managers(
    managers: str | list[str], sites: dict[str, tuple[str, ...]]
) -> None:
    assert {each.name: each.urls for each in parse_sites(managers)} == sites


@pytest.mark.parametrize(
    "managers",
    ["", " , ", [], "a:1", "htp://a", "http://a,htp://b", "http://a:99999", "http://", "north=http://a,south=http://a"],
)
def test_what_is_no_list_of_managers_is_refused(managers: str | list[str]) -> None:
    with pytest.raises(SiteUrlError):
        parse_sites(managers)


@pytest.mark.parametrize(
    ("token", "tokens"),
    [
        (None, [None, None]),
        ("one", ["one", "one"]),
        ("a=,b=", ["a=,b=", "a=,b="]),  # no site has these names: it is one token
        ("north=x=,south=y", ["x=", "y"]),
        ("south=y", [None, "y"]),
        ("north=x,elsewhere=z", ["x", None]),
        ("YWI=", ["YWI=", "YWI="]),  # base64 ends so
        ("YQ==", ["YQ==", "YQ=="]),
        ("elsewhere=z,nowhere=z", [None, None]),  # tokens of other sites are not sent to these
    ],
)
def test_a_token_is_for_all_sites_or_for_the_site_that_it_names(token: str | None, tokens: list[str | None]) -> None:
    assert [each.token for each in parse_sites("north=http://a,south=http://b", token)] == tokens


@pytest.mark.parametrize("token", ["north=x,secret", "nroth=secret", "nroth=secret==", "secr\u00ebt", "secret\n"])
def test_a_token_of_no_site_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match="token") as refused:
        parse_sites("north=http://a,south=http://b", token)
    assert "secr" not in str(refused.value)


def test_a_token_for_one_site_with_a_mistyped_name_is_sent_to_none() -> None:
    with pytest.raises(ValueError, match="sites: north, south"):
        parse_sites("north=http://a,south=http://b", "nroth=SECRET")
    assert [each.token for each in parse_sites("north=http://a", "a=b")] == ["a=b"]  # there is one site only


def test_a_settings_file_may_have_lists() -> None:
    settings = CliSettings(manager=["north=http://a", "http://b"], manager_token=["north=x", "b=y"])  # type: ignore[arg-type]
    assert settings.manager == "north=http://a,http://b"
    assert settings.manager_token is not None
    assert settings.manager_token.get_secret_value() == "north=x,b=y"


def test_a_manager_does_not_start_with_a_wrong_list_of_sites() -> None:
    assert [each.name for each in ManagerSettings(sites="north=http://a").site_addresses] == ["north"]
    assert ManagerSettings().site_addresses == ()
    with pytest.raises(ValueError, match="sites"):
        ManagerSettings(sites="north=htp://a")
