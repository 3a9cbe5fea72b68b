"""What the API's OpenAPI shows: one run of three clients, seen from every record. A test holds them to their models."""

from typing import Any

_MAC = "02:00:00:00:00:01"
_RUN = "digits-20261124-101530-4f2a"
_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_FIRST, _LATER = "2026-11-24T10:15:30Z", "2026-11-24T10:16:02Z"

CLIENT: dict[str, Any] = {
    "task_id": "digits",
    "client_mac": _MAC,
    "client_name": "greenhouse-7",
    "presence": "online",
    "status": "train-started",
    "reason": None,
    "since": _FIRST,
    "heard_at": _LATER,
    "instance": "b1946ac92492",
    "run": {"run_id": _RUN, "attempt": 1, "launch": 1, "phase": "training", "round": 2},
    "last_run": None,
    "last_trigger": {"run_id": _RUN, "attempt": 1, "launch": 1, "answer": "accepted", "reason": None},
    "server_ip": "192.0.2.10:40123",
    "gl_model": 3,
    "agent": {"fedops-mqtt": "0.1.0", "python": "3.11.2", "system": "Linux aarch64"},
}

RUN: dict[str, Any] = {
    "run_id": _RUN,
    "task_id": "digits",
    "status": "running",
    "outcome": None,
    "reason": None,
    "created_at": _FIRST,
    "ended_at": None,
    "num_rounds": 5,
    "min_clients": 1,
    "join": "invited",
    "app_digest": _DIGEST,
    "app_version": "1.2.0",
    "run_config": {"lr": 0.1, "local-epochs": 2},
    "is_adopted": False,
    "is_stopping": False,
    "launch": 1,
    "server_ip": "192.0.2.10:40123",
    "round": 2,
    "gl_model": 3,
    "metrics": {"accuracy": 0.91, "loss": 0.34},
    "model_path": None,
    "clients_by_status": {"training": 1},
    "trigger_to_training_ms": {"p50": 912.4, "max": 1320.0},
    "clients": {
        _MAC: {
            "status": "training",
            "attempt": 1,
            "reason": None,
            "phase": "training",
            "round": 2,
            "trigger_to_training_ms": 912.4,
        }
    },
}

RUN_SUMMARY: dict[str, Any] = {
    name: value for name, value in RUN.items() if name not in ("trigger_to_training_ms", "clients")
}

RUN_REQUEST: dict[str, Any] = {"task_id": "digits", "num_rounds": 5, "min_clients": 3, "run_config": {"lr": 0.1}}

TASK: dict[str, Any] = {
    "task_id": "digits",
    "is_launchable": True,
    "adopt": False,
    "num_rounds": 5,
    "min_clients": 1,
    "join": "invited",
    "app_digest": _DIGEST,
    "app_version": "1.2.0",
    "active_run": _RUN,
    "num_clients": 1,
}

MODEL: dict[str, Any] = {
    "task_id": "digits",
    "file_name": "digits_gl_model_V3.safetensors",
    "model_name": "digits",
    "version": 3,
    "size_bytes": 26_448,
    "saved_at": _LATER,
    "run_id": _RUN,
    "round": 5,
    "metrics": {"accuracy": 0.95},
    "app_digest": _DIGEST,
    "app_version": "1.2.0",
    "run_config": {"lr": 0.1, "local-epochs": 2},
}

APP: dict[str, Any] = {
    "task_id": "digits",
    "digest": _DIGEST,
    "version": "1.2.0",
    "publisher": "lab",
    "name": "digits",
    "size": 18_204,
    "is_current": True,
    "published_at": _FIRST,
    "key_id": "5d41402abc4b2a76",
    "client_app": "digits.client_app:app",
    "server_app": "digits.server_app:app",
    "requires": ["numpy>=1.26"],
    "config": {"lr": 0.05, "local-epochs": 1},
}

APP_DETAILS: dict[str, Any] = {
    "published": [APP],
    "files": [{"path": "pyproject.toml", "sha256": _DIGEST, "size": 812}],
    "runs": [RUN_SUMMARY],
}

LOG: dict[str, Any] = {
    "run_id": _RUN,
    "launch": 1,
    "text": "2026-11-24 10:15:31.402 INFO    fedops_mqtt.server.app: line listens\n",
    "next_offset": 69,
    "is_over": False,
}

HEALTH: dict[str, Any] = {
    "status": "ok",
    "role": "leading",
    "term": 7,
    "broker": "192.0.2.10:1883",
    "problem": None,
    "num_clients": 3,
    "num_active_runs": 1,
}

PROBLEM: dict[str, Any] = {
    "type": "about:blank",
    "title": "Conflict",
    "status": 409,
    "detail": f"task 'digits' has an active run, {_RUN}; wait for its end or stop it",
}

HISTORY: dict[str, Any] = {
    "items": [
        {
            "id": 41,
            "at": _FIRST,
            "kind": "TriggerFired",
            "run_id": _RUN,
            "task_id": "digits",
            "client_mac": _MAC,
            "detail": {"attempt": 1, "launch": 1},
        }
    ]
}

FORGOTTEN: dict[str, Any] = {"client_mac": _MAC, "tasks": ["digits"]}


def page(of: dict[str, Any]) -> dict[str, Any]:
    """Return a page with one record on it."""
    return {"items": [of], "total": 1}
