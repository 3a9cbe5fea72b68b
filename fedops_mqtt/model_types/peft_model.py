"""Hugging Face with PEFT: only the adapter's arrays (LoRA) are shared, the base model never leaves the device.

Registered as FedOps does: model, tokenizer, `trainset`, `data_collator`, `formatting_prompts_func`, `finetune_llm`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from fedops_mqtt.model_types.model_type import Arrays, Tested, Trained, TrainPlan, matched, take, takes, tested
from fedops_mqtt.model_types.torch_model import to_array, to_tensors


class PeftAdapter:
    """A PEFT model and the function that fine-tunes it.

    Beside FedOps' entries: `test_llm(model, testset, tokenizer) -> (loss, accuracy, metrics)` and `testset`; without
    them an evaluation says 0, as FedOps' does.
    """

    def __init__(self, registration: Mapping[str, Any], cfg: Any) -> None:
        self.model, self._finetune, self._trainset = take(registration, "model", "finetune_llm", "trainset")
        self._tokenizer = registration.get("tokenizer")
        self._collator = registration.get("data_collator")
        self._formatting = registration.get("formatting_prompts_func")
        self._test_llm = registration.get("test_llm")
        self._testset = registration.get("testset")

    def arrays(self) -> Arrays:
        """Return copies of the adapter's arrays."""
        return shared_arrays(self.model)

    def load(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Take over the server's arrays."""
        load_arrays(self.model, matched(shared_arrays(self.model), arrays))

    def train(self, plan: TrainPlan) -> Trained:
        """Fine-tune by the user's function; it may return numbers in the place of a model."""
        asked = {"num_epochs": plan.num_epochs, "batch_size": plan.batch_size, "hp": dict(plan.hp)}
        known = {name: value for name, value in asked.items() if takes(self._finetune, name)}
        result = self._finetune(self.model, self._trainset, self._tokenizer, self._formatting, self._collator, **known)
        loss = getattr(result, "training_loss", None)
        metrics = {} if loss is None else {"train_loss": float(loss)}
        return Trained(num_examples=len(self._trainset), metrics=metrics)

    def test(self, batch_size: int) -> Tested:
        """Evaluate by the user's function, where there is one."""
        if self._test_llm is None:
            return Tested(loss=0.0, accuracy=0.0, num_examples=1, metrics={})
        result = self._test_llm(self.model, self._testset, self._tokenizer)
        return tested(result, len(self._testset) if self._testset is not None else 1)

    def save(self, stem: Path) -> Path:
        """Save the adapter as PEFT does (safetensors), and the tokenizer beside it."""
        self.model.save_pretrained(str(stem), safe_serialization=True)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(str(stem))
        return stem


def shared_arrays(model: Any) -> Arrays:
    """Return copies of a PEFT model's adapter."""
    return {name: to_array(tensor) for name, tensor in get_peft_model_state_dict(model).items()}


def load_arrays(model: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put arrays into a PEFT model's adapter by name."""
    set_peft_model_state_dict(model, to_tensors(arrays))


def load_model(model_name: str, quantization: int, gradient_checkpointing: bool, peft_config: Any) -> Any:
    """Return a model by name or folder with the adapter that `peft_config` describes.

    A quantized base is float16, as FedOps has it, and needs bitsandbytes; any other keeps the type it was saved in.
    """
    base = AutoModelForCausalLM.from_pretrained(model_name, **_quantized(quantization))
    if quantization:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=gradient_checkpointing)
    elif gradient_checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    if gradient_checkpointing:
        base.config.use_cache = False
    return get_peft_model(base, peft_config)


def parameter_shapes(model_name: str, **lora: Any) -> list[list[int]]:
    """Return the shapes of a LoRA adapter's arrays, in their order."""
    base = AutoModelForCausalLM.from_pretrained(model_name)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **lora))
    return [list(array.shape) for array in shared_arrays(model).values()]


def _quantized(bits: int) -> dict[str, Any]:
    if bits == 4:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=torch.float16,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
        )
    elif bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        return {}
    return {"quantization_config": config, "torch_dtype": torch.float16, "device_map": "auto"}
