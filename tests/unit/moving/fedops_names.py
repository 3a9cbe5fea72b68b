"""Every name, endpoint, variable and status field of FedOps, and what it is here: one table, for a test and a page.

The test pins names, parameters and JSON fields; `docs/moving-from-fedops.md` is made from the same rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """One callable of FedOps: its module and name there, its parameters, and what it does here."""

    module: str
    """Below `fedops` there and `fedops_mqtt` here."""
    name: str
    parameters: tuple[str, ...]
    here: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One JSON object that FedOps sends: where to, the names in it, and what it is here."""

    name: str
    fields: tuple[str, ...]
    here: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """An endpoint, variable, status field or name that is not here: its spelling in FedOps, and what it is here."""

    kind: str
    name: str
    here: str


def _names(module: str, *rows: tuple[str, str, str]) -> Iterator[Name]:
    for name, parameters, here in rows:
        yield Name(module=module, name=name, parameters=tuple(parameters.split()), here=here)


_MODEL_OF_CLIENT = (
    "model validation_split fl_task_id client_mac client_name fl_round gl_model wandb_use wandb_name wandb_run "
    "model_name model_type x_train y_train x_test y_test train_loader val_loader test_loader cfg train_torch "
    "test_torch finetune_llm trainset tokenizer data_collator formatting_prompts_func num_rounds"
)
_METRICS = "one `ClientMetrics` message on the bus, fields as they are, kind "

NAMES: tuple[Name, ...] = (
    *_names(
        "client.app",
        (
            "FLClientTask",
            "cfg fl_task xai",
            "the daemon on the bus; what is in `fl_task` trains in a process of its own",
        ),
        (
            "FLClientTask.start",
            "",
            "serves until a signal; FedOps' `GET /online` and `POST /start` with `http` set",
        ),
        ("FLClientTask.fl_client_start", "", "the same, in the caller's event loop"),
    ),
    *_names(
        "client.client_api",
        ("ClientManagerAPI", "", "the same, as it was meant to be spelt"),
        ("ClientMangerAPI", "", "publishes this client's status and metrics"),
        ("ClientMangerAPI.get_info", "", "`.json()['GL_Model_V']`, as the last start or `/info/` gave it"),
        ("ClientMangerAPI.get_client_out", "", "leaves: status `client-out`"),
        ("ClientMangerAPI.get_train_fin", "", "status `train-finished` (FedOps returns a URL to ask)"),
        ("ClientMangerAPI.get_train_fail", "", "status `train-failed` (FedOps returns a URL to ask)"),
        ("ClientServerAPI", "task_id", "numbers of this client, on the bus"),
        ("ClientServerAPI.get_client_out", "", "the same as `ClientMangerAPI`'s"),
        ("ClientServerAPI.get_train_fin", "", "the same as `ClientMangerAPI`'s"),
        ("ClientServerAPI.get_train_fail", "", "the same as `ClientMangerAPI`'s"),
        ("ClientServerAPI.get_port", "", "`host:port` of the FL server, from the last start trigger"),
        ("ClientServerAPI.put_cluster_assign", "client_mac cluster_id", _METRICS + "`data`"),
        ("ClientServerAPI.put_train_result", "train_result_json", _METRICS + "`train-result`"),
        ("ClientServerAPI.put_test_result", "test_result_json", _METRICS + "`test-result`"),
        ("ClientServerAPI.put_client_time_result", "client_time_result_json", _METRICS + "`time-result`"),
        ("ClientServerAPI.put_client_system", "client_system_json", _METRICS + "`system`"),
        ("ClientServerAPI.put_client_xai_result", "xai_result_json", _METRICS + "`data`"),
    ),
    *_names(
        "client.client_fl",
        ("FLClient", _MODEL_OF_CLIENT, "a Flower NumPyClient of a registered model, by its `model_type`"),
        ("FLClient.set_parameters", "parameters", "the same"),
        ("FLClient.get_parameters", "", "the same"),
        ("FLClient.get_properties", "config", "Flower's own, empty; FedOps' raises"),
        ("FLClient.fit", "parameters config", "the same; `hp_*` and `cluster_id` too"),
        ("FLClient.evaluate", "parameters config", "the same"),
        ("flower_client_start", "FL_server_IP client", "the same, for a classic gRPC server"),
    ),
    *_names(
        "client.client_utils",
        ("FLClientStatus", "", "a view of our status under FedOps' names"),
        ("ManagerData", "server_ip client_mac", "what `POST /start` takes; either may be missing"),
        ("get_mac_address", "", "the same; no made-up one"),
        ("get_hostname", "", "the same"),
        ("local_model_directory", "task_id", "the same folders"),
        (
            "download_local_model",
            "model_type task_id listdir model",
            "the same; safetensors, or `.pth` without unpickling",
        ),
        ("notify_fin", "", "status `train-finished`"),
        ("notify_fail", "", "status `train-failed`"),
        ("set_parameters_for_llm", "model parameters", "the same"),
        ("get_parameters_for_llm", "model", "the same"),
        ("load_model", "model_name quantization gradient_checkpointing peft_config", "the same"),
        ("gen_parameter_shape", "cfg", "the same"),
    ),
    *_names(
        "client.client_wandb",
        ("start_wandb", "wandb_key wandb_project wandb_name", "the same"),
        ("data_status_wandb", "run labels", "the same"),
        (
            "client_system_wandb",
            "fl_task_id client_mac client_name gl_model_v wandb_name wandb_account project",
            "the same, onto the bus",
        ),
    ),
    *_names(
        "server.app",
        (
            "FLServer",
            "cfg model model_name model_type gl_val_loader x_val y_val test_torch",
            "the same, on the line; `_target_` strategies, or `strategy=`",
        ),
        ("FLServer.start", "", "the same; returns how the run ended"),
        ("FLServer.fit_config", "rnd", "the same, for strategies of `flwr.server.strategy`"),
        ("FLServer.evaluate_config", "rnd", "the same"),
    ),
    *_names(
        "server.server_api",
        ("ServerAPI", "task_id", "publishes through the FLServer of this process"),
        ("ServerAPI.put_server_status", "server_status_json", "`ServerStatus`: ready or failed"),
        ("ServerAPI.put_fl_round_fin", "", "`ServerStatus`: finished"),
        ("ServerAPI.put_gl_model_evaluation", "gl_model_evaluation_json", "one `ServerMetrics` message"),
        ("ServerAPI.put_server_time_result", "server_time_result_json", "one `ServerMetrics` message"),
    ),
    *_names(
        "server.server_utils",
        ("FLServerStatus", "", "the same fields, kept up to date by FLServer"),
        ("aws_session", "region_name", "the same"),
        ("upload_model_to_bucket", "task_id global_model_name", "the same; FLServer's `store` needs no upload"),
        ("model_download_s3", "task_id model_type model", "the same, without unpickling"),
        ("model_download_local", "model_type model", "the same, without unpickling"),
        ("load_initial_parameters_from_shape", "json_path", "the same"),
    ),
)

OURS = frozenset({"ClientManagerAPI"})
"""Names here that FedOps has not."""
EARLIER = frozenset(
    {
        "client.client_api.ClientServerAPI.get_client_out",
        "client.client_api.ClientServerAPI.get_train_fail",
        "client.client_api.ClientServerAPI.get_train_fin",
        "client.client_utils.ManagerData",
    }
)
"""Names that FedOps' programs use and its published package no longer has."""

_WHO = "fl_task_id client_mac client_name"
_ROUND = f"{_WHO} round gl_model_v wandb_name"


def _reports(*rows: tuple[str, str, str]) -> tuple[Report, ...]:
    return tuple(Report(name=name, fields=tuple(fields.split()), here=here) for name, fields, here in rows)


REPORTS: tuple[Report, ...] = _reports(
    (
        "client_perf/train_result",
        f"{_ROUND} train_loss train_accuracy val_loss val_accuracy train_time",
        "`ClientMetrics`, kind `train-result`; `cluster_id` too, where the strategy gives one",
    ),
    (
        "client_perf/test_result",
        f"{_ROUND} test_loss test_accuracy",
        "`ClientMetrics`, kind `test-result`; `cluster_id` too",
    ),
    ("client_perf/client_time_result", f"{_WHO} operation_time gl_model_v", "`ClientMetrics`, kind `time-result`"),
    (
        "client_perf/client_system",
        f"{_WHO} gl_model_v wandb_name network_sent network_recv disk runtime memory_rssMB memory_availableMB cpu "
        "cpu_threads memory memory_percent timestamp",
        "`ClientMetrics`, kind `system`",
    ),
    ("FLSe/cluster", "client_mac cluster_id", "`ClientMetrics`, kind `data`"),
    (
        "FLSe/FLSeUpdate",
        "S3_bucket Last_GL_Model FLServer_start FLSeReady GL_Model_V",
        "`ServerStatus`: `FLSeReady` is `status`, `GL_Model_V` is `gl_model`; where models are is `model_path`",
    ),
    (
        "server_perf/gl_model_evaluation",
        "fl_task_id round gl_loss gl_accuracy run_time_by_round gl_model_v",
        "`ServerMetrics`: `loss` and `accuracy` of FLServer's own; the names that `ServerAPI` and the bridge are given",
    ),
    (
        "server_perf/server_time_result",
        "fl_task_id server_operation_time gl_model_v",
        "`ServerMetrics`; how long a run took is in its `RunStatus`",
    ),
)
"""What is nested or not in each report goes on as it is; these are the names that FedOps' own programs give."""

WORDS: tuple[Label, ...] = (
    *(
        Label(kind="environment", name=name, here=here)
        for name, here in {
            "TASK_ID": "read by FLServer where `FEDOPS_MQTT_TASK_ID` is not set",
            "BUCKET_NAME, ACCESS_KEY_ID, ACCESS_SECRET_KEY": "read by `server_utils`; `store` takes AWS' own variables",
            "FEDOPS_CLIENT_MANAGER_URL": "of an unchanged FedOps client: the address of `fedops-mqtt bridge`; "
            "here, before an unchanged client manager, the address of that client manager",
            "FEDOPS_SERVER_MANAGER_URL": "of an unchanged FedOps client: the address of `fedops-mqtt bridge`; "
            "here, before an unchanged client manager, the address of that server manager",
            "FEDOPS_CLIENT_PERFORMANCE_URL": "of an unchanged FedOps client: the address of `fedops-mqtt bridge`",
            "FEDOPS_AGGREGATION_HOST": "the host at which an unchanged FedOps client "
            "finds an FL server; here `aggregation_host`, before an unchanged client manager",
            "FEDOPS_AGGREGATION_SERVER": "of an unchanged FedOps client: not needed; with it the bridge is not asked; "
            "here `aggregation_host`, which may have a port",
            "FEDOPS_CLIENT_PORT": "of an unchanged FedOps client, for the bridge's `--clients`; here `http`",
            "FEDOPS_REQUEST_TIMEOUT_SECONDS": "of an unchanged FedOps client",
            "FEDOPS_TASK_ID, FEDOPS_EVENT_FILE, FEDOPS_RELEASE_ID, FEDOPS_CLIENT_INSTANCE_ID": "not read: "
            "every stage is on the bus (`fedops-mqtt watch --json`)",
            "FEDOPS_CAMPAIGN_CONFIG, FEDOPS_CAMPAIGN_RUN_ID": "not read: the manager gives its server the run",
            "FEDOPS_SERVER_DATA_DIR, FEDOPS_SERVER_VALIDATION_ROOT": "not read: `gl_val_loader` is the program's own",
            "FL_SBA_TARGET, FEDMAP_USE_STUDENT, FEDMAP_STUDENT_WARMUP, FEDMAP_STUDENT_WIN_NEEDED": "not read: "
            "of parts that are not here",
            "MONITORING": "not read; `--log-level`, and logs go to stderr",
        }.items()
    ),
    *(
        Label(kind="endpoint", name=name, here=here)
        for name, here in {
            "GET /online": "the daemon's HTTP shim (`http`), both generations of field names",
            "POST /start": "the daemon's HTTP shim, with or without a body; on the bus a `StartTrigger`",
            "GET /info/": "the bridge, for unchanged clients; `gl_model` of the start trigger; our client asks its "
            "client manager for it at `POST /start`",
            "GET /flclient_out": "the bridge; here status `client-out`",
            "GET /trainFin": "the bridge; here status `train-finished`",
            "GET /trainFail": "the bridge; here status `train-failed`",
            "GET /FLSe/getPort/{task_id}": "the bridge; here `server_ip` of the start trigger",
            "GET /FLSe/info/{task_id}/{device_mac}": "the bridge; here the start trigger itself",
            "PUT /FLSe/RegisterFLTask": "the bridge; here status `online`",
            "PUT /FLSe/FLSeUpdate/{task_id}": "the bridge; here `ServerStatus`",
            "PUT /FLSe/FLRoundFin/{task_id}": "the bridge; here `ServerStatus`: finished",
            "PUT /FLSe/FLSeClosed/{task_id}": "the bridge; here `last_run` of the client's status",
            "PUT /FLSe/cluster/{task_id}": "the bridge answers `ok` and keeps nothing; here `ClientMetrics`",
            "PUT /client_perf/{kind}/{task_id}": "the bridge; here `ClientMetrics`",
            "PUT /server_perf/gl_model_evaluation/{task_id}": "the bridge; here `ServerMetrics`",
            "PUT /server_perf/server_time_result/{task_id}": "the bridge; here `ServerMetrics`",
        }.items()
    ),
    *(
        Label(kind="field", name=name, here=here)
        for name, here in {
            "task_id": "`task_id`",
            "client_num": "kept in the view, 0",
            "client_mac": "`client_mac`",
            "client_name": "`client_name`",
            "client_online": "`status` is not `client-out`",
            "client_start": "`run` is not null",
            "client_fail": "`status` is `train-failed`",
            "server_IP": "`server_ip`",
            "gl_model": "`gl_model`; `FL_next_gl_model` of the first generation is this and one",
        }.items()
    ),
    *(
        Label(kind="absent", name=name, here=here)
        for name, here in {
            "server.app.FLServer.init_gl_model_registration": "a step of `FLServer.start`",
            "server.app.FLServer.fl_server_start": "a step of `FLServer.start`",
            "server.app.FLServer.save_global_snapshot": "the store, and a checkpoint each round",
            "server.app.FLServer.report_client_evaluation": "each round's `ServerMetrics`",
            "server.app.FLServer.get_eval_fn": "`evaluate_fn` of `FLServer`, or its validation data",
            "server.evaluation": "clients' evaluation is in each round's metrics (`eval_loss`, `eval_accuracy`)",
            "server.evaluation_strategy": "the same",
            "server.validation": "the same",
            "server.strategy_cluster_optuna": "a strategy like any other: install FedOps too, and `_target_: "
            "fedops.server.strategy_cluster_optuna.ClusterOptunaFedAvg`; clients apply `hp_*` and return `cluster_id`",
            "server.fedmap": "a strategy like any other, with FedOps installed too",
            "server.mobile_app": "no; FedOps' own server takes part through the bridge",
            "server.mobile_strategy": "no",
            "simulation": "`fedops-mqtt simulate`",
            "client.parameter_contract": "`FLClient.get_parameters` and `set_parameters`, by the same rules",
            "client.runtime_events": "statuses and metrics on the bus",
            "utils.fedxai": "no; `put_client_xai_result` takes what a program of yours finds",
            "utils.fedco": "no; the store keeps every version with its metrics",
            "utils.version": "`fedops_mqtt.__version__`",
            "agent_studio_host": "no: FedOps' desktop program",
            "agent_studio_runner": "no",
            "cli": "no; `fedops-mqtt --help`",
        }.items()
    ),
)
"""The rows of kind `field` are all fields of FedOps' client status, in its order; those of kind `absent` name a module
or package with all that is in it, or one method."""
