"""Settings about delivered apps: which a device takes and what they may cost it, and which a manager takes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

DELIVERED = "delivered"
"""What `app` says where the device runs what it is sent."""
AFTER_APPROVAL = "delivered-after-approval"
IS_DELIVERED = (DELIVERED, AFTER_APPROVAL)


def _join(value: Any) -> Any:
    return ",".join(value) if isinstance(value, list) and all(isinstance(each, str) for each in value) else value


class DeliveredAppSettings(BaseModel):
    """All but `app` counts only where that is `delivered` or `delivered-after-approval`."""

    app: Annotated[
        str | None, Field(description="MODULE:ATTRIBUTE of a ClientApp, or delivered, or delivered-after-approval")
    ] = None
    app_signers: Annotated[
        str, BeforeValidator(_join), Field(description="public keys of whoever may sign delivered apps, comma between")
    ] = ""
    app_min_version: Annotated[
        str | None, Field(description="delivered apps below this version are refused, however well signed")
    ] = None
    app_max_bytes: Annotated[int, Field(ge=1024, description="largest app bundle that is fetched")] = 10 * 1024**2
    app_fetch_limit_s: Annotated[float, Field(gt=0, description="fetching an app, with all its tries")] = 600.0
    app_keep_num: Annotated[int, Field(ge=1, description="delivered apps that are kept, the last used first")] = 5
    app_keep_bytes: Annotated[int, Field(ge=0, description="bytes of delivered apps that are kept")] = 500 * 1024**2
    app_keep_days: Annotated[float, Field(gt=0, description="delivered apps unused for longer are removed")] = 90.0
    app_install: Annotated[
        Literal["off", "venv"], Field(description="what an app needs and is missing: refuse it, or make it a venv")
    ] = "off"
    app_index_url: Annotated[
        str | None, Field(description="package index of these environments; default: as pip is configured here")
    ] = None
    app_install_limit_s: Annotated[float, Field(gt=0, description="making one of these environments")] = 900.0
    app_install_max_bytes: Annotated[int, Field(ge=0, description="size of one of these environments")] = 2 * 1024**3


class PublishSettings(BaseModel):
    """What a manager lets be published, and how much of it stays."""

    app_signers: Annotated[
        str,
        BeforeValidator(_join),
        Field(description="public keys, comma between: only apps signed with one can be published"),
    ] = ""
    app_max_bytes: Annotated[int, Field(ge=1024, description="largest app bundle that can be published")] = 10 * 1024**2
    keep_apps: Annotated[int, Field(ge=2, description="versions of each task's app that are kept")] = 20
