"""The benchmarks' own code: what they claim from figures, and the bare client that their fleets are made of."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def figures(*, ours_s: float) -> dict:
    """Return a whole measurement in which only our trivial round varies."""
    return {
        "round_s": {
            "trivial": {"ours": ours_s, "classic-grpc": 0.02, "superlink": 6.0, "ours / classic-grpc": ours_s / 0.02},
            "50 MB": {"ours / classic-grpc": 0.25},
        },
        "memory_mib": {"ours": {"training, trivial": 80.0}, "classic-grpc": {"training, trivial": 125.0}},
        "killed_s": {"ours": 0.02, "superlink": 60.0},
    }


def test_a_target_is_held_missed_or_not_measured():
    from line import report, targets, verdict

    held = {name: holds for name, _, _, holds in targets(figures(ours_s=0.02))}
    missed = {name: holds for name, _, _, holds in targets(figures(ours_s=0.2))}

    assert held.pop("50 clients, seconds a round") is None
    assert set(held.values()) == {True}
    assert [name for name, holds in missed.items() if holds is False] == [
        "trivial round, ours / classic gRPC",
        "trivial round, SuperLink / ours",
    ]
    assert "not measured" in report(figures(ours_s=0.02))
    assert verdict(figures(ours_s=0.02)) == "No target is missed. Not measured: 50 clients, seconds a round."
    assert verdict(figures(ours_s=0.2)).startswith("Missed: trivial round, ours / classic gRPC; trivial round, Super")


def test_a_part_that_fails_is_reported_and_does_not_affect_the_others():
    from line import take

    def fails(result: dict) -> None:
        raise TimeoutError("SuperLink listens: not within 180 s")

    result: dict = {"parts": {}, "failed": {}}
    take(result, "SuperLink", fails)
    take(result, "ours", lambda result: result.update(killed_s={"ours": 0.01}))

    assert result["failed"] == {"SuperLink": "SuperLink listens: not within 180 s"}
    assert list(result["parts"]) == ["SuperLink", "ours"]
    assert result["killed_s"] == {"ours": 0.01}


def test_bare_client_reads_packets_whole_however_they_are_cut():
    from mqtt_bare import BareClient

    topic, payload = b"fedops/v1/t/clients/x/start", b"{}" * 100
    body = len(topic).to_bytes(2, "big") + topic + payload
    packet = bytes([0x30, len(body) & 0x7F | 0x80, len(body) >> 7]) + body
    heard: list[tuple[str, bytes]] = []
    client = BareClient("c", lambda _, *message, is_retained: heard.append(message), ("will", b""))

    for byte in packet * 2:
        client.data_received(bytes([byte]))

    assert heard == [(topic.decode(), payload)] * 2


def test_every_benchmark_finds_what_it_imports():
    names = [path.stem for path in sorted(BENCHMARKS.glob("*.py"))]
    assert "line" in names
    subprocess.run([sys.executable, "-c", f"import {', '.join(names)}"], cwd=BENCHMARKS, check=True)
