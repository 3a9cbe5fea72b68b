"""A large model is saved, verified and read with little more memory than it has itself: a gigabyte on disk."""

import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from server_parts import BUCKET

pytestmark = pytest.mark.long

PROGRAM = Path(__file__).with_name("large_model.py")
LIMIT_S = 240.0
SPARE_MIB = 64
SPARE_S3_MIB = 256
"""Two parts of 50 MiB on their way, and what the HTTP client makes of them."""


def test_a_gigabyte_is_saved_and_read_in_bounded_memory(tmp_path: Path) -> None:
    try:
        save_and_read(str(tmp_path), mib=1024, spare_mib=SPARE_MIB)
    finally:
        for path in (tmp_path / "large").iterdir():
            path.unlink()  # pytest keeps the folders of three runs


def test_a_large_model_goes_to_s3_and_back_in_bounded_memory(s3: fsspec.AbstractFileSystem) -> None:
    """A quarter of a gigabyte: moto's server keeps in memory what it is given; it goes in parts as a gigabyte does."""
    save_and_read(f"s3://{BUCKET}/fl", mib=256, spare_mib=SPARE_S3_MIB)


def save_and_read(url: str, *, mib: int, spare_mib: int) -> None:
    command = [sys.executable, str(PROGRAM), url, str(mib), str(spare_mib)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
