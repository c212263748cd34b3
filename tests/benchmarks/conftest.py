"""Fixtures of the benchmark tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads():
    """Restore the number of threads, because the commands change it for the whole process."""
    found = torch.get_num_threads()
    yield
    torch.set_num_threads(found)


@pytest.fixture
def refusal(capsys):
    """Function that runs a command with wrong arguments and returns its error line, without the usage text."""

    def of(main, *arguments):
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        assert left.value.code == 2
        return capsys.readouterr().err.splitlines()[-1].partition(": error: ")[2]

    return of
