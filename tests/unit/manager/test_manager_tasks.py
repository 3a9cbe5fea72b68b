import os
from pathlib import Path

import pytest

from fedops_mqtt.manager.errors import TasksFileError, UnknownTaskError
from fedops_mqtt.manager.tasks import Tasks


def tasks_of(tmp_path: Path, text: str) -> Tasks:
    path = tmp_path / "tasks.toml"
    path.write_text(text)
    return Tasks(path)


def test_a_task_defines_how_its_server_is_started_and_what_a_run_needs(tmp_path: Path) -> None:
    tasks = tasks_of(
        tmp_path,
        """
        [tasks.digits]
        module = "fedops_mqtt.demo.server"
        args = ["--epochs", "2"]
        num_rounds = 5
        env = { WANDB_MODE = "offline" }
        [tasks.digits.limits]
        join_s = 12
        """,
    )
    digits = tasks["digits"]
    assert (digits.module, digits.args, digits.num_rounds, digits.min_clients) == (
        "fedops_mqtt.demo.server",
        ("--epochs", "2"),
        5,
        2,
    )
    assert digits.limits.model_dump(exclude_unset=True) == {"join_s": 12}
    assert digits.cwd == tmp_path, "relative to the file"


def test_rounds_that_no_file_sets_are_the_servers_own(tmp_path: Path) -> None:
    assert tasks_of(tmp_path, "[tasks.digits]\nmodule = 'fedops_mqtt.demo.server'")["digits"].num_rounds is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[tasks.a]\ncommand = [", "not TOML"),
        ("[tasks.a]\nrounds = 3", "tasks.a.rounds: there is no such key, perhaps 'num_rounds' is meant"),
        ("[tasks.a.limits]\nround = 3", "tasks.a.limits.round: there is no such key, perhaps 'round_s' is meant"),
        ("[task.a]\nmodule = 'm'", "task: there is no such key, perhaps 'tasks' is meant"),
        ("[tasks.a]\nqqqqqq = 3", "tasks.a.qqqqqq: there is no such key"),
        ("[tasks.a]\nmodule = 'm'\nnum_rounds = 0", "tasks.a.num_rounds: Input should be greater than or equal to 1"),
        ("[tasks.a]\nmodule = 'm'\ncommand = ['c']", "not both"),
        ("[tasks.'a/b']\nmodule = 'm'", "task_id 'a/b' is not valid"),
        ("[tasks.a]\nmodule = 'm'\nlisten = 'nowhere'", "tasks.a.listen"),
        ("[tasks.a]\nmodule = 'm'\nadvertise = 'http://fl.example.org'", "is not host or host:port"),
        ("[tasks.a]\nmodule = 'm'\n[tasks.a.limits]\njoin_s = -1", "tasks.a.limits.join_s"),
        (
            "[tasks.a]\nmodule = 'm'\n[tasks.a.limits]\nserver_start_s = inf",
            "tasks.a.limits.server_start_s: Input should",
        ),
        ("[tasks.a]\nlaunch = []", "tasks.a.launch: Value error, an empty list: give the program"),
        ("[tasks.a]\nlaunch = ['sh', '{comand}']", "`launch`: {comand} is unknown; there are {name}, {run_id}"),
        ("[tasks.a]\nlaunch = ['sh', '-c', 'exec {command}']", "{command} stands alone as an argument"),
        ("[tasks.a]\nlaunch = ['sh', '-c', 'exec {']", "a brace itself is written twice"),
        ("[tasks.a]\nlaunch = ['ssh', 'host']", "`launch` starts nothing"),
        ("[tasks.a]\nlaunch = ['sh', '{order_file}']", "needs a `launch_stop` of its own"),
        ("[tasks.a]\nlaunch_stop = ['sh']", "go with `launch`, which is not given"),
        (
            "[tasks.a]\nlaunch = ['no-such-program-here', '{command}']",
            "no program 'no-such-program-here' on this machine",
        ),
        ("[tasks.a]\nlaunch = ['sh', '{command}']\nlaunch_alive = ['sh', '{signal}']", "{signal} is unknown"),
        ("[tasks.a]\nadvertise = '{adress}'", "`advertise`: {adress} is unknown; there are {host}, {address}"),
        ("[tasks.a]\nlaunch = ['sh', '{command}']\n[tasks.a.kubernetes]\nimage = 'i'", "not both"),
        ("[tasks.a]\nmodule = 'm'\nenv = { 'A=B' = '1' }", "tasks.a.env.A=B.[key]: Value error, 'A=B' is no name"),
        ("[tasks.a]\nmodule = 'm'\nenv = { '' = '1' }", "'' is no name of a variable"),
        ('[tasks.a]\nmodule = "m"\nenv = { "A\\u0000" = "1" }', "[key]: Value error, it has a NUL character"),
        ('[tasks.a]\nmodule = "m"\nenv = { A = "\\u0000" }', "tasks.a.env.A: Value error, it has a NUL character"),
        ('[tasks.a]\nmodule = "m"\nargs = ["a", "\\u0000"]', "tasks.a.args.1: Value error, it has a NUL character"),
        ('[tasks.a]\nmodule = "m"\ncwd = "\\u0000"', "tasks.a.cwd: Value error, it has a NUL character"),
        (
            "[tasks.a]\nlaunch = ['bash', '-c', '${name:-x} {shell_command}']",
            "(a brace itself is written twice: {{ or }})",
        ),
        ("[tasks.a]\nlaunch = ['sh', '-c', '{shell_command!q}']", "'{shell_command!q}': "),
        ("[tasks.a]\nlaunch = ['sh', '-c', '{shell_command:{width}}']", "'{shell_command:{width}}': "),
        ("[tasks.a]\nlaunch = ['sh', '-c', '{command:.20}']", "{command} stands alone as an argument"),
        ("[tasks.a]\nlaunch = ['sh', '{order_file!s}']", "needs a `launch_stop` of its own"),
        ("[tasks.a]\nadvertise = '{host!s}'", "`advertise`: a placeholder is a name alone"),
        ("[tasks.a]\nlaunch = ['sh', '-c', '{shell_command.x}']", "{shell_command.x} is unknown"),
        (
            "[tasks.a]\nlaunch = ['sh', '{command}']\nlaunch_stop = ['bash', '-c', 'kill -${signal:-TERM}']",
            "`launch_stop`: 'kill -${signal:-TERM}': ",
        ),
        (
            "[tasks.a.kubernetes]\nimage = 'i'\ncontainer = { volumeMounts = 5 }",
            "tasks.a.kubernetes.container: Value error, `volumeMounts` is a list: write volumeMounts = [{ name",
        ),
        ("[tasks.a.kubernetes]\nimage = 'i'\npod = 5", "tasks.a.kubernetes.pod: Input should be a valid dictionary"),
        ("[tasks.a.kubernetes]\nimage = 'i'\npod = { x = 2020-01-01 }", "tasks.a.kubernetes.pod.x"),
        ("[tasks.a.kubernetes]\nnamespace = 'n'", "tasks.a.kubernetes.image: Field required"),
    ],
)
def test_a_wrong_file_is_refused_with_where_and_why(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(TasksFileError) as caught:
        tasks_of(tmp_path, text)
    assert problem in str(caught.value)
    assert str(tmp_path / "tasks.toml") in str(caught.value)


def test_a_placeholder_may_have_a_format(tmp_path: Path) -> None:
    launch = ("sh", "--job-name={run_id:.20}", "{name!s:>8}", "{shell_command}")
    assert tasks_of(tmp_path, f"[tasks.a]\nlaunch = {list(launch)}")["a"].launch == launch


def test_a_missing_file_is_reported_by_name(tmp_path: Path) -> None:
    with pytest.raises(TasksFileError, match=r"no-such\.toml: cannot be read: No such file"):
        Tasks(tmp_path / "no-such.toml")


def test_an_unknown_task_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(UnknownTaskError, match=r"'b' is not known \(known: a\)"):
        tasks_of(tmp_path, "[tasks.a]\nmodule = 'm'")["b"]


def test_a_changed_file_is_read_again_and_a_broken_one_leaves_what_was_known(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path, "[tasks.a]\nmodule = 'm'")
    assert tasks.path is not None
    tasks.path.write_text("[tasks.bb]\nmodule = 'm'")
    os.utime(tasks.path, ns=(1, 1))
    tasks.refresh()
    assert set(tasks.by_id) == {"bb"}
    tasks.path.write_text("nonsense")
    with pytest.raises(TasksFileError):
        tasks.refresh()
    assert set(tasks.by_id) == {"bb"}


def test_a_task_whose_app_was_published_has_the_files_settings_for_such_tasks(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text(
        "[published]\nlisten = '0.0.0.0:0'\nmin_clients = 7\n[tasks.a]\nmodule = 'm'\n[tasks.b]\nnum_rounds = 2"
    )
    tasks = Tasks(path, published={"digits": 1, "a": 1})
    assert set(tasks.by_id) == {"a", "b", "digits"}
    assert (tasks["digits"].listen, tasks["digits"].min_clients, tasks["digits"].cwd) == ("0.0.0.0:0", 7, tmp_path)
    assert tasks["a"].min_clients == 2
    assert tasks["a"].is_launchable
    assert not tasks["b"].is_launchable
    assert tasks.get("other") is None


def test_no_file_is_no_tasks() -> None:
    assert Tasks(None).by_id == {}
