"""Thousands of altered app bundles: each is refused, or it is what its manifest says; not a line of any has run."""

import random
import warnings
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from bundles import PROJECT, manifest_of, zipped

from fedops_mqtt.apps import (
    AppLibrary,
    AppRefusedError,
    AppSigner,
    BundleLimits,
    check_signature,
    make_signing_key,
    read_bundle,
)
from fedops_mqtt.apps.bundle import iter_contents

SOME, MANY = 1_000, 10_000
SIGNER = AppSigner(make_signing_key())


def entries(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def zipped_as(files: list[tuple[str, bytes]]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # one name twice is what a rename makes, and is to be refused
                archive.writestr(zipfile.ZipInfo(path), content)
    return buffer.getvalue()


def flip_bits(data: bytes, chance: random.Random) -> bytes:
    spoiled = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        spoiled[chance.randrange(len(spoiled))] ^= 1 << chance.randrange(8)
    return bytes(spoiled)


def cut(data: bytes, chance: random.Random) -> bytes:
    start, end = sorted((chance.randrange(len(data)), chance.randrange(len(data))))
    return chance.choice([data[:end], data[start:], data[:start] + data[end:]])


def reorder(data: bytes, chance: random.Random) -> bytes:
    files = entries(data)
    return zipped_as(chance.sample(files, len(files) - chance.randint(0, 1)))


def rename(data: bytes, chance: random.Random) -> bytes:
    files = entries(data)
    at = chance.randrange(len(files))
    name = chance.choice(["../x.py", "/x.py", "sitecustomize.py", files[at][0].upper(), ".info/CONTENT", "x" * 300])
    files[at] = (name, files[at][1])
    return zipped_as(files)


ALTER: list[Callable[[bytes, random.Random], bytes]] = [flip_bits, cut, reorder, rename]


@pytest.mark.parametrize("num_altered", [SOME, pytest.param(MANY, marks=pytest.mark.long)])
def test_no_altered_bundle_is_accepted(tmp_path: Path, num_altered: int) -> None:
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()\n".encode()
    files = {"pyproject.toml": PROJECT.encode(), **{f"digits/{name}.py": code for name in ("__init__", "client_app")}}
    whole = zipped(files)
    bundle = read_bundle(whole)
    signed = SIGNER.sign(digest=bundle.digest, task_id="digits", version=bundle.version)
    library = AppLibrary(tmp_path / "apps")
    limits = BundleLimits(packed_bytes=1 << 20, unpacked_bytes=1 << 20)
    taken = refused = 0
    for seed in range(num_altered):
        chance = random.Random(seed)
        altered = chance.choice(ALTER)(whole, chance)
        try:
            read = read_bundle(altered, limits=limits)
        except AppRefusedError:
            refused += 1
            continue
        # Unsigned it may pass (a zip has bytes that nothing depends on): then it is exactly what it lists.
        taken += 1
        listed = {each.path for each in read.files}
        assert manifest_of(dict(iter_contents(altered, read.files))) == manifest_of(
            {path: files[path] for path in (each.path for each in read.files)}
        ), f"seed {seed}"
        assert listed <= files.keys(), f"seed {seed}"
        if altered != whole:
            try:
                check_signature(
                    signed, digest=read.digest, task_id="digits", version=read.version, signers=[SIGNER.public_key]
                )
            except AppRefusedError:
                continue
            raise AssertionError(f"seed {seed}: another bundle passed for the signed one")
    assert refused > num_altered // 2
    assert taken + refused == num_altered
    assert library.installed() == []
    assert not marker.exists()
