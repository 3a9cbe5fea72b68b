"""The apps that were published: their bundles, and which version each task has, are in the journal.

FL servers and downloads need a file: one is written where a bundle is used, on whichever host that is.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from fedops_mqtt.apps import (
    AppBundle,
    AppRefusedError,
    AppSignature,
    BundleLimits,
    check_signature,
    read_bundle,
)
from fedops_mqtt.manager import tables
from fedops_mqtt.manager.errors import BundleMissingError, NoEarlierAppError, UnknownAppError
from fedops_mqtt.manager.journal import Journal
from fedops_mqtt.protocol import AppReference, ReasonCode
from fedops_mqtt.runtime.files import delete_file, write_private

SUFFIX = ".fab"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedApp:
    """One version of a task's app; `bundle.files` is empty here, `AppStore.files` has them."""

    task_id: str
    bundle: AppBundle
    signature: AppSignature | None
    published_at: float
    is_current: bool
    """The next run of the task trains with it."""

    @property
    def reference(self) -> AppReference:
        """The reference in a run and its triggers."""
        signed = self.signature
        return AppReference(
            digest=self.bundle.digest,
            version=self.bundle.version,
            size=self.bundle.size,
            key_id=signed.key_id if signed else None,
            signature=signed.signature if signed else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRules:
    """What may be published.

    Args:
        limits: of a bundle's size.
        signers: public keys that a bundle must be signed with; none: any signature is taken, its devices check it.
        takes_unsigned: broker and API are on this machine only.
        num_kept: versions of a task that stay, beside those that are in use.
    """

    limits: BundleLimits
    signers: tuple[str, ...] = ()
    takes_unsigned: bool = False
    num_kept: int = 20


class AppStore:
    """The published apps of one leading manager; `lock` is held while a run takes its app, too.

    `folder` is this host's, for files that can be made again.
    """

    def __init__(self, journal: Journal, folder: Path, rules: PublishRules) -> None:
        self._journal = journal
        self._folder = folder
        self._rules = rules
        self.lock = asyncio.Lock()
        self.current: dict[str, PublishedApp] = {}
        """By task."""

    async def load(self) -> None:
        """Read which version each task has, and delete what an interrupted write has left."""
        for path in self._folder.glob(f".*{SUFFIX}.*"):
            delete_file(path)
        query = select(tables.apps).where(tables.apps.c.is_current)
        found = await self._journal.reader.call(self._read, query)
        self.current = {each.task_id: each for each in found}

    async def publish(
        self,
        data: bytes,
        task_id: str,
        signature: AppSignature | None,
        *,
        at: float,
        in_use: Callable[[], Collection[str]],
    ) -> PublishedApp:
        """Keep a bundle as the newest and current version of a task's app; one that is there already becomes that.

        `in_use` returns the digests that open runs train with: these stay.

        Raises:
            AppRefusedError: it is no bundle, too large, or not signed as it should be; nothing of it is kept.
            OSError: the disk is full or cannot be written.
        """
        bundle = await asyncio.to_thread(read_bundle, data, limits=self._rules.limits)
        self._check(bundle, task_id, signature)
        app = PublishedApp(
            task_id=task_id,
            bundle=replace(bundle, files=()),
            signature=signature,
            published_at=at,
            is_current=True,
        )
        async with self.lock:
            await asyncio.to_thread(write_private, self.path(bundle.digest), data)
            used = frozenset(in_use())
            await self._journal.call(self._add, app, data, used)
            self.current[task_id] = app
            known = used | await self._journal.call(self._digests)
            await asyncio.to_thread(self._delete_files, known)
        return app

    async def roll_back(self, task_id: str, version: str | None) -> PublishedApp:
        """Make another version of a task's app current: the named one, or the one published before the current one.

        Of several bundles with one version the newest is meant; `version` may be a digest, too.

        Raises:
            UnknownAppError, NoEarlierAppError: there is no such version.
            BundleMissingError: its bundle is no longer stored.
        """
        async with self.lock:
            versions = await self._journal.reader.call(self.versions, task_id)
            app = replace(_choose(versions, task_id, version), is_current=True)
            await self._journal.reader.call(self.fetch, app.bundle.digest)
            await self._journal.call(self._make_current, app)
            self.current[task_id] = app
        return app

    async def withdraw(self, task_id: str) -> PublishedApp:
        """Leave a task without a current app: its next run uses the devices' own app and the tasks file.

        Raises:
            UnknownAppError: it has none.
        """
        async with self.lock:
            app = self.current.get(task_id)
            if app is None:
                raise UnknownAppError(f"the current app of task {task_id!r}")
            await self._journal.call(self._clear_current, task_id)
            del self.current[task_id]
        return replace(app, is_current=False)

    def path(self, digest: str) -> Path:
        """Return the file that a bundle has or would have."""
        if not _DIGEST.fullmatch(digest):
            raise UnknownAppError(digest)
        return self._folder / f"{digest}{SUFFIX}"

    def fetch(self, digest: str) -> Path:
        """Return a published bundle's file, written anew where it is missing on this host or damaged; blocks.

        Raises:
            UnknownAppError: this is no digest.
            BundleMissingError: the journal does not have it.
            OSError: the disk is full or cannot be written.
        """
        path = self.path(digest)
        if _digest_of(path) != digest:
            query = select(tables.app_bundles.c.data).where(tables.app_bundles.c.digest == digest)
            with self._journal.engine.connect() as connection:
                data = connection.execute(query).scalar()
            if data is None:
                raise BundleMissingError(digest)
            write_private(path, data)
        return path

    def read(self, digest: str) -> AppBundle:
        """Read a published bundle again, its list of files included; blocks.

        Raises:
            UnknownAppError, BundleMissingError: there is none.
        """
        data = self.fetch(digest).read_bytes()
        return read_bundle(data, digest=digest, limits=replace(self._rules.limits, packed_bytes=len(data)))

    def versions(self, task_id: str) -> list[PublishedApp]:
        """Return the versions of a task's app, newest first; blocks."""
        return self._read(select(tables.apps).where(tables.apps.c.task_id == task_id).order_by(tables.apps.c.id.desc()))

    def publications(self, digest: str) -> list[PublishedApp]:
        """Return as which tasks' apps a bundle was published, newest first; blocks.

        Raises:
            UnknownAppError: it was never published, or it was deleted since.
        """
        found = self._read(select(tables.apps).where(tables.apps.c.digest == digest).order_by(tables.apps.c.id.desc()))
        if not found:
            raise UnknownAppError(digest)
        return found

    def _check(self, bundle: AppBundle, task_id: str, signature: AppSignature | None) -> None:
        if bundle.client_app is None:
            raise AppRefusedError(
                ReasonCode.APP_MALFORMED, "pyproject.toml names no clientapp in [tool.flwr.app.components]"
            )
        if signature is None and not self._rules.takes_unsigned:
            problem = "it is not signed, and this manager's broker or API is reached by others; publish it with --fleet"
            raise AppRefusedError(ReasonCode.APP_UNSIGNED, problem)
        if self._rules.signers:
            check_signature(
                signature,
                digest=bundle.digest,
                task_id=task_id,
                version=bundle.version,
                signers=self._rules.signers,
            )

    def _read(self, query: Any) -> list[PublishedApp]:
        with self._journal.engine.connect() as connection:
            return [_app(row) for row in connection.execute(query)]

    def _digests(self) -> frozenset[str]:
        with self._journal.engine.connect() as connection:
            return frozenset(connection.execute(select(tables.apps.c.digest)).scalars())

    def _add(self, app: PublishedApp, data: bytes, in_use: frozenset[str]) -> None:
        """Write a version and its bundle down, and drop those that are too many."""
        table, bundles = tables.apps, tables.app_bundles
        with self._journal.begin() as connection:
            of_task = table.c.task_id == app.task_id
            connection.execute(delete(table).where(of_task & (table.c.digest == app.bundle.digest)))
            connection.execute(update(table).where(of_task).values(is_current=False))
            connection.execute(insert(table).values(**_row(app)))
            _drop_old(connection, app.task_id, self._rules.num_kept, in_use)
            others = (in_use | set(connection.execute(select(table.c.digest)).scalars())) - {app.bundle.digest}
            connection.execute(delete(bundles).where(bundles.c.digest.not_in(others)))
            connection.execute(insert(bundles).values(digest=app.bundle.digest, data=data))

    def _make_current(self, app: PublishedApp) -> None:
        table = tables.apps
        with self._journal.begin() as connection:
            is_it = table.c.digest == app.bundle.digest
            connection.execute(update(table).where(table.c.task_id == app.task_id).values(is_current=is_it))

    def _clear_current(self, task_id: str) -> None:
        with self._journal.begin() as connection:
            connection.execute(update(tables.apps).where(tables.apps.c.task_id == task_id).values(is_current=False))

    def _delete_files(self, known: frozenset[str]) -> None:
        """Delete the files of bundles that are not known; one that is being written has another name."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            if path.stem not in known:
                delete_file(path)


def _choose(versions: list[PublishedApp], task_id: str, version: str | None) -> PublishedApp:
    if version is not None:
        for app in versions:
            if version in (app.bundle.version, app.bundle.digest):
                return app
        known = ", ".join(dict.fromkeys(app.bundle.version for app in versions)) or "none"
        raise UnknownAppError(f"version {version[:100]!r} of task {task_id!r} (there are: {known})")
    at = next((number for number, app in enumerate(versions) if app.is_current), -1)
    if at + 1 >= len(versions):
        raise NoEarlierAppError(task_id, has_versions=bool(versions))
    return versions[at + 1]


def _drop_old(connection: Connection, task_id: str, num_kept: int, in_use: frozenset[str]) -> None:
    table = tables.apps
    query = select(table.c.id).where((table.c.task_id == task_id) & table.c.is_current.is_(False))
    query = query.where(table.c.digest.not_in(in_use)).order_by(table.c.id.desc()).offset(num_kept - 1)
    old = connection.execute(query).scalars().all()
    connection.execute(delete(table).where(table.c.id.in_(old)))


def _row(app: PublishedApp) -> dict[str, Any]:
    return {
        "task_id": app.task_id,
        "digest": app.bundle.digest,
        "bundle": json.dumps(asdict(app.bundle)),
        "signature": app.signature.model_dump_json() if app.signature else None,
        "published_at": app.published_at,
        "is_current": app.is_current,
    }


def _app(row: Row[Any]) -> PublishedApp:
    about = json.loads(row.bundle)
    return PublishedApp(
        task_id=row.task_id,
        bundle=AppBundle(**{**about, "requires": tuple(about["requires"]), "files": ()}),
        signature=AppSignature.model_validate_json(row.signature) if row.signature else None,
        published_at=row.published_at,
        is_current=row.is_current,
    )


def _digest_of(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
