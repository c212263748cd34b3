"""The commands set the number of threads of their process; here it is everybody's."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads():
    found = torch.get_num_threads()
    yield
    torch.set_num_threads(found)


@pytest.fixture
def refusal(capsys):
    """What a command says when it refuses its arguments: its one line, without usage."""

    def of(main, *arguments):
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        assert left.value.code == 2
        return capsys.readouterr().err.splitlines()[-1].partition(": error: ")[2]

    return of
