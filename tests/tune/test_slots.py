"""The number of trials that a cluster can run at the same time is counted per machine."""

import pytest

from ray_deltastn.tune import guards
from ray_deltastn.tune.config import ExperimentConfig


def config(cpu=1.0, gpu=0.0, workers=1):
    return ExperimentConfig.model_validate({"task": "digits-mlp", "tune": {"cpu": cpu, "gpu": gpu, "workers": workers}})


def cluster(monkeypatch, *machines, dead=()):
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    nodes += [{"Alive": False, "Resources": machine} for machine in dead]
    monkeypatch.setattr(guards.ray, "nodes", lambda: nodes)


BIG, SMALL, HEAD = {"CPU": 16.0, "GPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}


@pytest.mark.parametrize(
    ("wanted", "machines", "slots"),
    [
        ({"cpu": 1}, [HEAD], 8),
        ({"cpu": 3}, [HEAD, SMALL], 2 + 1),  # free CPUs of two machines cannot be added
        ({"cpu": 2, "gpu": 1}, [BIG, SMALL, HEAD], 4 + 1),  # the head has no GPU
        ({"cpu": 2, "gpu": 0.25}, [BIG, SMALL], 8 + 2),  # CPUs run out first
        ({"cpu": 0.5, "gpu": 0.25}, [BIG, SMALL], 16 + 4),  # GPUs run out first
        ({"cpu": 8, "gpu": 1}, [BIG, SMALL], 2),
        ({"cpu": 1, "gpu": 2}, [BIG, SMALL], 2),
    ],
)
def test_slots_of_each_machine_are_limited_by_the_scarcest_resource(wanted, machines, slots, monkeypatch):
    cluster(monkeypatch, *machines)
    assert guards.slots_of(config(**wanted)) == slots


def test_dead_machines_do_not_count(monkeypatch):
    cluster(monkeypatch, SMALL, dead=[BIG])
    assert guards.slots_of(config(cpu=1)) == 4
    with pytest.raises(ValueError, match=r"`tune\.gpu <= GPUs of the largest machine` must hold, got 2 and 1"):
        guards.slots_of(config(gpu=2))


@pytest.mark.parametrize(
    ("wanted", "machines", "reason"),
    [
        ({"cpu": 32}, [BIG, HEAD], "`tune.cpu <= CPUs of the largest machine` must hold, got 32 and 16"),
        ({"gpu": 0.5}, [HEAD], "`tune.gpu <= GPUs of the largest machine` must hold, got 0.5 and 0"),
        (
            {"cpu": 8, "gpu": 1},
            [SMALL, HEAD],
            "`tune.cpu` and `tune.gpu` must fit one machine together, got 8 CPUs and 1 GPUs",
        ),
    ],
)
def test_a_trial_that_fits_no_machine_is_refused_with_the_missing_resource(wanted, machines, reason, monkeypatch):
    cluster(monkeypatch, *machines)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        guards.slots_of(config(**wanted))
    assert str(error.value) == reason


def test_slots_have_room_for_all_workers_of_a_trial(monkeypatch):
    cluster(monkeypatch, BIG, SMALL)  # four GPUs and one
    assert guards.slots_of(config(gpu=1, workers=2)) == 2  # a trial may be on two machines
    with pytest.raises(ValueError, match=r"`tune\.workers` must fit the cluster, got 6 workers and room for 5"):
        guards.slots_of(config(gpu=1, workers=6))
