"""What `flwr build` makes is read; what it would never make is refused before anything is written."""

import hashlib
import stat
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from bundles import CODE, PROJECT, flower_bundle, manifest_of, zipped

from fedops_mqtt.apps import AppRefusedError, BundleLimits, read_bundle
from fedops_mqtt.apps.bundle import iter_contents
from fedops_mqtt.protocol import ReasonCode

FILES = {"pyproject.toml": PROJECT.encode(), "digits/client_app.py": CODE.encode()}


def refusal(data: bytes, **how: object) -> AppRefusedError:
    with pytest.raises(AppRefusedError) as caught:
        read_bundle(data, **how)  # type: ignore[arg-type]
    return caught.value


def test_a_bundle_of_flwr_build_is_read_whole(tmp_path: Path) -> None:
    data = flower_bundle(tmp_path / "digits-project")
    bundle = read_bundle(data, digest=hashlib.sha256(data).hexdigest())
    assert (bundle.publisher, bundle.name, bundle.version) == ("tester", "digits", "1.2.0")
    assert (bundle.client_app, bundle.server_app) == ("digits.client_app:app", "digits.server_app:app")
    assert set(bundle.requires) == {"numpy>=1.26", "flwr>=1.41"}
    assert bundle.config == {"lr": 0.1, "local.epochs": 2}
    contents = dict(iter_contents(data, bundle.files))
    assert contents["digits/client_app.py"] == CODE.encode()
    assert {each.path: each.sha256 for each in bundle.files} == {
        path: hashlib.sha256(content).hexdigest() for path, content in contents.items()
    }


def test_another_digest_is_refused() -> None:
    assert refusal(zipped(FILES), digest="0" * 64).code is ReasonCode.APP_DIGEST_MISMATCH


@pytest.mark.parametrize(
    "path",
    [
        *("../evil.py", "a/../../evil.py", "/etc/evil.py", "a//b.py", "./a.py", "a/.", "a\\b.py", "c:evil.py", "a/"),
        *("a\nb.py", "a\x1bb.py", "a/" + "x" * 256, "/".join("x" * 200 for _ in range(6))),
    ],
)
def test_a_path_that_leaves_the_folder_or_is_none_is_refused(path: str) -> None:
    assert refusal(zipped({**FILES, path: b"x"})).code is ReasonCode.APP_MALFORMED


def test_a_name_with_a_nul_is_not_taken_for_the_part_before_it() -> None:
    data = zipped({**FILES, "digits/x.py": b"x"}).replace(b"digits/x.py", b"digits\x00x.py")
    assert refusal(data).code is ReasonCode.APP_MALFORMED


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
def test_links_devices_and_folders_are_refused(kind: int) -> None:
    data = zipped({**FILES, "digits/link": b"/etc/passwd"}, attributes={"digits/link": kind | 0o777})
    assert refusal(data).code is ReasonCode.APP_MALFORMED


def test_a_zip_bomb_is_refused_by_its_declared_and_by_its_real_size() -> None:
    zeros = {**FILES, "zeros.txt": bytes(3_000_000)}
    assert refusal(zipped(zeros), limits=BundleLimits(unpacked_bytes=1_000_000)).code is ReasonCode.APP_TOO_LARGE
    # The same zip that says of itself, in the central directory, that it unpacks to ten bytes.
    lying = zipped(zeros, manifest_of({**FILES, "zeros.txt": bytes(10)}))
    with zipfile.ZipFile(BytesIO(lying)) as archive:
        size = archive.getinfo("zeros.txt").file_size.to_bytes(4, "little")
    lying = lying.replace(size, (10).to_bytes(4, "little"))
    assert refusal(lying, limits=BundleLimits(unpacked_bytes=1_000_000)).code is ReasonCode.APP_MALFORMED


@contextmanager
def in_ten_megabytes() -> Iterator[None]:
    """What the block allocates at a time stays below."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("listed", [10, 50_000_000])
def test_a_zip_bomb_is_not_unpacked_to_find_that_it_is_one(listed: int) -> None:
    zeros = bytes(50_000_000)
    digest = hashlib.sha256(zeros).hexdigest()
    bomb = zipped({**FILES, "zeros.txt": zeros}, f"{manifest_of(FILES)}\nzeros.txt,{digest},{listed * 8}")
    bomb = bomb.replace(len(zeros).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    del zeros
    with in_ten_megabytes():
        assert refusal(bomb).code is ReasonCode.APP_MALFORMED


def test_a_list_of_very_many_files_is_not_read_to_count_them() -> None:
    entry = b"PK\x01\x02" + bytes(24) + b"\x01\x00" + bytes(16) + b"x"  # of a file named x
    entries = entry * 200_000
    sizes = len(entries).to_bytes(4, "little") + bytes(4)
    many = entries + b"PK\x05\x06" + bytes(4) + b"\xff\xff" * 2 + sizes + bytes(2)
    with in_ten_megabytes():
        assert refusal(many).code is ReasonCode.APP_TOO_LARGE


def test_too_many_files_or_bytes_are_refused() -> None:
    many = {**FILES, **{f"f{number}.py": b"" for number in range(20)}}
    assert refusal(zipped(many), limits=BundleLimits(num_files=10)).code is ReasonCode.APP_TOO_LARGE
    assert refusal(zipped(many), limits=BundleLimits(packed_bytes=100)).code is ReasonCode.APP_TOO_LARGE


def test_a_file_that_the_manifest_does_not_name_or_names_otherwise_is_refused() -> None:
    for manifest in (
        manifest_of({"pyproject.toml": FILES["pyproject.toml"]}),
        manifest_of({**FILES, "digits/client_app.py": b"other"}),
        manifest_of({**FILES, "missing.py": b""}),
        manifest_of(FILES) + "\n" + manifest_of(FILES),
        "nonsense",
        manifest_of(FILES).replace(",", ";"),
        manifest_of(FILES) + "1",
    ):
        assert refusal(zipped(FILES, manifest)).code is ReasonCode.APP_MALFORMED


def test_two_names_for_one_file_are_refused() -> None:
    assert refusal(zipped({**FILES, "Digits/client_app.py": b"x"})).code is ReasonCode.APP_MALFORMED
    assert refusal(zipped({**FILES, "digits": b"x"})).code is ReasonCode.APP_MALFORMED


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('version = "1.2.0"', 'version = "newest"'),
        ('version = "1.2.0"', ""),
        ('publisher = "tester"', 'publisher = "\\u001b[31m"'),
        ("digits.client_app:app", "digits.client_app"),
        ("digits.client_app:app", "os:system; x"),
        ('"numpy>=1.26"', '"numpy >> 1"'),
        ("lr = 0.1", "lr = [0.1]"),
        ("[project]", "[project"),
        ("[project]", "[[project]]"),
    ],
)
def test_an_invalid_project_file_is_refused(old: str, new: str) -> None:
    files = {**FILES, "pyproject.toml": PROJECT.replace(old, new).encode()}
    assert refusal(zipped(files)).code is ReasonCode.APP_MALFORMED


@pytest.mark.parametrize("data", [b"", b"PK", b"x" * 1000, zipped({}), zipped({"pyproject.toml": b"\xff\xfe"})])
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    assert refusal(data).code is ReasonCode.APP_MALFORMED
