"""Texts made by a small grammar, as corpora for tests."""

import random

RULES = {
    "text": (("clause", "."), ("clause", "and", "clause", ".")),
    "clause": (("noun", "verb", "noun"), ("noun", "verb", "noun", "near", "noun")),
    "noun": (("the", "thing"), ("the", "quality", "thing")),
    "thing": (("cat",), ("dog",), ("bird",), ("tree",)),
    "quality": (("small",), ("old",), ("green",)),
    "verb": (("sees",), ("likes",), ("finds",)),
}


def expand(symbol, source):
    """The words that a symbol becomes."""
    if symbol not in RULES:
        return [symbol]
    return [word for part in source.choice(RULES[symbol]) for word in expand(part, source)]


def lines(count, seed=0):
    """Sentences, one a line."""
    source = random.Random(seed)
    return "".join(" ".join(expand("text", source)) + "\n" for _ in range(count))


def folder(path, names=("train.txt", "valid.txt", "test.txt"), counts=(120, 40, 40)):
    """A folder with the three splits."""
    path.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate(zip(names, counts, strict=True)):
        (path / name).write_text(lines(count, seed))
    return path
