"""The tables of image runs on the benchmarks page hold what the committed records say."""

import json
import re
import statistics
from pathlib import Path

import pytest

from benchmarks import images_hypergradient, response_noise
from ray_deltastn.training.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "benchmarks" / "README.md").read_text()
RECORDS = ROOT / "benchmarks" / "records" / "images"
LOSSES = ["best_valid_loss", "test_loss_there", "test_accuracy_there", "final_valid_loss", "final_test_loss"]
#: Record, heading of its section, columns of its table, and what the page calls its settings.
TABLES = {
    "fashion_10k": (
        "## Image classification",
        LOSSES,
        {
            "delta-stn": "`delta-stn`, `preset: paper`",
            "delta-stn-fast": "`delta-stn`, `preset: fast`",
            "delta-stn-fast-independent": "the same without `antithetic`",
            "delta-stn-quarter": "`delta-stn`, Θ on ¼",
            "stn": "`stn`",
            "centered-stn": "`centered-stn`",
            "fixed-quarter": "fixed, hidden dropout ¼",
            "fixed-half": "fixed, hidden dropout ½",
            "fixed-initial": "fixed, initial values",
            "fixed-none": "fixed, none",
        },
    ),
    "fashion_10k_24": (
        "### Short runs",
        [LOSSES[0], LOSSES[1], LOSSES[3]],
        {
            "fast": "`preset=fast`",
            "fast-independent": "`preset=fast`, `antithetic=false`",
            "delta-paper": "`preset=paper`",
            "paper-auto": "`preset=paper`, `hyper_lr=auto`",
            "random-best-of-8": "best of 8 runs of random search",
            "delta-lr05": "Θ on all, `hyper_lr` 0.05",
            "delta-lr05-w12": "Θ on all, `hyper_lr` 0.05, warm-up 12",
            "fast-lr05-w12": "Θ on ¼, `hyper_lr` 0.05, warm-up 12",
            "fast-lr05": "Θ on ¼, `hyper_lr` 0.05",
            "fast-lr05-radam": "Θ on ¼, `hyper_lr` 0.05, Θ by Adam (0.001)",
        },
    ),
}


def rows_below(heading):
    """First cell → the others, of the first table below a heading."""
    section = PAGE[PAGE.index(heading) :]
    table = re.search(r"(?:^\|.*\|\n)+", section, re.MULTILINE).group()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {first: others for first, *others in rows[2:]}


def paired(one, other, column):
    """Mean difference over the seeds of both, and its standard error."""
    losses = [{run["seed"]: run[column] for run in entry["runs"]} for entry in (one, other)]
    both = [losses[0][seed] - losses[1][seed] for seed in losses[0] if seed in losses[1]]
    return f"{statistics.fmean(both):.3f} ± {statistics.stdev(both) / len(both) ** 0.5:.3f}"


def assert_said(said, entries, *quotes):
    """Each quote is on the page and holds the paired difference of two settings."""
    for one, other, column, quoted in quotes:
        assert paired(entries[one], entries[other], column).replace("-0.000", "0.000") in quoted
        assert quoted in said


def cell(found, digits=3):
    return f"{found['mean']:.{digits}f}" + ("" if found["std"] is None else f" ± {found['std']:.{digits}f}")


@pytest.mark.parametrize("record", TABLES)
def test_page_says_what_the_record_does(record):
    heading, columns, names = TABLES[record]
    rows = rows_below(heading)
    entries = json.loads((RECORDS / f"{record}.json").read_text())
    assert {names[entry["label"]] for entry in entries} == set(rows)
    for entry in entries:
        expected = [str(entry["n"]), *(cell(entry[column]) for column in columns)]
        assert rows[names[entry["label"]]] == expected, entry["label"]


def test_long_runs_on_the_page_are_those_of_the_record():
    rows = rows_below("### Longer: 300 epochs")
    assert set(rows) == {"24", "48", "100", "300"}
    columns = ("best_valid_loss", "test_loss_there", "final_test_loss")
    for epochs, row in rows.items():
        name = "fashion_10k_300" if epochs == "300" else f"fashion_10k_100_first_{epochs}"
        entries = {e["label"]: e for e in json.loads((RECORDS / f"{name}.json").read_text())}
        assert {entry.get("first_epochs", entry["config"]["epochs"]) for entry in entries.values()} == {int(epochs)}
        assert row == [
            cell(entries[label][column]) if label in entries else ""
            for label in ("delta-stn", "fixed-quarter", "fixed-half")
            for column in columns
        ]


def test_searches_one_by_one_are_those_of_the_record():
    entries = {entry["label"]: entry for entry in json.loads((RECORDS / "fashion_10k_24.json").read_text())}
    best = {label: [run["best_valid_loss"] for run in entries[label]["runs"]] for label in entries}
    drawn = [run["drawn"] for run in entries["random-best-of-8"]["runs"]]
    assert [len(losses) for losses in drawn] == [8] * 5
    said = " ".join(PAGE[PAGE.index("### Short runs") :].split("\n### ")[0].split())
    assert "best are {:.3f}, {:.3f}, {:.3f}, {:.3f} and {:.3f}, where".format(*best["random-best-of-8"]) in said
    assert "`fast` has {:.3f}, {:.3f}, {:.3f}, {:.3f} and {:.3f}, so".format(*best["fast"]) in said
    gaps = [other - one for one, other in zip(best["fast"], best["random-best-of-8"], strict=True)]
    assert (sum(gap > 0.03 for gap in gaps), sum(abs(gap) < 0.002 for gap in gaps)) == (3, 2)
    assert_said(
        said,
        entries,
        ("random-best-of-8", "fast", "best_valid_loss", "end 0.030 ± 0.014 above `fast`"),
        ("random-best-of-8", "fast", "test_loss_there", "0.031 ± 0.013 in test loss"),
        ("delta-paper", "fast", "best_valid_loss", "0.004 ± 0.004 below `paper` at its best epoch"),
        ("delta-paper", "fast", "final_valid_loss", "0.008 ± 0.004 at the end"),
        ("fast-independent", "fast", "best_valid_loss", "of so short a run (0.000 ± 0.005)"),
    )
    assert "{:.3f}, {:.3f}, {:.3f}, {:.3f} and {:.3f} against 0.348, 0.391".format(*best["paper-auto"]) in said
    assert all(one < other for one, other in zip(best["paper-auto"], best["random-best-of-8"], strict=True))
    assert_said(
        said,
        entries,
        ("random-best-of-8", "paper-auto", "best_valid_loss", "paired 0.035 ± 0.013 below in validation"),
        ("random-best-of-8", "paper-auto", "test_loss_there", "and 0.036 ± 0.011 in test loss"),
        ("delta-paper", "paper-auto", "best_valid_loss", "0.009 ± 0.003 below `paper` at its best epoch"),
        ("delta-paper", "paper-auto", "test_loss_there", "(0.010 ± 0.003 in test loss there)"),
        ("delta-paper", "paper-auto", "final_valid_loss", "and 0.008 ± 0.003 at the end"),
        ("fast", "paper-auto", "best_valid_loss", "and 0.005 ± 0.002 below `fast` at its best"),
        ("fast", "paper-auto", "final_valid_loss", "level at the end (0.000 ± 0.006)"),
    )
    assert sum(loss > 0.48 for losses in drawn for loss in losses) == 26


def test_noise_of_the_response_is_that_of_the_records():
    expected = []
    for name in ("response_noise", "response_noise_digits"):
        found = json.loads((RECORDS / f"{name}.json").read_text())
        assert found["summary"] == response_noise.summary(found["rows"])
        assert {line["n"] for line in found["summary"]} == {5}
        by_epoch = {}
        for line in found["summary"]:
            text = "{ratio:.2f} ({least:.2f} – {most:.2f})".format(**line)
            by_epoch.setdefault(line["epoch"], []).append(text)
        expected += list(by_epoch.values())
    assert list(rows_below("Trace of the covariance").values()) == expected


def test_shares_of_the_minibatch_are_those_of_the_records():
    names = {
        "`preset: paper`": "paper",
        "Θ on all": "whole",
        "Θ on ½": "half",
        "Θ on ¼": "quarter",
        "Θ on ⅛": "eighth",
        "Θ on ¼, `antithetic` (`fast`)": "quarter-antithetic",
        "hyper batch 16, Θ on ¼": "batch-16",
        "hyper batch 64, Θ on ¼": "batch-64",
        "hyper batch 359, Θ on ¼": "batch-359",
    }
    entries = {
        entry["label"]: entry
        for name in ("response_share", "hyper_batch")
        for entry in json.loads((RECORDS / "digits" / f"{name}.json").read_text())
    }
    rows = rows_below("**Share of the minibatch")
    assert set(rows) == set(names)
    assert set(entries) == set(names.values())
    for said, label in names.items():
        entry = entries[label]
        columns = [LOSSES[0], LOSSES[1], LOSSES[3], LOSSES[4]]
        assert rows[said] == [str(entry["n"]), *(cell(entry[column]) for column in columns)]
    ends = {
        label: [run["curve"]["hyperparameters/input_dropout"][-1] for run in entries[label]["runs"]]
        for label in ("whole", "quarter", "quarter-antithetic")
    }
    said = " ".join(PAGE[PAGE.index("**Share of the minibatch") :].split("\n### ")[0].split())
    assert_said(
        said,
        entries,
        ("quarter", "whole", "best_valid_loss", "¼ ends 0.009 ± 0.003 above the whole"),
        ("quarter", "whole", "final_valid_loss", "0.017 ± 0.005 in final validation loss"),
        ("quarter-antithetic", "whole", "best_valid_loss", "`antithetic` 0.007 ± 0.003"),
        ("quarter-antithetic", "whole", "final_valid_loss", "and 0.013 ± 0.004"),
    )
    assert paired(entries["batch-359"], entries["batch-64"], "final_valid_loss") == "0.017 ± 0.008"
    assert_said(
        said,
        entries,
        ("quarter-antithetic", "paper", "best_valid_loss", "0.003 ± 0.002 above it in best"),
        ("paper", "quarter-antithetic", "final_valid_loss", "0.000 ± 0.005 below it in final validation loss"),
        ("quarter-antithetic", "paper", "test_loss_there", "0.008 ± 0.005 above in test loss at the best epoch"),
        ("paper", "whole", "best_valid_loss", "it is 0.004 ± 0.002 and"),
        ("paper", "whole", "final_valid_loss", "and 0.014 ± 0.004 lower"),
    )
    for entry in (entries["paper"], entries["whole"]):
        assert Settings(**{k: v for k, v in entry["config"].items() if k != "task"}).hyper_rate(960) == 0.01
    assert [sum(end > 0.05 for end in found) for found in ends.values()] == [10, 5, 6]
    assert [sum(end < 0.005 for end in found) for found in ends.values()] == [0, 2, 0]


def test_warm_ups_are_those_of_the_records():
    said = " ".join(PAGE[PAGE.index("**Warm-up keeps it") :].split("**Schedule against")[0].split())
    lost = {}
    for name in ("warmup", "warmup_tuned"):
        long, short = json.loads((RECORDS / "digits" / f"{name}.json").read_text())
        assert (long["value"], short["value"], long["n"], short["n"]) == (2000, "none", 5, 5)
        assert cell(short["best_valid_loss"]) in said
        assert cell(long["best_valid_loss"]) in said
        ends = [[run["curve"]["hyperparameters/dropout0"][-1] for run in entry["runs"]] for entry in (short, long)]
        lost[name] = [sum(end < 0.01 for end in found) for found in ends]
    assert lost == {"warmup": [4, 0], "warmup_tuned": [1, 0]}


def test_perturbation_scales_are_those_of_the_record():
    entries = json.loads((RECORDS / "fashion" / "perturbation_scale.json").read_text())
    rows = rows_below("### Perturbation scale, on the same network")
    found = {(e["method"], f"{e['value']:g}"): [cell(e[column]) for column in LOSSES[:2]] for e in entries}
    assert {entry["n"] for entry in entries} == {2}
    assert rows == {
        value: found["delta-stn", value] + found["stn", value] for method, value in found if method == "stn"
    }


def test_noise_by_share_is_that_of_the_records():
    rows = rows_below("**By the share of the minibatch")
    names = {"all": "whole", "½": "half", "¼": "quarter", "¼, `antithetic`": "quarter_antithetic"}
    assert set(rows) == set(names)
    for said, name in names.items():
        expected = []
        for task, columns in (("digits", 3), ("fashion", 4)):
            path = RECORDS / "hypergradient_noise" / f"{task}_{name}.json"
            if (task, name) == ("fashion", "whole"):
                path = RECORDS / "hypergradient_fashion.json"
            found = json.loads(path.read_text()) if path.exists() else {"rows": [], "summary": [""] * columns}
            assert len(found["rows"]) == (0 if not path.exists() else {"digits": 64, "fashion": 12}[task])
            expected += [line.rpartition(" ")[2] for line in found["summary"][-columns:]]
        assert rows[said] == expected


def test_schedules_against_constants_are_those_of_the_record():
    rows = rows_below("**Schedule against constants")
    names = {
        "p = 0.4, best of six constants": "fixed-0.4",
        "p = 0.3": "fixed-0.3",
        "Δ-STN, from 0.3": "delta-stn-from-0.3",
        "STN, from 0.3": "stn-from-0.3",
        "Δ-STN, from 0.05": "delta-stn-from-0.05",
        "STN, from 0.05": "stn-from-0.05",
        "the schedule of Δ-STN from 0.05": "fixed-schedule",
        "its final value": "fixed-final",
        "its final value with noise": "fixed-noise",
    }
    assert set(rows) == set(names)
    entries = {entry["label"]: entry for entry in json.loads((RECORDS / "digits" / "schedules.json").read_text())}
    for said, label in names.items():
        assert rows[said][:2] == [cell(entries[label][column]) for column in LOSSES[:2]]
    constants = [entry for label, entry in entries.items() if label.startswith("fixed-0")]
    assert len(constants) == 6
    assert min(constants, key=lambda entry: entry["best_valid_loss"]["mean"])["label"] == "fixed-0.4"


def test_hypergradients_in_the_text_are_those_of_the_record():
    for name in ("fashion", "digits"):
        record = json.loads((RECORDS / f"hypergradient_{name}.json").read_text())
        assert record["summary"] == images_hypergradient.agreement(record["rows"])
    said = " ".join(PAGE[PAGE.index("### Is the hypergradient") :].split("\n## ")[0].split())
    counted = {}
    for line in record["summary"]:
        pair, _, result = line.partition(": ")
        if "same sign" in result:
            counted[pair] = [int(word) for word in result.split() if word.isdigit()]
        else:
            assert result in said, line
    sums = {
        ("averaged", "retrained"): "16 of 17",
        ("implicit", "retrained"): "13 of 16",
        ("steady", "averaged"): "10 of 12",
        ("steady", "retrained"): "5 of 9",
        ("learned", "averaged"): "13 of 22",
        ("learned", "retrained"): "10 of 16",
    }
    for (one, other), quoted in sums.items():
        # The learned gradient looks no number of steps ahead.
        ahead = {n: "" if one in ("learned", "steady") else f" {n} steps" for n in (20, 100)}
        pairs = [f"{one}{ahead[n]} and {other} {n} steps" for n in (20, 100)]
        same, clear = (sum(column) for column in zip(*(counted[pair] for pair in pairs), strict=True))
        assert quoted == f"{same} of {clear}"
        assert quoted in said
    assert counted["retrained 20 steps and retrained 100 steps"] == [7, 7]


def lost(record):
    """Runs whose rate of dropout ends below 0.005, of those that end, by method and value of the option."""
    entries = json.loads((RECORDS / "digits" / f"{record}.json").read_text())
    ends = {
        (e["method"], str(e["value"])): [r["curve"]["hyperparameters/dropout0"][-1] for r in e["runs"]] for e in entries
    }
    return {setting: (sum(end is not None and end < 0.005 for end in found), found) for setting, found in ends.items()}


def test_rates_that_are_lost_on_digits_are_those_of_the_records():
    scale, interval, warm, entropy = (lost(name) for name in ("perturbation_scale", "intervals", "warmup", "entropy"))
    initial = lost("initial_values")
    assert [initial[method, "0.05"][0] for method in ("delta-stn", "stn")] == [2, 0]
    for method, low, high in (("delta-stn", 0.175, 0.275), ("stn", 0.245, 0.345)):
        assert all(low < end < high for value in ("0.3", "0.6", "0.9") for end in initial[method, value][1])
    narrow = [scale["delta-stn", value] for value in ("0.1", "0.3", "1")]
    assert (sum(n for n, _ in narrow), sum(len(ends) for _, ends in narrow)) == (7, 9)
    assert all(0.235 < end < 0.385 for value in ("0.1", "0.3", "1") for end in scale["stn", value][1])
    assert all(end < 0.03 for method in ("stn", "delta-stn") for end in scale[method, "3"][1])
    often = [interval["delta-stn", value][0] for value in ("[1, 1]", "[2, 1]", "[5, 1]", "[5, 5]")]
    seldom = [interval["delta-stn", value][0] for value in ("[10, 1]", "[25, 1]", "[25, 5]")]
    assert (sum(often), sum(seldom)) == (10, 1)
    assert (warm["delta-stn", "none"][0], warm["delta-stn", "2000"][0]) == (4, 0)
    assert [entropy["delta-stn", value][0] for value in ("0.0001", "0.001", "0.01")] == [3, 0, 0]
    assert all(end < 0.08 for end in entropy["delta-stn", "0.1"][1])
