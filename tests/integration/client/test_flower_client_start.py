"""FedOps' `FLClient` and `flower_client_start`, in a program that does without `FLClientTask`."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from client_testbed import PATIENCE_S, ServeFl
from ports import free_port
from safetensors.numpy import load_file

from fedops_mqtt.client.client_fl import FLClient, flower_client_start


def make_client() -> FLClient:
    functions = {"train_numpy": lambda model, data, epochs, cfg: [array + epochs for array in model]}
    functions |= {"test_numpy": lambda model, data, cfg: (float(model[0].sum()), 0.5, None)}
    data = {"train_data": [1, 2, 3], "test_data": [1]}
    who = ("t", "02:00:00:00:00:01", "pi")
    begin = [np.zeros(2, np.float32)]
    return FLClient(begin, None, *who, 1, 7, False, "", None, "Line", "Numpy", registration=functions | data)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_parameters_go_in_and_out() -> None:
    client = make_client()
    client.set_parameters([np.array([1.0, 2.0], np.float32)])
    assert [array.tolist() for array in client.get_parameters()] == [[1.0, 2.0]]
    with pytest.raises(ValueError, match="arrays"):
        client.set_parameters([np.zeros(2), np.zeros(2)])


async def test_it_trains_with_a_classic_server_until_that_ends(serve_fl: ServeFl, folder: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    await serve_fl("grpc", address, "2")
    await listening(address)
    client = make_client()
    await asyncio.to_thread(flower_client_start(address, client))
    assert client.fl_round == 3
    kept = load_file(folder / "local_model" / "t" / "Line_local_model_V7.safetensors")
    np.testing.assert_array_equal(kept["0"], [2.0, 2.0])


async def listening(address: str) -> None:
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return
