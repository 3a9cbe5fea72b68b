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
class Word:
    """An endpoint, environment variable or field: its spelling in FedOps, and what it is here."""

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
            "serves until told to leave; FedOps' `GET /online` and `POST /start` with `http` set",
        ),
        ("FLClientTask.fl_client_start", "", "the same, in the caller's event loop"),
    ),
    *_names(
        "client.client_api",
        ("ClientMangerAPI", "", "upstream's spelling of `ClientManagerAPI`"),
        ("ClientManagerAPI", "", "says things of this client on the bus"),
        ("ClientManagerAPI.get_info", "", "`.json()['GL_Model_V']`, from the last start trigger"),
        ("ClientManagerAPI.get_client_out", "", "leaves: status `client-out`"),
        ("ClientManagerAPI.get_train_fin", "", "status `train-finished` (FedOps returns a URL to ask)"),
        ("ClientManagerAPI.get_train_fail", "", "status `train-failed` (FedOps returns a URL to ask)"),
        ("ClientServerAPI", "task_id", "numbers of this client, on the bus"),
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
        ("FLClient.fit", "parameters config", "the same; `hp_*` and `cluster_id` too"),
        ("FLClient.evaluate", "parameters config", "the same"),
        ("flower_client_start", "FL_server_IP client", "the same, for a classic gRPC server"),
    ),
    *_names(
        "client.client_utils",
        ("FLClientStatus", "", "a view of our status under FedOps' names"),
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

WORDS: tuple[Word, ...] = (
    *(
        Word(kind="environment", name=name, here=here)
        for name, here in {
            "TASK_ID": "read by FLServer where `FEDOPS_MQTT_TASK_ID` is not set",
            "BUCKET_NAME, ACCESS_KEY_ID, ACCESS_SECRET_KEY": "read by `server_utils`; `store` takes AWS' own variables",
            "FEDOPS_CLIENT_MANAGER_URL": "of an unchanged FedOps client: the address of `fedops-mqtt bridge`",
            "FEDOPS_SERVER_MANAGER_URL": "of an unchanged FedOps client: the address of `fedops-mqtt bridge`",
            "FEDOPS_CLIENT_PERFORMANCE_URL": "of an unchanged FedOps client: the address of `fedops-mqtt bridge`",
            "MONITORING": "not read; `--log-level`, and logs go to stderr",
        }.items()
    ),
    *(
        Word(kind="endpoint", name=name, here=here)
        for name, here in {
            "GET /online (client)": "the daemon's HTTP shim (`http`), both generations of field names",
            "POST /start (client)": "the daemon's HTTP shim; on the bus a `StartTrigger`",
            "GET /info/, /flclient_out, /trainFin, /trainFail": "the bridge, for unchanged clients; here statuses",
            "FLSe/getPort, info, RegisterFLTask, FLSeUpdate, FLRoundFin, FLSeClosed": "the bridge; here statuses",
            "client_perf/*, server_perf/*": "the bridge; here `ClientMetrics` and `ServerMetrics`",
        }.items()
    ),
    *(
        Word(kind="field", name=name, here=here)
        for name, here in {
            "task_id": "`task_id`",
            "client_num": "kept in the view, 0",
            "client_mac": "`client_mac`",
            "client_name": "`client_name`",
            "client_online": "`status` is not `client-out`",
            "client_start": "`run` is not null",
            "client_fail": "`status` is `train-failed`",
            "server_IP": "`server_ip`",
            "gl_model": "`gl_model`",
        }.items()
    ),
)
"""The rows of kind `field` are all fields of FedOps' client status, in its order."""
