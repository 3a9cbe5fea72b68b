"""The shipped broker configuration, and how a port and a folder get into it."""

from pathlib import Path

from fedops_mqtt.bus.mosquitto import find_config, render_config

SHIPPED = find_config().read_text()


def directives(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


def test_the_shipped_configuration_is_for_this_machine_and_for_fleets() -> None:
    shipped = directives(SHIPPED)
    assert shipped["listener"].split()[1] == "127.0.0.1"
    assert int(shipped["max_queued_messages"]) >= 10_000
    assert shipped["persistence"] == "true"


def test_every_directive_of_the_shipped_configuration_has_its_reason() -> None:
    paragraphs = [paragraph.splitlines() for paragraph in SHIPPED.strip().split("\n\n")]
    assert all(lines[0].startswith("#") for lines in paragraphs)


def test_port_folder_and_changes_replace_what_stands_there(tmp_path: Path) -> None:
    text = render_config(SHIPPED, port=4711, data_dir=tmp_path, changes={"allow_anonymous": "false", "user": "root"})
    expected = directives(SHIPPED) | {
        "listener": "4711 127.0.0.1", "persistence_location": f"{tmp_path}/", "allow_anonymous": "false", "user": "root"
    }  # fmt: skip
    assert directives(text) == expected


def test_a_listener_for_everybody_stays_one(tmp_path: Path) -> None:
    text = render_config("listener 1883\n", port=4711, data_dir=tmp_path, changes={})
    assert directives(text)["listener"] == "4711"
