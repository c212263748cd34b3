"""LoRA of peft on networks of transformers: all weights but those of the adapters and the head are frozen."""

from __future__ import annotations

from functools import partial
from typing import Any

from peft import LoraConfig, get_peft_model

from benchmarks.models.entry import Entry
from benchmarks.models.transformers_models import classes, encoder, gpt2, next_words, sentences, texts


def bert() -> Any:
    """BERT with adapters on queries and values."""
    config = LoraConfig(r=4, lora_dropout=0.1, target_modules=["query", "value"], task_type="SEQ_CLS")
    return get_peft_model(encoder("Bert"), config)


def language() -> Any:
    """GPT-2 with adapters on attention."""
    config = LoraConfig(r=4, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    return get_peft_model(gpt2(), config)


of = partial(Entry, library="peft", batch="labels")
PEFT = [
    of("LoRA on BERT", build=bert, data=sentences, loss=classes),
    of("LoRA on GPT-2", build=language, data=texts, loss=next_words),
]
