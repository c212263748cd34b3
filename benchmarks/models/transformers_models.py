"""Networks of transformers, with two small layers, and an own GPT in the style of nanoGPT."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor

from benchmarks.models.entry import Entry, images

WORDS, LENGTH = 32, 8
SIZES: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER: dict[str, Any] = {**SIZES, "intermediate_size": 32, "max_position_embeddings": LENGTH + 2, "num_labels": 3}
DECODER: dict[str, Any] = {
    **SIZES,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "max_position_embeddings": LENGTH,
}


def encoder(kind: str) -> Any:
    """A classifier of texts."""
    config = getattr(hf, f"{kind}Config")(**ENCODER)
    return getattr(hf, f"{kind}ForSequenceClassification")(config)


def distilbert() -> Any:
    """DistilBERT, whose configuration has other names."""
    sizes: dict[str, Any] = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "num_labels": 3}
    config = hf.DistilBertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, **sizes)
    return hf.DistilBertForSequenceClassification(config)


def gpt2() -> Any:
    """GPT-2 with tied embeddings."""
    config = hf.GPT2Config(
        vocab_size=WORDS,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=1,
        use_cache=False,
    )
    return hf.GPT2LMHeadModel(config)


def t5() -> Any:
    """T5, an encoder and a decoder."""
    config = hf.T5Config(
        vocab_size=WORDS, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, use_cache=False, pad_token_id=0
    )
    return hf.T5ForConditionalGeneration(config)


def llama() -> Any:
    """Llama with shared keys and dropout in attention."""
    return hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER, attention_dropout=0.1, use_cache=False))


def mixtral() -> Any:
    """Mixtral with four experts."""
    options: dict[str, Any] = {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "attention_dropout": 0.1,
        "use_cache": False,
    }
    options["experts_implementation"] = "eager"  # the grouped product of matrices has no float64
    config = hf.MixtralConfig(**DECODER, **options)
    return hf.MixtralForCausalLM(config)


def vit() -> Any:
    """A vision transformer."""
    sizes: dict[str, Any] = {**SIZES, "intermediate_size": 32, "image_size": 32, "patch_size": 8, "num_labels": 3}
    config = hf.ViTConfig(**sizes, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    return hf.ViTForImageClassification(config)


def sentences(count: int) -> dict[str, Tensor]:
    """Texts of different lengths and their classes."""
    mask = (torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (count, 1))).long()
    return {
        "input_ids": torch.randint(2, WORDS, (count, LENGTH)) * mask,
        "attention_mask": mask,
        "labels": torch.randint(0, 3, (count,)),
    }


def texts(count: int) -> dict[str, Tensor]:
    """Texts for a language model, whose targets are the texts."""
    words = torch.randint(2, WORDS, (count, LENGTH))
    return {"input_ids": words, "labels": words}


def pairs(count: int) -> dict[str, Tensor]:
    """Texts to translate, and what the decoder gets and has to say."""
    said = torch.randint(2, WORDS, (count, LENGTH))
    return {**texts(count), "decoder_input_ids": F.pad(said[:, :-1], (1, 0)), "labels": said}


def pictures(count: int) -> dict[str, Tensor]:
    """Images and classes under the names of transformers."""
    return dict(zip(("pixel_values", "labels"), images(count), strict=True))


def classes(output: Any, batch: Any) -> Tensor:
    """Cross entropy of a classifier."""
    return F.cross_entropy(output.logits, batch["labels"])


def next_words(output: Any, batch: Any) -> Tensor:
    """Cross entropy of the next word."""
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def said_words(output: Any, batch: Any) -> Tensor:
    """Cross entropy of the words of the decoder."""
    return F.cross_entropy(output.logits.flatten(0, 1), batch["labels"].flatten())


of = partial(Entry, library="transformers", batch="labels")
TRANSFORMERS = [
    of("BERT", build=partial(encoder, "Bert"), data=sentences, loss=classes),
    of("RoBERTa", build=partial(encoder, "Roberta"), data=sentences, loss=classes),
    of("DistilBERT", build=distilbert, data=sentences, loss=classes),
    of("GPT-2", build=gpt2, data=texts, loss=next_words),
    of("T5", build=t5, data=pairs, loss=said_words, attributes=("dropout",)),
    of("Llama", build=llama, data=texts, loss=next_words, attributes=("attention_dropout",)),
    of("Mixtral", build=mixtral, data=texts, loss=next_words, attributes=("attention_dropout",)),
    of("ViT", build=vit, data=pictures, loss=classes),
]
