"""`run show`, `logs` and `metrics`, through a pipe, at a terminal and as JSON."""

import asyncio
import csv
import io
import json
import os
import pty
import re

import pytest
from yard import COMMAND, TIMEOUT_S, Site


@pytest.mark.long
async def test_a_run_can_be_read_in_a_pipe_at_a_terminal_and_as_json(site: Site) -> None:
    await site.start_manager(module="line_program")
    mac, *_ = await site.start_clients(2, "steered:app")
    run_id = await site.start_run(num_rounds=2, min_clients=2)
    await site.observer.until_ended(run_id)
    await shows_the_run(site, run_id, mac)
    await shows_logs(site, run_id, mac)
    numbers = await site.yard.run("metrics", run_id, "--csv", "--manager", site.manager_url)
    rows = list(csv.DictReader(io.StringIO(numbers.stdout)))
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    assert float(rows[-1]["metrics.accuracy"]) > 0.3
    measured = await site.yard.run("metrics", run_id, "--clients", "--json", "--manager", site.manager_url)
    values = [json.loads(line)["values"] for line in measured.stdout.splitlines()]
    assert {"train", "evaluate"} <= {each.get("stage") for each in values}
    assert all(each["compute_s"] > 0 for each in values if "stage" in each)


VERBS = {
    "clients": ("clients",),
    "runs": ("runs",),
    "run show": ("run", "show", "RUN"),
    "logs": ("logs", "RUN"),
    "logs --client": ("logs", "RUN", "--client", "MAC"),
    "metrics": ("metrics", "RUN"),
    "metrics --clients": ("metrics", "RUN", "--clients"),
}
"""The verbs that ask a manager; `watch` asks the broker (test_watch)."""


@pytest.mark.long
async def test_each_verb_prints_for_people_for_pipes_and_for_programs(site: Site) -> None:
    await site.start_manager()
    mac, broken = "02:00:00:00:01:01", "02:00:00:00:01:02"
    await site.start_client(mac, client_name="kitchen")
    await site.start_client(broken, "yard_apps:raising")
    await site.observer.until(lambda: all(site.observer.client(each) for each in (mac, broken)))
    asked = ("--rounds", "2", "--min-clients", "1", "--clients", f"{mac},{broken}", "--wait")
    screen = await at_a_terminal("start", site.task_id, "--manager", site.manager_url, *asked)
    assert re.search(r"(pending|starting|running), round \d of 2", screen)
    run_id = screen.split()[0]
    words = {"RUN": run_id, "MAC": broken}
    for name, verb in VERBS.items():
        asked = [words.get(word, word) for word in verb] + ["--manager", site.manager_url]
        screen = await at_a_terminal(*asked)
        piped = (await site.yard.run(*asked)).stdout
        as_json = (await site.yard.run(*asked, "--json")).stdout.splitlines()
        assert "\x1b" not in piped, name
        assert all(line.strip() and not line[0].isspace() for line in piped.splitlines()), (name, piped)
        assert as_json, name
        assert all(isinstance(json.loads(line), dict) for line in as_json), name
        assert len(piped.splitlines()) == len(as_json) + HEADS.get(name, 0), (name, piped)
        assert screen.strip(), name
        for fact in FACTS.get(name, ()):
            assert fact in screen.replace("\r\n", " "), name
            assert fact in piped, name


HEADS = {"clients": 1, "runs": 1, "metrics": 1, "metrics --clients": 1, "run show": 5}
"""Lines of a pipe beyond one for each JSON object: a table's head; `run show` says run, rounds and clients apart."""

FACTS = {
    "clients": ("kitchen", "02:00:00:00:01:02"),
    "runs": ("completed",),
    "run show": ("all rounds done", "failed"),
    "logs --client": ("ValueError: ",),
    "metrics": ("accuracy",),
}


async def shows_the_run(site: Site, run_id: str, mac: str) -> None:
    piped = await site.yard.run("run", "show", run_id, "--manager", site.manager_url)
    assert "\x1b" not in piped.stdout
    kinds = [line.split()[0] for line in piped.stdout.splitlines()]
    assert kinds == ["run", "round", "round", "round", "client", "client"]
    assert f"client client_mac={mac} status=finished" in piped.stdout
    as_json = await site.yard.run("run", "show", run_id, "--json", "--manager", site.manager_url)
    (line,) = as_json.stdout.splitlines()
    assert [row["round"] for row in json.loads(line)["rounds"]] == [0, 1, 2]
    screen = await at_a_terminal("run", "show", run_id, "--manager", site.manager_url)
    assert "\x1b[" in screen
    assert "accuracy by round" in screen
    assert mac in screen


async def shows_logs(site: Site, run_id: str, mac: str) -> None:
    log = await site.yard.run("logs", run_id, "--follow", "--manager", site.manager_url)
    assert log.process.returncode == 0
    assert "run ended" in log.stdout
    told = await site.yard.run("logs", run_id, "--client", mac, "--json", "--manager", site.manager_url)
    events = [json.loads(line) for line in told.stdout.splitlines()]
    assert {"ClientChosen", "TriggerFired", "MemberSaid"} <= {event["kind"] for event in events}
    assert {event["client_mac"] for event in events} == {mac}
    unknown = await site.yard.run("logs", "no-such-run", "--manager", site.manager_url)
    assert unknown.process.returncode != 0
    assert "run 'no-such-run' is not known" in unknown.stderr


async def at_a_terminal(*arguments: str) -> str:
    """Return what a verb shows on a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    process = await asyncio.create_subprocess_exec(
        str(COMMAND), *arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    reading = asyncio.to_thread(read_all, ours)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            screen, code = await asyncio.gather(reading, process.wait())
    finally:
        os.close(ours)
    assert code == 0
    return screen


def read_all(terminal: int) -> str:
    """Read until the other end is closed, which Linux says as an error."""
    said = b""
    while True:
        try:
            said += os.read(terminal, 65536)
        except OSError:
            return said.decode()
