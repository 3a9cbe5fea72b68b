"""Published apps: which version is current, what stays, and what a failed publication leaves behind."""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import CODE, PROJECT, zipped
from sqlalchemy import select

from fedops_mqtt.apps import AppRefusedError, AppSigner, BundleLimits, make_signing_key
from fedops_mqtt.cli.roles import BUNDLE_SERVER
from fedops_mqtt.core.run import Run, RunSpec
from fedops_mqtt.manager import tables
from fedops_mqtt.manager.app_store import AppStore, PublishedApp, PublishRules
from fedops_mqtt.manager.errors import BundleMissingError, NoEarlierAppError, RunConfigError, UnknownAppError
from fedops_mqtt.manager.journal import Journal, JournaledRun
from fedops_mqtt.manager.run_service import check_config, with_app
from fedops_mqtt.manager.tasks import TaskConfig, Tasks
from fedops_mqtt.protocol import ReasonCode

RULES = PublishRules(limits=BundleLimits(), takes_unsigned=True, num_kept=3)


def a_bundle(version: str = "1.2.0", project: str = PROJECT) -> bytes:
    files = {"pyproject.toml": project.replace("1.2.0", version), "digits/__init__.py": CODE}
    return zipped({path: content.encode() for path, content in files.items()})


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(f"sqlite:///{tmp_path / 'manager.db'}") as opened:
        yield opened


@pytest.fixture
def store(journal: Journal, tmp_path: Path) -> AppStore:
    return AppStore(journal, tmp_path / "apps", RULES)


async def publish(store: AppStore, version: str, task_id: str = "digits", in_use: tuple[str, ...] = ()) -> PublishedApp:
    return await store.publish(a_bundle(version), task_id, None, at=1.0, in_use=lambda: in_use)


def versions(store: AppStore, task_id: str = "digits") -> list[str]:
    return [each.bundle.version for each in store.versions(task_id)]


async def test_what_is_published_last_is_current_and_a_new_manager_knows_it(
    store: AppStore, journal: Journal, tmp_path: Path
) -> None:
    await publish(store, "1.0")
    newest = await publish(store, "2.0")
    await publish(store, "7.0", "letters")
    assert store.current["digits"] == newest
    assert versions(store) == ["2.0", "1.0"]
    assert store.fetch(newest.bundle.digest).read_bytes() == a_bundle("2.0")
    again = AppStore(journal, tmp_path / "apps", RULES)
    await again.load()
    assert again.current == store.current


async def test_a_rollback_goes_back_step_by_step_to_what_was_published_before(store: AppStore) -> None:
    for version in ("1.0", "2.0", "3.0"):
        await publish(store, version)
    assert (await store.roll_back("digits", None)).bundle.version == "2.0"
    assert (await store.roll_back("digits", None)).bundle.version == "1.0"
    with pytest.raises(NoEarlierAppError):
        await store.roll_back("digits", None)
    chosen = await store.roll_back("digits", "3.0")
    assert [each.bundle.version for each in store.versions("digits") if each.is_current] == ["3.0"]
    assert store.current["digits"] == chosen
    with pytest.raises(UnknownAppError, match=r"1\.0"):
        await store.roll_back("digits", "4.0")


async def test_a_digest_selects_one_of_two_bundles_with_one_version(store: AppStore) -> None:
    first = await publish(store, "1.0")
    changed = a_bundle("1.0", PROJECT.replace("lr = 0.1", "lr = 0.2"))
    second = await store.publish(changed, "digits", None, at=2.0, in_use=lambda: ())
    assert (await store.roll_back("digits", first.bundle.digest)).bundle.config["lr"] == 0.1
    assert (await store.roll_back("digits", "1.0")).bundle.digest == second.bundle.digest


async def test_an_app_that_is_published_again_is_one_version_and_the_newest(store: AppStore) -> None:
    for version in ("1.0", "2.0", "1.0"):
        await publish(store, version)
    assert versions(store) == ["1.0", "2.0"]
    assert store.current["digits"].bundle.version == "1.0"


async def test_a_withdrawn_app_is_current_no_more_and_can_come_back(store: AppStore, tmp_path: Path) -> None:
    await publish(store, "1.0")
    tasks = Tasks(None, published=store.current)
    assert "digits" in tasks
    await store.withdraw("digits")
    assert "digits" not in tasks
    with pytest.raises(UnknownAppError):
        await store.withdraw("digits")
    await store.roll_back("digits", "1.0")
    assert tasks.get("digits") == TaskConfig()


async def test_old_versions_go_but_neither_the_current_one_nor_one_that_is_in_use(store: AppStore) -> None:
    used = await publish(store, "0.1")
    await publish(store, "0.2")
    await publish(store, "1.0")
    await store.roll_back("digits", "0.2")
    for version in ("2.0", "3.0", "4.0", "5.0"):
        await publish(store, version, in_use=(used.bundle.digest,))
    assert versions(store) == ["5.0", "4.0", "3.0", "0.1"]
    files = {path.stem for path in store.path(used.bundle.digest).parent.iterdir()}
    assert files == {each.bundle.digest for each in store.versions("digits")}


async def test_one_file_serves_two_tasks_and_goes_with_the_last(store: AppStore) -> None:
    shared = await publish(store, "1.0")
    await publish(store, "1.0", "letters")
    assert {each.task_id for each in store.publications(shared.bundle.digest)} == {"digits", "letters"}
    for version in ("2.0", "3.0", "4.0"):
        await publish(store, version)
    assert store.fetch(shared.bundle.digest).is_file()
    assert [each.task_id for each in store.publications(shared.bundle.digest)] == ["letters"]


async def test_the_journal_keeps_the_bundles_of_what_it_names_only(store: AppStore, journal: Journal) -> None:
    apps = [await publish(store, f"{number}.0") for number in range(6)]
    with journal.engine.connect() as connection:
        kept = set(connection.execute(select(tables.app_bundles.c.digest)).scalars())
    assert kept == {app.bundle.digest for app in apps[-RULES.num_kept :]}


async def test_what_a_publication_that_was_cut_off_left_goes_with_the_next_manager(store: AppStore) -> None:
    known = await publish(store, "1.0")
    folder = store.path(known.bundle.digest).parent
    being_written = folder / f".{'1' * 64}.fab.k3x_f0"  # as `write_atomically` names it
    being_written.write_bytes(b"half")
    store.path("0" * 64).write_bytes(b"no row")
    await publish(store, "2.0")
    assert (being_written.exists(), len(list(folder.iterdir()))) == (True, 3)
    await store.load()
    assert len(list(folder.iterdir())) == 2


async def test_what_cannot_be_deleted_keeps_nothing_from_being_published(store: AppStore) -> None:
    known = await publish(store, "1.0")
    (store.path(known.bundle.digest).parent / "somebodys.fab").mkdir()
    assert (await publish(store, "2.0")).is_current


async def test_a_full_disk_leaves_the_version_that_was(store: AppStore, tmp_path: Path) -> None:
    known = await publish(store, "1.0")
    folder = tmp_path / "apps"
    folder.rename(tmp_path / "kept")
    folder.write_text("no folder")
    with pytest.raises(OSError, match="apps"):
        await publish(store, "2.0")
    assert store.current["digits"] == known
    assert versions(store) == ["1.0"]


async def test_another_host_has_the_bundles_from_the_journal(store: AppStore, journal: Journal, tmp_path: Path) -> None:
    first = await publish(store, "1.0")
    await publish(store, "2.0")
    shutil.rmtree(tmp_path / "apps")
    elsewhere = AppStore(journal, tmp_path / "elsewhere", RULES)
    await elsewhere.load()
    assert (await elsewhere.roll_back("digits", None)).bundle.digest == first.bundle.digest
    assert elsewhere.fetch(first.bundle.digest).read_bytes() == a_bundle("1.0")
    assert elsewhere.read(elsewhere.versions("digits")[0].bundle.digest).version == "2.0"


async def test_a_file_that_was_damaged_is_written_anew(store: AppStore) -> None:
    app = await publish(store, "1.0")
    store.path(app.bundle.digest).write_bytes(b"half")
    assert store.fetch(app.bundle.digest).read_bytes() == a_bundle("1.0")


async def test_a_bundle_from_before_they_were_in_the_journal_has_to_be_published_again(
    store: AppStore, journal: Journal
) -> None:
    app = await publish(store, "1.0")
    with journal.engine.begin() as connection:
        connection.execute(tables.app_bundles.delete())
    assert store.fetch(app.bundle.digest).is_file()
    store.path(app.bundle.digest).unlink()
    with pytest.raises(BundleMissingError, match=app.bundle.digest):
        await store.roll_back("digits", "1.0")
    await publish(store, "1.0")
    store.path(app.bundle.digest).unlink()
    assert store.fetch(app.bundle.digest).is_file()


@pytest.mark.parametrize(
    "digest", ["", "..", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, "\ud800", "0" * 63 + "\n"]
)
def test_what_is_no_digest_opens_no_file(store: AppStore, digest: str) -> None:
    with pytest.raises(UnknownAppError):
        store.fetch(digest)


async def test_only_what_one_of_the_signers_signed_for_the_task_is_published(journal: Journal, tmp_path: Path) -> None:
    signer, other = AppSigner(make_signing_key()), AppSigner(make_signing_key())
    rules = PublishRules(limits=BundleLimits(), signers=(signer.public_key,))
    store = AppStore(journal, tmp_path / "apps", rules)
    data = a_bundle()
    unsigned = AppStore(journal, tmp_path / "apps", RULES)
    digest = (await unsigned.publish(data, "letters", None, at=1.0, in_use=lambda: ())).bundle.digest

    async def refusal(signature: object) -> ReasonCode:
        with pytest.raises(AppRefusedError) as refused:
            await store.publish(data, "digits", signature, at=1.0, in_use=lambda: ())  # type: ignore[arg-type]
        return refused.value.code

    assert await refusal(None) is ReasonCode.APP_UNSIGNED
    assert await refusal(other.sign(digest=digest, task_id="digits", version="1.2.0")) is ReasonCode.APP_UNKNOWN_SIGNER
    assert await refusal(signer.sign(digest=digest, task_id="letters", version="1.2.0")) is ReasonCode.APP_BAD_SIGNATURE
    assert await refusal(signer.sign(digest=digest, task_id="digits", version="1.3.0")) is ReasonCode.APP_BAD_SIGNATURE
    signature = signer.sign(digest=digest, task_id="digits", version="1.2.0")
    app = await store.publish(data, "digits", signature, at=1.0, in_use=lambda: ())
    assert app.reference.signature == signature.signature
    assert store.versions("digits")[0] == app


async def test_what_is_no_bundle_is_refused_and_leaves_nothing(store: AppStore, tmp_path: Path) -> None:
    without_client = PROJECT.replace('clientapp = "digits.client_app:app"', "")
    for data in (b"", b"PK", a_bundle()[:-30], a_bundle(project=without_client)):
        with pytest.raises((AppRefusedError, zipfile.BadZipFile)) as refused:
            await store.publish(data, "digits", None, at=1.0, in_use=lambda: ())
        assert isinstance(refused.value, AppRefusedError)
    assert not (tmp_path / "apps").exists()
    assert versions(store) == []


async def test_a_configuration_with_odd_values_is_kept_as_it_is(store: AppStore) -> None:
    project = PROJECT.replace("lr = 0.1", 'lr = inf\nwhole = 2.0\nodd = "\\u0000 \\" é"')
    app = await store.publish(a_bundle(project=project), "digits", None, at=1.0, in_use=lambda: ())
    kept = store.versions("digits")[0].bundle.config
    assert kept == app.bundle.config
    assert [type(value) for value in kept.values()] == [type(value) for value in app.bundle.config.values()]


async def test_a_run_keeps_its_app_and_its_settings_with_their_types(store: AppStore, journal: Journal) -> None:
    app = await publish(store, "1.0")
    config = {"lr": 2.0, "local.epochs": 2, "shuffle": True, "text": "1"}
    spec = RunSpec(run_id="run-1", task_id="digits", num_rounds=1, min_clients=1, app=app.reference, run_config=config)
    journal.add_run(JournaledRun(run=Run(spec=spec, created_at=1.0), secret=b"s"))
    found = journal.reader.find_run("run-1")
    assert found is not None
    assert found.spec == spec
    assert [type(value) for value in found.spec.run_config.values()] == [float, int, bool, str]
    ((run, _),) = journal.reader.list_runs(app_digest=app.bundle.digest)[0]
    assert run.run_id == "run-1"
    assert journal.reader.list_runs(app_digest="0" * 64) == ([], 0)


async def test_keys_that_the_project_does_not_name_are_refused(store: AppStore) -> None:
    app = await publish(store, "1.0")
    assert check_config({"lr": 1, "local.epochs": 3, "num-server-rounds": 2}, app)
    with pytest.raises(RunConfigError, match=r"learning-rate.*local\.epochs, lr"):
        check_config({"lr": 1, "learning-rate": 0.1}, app)
    assert check_config({"anything": 1}, None) == {"anything": 1}


async def test_a_published_app_takes_the_place_of_the_tasks_command(store: AppStore) -> None:
    rounds = PROJECT.replace("lr = 0.1", "num-server-rounds = 7")
    bundle = (await store.publish(a_bundle(project=rounds), "digits", None, at=1.0, in_use=lambda: ())).bundle
    task = with_app(TaskConfig(command=("python", "server.py"), args=("x",)), bundle, BUNDLE_SERVER)
    assert (task.command, task.module, task.args, task.num_rounds) == (None, BUNDLE_SERVER, (), 7)
    assert TaskConfig.model_validate_json(task.model_dump_json(exclude_unset=True)) == task
    assert with_app(TaskConfig(num_rounds=4), bundle, BUNDLE_SERVER).num_rounds == 4
    only_client = a_bundle(project=PROJECT.replace('serverapp = "digits.server_app:app"', ""))
    without = await store.publish(only_client, "digits", None, at=1.0, in_use=lambda: ())
    assert with_app(TaskConfig(module="own"), without.bundle, BUNDLE_SERVER).module == "own"


@pytest.mark.parametrize("value", ["0", "-1", "2.0", "true", '"3"', "10000000", "nan"])
async def test_rounds_that_are_none_are_refused(store: AppStore, value: str) -> None:
    project = PROJECT.replace("lr = 0.1", f"num-server-rounds = {value}")
    app = await store.publish(a_bundle(project=project), "digits", None, at=1.0, in_use=lambda: ())
    with pytest.raises(RunConfigError, match="num-server-rounds"):
        with_app(TaskConfig(), app.bundle, BUNDLE_SERVER)
