"""What was published: the files of configs/studies, and every entry that a file cannot have, refused in a line."""

import copy
import math

import pytest
import tiny_farm
import yaml

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.claims.published_claims import ColumnSpec, SampleSpec, TableSpec, read_publication

STUDIES = tiny_farm.ROOT / "configs/studies"
GOOD = yaml.safe_load("""
title: T
source: S
text: words
tables:
  ranked: {row: method, item: [instruction, input]}
  steps: {row: run, at: step}
columns:
  win: {label: "win rate, %", table: ranked, column: win, percent: true}
  truth: {label: truth, table: ranked, column: true_win, digits: 3}
  along: {label: along, table: steps, column: win}
samples: {table: ranked, text: output, score: utility}
published: {paper: "paper, %"}
rows:
  a: {label: A, published: {paper: 46.8}}
  b: {label: B}
  16: {label: best of 16}
charts:
  - {kind: scatter, title: one, x: win, y: truth, rows: [a, b]}
  - {kind: curves, title: two, y: along, x_label: step}
  - {kind: bars, title: three, column: win}
claims:
  - {says: a is above b, greater: [a, b], column: win, published: "2 against 1", why: because}
  - {says: all are alike, close: [a, b, 16], column: win, within: 2}
  - {says: a is 3, near: [a], column: win, value: 3}
  - {says: ranks, spearman: [win, truth]}
  - {says: up, rises: [a], column: along}
  - {says: down, falls: [a], column: along}
  - {says: level, stays: [a], column: along, within: 1}
""")


def written(folder, content):
    path = folder / "claims.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def test_every_entry_is_read(tmp_path):
    found = read_publication(written(tmp_path, GOOD))
    assert (found.title, found.source, found.text) == ("T", "S", "words")
    assert found.tables == {
        "ranked": TableSpec("method", ("instruction", "input")),
        "steps": TableSpec("run", at="step"),
    }
    assert found.columns["win"] == ColumnSpec("win rate, %", "ranked", "win", True, 1)
    assert found.columns["truth"].digits == 3
    assert found.samples == SampleSpec("ranked", "output", "utility")
    assert found.rows["a"].published == {"paper": 46.8} and found.rows["16"].label == "best of 16"
    assert [chart.kind for chart in found.charts] == ["scatter", "curves", "bars"]
    assert found.charts[0].rows == ("a", "b") and found.charts[1].options == {"y": "along", "x_label": "step"}
    first, second, third, fourth, *_, last = found.claims
    assert (first.kind, first.of, first.column, first.why) == ("greater", ("a", "b"), "win", "because")
    assert (second.of, second.within, third.value, last.within) == (("a", "b", "16"), 2, 3, 1)
    assert fourth.of == ("win", "truth") and fourth.column == "" and math.isnan(fourth.value)


def test_the_example_in_the_modules_docstring_is_read(tmp_path):
    doc = read_publication.__globals__["__doc__"]
    example = "\n".join(line[4:] for line in doc.splitlines() if line.startswith("    "))
    with_sft = example.replace(
        "published: {simulated: 46.8}}", "published: {simulated: 46.8}}\n  sft: {label: SFT}"
    )
    assert with_sft != example and len(read_publication(written(tmp_path, with_sft)).claims) == 1


# (the way to an entry, what stands there instead, what is said after the file's name)
WRONG = [
    ((), "words", "'words' is no mapping of names to values"),
    (("title",), KeyError, "title is missing"),
    (("title",), None, "title: None is no text; put it in quotes"),
    (("titel",), "T", "'titel' is no key here; use title, source, tables"),
    ((True,), "T", "True is no name; put it in quotes"),
    (("tables",), ["ranked"], "tables: ['ranked'] is no mapping"),
    (("tables", "ranked", "row"), KeyError, "tables.ranked: row is missing"),
    (("tables", "ranked", "row"), ["a"], "tables.ranked.row: ['a'] is no text"),
    (("tables", "ranked", "items"), ["a"], "tables.ranked: 'items' is no key here; use row, item, at"),
    (("tables", "ranked", "item"), "instruction", "tables.ranked.item: 'instruction' is no list of names"),
    (("tables", "ranked", "item"), [], "tables.ranked.item: [] is no list of names"),
    (("columns",), {}, "columns: there is none"),
    (("columns", "win", "label"), KeyError, "columns.win: label is missing"),
    (("columns", "win", "table"), "rankd", "columns.win.table: 'rankd'; there are ranked, steps"),
    (("columns", "win", "table"), ["ranked"], "columns.win.table: ['ranked'] is no text"),
    (("columns", "win", "percent"), "yes", "columns.win.percent: 'yes'; use true or false"),
    (("columns", "win", "percent"), 100, "columns.win.percent: 100; use true or false"),
    (("columns", "win", "digits"), 1.5, "columns.win.digits: 1.5; use a whole number from 0 to 9"),
    (("columns", "win", "digits"), -1, "columns.win.digits: -1; use a whole number"),
    (("columns", "win", "unit"), "%", "columns.win: 'unit' is no key here"),
    (("samples", "table"), "steps", "samples.table: 'steps'; there are ranked"),  # which has no items to show
    (("samples", "text"), KeyError, "samples: text is missing"),
    (("published", "paper"), None, "published.paper: None is no text"),
    (("rows", "a"), "A", "rows.a: 'A' is no mapping"),
    (("rows", "a", "label"), KeyError, "rows.a: label is missing"),
    (("rows", "a", "published"), {"papr": 1}, "rows.a.published: 'papr' is no key here; use paper"),
    (("rows", "a", "published"), {"paper": "46.8"}, "rows.a.published.paper: '46.8' is no number"),
    (("rows", None), {"label": "A"}, "rows: None is no name"),
    (("charts",), {"kind": "bars"}, "charts: {'kind': 'bars'} is no list"),
    (("charts", 0, "kind"), "pie", "charts[0].kind: 'pie'; there are scatter, curves, against, bars"),
    (("charts", 0, "x"), KeyError, "charts[0]: x is missing"),
    (("charts", 0, "y"), True, "charts[0].y: True is no text; put it in quotes"),
    (("charts", 0, "y"), "truht", "charts[0].y: 'truht'; there are win, truth, along"),
    (("charts", 0, "rows"), ["a", "c"], "charts[0].rows: 'c'; there are a, b, 16"),
    (
        ("charts", 0),
        {"kind": "against", "title": "t", "x": "along", "y": "win"},
        "charts[0].x: 'along' is of another table than 'win'; take two of one",
    ),
    (("charts", 1, "title"), KeyError, "charts[1]: title is missing"),
    (("charts", 2, "x"), "win", "charts[2]: 'x' is no key here; use kind, title, column, rows"),
    (("claims", 0), "a > b", "claims[0]: 'a > b' is no mapping"),
    (("claims", 0, "says"), KeyError, "claims[0]: says is missing"),
    (("claims", 0, "greater"), KeyError, "claims[0]: has none of greater, close"),
    (("claims", 0, "close"), ["a"], "claims[0]: has greater, close of greater, close"),
    (("claims", 0, "greater"), ["a"], "claims[0].greater: 1 names; it takes 2"),
    (("claims", 0, "greater"), ["a", "a"], "claims[0].greater: a is named twice"),
    (("claims", 0, "greater"), ["a", "c"], "claims[0].greater: 'c'; there are a, b, 16"),
    (("claims", 0, "greater"), "a", "claims[0].greater: 'a' is no list of names"),
    (("claims", 0, "greater"), [["a"], "b"], "claims[0].greater: ['a'] is no text"),
    (("claims", 0, "column"), KeyError, "claims[0]: column is missing"),
    (("claims", 0, "column"), "a", "claims[0].column: 'a'; there are win, truth, along"),
    (("claims", 0, "within"), 1, "claims[0]: 'within' is no key here"),  # would do nothing
    (("claims", 0, "value"), 1, "claims[0]: 'value' is no key here"),
    (("claims", 1, "close"), ["a"], "claims[1].close: 1 names; it takes 2 or more"),
    (("claims", 1, "within"), -1, "claims[1].within: -1; use 0 or more"),
    (("claims", 2, "value"), KeyError, "claims[2]: value is missing"),
    (("claims", 2, "value"), "3", "claims[2].value: '3' is no number"),
    (("claims", 3, "spearman"), ["win", "win"], "claims[3].spearman: win is named twice"),
    (("claims", 3, "spearman"), ["win", "a"], "claims[3].spearman: 'a'; there are win, truth, along"),
    (("claims", 3, "column"), "win", "claims[3]: 'column' is no key here"),
    (("claims", 4, "rises"), ["a", "b"], "claims[4].rises: 2 names; it takes 1"),
]


@pytest.mark.parametrize(("way", "value", "said"), WRONG, ids=[said[:50] for *_, said in WRONG])
def test_what_cannot_be_is_refused_in_a_line_that_names_it(tmp_path, way, value, said):
    content = copy.deepcopy(GOOD)
    if way:
        *outer, last = way
        entry = content
        for name in outer:
            entry = entry[name]
        if value is KeyError:
            del entry[last]
        else:
            entry[last] = value
    path = written(tmp_path, content if way else value)
    with pytest.raises(UserError) as error:
        read_publication(path)
    line = str(error.value)
    assert line.startswith(f"claims: {path}: {said}") and "\n" not in line


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"^claims: .*gone\.yaml: no such file; configs/studies has"):
        read_publication(tmp_path / "gone.yaml")
    twice = yaml.safe_dump(GOOD, sort_keys=False).replace("\nrows:\n", "\nrows:\n  b: {label: Another}\n")
    for text, said in (("a: [", "no YAML"), ("", "None is no mapping"), (twice, "a second time.*line ")):
        with pytest.raises(UserError, match=rf"^claims: [^\n]*{said}[^\n]*$"):
            read_publication(written(tmp_path, text))
    (tmp_path / "claims.yaml").write_bytes(b"title: \xff")
    with pytest.raises(UserError, match="no YAML that can be read"):
        read_publication(tmp_path / "claims.yaml")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_files_are_read_and_use_what_they_define(path):
    found = read_publication(path)
    assert found.title and found.source and found.text and found.claims
    keys = {key for row in found.rows.values() for key in row.published}
    assert keys == set(found.published)  # A column of the paper without a number would be empty.
    tables = {column.table for column in found.columns.values()}
    assert tables == set(found.tables)


def test_table_2_has_the_papers_numbers():
    """AlpacaFarm (Dubois et al. 2023), table 2, of simulated judges and of people; DPO's is the fourth version's."""
    rows = read_publication(STUDIES / "table2.yaml").rows
    published = {
        "ppo": (46.8, 55.1),
        "dpo": (46.8, None),
        "best_of_16": (45.0, 50.7),
        "expert_iteration": (41.9, 45.7),
        "sft": (36.7, 44.3),
        "feedme": (36.6, 37.9),
        "quark": (35.6, None),
        "reward_conditioning": (32.4, None),
    }
    for name, row in rows.items():
        found = row.published.get("simulated"), row.published.get("human")
        assert found == published.get(name, (None, None)), name
    assert set(published) <= set(rows)
    again = read_publication(STUDIES / "human_vs_simulated.yaml").rows
    for name in set(again) & set(published):
        assert again[name].published == rows[name].published
