"""Texts as numbers: splits, vocabularies, limits, and files that cannot be read."""

import os
from pathlib import Path

import pytest
import torch

from ray_deltastn.tasks.corpus import EOS, UNKNOWN, read_corpus
from tests.tasks import grammar


def words_of(text):
    return [word for line in text.splitlines() for word in (*line.split(), EOS)]


@pytest.mark.parametrize(
    "names", [("train.txt", "valid.txt", "test.txt"), ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")]
)
def test_a_folder_has_a_text_for_each_split(tmp_path, names):
    corpus = read_corpus(grammar.folder(tmp_path, names))
    for seed, (name, part) in enumerate(zip(names, (corpus.train, corpus.valid, corpus.test), strict=True)):
        assert corpus.text(part) == words_of((tmp_path / name).read_text())
        assert corpus.text(part) == words_of(grammar.lines((120, 40, 40)[seed], seed))
        assert part.dtype == torch.int64
    counts = torch.bincount(corpus.train, minlength=len(corpus.vocabulary))
    assert (counts[:-1] >= counts[1:]).all()
    assert set(corpus.vocabulary) == set(words_of((tmp_path / names[0]).read_text()))


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_one_file_is_split_in_order(tmp_path, unit):
    book = tmp_path / "book.txt"
    book.write_text(grammar.lines(200))
    corpus = read_corpus(book, unit, least_count=1)
    whole = words_of(book.read_text()) if unit == "words" else list(book.read_text())
    parts = (corpus.train, corpus.valid, corpus.test)
    assert [word for part in parts for word in corpus.text(part)] == whole
    assert len(corpus.train) == int(0.8 * len(whole))
    assert len(corpus.train) + len(corpus.valid) == int(0.9 * len(whole))


def test_rare_words_of_one_file_stand_for_unknown_ones(tmp_path):
    book = tmp_path / "book.txt"
    book.write_text(grammar.lines(100) + "aardvark " + grammar.lines(100) + "zebra\n")
    corpus = read_corpus(book)
    assert "aardvark" not in corpus.vocabulary
    unknown = corpus.vocabulary.index(UNKNOWN)
    assert int((corpus.train == unknown).sum()) == 1
    assert corpus.text(corpus.test)[-2:] == [UNKNOWN, EOS]
    with pytest.raises(
        ValueError, match=r"each of the words must be in the vocabulary .* no <unk>, got 'zebra' in .*book.txt"
    ):
        read_corpus(book, least_count=1)


def test_a_text_with_unknown_words_takes_them_for_all_others(tmp_path):
    grammar.folder(tmp_path)
    (tmp_path / "valid.txt").write_text("the zebra sees the dog\n")
    with pytest.raises(ValueError, match=r"got 'zebra' in .*valid\.txt"):
        read_corpus(tmp_path)
    train = tmp_path / "train.txt"
    train.write_text(f"{UNKNOWN} {train.read_text()}")
    corpus = read_corpus(tmp_path)
    assert corpus.text(corpus.valid) == ["the", UNKNOWN, "sees", "the", "dog", EOS]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    book = tmp_path / "book.txt"
    book.write_bytes(b"\xef\xbb\xbf" + b"Katzen \xc3\xa4rgern sich\r\n" * 20)
    corpus = read_corpus(book)
    assert corpus.text(corpus.train[:4]) == ["Katzen", "ärgern", "sich", "<eos>"]
    assert set(corpus.vocabulary) == {"Katzen", "ärgern", "sich", "<eos>", "<unk>"}
    characters = read_corpus(book, "characters")
    assert "".join(characters.text(characters.train[:19])) == "Katzen ärgern sich\n"


def test_limits_keep_the_first_words(tmp_path):
    whole = read_corpus(grammar.folder(tmp_path))
    cut = read_corpus(tmp_path, limit=200)
    assert cut.text(cut.train) == whole.text(whole.train)[:200]
    assert cut.text(cut.valid) == whole.text(whole.valid)[:40]
    assert len(read_corpus(tmp_path, limit=200, held_limit=70).test) == 70


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 4}, "`limit >= 5` must hold unless `held_limit` is given, which is a fifth of it, got 4"),
        ({"limit": 0}, "`limit` must be a whole number from 1, got 0"),
        ({"limit": 2.5}, "`limit` must be a whole number from 1, got 2.5"),
        ({"held_limit": "9"}, "`held_limit` must be a whole number from 1, got '9'"),
        ({"least_count": -1}, "`least_count` must be a whole number from 1, got -1"),
        ({"unit": "letters"}, "`unit` must be one of words, characters, got 'letters'"),
    ],
)
def test_arguments_that_break_a_rule_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        read_corpus(grammar.folder(tmp_path), **options)


def test_an_unknown_character_is_called_one(tmp_path):
    (grammar.folder(tmp_path) / "test.txt").write_text("the cat sees ß")
    with pytest.raises(ValueError, match=r"each of the characters must be .* got 'ß' in .*test\.txt"):
        read_corpus(tmp_path, "characters")


def test_a_folder_in_the_place_of_a_text_is_no_text(tmp_path):
    (grammar.folder(tmp_path) / "test.txt").unlink()
    (tmp_path / "test.txt").mkdir()
    with pytest.raises(FileNotFoundError, match=r"`path` must be a folder with ptb.train.txt, .* without them"):
        read_corpus(tmp_path)


def test_a_fingerprint_tells_vocabularies_apart(tmp_path):
    one = read_corpus(grammar.folder(tmp_path / "one"))
    assert read_corpus(tmp_path / "one").fingerprint == one.fingerprint
    path = grammar.folder(tmp_path / "two") / "train.txt"
    path.write_text(path.read_text().replace("cat", "cow"))
    for name in ("valid.txt", "test.txt"):
        other = tmp_path / "two" / name
        other.write_text(other.read_text().replace("cat", "cow"))
    two = read_corpus(tmp_path / "two")
    assert len(two.vocabulary) == len(one.vocabulary)
    assert two.fingerprint != one.fingerprint


def test_the_data_root_has_the_default_text(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_DELTASTN_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"`path` must name a text file, or a folder.*\$RAY_DELTASTN_DATA can"):
        read_corpus()
    grammar.folder(tmp_path / "ptb", ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"))
    assert len(read_corpus().train) > 100


def test_a_relative_path_begins_where_the_program_was_started(tmp_path, monkeypatch):
    (tmp_path / "book.txt").write_text("a b c d\n" * 20)
    (tmp_path / "trial").mkdir()
    monkeypatch.chdir(tmp_path)
    expected = read_corpus("book.txt")
    monkeypatch.chdir(tmp_path / "trial")  # as Tune does in a trial
    monkeypatch.setenv("TUNE_ORIG_WORKING_DIR", str(tmp_path))
    assert torch.equal(read_corpus("book.txt").train, expected.train)
    assert torch.equal(read_corpus(tmp_path / "book.txt").train, expected.train)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"`path` must be a text file or a folder .*missing.txt, which does not"
    ):
        read_corpus(tmp_path / "missing.txt")
    with pytest.raises(FileNotFoundError, match=r"`path` must be a folder with ptb.train.txt, .* without them"):
        read_corpus(tmp_path)
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(ValueError, match=r"`.*empty\.txt` must have text, got an empty file"):
        read_corpus(empty)
    empty.write_text("one word\n")
    with pytest.raises(ValueError, match=r"`.*empty\.txt` must give the validation text at least one of its words"):
        read_corpus(empty)
    empty.write_text("all words are different here")
    with pytest.raises(
        ValueError, match=r"empty\.txt` must give a vocabulary of at least two words, got <unk> alone with"
    ):
        read_corpus(empty)
    empty.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"`.*empty\.txt` must be a text in UTF-8"):
        read_corpus(empty)


def test_the_penn_treebank_has_its_known_size():
    root = os.environ.get("RAY_DELTASTN_DATA")
    if not root or not (Path(root) / "ptb").exists():
        pytest.skip("RAY_DELTASTN_DATA names no folder with ptb")
    corpus = read_corpus()
    assert [len(part) for part in (corpus.train, corpus.valid, corpus.test)] == [929_589, 73_760, 82_430]
    assert len(corpus.vocabulary) == 10_000
