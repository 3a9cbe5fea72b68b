"""FedOps' calls that need torch or a language model: local and global models without unpickling, adapters by shape."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fedops_mqtt.client.client_utils import (
    download_local_model,
    gen_parameter_shape,
    get_parameters_for_llm,
    load_model,
    local_model_directory,
    set_parameters_for_llm,
)
from fedops_mqtt.server.server_utils import load_initial_parameters_from_shape, model_download_local

# transformers 5 has new names for it; peft, and ours for the sake of transformers 4, call it by the old ones.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*:FutureWarning")]

LORA = {"lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def base(folder: Path) -> str:
    """A folder with a tiny language model, made here."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).save_pretrained(folder / "base")
    return str(folder / "base")


def test_a_local_pth_of_fedops_is_read_and_the_newest_is_taken() -> None:
    local_model_directory("t")
    for version in (9, 10):
        state = {name: torch.full_like(value, version) for name, value in nn.Linear(2, 1).state_dict().items()}
        torch.save(state, f"local_model/t/Net_local_model_V{version}.pth")
    model = download_local_model("Pytorch", "t", local_model_directory("t"), nn.Linear(2, 1))
    assert model.weight.tolist() == [[10.0, 10.0]]


def test_a_global_pth_of_fedops_is_read() -> None:
    torch.save(
        {name: torch.ones_like(value) for name, value in nn.Linear(2, 1).state_dict().items()}, "a_gl_model_V3.pth"
    )
    model, name, version = model_download_local("Pytorch", nn.Linear(2, 1))
    assert (name, version, model.bias.tolist()) == ("a", 3, [1.0])


class Trap:
    """Leaves a file behind if anybody unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path("sprung"),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pth_that_would_run_code_is_refused(is_zip: bool) -> None:
    local_model_directory("t")
    path = "local_model/t/Net_local_model_V1.pth"
    if is_zip:
        torch.save({"weight": Trap()}, path)
    else:
        Path(path).write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(ValueError, match="more than weights"):
        download_local_model("Pytorch", "t", local_model_directory("t"), nn.Linear(2, 1))
    assert not Path("sprung").exists()


def test_an_adapters_arrays_go_out_and_in(base: str) -> None:
    model = load_model(base, 0, True, LoraConfig(r=2, task_type="CAUSAL_LM"))
    assert model.config.use_cache is False
    before = get_parameters_for_llm(model)
    assert [array.shape for array in before] == [(2, 16), (16, 2)] * 2
    set_parameters_for_llm(model, [array + 1 for array in before])
    for array, old in zip(get_parameters_for_llm(model), before, strict=True):
        np.testing.assert_allclose(array, old + 1, rtol=1e-6)


def test_an_adapters_shapes_are_written_for_the_server(base: str) -> None:
    gen_parameter_shape(SimpleNamespace(model=SimpleNamespace(name=base), finetune=SimpleNamespace(**LORA)))
    assert json.loads(Path("parameter_shapes.json").read_text()) == [[2, 16], [16, 2]] * 2
    begin = load_initial_parameters_from_shape("parameter_shapes.json")
    assert [(array.shape, array.any()) for array in begin] == [((2, 16), False), ((16, 2), False)] * 2
