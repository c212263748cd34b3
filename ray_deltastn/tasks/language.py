"""Ready tasks that model language: `ptb-lstm` (§5.3, H.3) and `char-transformer`, on the Penn Treebank or any text.

What is drawn once for a sequence and what once for a minibatch, in `ptb-lstm`:

| hyperparameters                     | drawn for   | reason                                                |
|-------------------------------------|-------------|-------------------------------------------------------|
| dropout of input, hidden, output    | a sequence  | a mask acts on the features of a sequence             |
| `embedding_dropout`                 | a sequence  | a dropped word is a zero of the embedding's output    |
| `activation`, `temporal_activation` | a sequence  | a penalty is a mean over the entries of a sequence    |
| `dropconnect`                       | a minibatch | a mask per sequence would need a matrix per sequence  |
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from ray_deltastn.domains import Bounded, Hyperparameter, Positive
from ray_deltastn.regularizers import L2
from ray_deltastn.space import HyperSpace
from ray_deltastn.task import Task
from ray_deltastn.tasks.corpus import Corpus, Unit, read_corpus
from ray_deltastn.tasks.language_networks import LSTMModel, Transformer
from ray_deltastn.tasks.options import flag, started, whole
from ray_deltastn.training.segments import Segments
from ray_deltastn.training.split_metrics import BitsPerCharacter, Perplexity

#: Rates of dropout of `ptb-lstm` that are drawn for each sequence.
RATES = ("embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout")
#: Rates of dropout and groups of weight decay of `char-transformer`.
TRANSFORMER_RATES = ("embedding_dropout", "attention_dropout", "residual_dropout", "mlp_dropout")
DECAYS = ("embedding_decay", "attention_decay", "mlp_decay")


def ptb_lstm(config: Mapping[str, Any]) -> Task:
    """Ready task `ptb-lstm` (H.3): 7 hyperparameters of an LSTM that predicts the next word.

    As in MacKay et al. (2019), whose set-up the paper takes over: two layers of 650 units, an embedding of 650 features
    whose weight is also that of the decoder, sequences of 70 words, minibatches of 40 sequences that carry their state
    from segment to segment. All rates and both penalties start at 0.05; rates are in [0, 0.95] and penalties in [0, 4].
    The paper gives their ranges and initial values. It does not say whether the decoder is tied; the code of MacKay
    et al. ties it. Words at the end of a split that do not fill all sequences equally are not used.

    Args:
        config: options of the task: `path` (a folder or a text file, see `read_corpus`; by default the Penn Treebank in
            the data root), `limit` (number of words of the training text, default all), `held_limit` (the same for
            validation and test, default a fifth of `limit`), `least_count` (see `read_corpus`), `units`, `embedding`,
            `layers`, `batch`, `length`, `untied` (true gives the decoder its own weight), `initial_values` (name →
            initial value) and `perturbation_scale` (initial σ).

    Raises:
        ValueError: if an option breaks its rule, or a text is too short.
        FileNotFoundError: if the text is missing.
    """
    corpus = _corpus(config, "words")
    units, embedding = whole(config, "units", 650, least=1), whole(config, "embedding", 650, least=1)
    layers, tied = whole(config, "layers", 2, least=1), not flag(config, "untied")
    if tied and layers == 1 and units != embedding and "units" in config:
        raise ValueError(
            "`units = embedding` must hold for one layer whose decoder has the weight of the embedding, got "
            f"units={units} and embedding={embedding}; `untied: true` gives the decoder its own weight"
        )
    model = LSTMModel(len(corpus.vocabulary), units, embedding, layers, tied)
    names = [name for name in RATES if layers > 1 or name != "hidden_dropout"]
    domains: dict[str, Hyperparameter] = {name: _rate() for name in names}
    domains["dropconnect"] = _rate(per="batch")
    domains |= {name: Bounded(0.05, low=0.0, high=4.0) for name in ("activation", "temporal_activation")}
    return _task(config, corpus, model, domains, (40, 70), {"perplexity": Perplexity()}, model.first_state())


def char_transformer(config: Mapping[str, Any]) -> Task:
    """Ready task `char-transformer`: 7 hyperparameters of a small transformer that predicts the next character.

    Four rates of dropout, which start at 0.05 in [0, 0.95], and weight decay of embeddings, attention and MLPs, which
    starts at 1e-5. Each segment is a sequence of its own. Train it with Adam, for example `optimizer: adam` and
    `lr: 0.001`.

    Args:
        config: options of the task: `path` (a text file or a folder, see `read_corpus`; by default the Penn Treebank in
            the data root), `limit` (number of characters of the training text, default all), `held_limit` (the same for
            validation and test, default a fifth of `limit`), `least_count` (see `read_corpus`), `layers`, `width`,
            `heads`, `length`, `batch`, `untied` (true gives the decoder its own weight), `initial_values` (name →
            initial value) and `perturbation_scale` (initial σ).

    Raises:
        ValueError: if an option breaks its rule, or a text is too short.
        FileNotFoundError: if the text is missing.
    """
    corpus = _corpus(config, "characters")
    width, heads = whole(config, "width", 128, least=1), whole(config, "heads", 4, least=1)
    if width % heads:
        raise ValueError(f"`heads` must divide `width`, got heads={heads} and width={width}")
    layers, length = whole(config, "layers", 4, least=1), whole(config, "length", 128, least=1)
    untied = flag(config, "untied")
    model = Transformer(len(corpus.vocabulary), length, width, layers, heads, tied=not untied)
    domains: dict[str, Hyperparameter] = {name: _rate() for name in TRANSFORMER_RATES}
    domains |= {name: Positive(1e-5, search=(1e-7, 1e-2)) for name in DECAYS}
    groups = (
        ["embedding", "positions", *(["decoder"] if untied else [])],
        [f"blocks.{number}.attention" for number in range(layers)],
        [f"blocks.{number}.mlp" for number in range(layers)],
    )
    penalty = [L2(name, biases=False, layers=group) for name, group in zip(DECAYS, groups, strict=True)]
    metrics = {"bits_per_character": BitsPerCharacter()}
    return _task(config, corpus, model, domains, (32, 128), metrics, penalty=penalty)


def _rate(**per: Any) -> Bounded:
    return Bounded(0.05, low=0.0, high=0.95, search=(0.0, 0.75), **per)


def _corpus(config: Mapping[str, Any], unit: Unit) -> Corpus:
    path = config.get("path")
    if not (path is None or isinstance(path, str | Path)):
        raise ValueError(f"`path` must name a text file or a folder with texts, got {path!r}")
    most, held, least = (
        None if config.get(name) is None else whole(config, name, 0, least=1)
        for name in ("limit", "held_limit", "least_count")
    )
    return read_corpus(path, unit, most, held, least)


def _task(
    config: Mapping[str, Any],
    corpus: Corpus,
    model: Any,
    domains: Mapping[str, Hyperparameter],
    sizes: tuple[int, int],
    metrics: Mapping[str, Any],
    state: Any = None,
    penalty: Any = (),
) -> Task:
    """The task of a network on a corpus; `sizes` are the default `batch` and `length`."""
    batch, length = whole(config, "batch", sizes[0], least=1), whole(config, "length", sizes[1], least=1)
    splits = {"training": corpus.train, "validation": corpus.valid, "test": corpus.test}
    for name, tokens in splits.items():
        if len(tokens) // batch <= length:
            raise ValueError(
                f"`n // batch > length` must hold for the n words or characters of the {name} text, got "
                f"n={len(tokens)}, batch={batch} and length={length}; lower them, or use a longer text"
            )
    train, valid, test = (Segments(tokens, batch, length, state) for tokens in splits.values())
    return Task(
        space=HyperSpace(**started(domains, config)),
        model=model,
        loss=F.cross_entropy,
        train=train,
        valid=valid,
        test=test,
        metrics=metrics,
        penalty=penalty,
        identity={"vocabulary": corpus.fingerprint},
    )
