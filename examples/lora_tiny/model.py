"""A tiny GPT-2 made from a configuration, with a LoRA adapter: what it learns is to count up in steps of one."""

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

NUM_WORDS = 12
LENGTH = 8
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def make_model():
    """Return the base model with an untrained adapter, the same ones each time; nothing is downloaded."""
    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=NUM_WORDS,
        n_positions=LENGTH,
        n_embd=32,
        n_layer=2,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    lora = LoraConfig(
        r=8, lora_alpha=32, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    return get_peft_model(GPT2LMHeadModel(config), lora)


def make_set(seed, count):
    """Return sequences that count up from somewhere, shape (count, LENGTH)."""
    starts = np.random.default_rng(seed).integers(0, NUM_WORDS, size=count)
    return torch.from_numpy((starts[:, None] + np.arange(LENGTH)) % NUM_WORDS)


def finetune_llm(model, trainset, tokenizer, formatting_prompts_func, data_collator, num_epochs=1, batch_size=32):
    """Train the adapter in place."""
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.01)
    model.train()
    for _ in range(num_epochs):
        for batch in trainset.split(batch_size):
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()


def test_llm(model, testset, tokenizer):
    """Return loss, how often the next word is right, and no further metrics."""
    model.eval()
    with torch.no_grad():
        found = model(input_ids=testset, labels=testset)
    right = (found.logits[:, :-1].argmax(dim=-1) == testset[:, 1:]).float().mean()
    return found.loss.item(), right.item(), None
