import pytest

from fedops_mqtt.line.access import Access, check_token, make_token
from fedops_mqtt.line.errors import LineConfigError, LineRefusedError
from fedops_mqtt.line.identity import flower_run_id_of, node_id_of

SECRET = b"0123456789abcdef"
MAC = "aa:bb:cc:dd:ee:01"
OTHER = "aa:bb:cc:dd:ee:02"


def access(**changes: object) -> Access:
    values: dict[str, object] = {"join": "invited", "run_id": "r1", "run_secret": SECRET, "join_token": None}
    return Access(**{**values, "host": "127.0.0.1", **changes})  # type: ignore[arg-type]


def is_let_in(rule: Access, token: str | None, mac: str = MAC) -> bool:
    try:
        rule.check(mac, token)
    except LineRefusedError as error:
        return error.status != 401
    return True


def test_a_token_is_good_for_one_client_in_one_run_only() -> None:
    token = make_token(SECRET, "r1", MAC)
    assert check_token(token, run_secret=SECRET, run_id="r1", client_mac=MAC)
    assert not check_token(token, run_secret=SECRET, run_id="r2", client_mac=MAC)
    assert not check_token(token, run_secret=SECRET, run_id="r1", client_mac=OTHER)
    assert not check_token(token, run_secret=b"another secret..", run_id="r1", client_mac=MAC)
    assert not check_token(None, run_secret=SECRET, run_id="r1", client_mac=MAC)
    assert not check_token("", run_secret=SECRET, run_id="r1", client_mac=MAC)
    assert not check_token("é", run_secret=SECRET, run_id="r1", client_mac=MAC)


def test_an_empty_secret_makes_no_tokens() -> None:
    with pytest.raises(ValueError, match="empty"):
        make_token(b"", "r1", MAC)


def test_an_invited_line_takes_its_own_tokens_only() -> None:
    rule = access(join_token="shared")
    assert is_let_in(rule, make_token(SECRET, "r1", MAC))
    assert not is_let_in(rule, make_token(SECRET, "r1", OTHER))
    assert not is_let_in(rule, "shared")
    assert not is_let_in(rule, None)


def test_an_adopted_server_without_secret_takes_the_join_token() -> None:
    rule = access(run_secret=None, join_token="shared")
    assert is_let_in(rule, "shared")
    assert not is_let_in(rule, None)


def test_an_open_line_on_loopback_takes_anybody() -> None:
    assert is_let_in(access(run_secret=None, join="open"), None)
    assert is_let_in(access(join="open"), None)


def test_an_open_line_with_a_join_token_takes_both_kinds_of_token() -> None:
    rule = access(join="open", join_token="shared")
    assert is_let_in(rule, "shared")
    assert is_let_in(rule, make_token(SECRET, "r1", MAC))
    assert not is_let_in(rule, None)


def test_an_open_line_on_the_network_still_needs_a_token() -> None:
    assert not is_let_in(access(join="open", host="0.0.0.0"), None)
    assert is_let_in(access(join="open", host="0.0.0.0"), make_token(SECRET, "r1", MAC))


@pytest.mark.parametrize(("join", "host"), [("invited", "127.0.0.1"), ("open", "0.0.0.0"), ("open", "fl.example")])
def test_a_line_that_no_client_could_join_is_refused_at_the_start(join: str, host: str) -> None:
    with pytest.raises(LineConfigError, match="join token"):
        access(join=join, host=host, run_secret=None)


def test_ids_are_flowers_own_kind_of_numbers_and_always_the_same() -> None:
    assert node_id_of(MAC) == node_id_of(MAC)
    assert len({node_id_of(f"aa:bb:cc:dd:ee:{at:02x}") for at in range(256)}) == 256
    assert 1 < node_id_of(MAC) < 2**53
    assert 1 < flower_run_id_of("r1") < 2**53
