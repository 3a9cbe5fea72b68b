"""Protocol v1 as an AsyncAPI 3 document, made from the topics and the message models: never written by hand.

`python tests/browser/asyncapi_document.py > docs/asyncapi.json` writes it; `test_asyncapi.py` compares the two.
"""

import json
from typing import Any

from pydantic import BaseModel

from fedops_mqtt.protocol.messages import (
    ClientMetrics,
    ClientStatus,
    ManagerStatus,
    RunStatus,
    ServerMetrics,
    ServerStatus,
    StartTrigger,
    StopTrigger,
)
from fedops_mqtt.protocol.topics import Channel

SCHEMA_FORMAT = "application/schema+json;version=draft-07"

MESSAGES: dict[Channel, type[BaseModel]] = {
    Channel.CLIENT_STATUS: ClientStatus,
    Channel.CLIENT_START: StartTrigger,
    Channel.CLIENT_STOP: StopTrigger,
    Channel.CLIENT_METRICS: ClientMetrics,
    Channel.SERVER_STATUS: ServerStatus,
    Channel.SERVER_METRICS: ServerMetrics,
    Channel.RUN_STATUS: RunStatus,
    Channel.MANAGER_STATUS: ManagerStatus,
}
WRITERS = {
    Channel.CLIENT_STATUS: "the client, and the broker for it (last will)",
    Channel.CLIENT_START: "the manager",
    Channel.CLIENT_STOP: "the manager",
    Channel.CLIENT_METRICS: "the client",
    Channel.SERVER_STATUS: "the FL server, and the broker for it (last will)",
    Channel.SERVER_METRICS: "the FL server",
    Channel.RUN_STATUS: "the manager",
    Channel.MANAGER_STATUS: "the manager, and the broker for it (last will)",
}
_PARAMETERS = {
    "task_id": "FL project, `[A-Za-z0-9._-]{1,64}`",
    "mac": "MAC of the client with hyphens, lower case: `aa-bb-cc-dd-ee-ff`",
    "run_id": "one firing of a task, of the same form as a task id",
}


def document() -> dict[str, Any]:
    """Return the document."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:fedops:v1",
        "info": {
            "title": "fedops-mqtt bus",
            "version": "1.0.0",
            "description": "Lifecycle plane for federated learning on IoT fleets. A status is a full snapshot;"
            " readers drop any with `(epoch, seq)` not above the last they took.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "tags": [{"name": "federated-learning"}],
        },
        "defaultContentType": "application/json",
        "channels": {_name(channel): _channel(channel) for channel in Channel},
        "operations": {f"receive_{_name(channel)}": _operation(channel) for channel in Channel},
        "components": {
            "messages": {model.__name__: _message(model) for model in MESSAGES.values()},
            "schemas": {model.__name__: schema_of(model) for model in MESSAGES.values()},
        },
    }


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON schema as its readers take it: fields that a newer speaker adds are allowed."""
    schema = model.model_json_schema(mode="serialization")
    definitions = schema.pop("$defs", {})
    opened: dict[str, Any] = _open({**schema, **({"definitions": definitions} if definitions else {})}, model.__name__)
    return opened


def _open(node: Any, name: str) -> Any:
    """References lead into the message's own definitions, and unknown fields are let through."""
    if isinstance(node, list):
        return [_open(each, name) for each in node]
    if not isinstance(node, dict):
        return node
    opened = {key: _open(value, name) for key, value in node.items() if key != "additionalProperties" or value}
    if "$ref" in opened:
        opened["$ref"] = opened["$ref"].replace("#/$defs/", f"#/components/schemas/{name}/definitions/")
    return opened


def _name(channel: Channel) -> str:
    return channel.name.lower()


def _channel(channel: Channel) -> dict[str, Any]:
    model = MESSAGES[channel]
    found = [name for name in _PARAMETERS if f"{{{name}}}" in channel.value]
    return {
        "address": channel.value,
        "description": f"Written by {WRITERS[channel]}; at most {channel.max_payload_bytes} bytes.",
        "messages": {model.__name__: {"$ref": f"#/components/messages/{model.__name__}"}},
        **({"parameters": {name: {"description": _PARAMETERS[name]} for name in found}} if found else {}),
    }


def _operation(channel: Channel) -> dict[str, Any]:
    name, model = _name(channel), MESSAGES[channel]
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{name}"},
        "summary": f"Read {name.replace('_', ' ')}.",
        "messages": [{"$ref": f"#/channels/{name}/messages/{model.__name__}"}],
        "bindings": {"mqtt": {"qos": channel.qos, "retain": channel.is_retained}},
    }


def _message(model: type[BaseModel]) -> dict[str, Any]:
    return {
        "name": model.__name__,
        "summary": (model.__doc__ or "").strip(),
        "contentType": "application/json",
        "payload": {
            "schemaFormat": SCHEMA_FORMAT,
            "schema": {"$ref": f"#/components/schemas/{model.__name__}"},
        },
    }


def as_text() -> str:
    """Return the document as a file has it."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(as_text(), end="")
