"""Texts as numbers: words or characters, a vocabulary made from the training text, and the splits of a corpus."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ray_deltastn.tasks.cache import ROOT_VARIABLE, absolute, user_cache

#: End of a line, in a corpus of words.
EOS = "<eos>"
#: Stands for all words outside the vocabulary.
UNKNOWN = "<unk>"
#: Names of the files of a folder with the three splits.
FILES = (("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"), ("train.txt", "valid.txt", "test.txt"))
#: Shares of one file for training and for validation. The rest is for the test.
SHARES = (0.8, 0.1)

Unit = Literal["words", "characters"]


@dataclass(frozen=True)
class Corpus:
    """A text with its vocabulary.

    Attributes:
        vocabulary: the words or characters, in the order of their numbers.
        train: numbers of the training text, (n,) in int64.
        valid: the same for validation.
        test: the same for the test.
    """

    vocabulary: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor

    @property
    def fingerprint(self) -> str:
        """A short text that is another one for another vocabulary."""
        return hashlib.sha256("\n".join(self.vocabulary).encode()).hexdigest()[:12]

    def text(self, numbers: Tensor) -> list[str]:
        """The words or characters with these numbers, (n,)."""
        return [self.vocabulary[number] for number in numbers.tolist()]


def read_corpus(
    path: str | os.PathLike[str] | None = None,
    unit: Unit = "words",
    limit: int | None = None,
    held_limit: int | None = None,
    least_count: int | None = None,
) -> Corpus:
    """Read a text file or a folder with three of them.

    The words of a line are separated by white space, and `<eos>` ends each line. Characters are taken as they are. The
    vocabulary has the words of the training text, the most frequent first. If it has `<unk>`, this stands for all other
    words.

    Args:
        path: a folder with `ptb.train.txt`, `ptb.valid.txt` and `ptb.test.txt`, or with `train.txt`, `valid.txt` and
            `test.txt`; or one file, whose first 80 % are the training text, the next 10 % for validation and the last
            10 % for the test. None means the folder `ptb` of the data root: the environment variable
            `RAY_DELTASTN_DATA`, else the user's cache folder.
        unit: `words` or `characters`.
        limit: number of words or characters of the training text that are used, the first ones; None means all.
        held_limit: the same for validation and for the test; by default a fifth of `limit`.
        least_count: words that the training text has fewer times become `<unk>`. The default is 2 for one file and 1
            for a folder, which keeps all words.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if an argument breaks its rule, a file is empty or not UTF-8, a split has no word, the vocabulary
            has one word only, or a word for validation or test is not in a vocabulary without `<unk>`. The message
            names the file, and the first such word.
    """
    for name, value in (("limit", limit), ("held_limit", held_limit), ("least_count", least_count)):
        if value is not None and not (isinstance(value, Integral) and value >= 1):
            raise ValueError(f"`{name}` must be a whole number from 1, got {value!r}")
    if unit not in get_args(Unit):
        raise ValueError(f"`unit` must be one of {', '.join(get_args(Unit))}, got {unit!r}")
    if held_limit is None and limit is not None and limit < 5:
        raise ValueError(f"`limit >= 5` must hold unless `held_limit` is given, which is a fifth of it, got {limit}")
    sources = _sources(path)
    texts = [_tokens(file, unit) for file in dict.fromkeys(sources)]
    single = len(texts) == 1
    parts = _split(texts[0]) if single else texts
    held = limit // 5 if held_limit is None and limit is not None else held_limit
    cut = [part[:most] for part, most in zip(parts, (limit, held, held), strict=True)]
    for name, part, file in zip(("training", "validation", "test"), cut, sources, strict=True):
        if not part:
            raise ValueError(f"`{file}` must give the {name} text at least one of its {unit}, got none")
    least = (2 if single else 1) if least_count is None else least_count
    vocabulary = _vocabulary(cut[0], least)
    if len(vocabulary) < 2:
        raise ValueError(
            f"`{sources[0]}` must give a vocabulary of at least two {unit}, got {', '.join(vocabulary)} alone with "
            f"`least_count` {least}"
        )
    index = {word: number for number, word in enumerate(vocabulary)}
    train, valid, test = (_encoded(part, index, file, unit) for part, file in zip(cut, sources, strict=True))
    return Corpus(vocabulary, train, valid, test)


def _sources(path: str | os.PathLike[str] | None) -> tuple[Path, Path, Path]:
    """The files of the three splits; three times the same for one file."""
    if path is None:
        root = os.environ.get(ROOT_VARIABLE)
        home = absolute(root) if root else user_cache()
        found = _folder(home / "ptb") or _folder(home)
        if found is None:
            raise FileNotFoundError(
                f"`path` must name a text file, or a folder with {' and '.join(', '.join(files) for files in FILES)}; "
                f"got none, and {home / 'ptb'} has no such files; ${ROOT_VARIABLE} can name the folder above it"
            )
        return found
    given = absolute(path)
    if given.is_dir():
        found = _folder(given)
        if found is None:
            wanted = " or ".join(", ".join(files) for files in FILES)
            raise FileNotFoundError(f"`path` must be a folder with {wanted}, got {given} without them")
        return found
    if not given.exists():
        raise FileNotFoundError(f"`path` must be a text file or a folder with texts, got {given}, which does not exist")
    return given, given, given


def _folder(folder: Path) -> tuple[Path, Path, Path] | None:
    for names in FILES:
        train, valid, test = (folder / name for name in names)
        if train.is_file() and valid.is_file() and test.is_file():
            return train, valid, test
    return None


def _tokens(file: Path, unit: Unit) -> Sequence[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")  # many books begin with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"`{file}` must be a text in UTF-8, got {error}") from error
    if not text.strip():
        raise ValueError(f"`{file}` must have text, got an empty file")
    return text if unit == "characters" else [word for line in text.splitlines() for word in (*line.split(), EOS)]


def _split(text: Sequence[str]) -> list[Sequence[str]]:
    first, second = int(SHARES[0] * len(text)), int(sum(SHARES) * len(text))
    return [text[:first], text[first:second], text[second:]]


def _vocabulary(text: Sequence[str], least: int) -> tuple[str, ...]:
    """The words of a text, the most frequent first, with `<unk>` if rare ones are left out."""
    counts = Counter(text)
    if least > 1:
        rare = [word for word, count in counts.items() if count < least and word != UNKNOWN]
        counts[UNKNOWN] += sum(counts.pop(word) for word in rare)
    return tuple(sorted(counts, key=lambda word: (-counts[word], word)))


def _encoded(text: Sequence[str], index: Mapping[str, int], file: Path, unit: Unit) -> Tensor:
    other = index.get(UNKNOWN)
    if other is None:
        for word in text:
            if word not in index:
                raise ValueError(
                    f"each of the {unit} must be in the vocabulary of the training text, which has no {UNKNOWN}, got "
                    f"{word!r} in {file}; `least_count: 2` makes rare {unit} {UNKNOWN}"
                )
    return torch.tensor([index.get(word, other) for word in text])
