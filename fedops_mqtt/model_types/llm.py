"""Language models for FedOps' Hugging Face tasks: loaded with a PEFT adapter, quantized where that is asked for."""

from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from fedops_mqtt.model_types.peft_model import shared_arrays


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
