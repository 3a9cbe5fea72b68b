"""Bundles for the tests: what `flwr build` makes of a small project, and zips that it would never make."""

import hashlib
import warnings
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

PROJECT = """
[project]
name = "digits"
version = "1.2.0"
license = "Apache-2.0"
dependencies = ["numpy>=1.26", "flwr>=1.41"]

[tool.flwr.app]
publisher = "tester"

[tool.flwr.app.components]
serverapp = "digits.server_app:app"
clientapp = "digits.client_app:app"

[tool.flwr.app.config]
lr = 0.1
local.epochs = 2
"""
CODE = "app = None\n"


def write_project(folder: Path, project: str = PROJECT) -> Path:
    """Write a Flower project of four files."""
    (folder / "digits").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    (folder / "README.md").write_text("# Digits\n", encoding="utf-8")
    for name in ("__init__", "client_app", "server_app"):
        (folder / "digits" / f"{name}.py").write_text(CODE, encoding="utf-8")
    return folder


def flower_bundle(folder: Path, project: str = PROJECT) -> bytes:
    """Return the bundle that the installed flwr builds of the project."""
    from flwr.cli.build import build_fab_from_disk

    with warnings.catch_warnings():  # flwr 1.41 uses a name of pathspec that is deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        return build_fab_from_disk(write_project(folder, project))


def manifest_of(files: Mapping[str, bytes]) -> str:
    """Return the manifest that lists these files as they are."""
    return "\n".join(f"{path},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for path, data in files.items())


def zipped(
    files: Mapping[str, bytes], manifest: str | None = None, *, attributes: Mapping[str, int] | None = None
) -> bytes:
    """Return a zip of the files and a manifest that lists them, or the one given."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in {
            **files,
            ".info/CONTENT": (manifest_of(files) if manifest is None else manifest).encode(),
        }.items():
            info = zipfile.ZipInfo(path)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (attributes or {}).get(path, 0) << 16
            archive.writestr(info, data)
    return buffer.getvalue()
