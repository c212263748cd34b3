"""The page of a comparison is complete without a network, and readable on a phone and on a desktop."""

import html
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ray_deltastn.compare.contenders import CONTENDERS
from ray_deltastn.reports import comparison_pictures as pictures
from ray_deltastn.reports.comparison import write_comparison
from tests.reports.results import CONFIG, SPACE, made_up

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: A script that records the widths of the window and its content, the pictures that did not load, and errors.
PROBE = """<script>
const errors = [];
addEventListener("error", event => errors.push(String(event.message || event.target.src)), true);
addEventListener("load", () => {
  const lost = [...document.images].filter(image => !image.naturalWidth).length;
  const seen = {window: innerWidth, content: document.documentElement.scrollWidth, pictures: document.images.length,
                lost, errors};
  parent.document.body.insertAdjacentHTML("beforeend", `<pre id="seen">${JSON.stringify(seen)}</pre>`);
});
</script>"""


@pytest.fixture
def comparison(tmp_path):
    """Folder of a finished comparison."""
    (tmp_path / "comparison.json").write_text(json.dumps({"methods": list(CONTENDERS), "seeds": 2, "config": CONFIG}))
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    made_up().to_csv(tmp_path / "results.csv", index=False)
    return tmp_path


def test_the_best_loss_so_far_has_one_grid_for_all_seeds():
    results = pd.DataFrame(
        {
            "method": "random",
            "seed": [0, 0, 0, 1, 1, 1],
            "timestamp": [1.0, 2.0, 3.0] * 2,
            "valid_loss": [3.0, 2.0, 2.5, math.inf, 4.0, 1.0],
            "time_this_iter_s": 2.0,
        }
    )
    grid, losses = pictures.curves(results, "random", "spent_epochs", points=5)
    assert grid.tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert losses[0].tolist() == [3.0, 3.0, 2.0, 2.0, 2.0]
    assert np.isnan(losses[1, :2]).all()
    assert losses[1, 2:].tolist() == [4.0, 4.0, 1.0]
    assert pictures.curves(results, "random", "spent_seconds", points=2)[0].tolist() == [2.0, 6.0]
    # A run that ended early keeps its best loss.
    _, losses = pictures.curves(results.iloc[[0, 1, 3, 4, 5]], "random", "spent_epochs", points=5)
    assert losses[0].tolist() == [3.0, 3.0, 2.0, 2.0, 2.0]


def test_the_mean_line_starts_when_all_seeds_have_a_loss_and_never_rises():
    results = made_up(epochs=5)
    results = results.assign(time_this_iter_s=np.where(results["seed"] == 0, 0.5, 3.0))
    for method in ("random", "bo"):
        grid, losses = pictures.together(*pictures.curves(results, method, "spent_seconds"))
        assert (grid[0], len(losses)) == (pytest.approx(3.0, rel=0.05), 2)
        assert (np.diff(losses.mean(0)) <= 0).all()
    never = np.array([[3.0, 2.0], [np.nan, np.nan]])
    assert pictures.together(np.array([1.0, 2.0]), never)[1].tolist() == [[3.0, 2.0]]


def test_a_trial_is_drawn_at_its_best_report_and_left_out_without_a_finite_loss():
    trials = pictures.at_their_best(made_up())
    assert len(trials) == 2 * (2 * 6 + 4) - 2
    assert (trials["epoch"] == 3).all()


def test_page_holds_everything(comparison):
    found = write_comparison(comparison)
    page = (comparison / "report.html").read_text()
    assert found.summary["method"].tolist() == list(CONTENDERS)
    for name in (pictures.LOSS, pictures.SCHEDULES, pictures.SCATTER, pictures.OUTER):
        with Image.open(comparison / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20, f"{name} is blank"
    assert page.count("data:image/png;base64,") == 4
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert all(f"<td>{name}</td>" in page for name in CONTENDERS)
    table = (comparison / "table.md").read_text()
    assert table.count("| ") > 9 * len(CONTENDERS)
    assert table.count("\n- ") == len(found.differences) == 2 * (len(CONTENDERS) - 1 + 3)
    assert len(pd.read_csv(comparison / "differences.csv")) == len(found.differences)
    assert "<li>bo, seed 0: 6 of 16 epochs (trials diverged or failed)</li>" in page


@pytest.mark.slow
def test_old_pictures_are_removed_and_infinite_losses_do_not_break_the_page(comparison):
    write_comparison(comparison)
    results = made_up()
    results.loc[results["method"] == "stn", ["valid_loss", "test_loss"]] = math.inf
    results.loc[results["method"] == "random", "test_loss"] = math.inf
    results.to_csv(comparison / "results.csv", index=False)
    found = write_comparison(comparison)
    verdicts = {(d.method, d.outcome): d.verdict for d in found.differences}
    assert verdicts["stn", "best_valid_loss"] == "no conclusion: 2 of 2 seeds have no pair of finite losses"
    assert (comparison / pictures.SCATTER).exists()
    only = results[results["method"] == "stn"].drop(columns=["test_loss"])
    only.to_csv(comparison / "results.csv", index=False)
    found = write_comparison(comparison)
    assert not any((comparison / name).exists() for name in (pictures.LOSS, pictures.SCATTER, pictures.OUTER))
    assert "data:image/png" not in (comparison / "report.html").read_text()
    assert "random, seed 1: 0 of 16 epochs (no finished experiment)" in found.notes()


def test_the_history_of_a_copied_trial_includes_the_trial_it_was_copied_from():
    reports = pd.DataFrame(
        [{"trial_id": name, "training_iteration": i, "value": f"{name}{i}"} for name in "abc" for i in range(1, 7)]
    )
    copies = pd.DataFrame(
        {"trial_id": ["a", "b", "a"], "training_iteration": [3, 5, None], "copied_from": ["b", "c", "c"]}
    )
    told = {name: pictures.history(reports, copies, name)["value"].tolist() for name in "abc"}
    assert told["a"] == ["b1", "b2", "a3", "a4", "a5", "a6"]
    assert told["b"] == ["c1", "c2", "c3", "c4", "b5", "b6"]
    assert told["c"] == [f"c{i}" for i in range(1, 7)]
    assert pictures.history(reports, None, "a")["value"].tolist() == [f"a{i}" for i in range(1, 7)]


@pytest.mark.parametrize(
    ("values", "places", "marks"),
    [
        ([0.01, 0.1, 1.0], [0.0, 0.5, 1.0], {0.0: "0.01", 1.0: "1"}),
        ([1.0, 2.0, 3.0], [0.0, 0.5, 1.0], {0.0: "1", 1.0: "3"}),
        (["sgd", "adam", "sgd"], [1.0, 0.0, 1.0], {0.0: "adam", 1.0: "sgd"}),
        ([None, 1.0, 2.0], [1.0, 0.0, 0.5], {0.0: "1", 0.5: "2", 1.0: "none"}),
        ([5.0, 5.0, 5.0], [0.0, 0.0, 0.0], {0.0: "5", 1.0: "5"}),
    ],
)
def test_values_of_an_option_have_positions_and_tick_labels(values, places, marks):
    found, beside = pictures._scale(pd.Series(values))
    assert found.tolist() == pytest.approx(places)
    assert beside == marks


def test_a_folder_without_a_comparison_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold a comparison, got no comparison\.json"):
        write_comparison(tmp_path)


def browse(page, folder, width, dark, *options):
    """Run the browser on a page; returns its output and its console messages."""
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *scheme, *options]
    command += [f"--user-data-dir={folder}", f"--window-size={width},900", "--enable-logging=stderr", page.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_page_in_a_browser_has_no_overflow_no_missing_picture_and_no_error(comparison, tmp_path, width, dark):
    write_comparison(comparison)
    page, probed = comparison / "report.html", comparison / "probed.html"
    # The browser's window is at least 500 pixels wide, so a frame is used for the width of a phone.
    inside = html.escape(page.read_text().replace("<head>", f"<head>{PROBE}", 1))
    probed.write_text(f'<iframe width="{width}" height="900" srcdoc="{inside}" frameborder="0"></iframe>')
    output, said = browse(probed, tmp_path / "user", 2000, dark, "--dump-dom")
    seen = json.loads(re.search(r'<pre id="seen">({.*?})</pre>', output)[1])
    assert seen == {"window": width, "content": width, "pictures": 4, "lost": 0, "errors": []}
    assert said == []
    shot = tmp_path / "shot.png"
    browse(page, tmp_path / "user", width, dark, f"--screenshot={shot}")
    with Image.open(shot) as image:
        assert image.width == width
        corner = image.convert("L").getpixel((2, 2))
    assert corner < 64 if dark else corner > 192
