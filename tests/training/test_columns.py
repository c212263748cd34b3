"""Columns of a report in groups; a name that a group does not have is an error, not an empty column."""

import pytest

from ray_deltastn.training.columns import SECONDS, VALUES, WARNINGS


def test_columns_and_names_belong_together():
    report = {"hyperparameters/a/b": 1, "hyperparameters_c": 2, "seconds/train": 3}
    assert VALUES.of(report) == {"a/b": 1}
    assert VALUES.named(VALUES.of(report)) == {VALUES("a/b"): 1}
    assert [column in VALUES for column in report] == [True, False, False]


@pytest.mark.parametrize(("group", "name"), [(SECONDS, "totals"), (WARNINGS, "damaged_checkpoint")])
def test_a_misspelt_name_is_refused(group, name):
    with pytest.raises(ValueError, match=f"`{group.prefix}` must have one of the names .*, got '{name}'"):
        group(name)
