"""A Flower app bundle (FAB) as `flwr build` makes it: read, and checked whole, before a byte of it is written anywhere.

A bundle is a zip with `pyproject.toml`, the app's files, and `.info/CONTENT`: one line a file,
`path,sha256,bits` with the size in bits (Flower 1.41, `flwr.cli.build`).
Bundles come over the network: each number in them is the sender's claim.
"""

import hashlib
import re
import stat
import tomllib
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from fedops_mqtt.protocol import ReasonCode
from fedops_mqtt.runtime.key_values import Plain, flatten


class AppRefusedError(Exception):
    """An app is refused; nothing of it was kept and nothing of it has run."""

    def __init__(self, code: ReasonCode, problem: str) -> None:
        self.code = code
        self.problem = problem
        super().__init__(f"{code}: {problem}")


MANIFEST = ".info/CONTENT"
PROJECT = "pyproject.toml"
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED = 0x1
_NAME_BYTES = 255
"""The longest file name that Linux file systems take."""
_PATH_BYTES = 1024
_COMPONENT = re.compile(r"[^\x00-\x1f\x7f/\\:]+")
_MIB = 1024 * 1024
_PIECE_BYTES = 64 * 1024
_ENTRY_MARK = b"PK\x01\x02"
"""Begins each entry of a zip's list of files (APPNOTE 4.3.12)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleLimits:
    """How large a bundle may be; Flower's own limit is 10 MiB packed."""

    packed_bytes: int = 10 * _MIB
    unpacked_bytes: int = 100 * _MIB
    num_files: int = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledFile:
    """One file of a bundle, as its manifest lists it; `size` is in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppBundle:
    """A bundle that was read whole and checked against its manifest and digest."""

    digest: str
    """SHA-256 of the bundle, 64 hexadecimal digits."""
    size: int
    """Bytes of the bundle as it travels."""
    publisher: str
    name: str
    version: str
    """The project's version as PEP 440 writes it."""
    client_app: str | None
    """`MODULE:ATTRIBUTE` from `[tool.flwr.app.components]`."""
    server_app: str | None
    requires: tuple[str, ...]
    """`[project] dependencies`, one requirement (PEP 508) each."""
    config: Mapping[str, Plain]
    """`[tool.flwr.app.config]` with dotted keys."""
    files: tuple[BundledFile, ...]

    @property
    def title(self) -> str:
        """Return `publisher/name version`, for people."""
        return f"{self.publisher}/{self.name} {self.version}"


def read_bundle(data: bytes, *, digest: str | None = None, limits: BundleLimits | None = None) -> AppBundle:
    """Check a bundle whole and return what it holds; nothing is written and nothing of it runs.

    `digest` is the SHA-256 that the bundle must have, where it is known.

    Raises:
        AppRefusedError: it is too large, has another digest, or is no bundle that `flwr build` makes.
    """
    limits = limits or BundleLimits()
    if len(data) > limits.packed_bytes:
        raise AppRefusedError(
            ReasonCode.APP_TOO_LARGE, f"{len(data):,} bytes, at most {limits.packed_bytes:,} are taken"
        )
    found = hashlib.sha256(data).hexdigest()
    if digest is not None and found != digest:
        raise AppRefusedError(ReasonCode.APP_DIGEST_MISMATCH, f"its SHA-256 is {found}, not {digest}")
    files = tuple(_check_file(each, content) for each, content in _contents(data, limits))
    project = dict(iter_contents(data, files, only={PROJECT}))[PROJECT]
    return describe(project, digest=found, size=len(data), files=files)


def iter_contents(
    data: bytes, files: tuple[BundledFile, ...], only: set[str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Give path and content of the files of a bundle that `read_bundle` has checked."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        for each in files:
            if only is None or each.path in only:
                yield each.path, _read(archive, archive.getinfo(each.path), each.size)


def _contents(data: bytes, limits: BundleLimits) -> Iterator[tuple[BundledFile, bytes]]:
    """Give each file that the manifest lists with its content; refuse what the manifest and the zip differ in."""
    # zipfile makes an object of each entry before they can be counted: 10 MiB of entries would take over 100 MiB.
    if (num_files := data.count(_ENTRY_MARK)) > limits.num_files:
        raise AppRefusedError(ReasonCode.APP_TOO_LARGE, f"{num_files:,} files, at most {limits.num_files:,} are taken")
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            entries = _check_entries(archive.infolist(), limits)
            info = entries.pop(MANIFEST)
            listed = parse_manifest(_read(archive, info, info.file_size))
            if listed.keys() != entries.keys():
                odd = sorted(listed.keys() ^ entries.keys())
                raise _malformed(f"{MANIFEST} and the zip list different files: {', '.join(odd[:3])}")
            for path, each in listed.items():
                yield each, _read(archive, entries[path], each.size)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OverflowError) as error:
        raise _malformed(f"it cannot be unpacked: {error}") from error


def _check_entries(infos: list[zipfile.ZipInfo], limits: BundleLimits) -> dict[str, zipfile.ZipInfo]:
    total = sum(info.file_size for info in infos)
    if total > limits.unpacked_bytes:
        problem = f"{total:,} bytes unpacked, at most {limits.unpacked_bytes:,} are taken"
        raise AppRefusedError(ReasonCode.APP_TOO_LARGE, problem)
    entries: dict[str, zipfile.ZipInfo] = {}
    folded: dict[str, str] = {}
    for info in infos:
        _check_entry(info)
        # Two names that one file system takes for the same would overwrite each other.
        same = folded.setdefault(unicodedata.normalize("NFC", info.filename).casefold(), info.filename)
        if info.filename in entries or same != info.filename:
            raise _malformed(f"it holds {info.filename!r} twice")
        entries[info.filename] = info
    for needed in (MANIFEST, PROJECT):
        if needed not in entries:
            raise _malformed(f"{needed} is missing; make it with `flwr build`")
    parents = {str(parent) for path in entries for parent in PurePosixPath(path).parents}
    if clash := sorted(parents & entries.keys()):
        raise _malformed(f"{clash[0]!r} is both a file and a folder")
    return entries


def _check_entry(info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise _malformed(f"{info.filename!r} is a link, a folder or a device, not a file")
    if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
        raise _malformed(f"{info.filename!r} is encrypted, or packed in another way than `flwr build` does")
    # zipfile cuts a name at its first NUL: what is left must be the name in the zip.
    if info.orig_filename != info.filename:
        raise _malformed(f"{info.orig_filename!r} is no file name")
    _check_path(info.filename)


def _check_path(path: str) -> None:
    parts = path.split("/")
    plain = all(_COMPONENT.fullmatch(part) and part not in (".", "..") for part in parts)
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        sizes = [_PATH_BYTES + 1]
    if not plain or max(sizes) > _NAME_BYTES or sum(sizes) + len(sizes) > _PATH_BYTES:
        raise _malformed(f"{path[:200]!r} is no path of a file below the app's folder")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> bytes:
    """Read a file of the size that is expected and that the zip declares, in pieces.

    zipfile unpacks as many bytes as a read asks for, and only then cuts them to the declared size: no read asks for
    more than a piece, whatever was declared.
    """
    if info.file_size != size:
        raise _malformed(f"{info.filename!r} has {info.file_size:,} bytes in the zip and {size:,} in {MANIFEST}")
    content = bytearray()
    with archive.open(info) as file:
        while piece := file.read(_PIECE_BYTES):  # zipfile ends at the declared size, and compares the checksum there
            content += piece
    if len(content) != size:
        raise _malformed(f"{info.filename!r} has not the size in its header")
    return bytes(content)


def write_manifest(files: tuple[BundledFile, ...]) -> bytes:
    """Return the manifest of these files, as `flwr build` writes it."""
    return "".join(f"{each.path},{each.sha256},{each.size * 8}\n" for each in files).encode()


def parse_manifest(raw: bytes) -> dict[str, BundledFile]:
    """Return the files that a manifest lists, by path.

    Raises:
        AppRefusedError: it has another form.
    """
    listed: dict[str, BundledFile] = {}
    try:
        lines = raw.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise _malformed(f"{MANIFEST} is not UTF-8") from error
    for line in filter(None, lines):
        match = re.fullmatch(r"(.+),([0-9a-f]{64}),(0|[1-9][0-9]{0,15})", line)
        if match is None or int(match[3]) % 8 or match[1] in listed:
            raise _malformed(f"{MANIFEST} has a line that is not `path,sha256,bits`, or a path twice: {line[:200]!r}")
        listed[match[1]] = BundledFile(path=match[1], sha256=match[2], size=int(match[3]) // 8)
    return listed


def _check_file(listed: BundledFile, content: bytes) -> BundledFile:
    if len(content) != listed.size or hashlib.sha256(content).hexdigest() != listed.sha256:
        raise _malformed(f"{listed.path!r} is not the file that {MANIFEST} lists")
    return listed


def describe(project: bytes, *, digest: str, size: int, files: tuple[BundledFile, ...] = ()) -> AppBundle:
    """Return what a `pyproject.toml` declares of the app; the files of one that is installed already are not listed.

    Raises:
        AppRefusedError: something is missing in it, or has another form.
    """
    try:
        read: dict[str, Any] = tomllib.loads(project.decode("utf-8"))
        about, app = read["project"], read["tool"]["flwr"]["app"]
        components = app.get("components", {})
        return AppBundle(
            digest=digest,
            size=size,
            publisher=_text(app["publisher"]),
            name=_text(about["name"]),
            version=str(Version(_text(about["version"]))),
            client_app=_reference(components.get("clientapp")),
            server_app=_reference(components.get("serverapp")),
            requires=tuple(str(Requirement(_text(each))) for each in about.get("dependencies", [])),
            config=flatten(app.get("config", {})),
            files=files,
        )
    except KeyError as error:
        raise _malformed(f"{PROJECT} has no {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError, InvalidVersion, InvalidRequirement) as error:
        raise _malformed(f"{PROJECT}: {error}") from error


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > _PATH_BYTES or not value.isprintable():
        raise ValueError(f"{str(value)[:100]!r} is not a printable text")
    return value


def _reference(value: object) -> str | None:
    if value is None:
        return None
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text := _text(value)):
        raise ValueError(f"{text!r} is not MODULE:ATTRIBUTE")
    return text


def _malformed(problem: str) -> AppRefusedError:
    return AppRefusedError(ReasonCode.APP_MALFORMED, problem)


_ENGINE = "flwr"
"""Its extras (`flwr[simulation]` in Flower's own templates) are for Flower's engines, which do not run an app here."""


def missing_requirements(requires: Iterable[str]) -> list[str]:
    """Return each of the requirements (PEP 508) that is not met, with what is installed in its place.

    Requirements whose marker is for another Python or system are passed over; extras are looked into.
    """
    return [problem for each in requires for problem in _problems(Requirement(each), set())]


def _problems(requirement: Requirement, seen: set[str]) -> Iterator[str]:
    try:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            return
        found = distribution(requirement.name)
        if not requirement.specifier.contains(str(found.version), prereleases=True):
            yield f"{requirement} (installed: {found.version})"
            return
    except PackageNotFoundError:
        yield str(requirement)
        return
    except ValueError as error:  # a marker that compares what cannot be compared, an invalid version
        yield f"{requirement} ({error})"
        return
    extras = set() if requirement.name.lower() == _ENGINE else requirement.extras
    for extra in sorted(extras):
        key = f"{requirement.name}[{extra}]"
        if key not in seen:
            seen.add(key)
            yield from _problems_of_extra(found.requires or [], extra, seen)


def _problems_of_extra(requires: Iterable[str], extra: str, seen: set[str]) -> Iterator[str]:
    for line in requires:
        try:
            needed = Requirement(line)
            marker, needed.marker = needed.marker, None
            is_of_extra = marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
        except ValueError:  # in the metadata of an installed package: nothing that the app can help
            continue
        if is_of_extra:
            yield from _problems(needed, seen)
