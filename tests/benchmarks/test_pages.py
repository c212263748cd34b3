"""Tables of the pages agree with the committed records, and every record is on a page."""

import re

import pytest

from benchmarks import pages
from benchmarks.common import pages as common
from benchmarks.common.markdown import around, between, grid, signed, significant
from benchmarks.common.pages import DOCS, RECORDS, ROOT, Table, generate, names
from benchmarks.common.tables import TABLES, comparisons, digits, noise, toy

PAGES = {page: page.read_text() for page in sorted((DOCS / "results").glob("*.md"))}
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with one page, whose table `speed` agrees with the records."""
    page = tmp_path / "docs" / "results" / "page.md"
    page.parent.mkdir(parents=True)
    (tmp_path / "README.md").write_text("No table here.\n")
    for module in (common, pages):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    page.write_text("# Speed\n\n<!-- table: speed -->\n<!-- end -->\n\nAfter it.\n")
    pages.main([])
    return page


#: Start of the links from the results pages to the records.
RECORDS_LINK = "../../benchmarks/records/"


def test_writing_the_tables_again_changes_nothing(capsys):
    pages.main(["--check"])
    assert capsys.readouterr().out == ""


def test_every_table_is_on_one_page():
    assert sorted(name for text in PAGES.values() for name in names(text)) == sorted(TABLES)


def test_every_record_is_in_a_table_and_every_picture_on_a_page():
    shown = {link for page, text in PAGES.items() for link in LINK.findall(text)}
    in_tables = {record for table in TABLES.values() if table.made for record in table.records}
    files = {str(path.relative_to(RECORDS)) for path in RECORDS.rglob("*") if path.is_file()}
    assert files == in_tables | {
        link.removeprefix("../../benchmarks/records/") for link in shown if link.startswith("../../benchmarks/records/")
    }
    assert {name for name in files if name.endswith(".json")} == in_tables


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_point_to_existing_files(page):
    assert [link for link in LINK.findall(PAGES[page]) if not (page.parent / link).exists()] == []


def test_check_names_an_edited_table_and_does_not_write_it(site, capsys):
    right = site.read_text()
    pages.main(["--check"])
    edited = right.replace("| mlp |", "| small |", 1)
    site.write_text(edited)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        pages.main(["--check"])
    assert ended.value.code == 1
    assert capsys.readouterr().out == "docs/results/page.md: table `speed` differs from its records\n"
    assert site.read_text() == edited
    pages.main([])
    assert capsys.readouterr().out == "docs/results/page.md: table `speed` written\n"
    assert site.read_text() == right


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: sped -->\n<!-- end -->\n", "`table` must be one of versions, "),
        ("<!-- table: sped -->\n<!-- end -->\n", "got 'sped'"),
        ("<!-- table: speed -->\n| a |\n", "a table must end with `<!-- end -->`, got none for 'speed'"),
        ("<!-- table: speed -->\n<!-- table: toy -->\n<!-- end -->\n", "got none for 'speed'"),
        ("Text.\n<!-- end -->\n", "`<!-- end -->` must follow a `<!-- table: NAME -->`, got an `<!-- end -->` without"),
    ],
)
def test_wrong_comments_are_refused_with_the_name_of_the_page(text, message, site, refusal):
    site.write_text(text)
    said = refusal(pages.main)
    assert "docs/results/page.md: " in said
    assert message in said
    assert site.read_text() == text


def test_text_around_tables_is_kept_and_links_are_relative_to_the_page():
    table = Table(lambda found: f"| {found['rows'][0]['planned']} |", ("faults.json",))
    text = "Before\n<!-- table: a -->\nold\n<!-- end -->\nbetween `<!-- end -->`\n<!-- table: a -->\n<!-- end -->\n"
    for page, folder in (
        (ROOT / "README.md", "benchmarks/records"),
        (DOCS / "results" / "a.md", "../../benchmarks/records"),
    ):
        new, changed = generate(page, text, {"a": table})
        block = f"<!-- table: a -->\n\n| 16 |\n\nRecord: [faults.json]({folder}/faults.json)\n\n<!-- end -->"
        assert new == f"Before\n{block}\nbetween `<!-- end -->`\n{block}\n"
        assert changed == ["a", "a"]
        assert generate(page, new, {"a": table}) == (new, [])


def test_numbers_have_fixed_formats():
    assert [significant(v) for v in (282.2, 10.04, 3.7531, 0.6, 0.000756)] == ["282", "10.0", "3.75", "0.60", "0.00076"]
    assert [signed(v, 2) for v in (-0.014, 0.126, -0.001)] == ["−0.01", "+0.13", "0.00"]
    assert around(-0.5, None, 1) == "−0.5"
    assert between([0.3, 0.1], 1) == "0.1 – 0.3"
    with pytest.raises(ValueError, match="`2 cells in each row` must hold, got 1"):
        grid(["a", "b"], [["1"]])


def test_regret_cells_have_the_median_and_the_largest_value():
    rows = [
        {"data": "d", "method": method, "regret_initial": start, "regret_final": end}
        for method, start, end in (("stn", 0.1, 0.02), ("stn", 0.3, 0.5), ("stn", 0.2, 0.03), ("ift", 9.0, 0.001))
    ]
    other = [{"data": "e", "method": "stn", "regret_initial": 0.04, "regret_final": 0.01}]
    lines = toy.regrets({"rows": rows}, {"rows": other}).splitlines()
    assert lines[2:] == ["| d | 20.0 | 3.00 (50.0) | 0.10 (0.10) |", "| e | 4.00 | 1.00 (1.00) | – |"]


def test_lost_rates_are_counted_only_in_runs_that_did_not_diverge():
    def entry(value, *ends):
        curves = [{"epoch": [1, last], "hyperparameters/dropout0": [0.05, end]} for end, last in ends]
        losses = {key: {"mean": 0.5, "std": None} for key in ("best_valid_loss", "test_loss_there")}
        runs = [{"curve": curve} for curve in curves]
        return {"method": "stn", "value": value, "config": {"epochs": 9}, "runs": runs, **losses}

    table = digits.one_rate("σ")([entry(1.0, (0.001, 9), (0.2, 9), (0.001, 4)), entry(10.0, (None, 4))])
    assert table.splitlines()[2:] == [
        "| `stn` | 1 | 1 of 2 | 0.001, 0.200, diverged | 0.500 | 0.500 |",
        "| `stn` | 10 | – | diverged | 0.500 | 0.500 |",
    ]


def test_loss_after_an_epoch_is_that_of_the_last_point_before():
    curves = [{"epochs": [1, 5, 9], "best_valid_loss": [3.0, 2.0, 1.0]}, {"epochs": [4], "best_valid_loss": [1.0]}]
    record = {"rows": [{"method": "stn", "curve": curve} for curve in curves]}
    assert comparisons.on_the_way(3, 8, 9)(record).splitlines()[2] == "| `stn`, one run | – | 1.500 | 1.000 |"


def test_signs_are_counted_by_horizon(monkeypatch):
    lines = [
        "learned and implicit 20 steps: same sign in 1 of 2 clear cases",
        "learned and implicit 60 steps: same sign in 3 of 5 clear cases",
        "implicit 20 steps and retrained 20 steps: same sign in 0 of 0 clear cases",
        "retrained 20 steps and retrained 60 steps: same sign in 4 of 4 clear cases",
        "median signal to noise over time: 0.50",
    ]
    monkeypatch.setattr(noise, "agreement", lambda _: lines)
    rows = noise.signs({"rows": [{"retrained": {"20": None, "60": None}}]}).splitlines()[2:]
    assert rows == [
        "| learned, at one moment | implicit, at one moment | – | 1 of 2 | 3 of 5 | 4 of 7 |",
        "| implicit, at one moment | re-training | – | 0 of 0 | – | 0 of 0 |",
    ]
