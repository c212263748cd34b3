"""A file is written whole or not at all."""

import os

import pytest

from ray_deltastn.training.files import write_whole, written_whole


def test_a_file_takes_its_place_at_the_end_only(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("old")
    with written_whole(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
        assert draft.parent == path.parent  # on another file system it could not be renamed
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_exception_the_file_is_as_before_and_no_draft_is_left(tmp_path, error):
    path = tmp_path / "results.csv"
    path.write_text("old")

    def fail():
        with written_whole(path) as draft:
            draft.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_do_not_share_a_draft(tmp_path, monkeypatch):
    with written_whole(tmp_path / "a") as one:
        one.write_text("one")
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with written_whole(tmp_path / "a") as other:
            assert other != one
            other.write_text("other")
        assert (tmp_path / "a").read_text() == "other"
    assert (tmp_path / "a").read_text() == "one"


def test_the_file_is_a_new_one_so_that_a_reader_never_sees_half_of_it(tmp_path):
    path = tmp_path / "space.json"
    write_whole(path, "old")
    with path.open(encoding="utf-8") as reader:
        write_whole(path, "λ")
        assert reader.read() == "old"
    assert path.read_text(encoding="utf-8") == "λ"
