"""The job that holds a study beside what was published, from small tables of two seeds to its files and its page."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_farm
import yaml

from rlhf_jax.data.records.records import write_parquet
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.claims.seeded_values import as_percentage, estimate
from rlhf_jax.evaluation.report.claim_charts import curve_chart
from rlhf_jax.evaluation.report.report_data import ReportStage
from rlhf_jax.jobs import compare
from rlhf_jax.jobs.compare.compare_inputs import by_seed, mean_over_seeds

EVIL = "<script>alert(1)</script>&\"'\u202e"
MEANS = {"a": 0.7, "b": 0.5, "c": 0.3, EVIL: 0.6}
N = 12
CLAIMS = {
    "title": f"A study {EVIL}",
    "source": f"Somebody {EVIL}",
    "text": f"Words {EVIL}",
    "tables": {
        "ranked": {"row": "method", "item": ["instruction", "input"]},
        "steps": {"row": "run", "at": "step", "item": ["instruction"]},
        "runs": {"row": "run"},
    },
    "columns": {
        "win": {"label": f"win rate {EVIL}", "table": "ranked", "column": "win", "percent": True},
        "truth": {"label": "truth", "table": "ranked", "column": "true_win", "digits": 2},
        "along": {"label": "along", "table": "steps", "column": "score"},
        "depth": {"label": "depth", "table": "steps", "column": "kl"},
        "time": {"label": "time", "table": "runs", "column": "seconds"},
        "memory": {"label": "memory", "table": "runs", "column": "memory_gib"},
    },
    "samples": {"table": "ranked", "text": "output", "score": "utility"},
    "published": {"paper": f"paper {EVIL}"},
    "rows": {
        "a": {"label": "method A", "published": {"paper": 46.8}},
        "b": {"label": "method B, and all that can be said of it in a row"},
        "gone": {"label": "not measured here", "published": {"paper": 32.4}},
        "run": {"label": "a run"},
    },
    "charts": [
        {"kind": "scatter", "title": f"Scatter {EVIL}", "x": "win", "y": "truth"},
        {"kind": "curves", "title": "Curves", "y": "along", "x_label": f"step {EVIL}"},
        {"kind": "against", "title": "Against", "x": "depth", "y": "along"},
        {"kind": "bars", "title": "Bars", "column": "win"},
        {"kind": "bars", "title": "Nothing to show", "column": "win", "rows": ["gone"]},
    ],
    "claims": [
        {
            "says": f"A is above B {EVIL}",
            "greater": ["a", "b"],
            "column": "win",
            "published": f"2 : 1 {EVIL}",
        },
        {"says": "B is above A", "greater": ["b", "a"], "column": "win", "why": f"It is not so {EVIL}"},
        {"says": "One more", "greater": ["gone", "a"], "column": "win", "published": "32.4"},
        {"says": "They rank alike", "spearman": ["win", "truth"]},
        {"says": "It rises", "rises": ["run"], "column": "along"},
    ],
}


def tables(folder, seed):
    """Writes one seed's two tables; what they hold of `win` by method."""
    rng = np.random.default_rng(seed)
    ranked, wins = [], {}
    for method, mean in MEANS.items():
        wins[method] = np.clip(mean + 0.02 * rng.normal(size=N), 0, 1)
        for i, win in enumerate(wins[method]):
            row = {"method": method, "instruction": f"Say {i} {EVIL}", "input": EVIL if i % 2 else ""}
            row |= {"output": f"{method} says {i} of {seed}", "win": float(win), "true_win": float(win) ** 2}
            ranked.append(row | {"utility": float(win)})
    ranked[0]["win"] = None
    wins["a"][0] = np.nan
    write_parquet(folder / f"ranked_{seed}.parquet", ranked)
    steps = [
        {
            "run": "run",
            "step": step,
            "instruction": f"{i}",
            "score": step + 0.1 * rng.normal(),
            "kl": step**2 / 100,
        }
        for step in (0, 10, 20)
        for i in range(6)
    ]
    write_parquet(folder / f"steps_{seed}.parquet", steps)
    (folder / f"train_{seed}").mkdir()
    rows = [
        {"step": s, "loss": 1.0 / s, "timing_s/step": 5.0 * (seed + 1), "perf/peak_memory_gib": s / 2}
        for s in (1, 2, 3)
    ]
    (folder / f"train_{seed}/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return wins


def settings(folder, **changes):
    names = [f"{name}@{seed}" for name in ("ranked", "steps") for seed in (0, 1)]
    results = ",".join(f"{name}={folder}/{name.replace('@', '_')}.parquet" for name in names)
    runs = ",".join(f"train@{seed}={folder}/train_{seed}" for seed in (0, 1))
    (folder / "claims.yaml").write_text(yaml.safe_dump(CLAIMS))
    given = {"claims": f"{folder}/claims.yaml", "results": results, "runs": runs, "samples": 3}
    return tiny_farm.settings("compare", folder, **given | changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(folder of the tables, workdir of the job, wins by seed, what was printed)."""
    folder = tmp_path_factory.mktemp("compare")
    wins = [tables(folder, seed) for seed in (0, 1)]
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *text, **_: printed.append(" ".join(map(str, text))))
        compare.run(settings(folder), str(folder / "out"))
    return folder, folder / "out", wins, "\n".join(printed)


class Page(HTMLParser):
    """Tags that close in order, the ids of sections, and the text between tags."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.text = [], set(), [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name == "src"]
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name == "href"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_files_it_writes(study):
    _, out, _, printed = study
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    figures = {"figures/1_scatter.svg", "figures/2_curves.svg", "figures/3_against.svg", "figures/4_bars.svg"}
    assert files == figures | {
        "config.json",
        "verdicts.txt",
        "verdicts.json",
        "comparison.csv",
        "report.html",
    }
    text = (out / "verdicts.txt").read_text()
    assert text in printed and f"report: {out}/report.html" in printed
    lines = text.splitlines()
    assert lines[2].startswith("shows          A is above B") and "(published: 2 : 1" in lines[2]
    assert lines[4].startswith("does not show  B is above A") and "It is not so" in lines[6]


def test_verdicts_are_kept_for_programs(study):
    found = json.loads((study[1] / "verdicts.json").read_text())
    assert [one["verdict"] for one in found] == ["shows", "does not show", "not measured", "shows", "shows"]
    assert found[0]["of"] == ["a", "b"] and found[0]["kind"] == "greater" and found[0]["column"] == "win"
    assert found[2]["evidence"] == "no value of not measured here" and found[2]["published"] == "32.4"
    assert re.fullmatch(r"Spearman 1\.00 .*, 4 methods", found[3]["evidence"])


def test_the_table_has_means_and_intervals_of_both_seeds_and_the_published_numbers(study):
    _, out, wins, _ = study
    with (out / "comparison.csv").open() as file:
        rows = {row["row"]: row for row in csv.DictReader(file)}
    assert list(rows) == [
        "a",
        "b",
        "gone",
        "run",
        "c",
        EVIL,
        "train",
    ]  # The publication's first, then the study's.
    for method in MEANS:
        wanted = as_percentage(estimate(100 * np.array([found[method] for found in wins])))
        row = rows[method]
        assert float(row["win"]) == pytest.approx(wanted.mean)
        assert float(row["win_error"]) == pytest.approx(wanted.error)
        assert (float(row["win_low"]), float(row["win_high"])) == pytest.approx(wanted.interval)
        assert row["along"] == ""
    assert rows["a"]["published_paper"] == "46.8" and rows["b"]["published_paper"] == ""
    # What was published and not measured keeps its line.
    assert rows["gone"]["published_paper"] == "32.4" and {
        rows["gone"][c] for c in ("win", "win_low", "truth")
    } == {""}
    assert float(rows["run"]["along"]) == pytest.approx(20, abs=0.2)


def test_the_page_has_every_section_and_nothing_of_a_text_acts(study):
    html = (study[1] / "report.html").read_text()
    page = Page(html)
    assert page.ids == ["verdicts", "figures", "comparison", "curves", "samples", "timings"]
    assert page.links == [f"#{name}" for name in page.ids]
    assert "script" not in page.tags and "<script>alert(1)</script>" in page.text
    assert "\u202e" not in html and "⟨U+202E⟩" in html
    for text in (
        "Of 5 published claims: 3 show, 1 does not show, 1 not measured",
        "2 seeds; [ ] 95 % over seeds and instructions",
        "not measured here",
        "a says",
        "train",
        "mean of 2 seeds",
        "Somebody",
        "Words",
    ):
        assert text in page.text, text
    assert html.count("<figure") == 4 + html.count('id="curves"') and "Nothing to show" not in page.text


def test_a_row_that_was_not_measured_stands_there_with_the_published_number(study):
    html = (study[1] / "report.html").read_text()
    (row,) = re.findall(r"<tr><th>not measured here</th>(.*?)</tr>", html)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    assert cells == ["–"] * 6 + ["32.4"]


def test_a_column_against_another_stands_at_the_means_of_that_one(study):
    root = ET.fromstring((study[1] / "figures/3_against.svg").read_text())
    places = [float(one.get("cx")) for one in root.iter("{http://www.w3.org/2000/svg}circle")]
    # At 0, 1 and 4 and not at steps 0, 10 and 20.
    assert (places[2] - places[0]) / (places[1] - places[0]) == pytest.approx(4.0, abs=0.02)


@pytest.mark.parametrize(("count", "faint"), [(2, False), (5, True)])
def test_bands_lie_behind_every_line_and_are_fainter_where_many_lie_over_each_other(count, faint):
    measured = SimpleNamespace(
        label=str,
        curve=lambda row, column: np.array([[[10.0, 20.0, 30.0], [20.0, 30.0, 50.0]]]),
        at=lambda column: np.array([0.0, 1.0]),
        estimate_of=lambda values, column: estimate(values),
        publication=SimpleNamespace(columns={"win": SimpleNamespace(label="win")}),
    )
    drawn = curve_chart(measured, "win", "step", "Curves", [f"run {k}" for k in range(count)])
    parts = re.findall(r'<path class="(band|line)( faint)?', drawn)
    assert [name for name, _ in parts] == ["band"] * count + ["line"] * count
    assert [bool(more) for _, more in parts[:count]] == [faint] * count


def test_what_runs_have_cost_is_a_table_of_its_own(study):
    rows = list(csv.DictReader((study[1] / "comparison.csv").open()))
    (train,) = [row for row in rows if row["row"] == "train"]
    # Three steps of 5 s at one seed, of 10 s at the other; the most memory of all rows.
    assert (float(train["time"]), float(train["memory"])) == (22.5, 1.5)


@pytest.mark.parametrize("name", ["1_scatter", "2_curves", "3_against", "4_bars"])
def test_figures_are_files_of_their_own(study, name):
    text = (study[1] / f"figures/{name}.svg").read_text()
    svg = "{http://www.w3.org/2000/svg}"
    root = ET.fromstring(text)
    assert root.tag == f"{svg}svg" and root.get("viewBox")
    drawn = {one.tag.removeprefix(svg) for one in root.iter()}
    assert drawn <= {"svg", "style", "g", "title", "text", "line", "path", "circle", "rect"}
    style = root.find(f"{svg}style").text
    used = {name for one in root.iter() for name in (one.get("class") or "").split()}
    assert used - {"name", "label", "chart"} <= set(re.findall(r"\.([a-z][\w-]*)", style))
    assert set(re.findall(r"var\((--\w+)\)", style)) <= set(re.findall(r"(--\w+):", style))
    # All of it lies within the picture, names included (about 6 units a letter).
    width, height = map(float, root.get("viewBox").split()[2:])
    for one in root.iter(f"{svg}text"):
        x, y, long = float(one.get("x")), float(one.get("y")), 6 * len(one.text or "")
        left = x - {"end": long, "middle": long / 2}.get(one.get("text-anchor"), 0)
        assert 0 <= y <= height and x <= width, one.text
        if EVIL[:3] not in (one.text or ""):
            assert left > -8 and left + long < width + 8, one.text


def test_of_one_seed_the_table_may_be_named_without_one(study, tmp_path):
    folder = study[0]
    results = f"ranked={folder}/ranked_0.parquet,steps={folder}/steps_0.parquet"
    compare.run(settings(folder, results=results, runs="", samples=0), str(tmp_path / "out"))
    page = Page((tmp_path / "out/report.html").read_text())
    assert page.ids == ["verdicts", "figures", "comparison"]
    assert "1 seed; [ ] 95 % over seeds and instructions; with one seed, over instructions alone" in page.text


def test_samples_are_drawn_by_the_seed_and_not_by_what_they_show(study, tmp_path):
    folder, shown = study[0], []
    for seed in (0, 0, 1):
        compare.run(settings(folder, seed=seed), str(tmp_path / "out"))
        shown.append(re.findall(r"Say (\d+)", (tmp_path / "out/report.html").read_text()))
        assert len(shown[-1]) == 3
    assert shown[0] == shown[1] != shown[2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"results": "rankd={folder}/ranked_0.parquet"}, "results: 'rankd' is no table of the claims; did you"),
        ({"results": "ranked={folder}/ranked_0.parquet"}, "results: steps is missing, of which the claims"),
        ({"results": "ranked@0={folder}/gone.parquet"}, "results: {folder}/gone.parquet: no such file"),
        ({"results": "{folder}/ranked_0.parquet"}, "results: '{folder}/ranked_0.parquet' is not NAME=PATH"),
        ({"results": "ranked@0=A,ranked@0=B"}, "results: 'ranked@0' is named twice"),
        (
            {"results": "ranked@0={folder}/ranked_0.parquet,ranked={folder}/ranked_1.parquet"},
            "results: ranked is there with a seed and without one; write ranked@SEED=FILE for each",
        ),
        (
            {"results": "ranked={folder}/steps_0.parquet,steps={folder}/steps_0.parquet"},
            "results: ranked: no column 'method'; it has ",
        ),
        ({"claims": "{folder}/gone.yaml"}, "claims: {folder}/gone.yaml: no such file"),
        ({"samples": -1}, "samples: -1; use "),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(study, tmp_path, change, said):
    folder = study[0]
    change = {k: v.replace("{folder}", str(folder)) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(UserError) as error:
        compare.run(settings(folder, **change), str(tmp_path / "out"))
    line = str(error.value)
    assert line.startswith(said.replace("{folder}", str(folder))) and "\n" not in line
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_a_column_of_samples_that_is_not_there_is_refused(study, tmp_path):
    folder = study[0]
    page = settings(folder)
    wrong = CLAIMS | {"samples": {"table": "ranked", "text": "answer"}}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(wrong))
    page.claims = str(tmp_path / "claims.yaml")
    with pytest.raises(UserError, match=r"^results: ranked: no column 'answer', which samples of the"):
        compare.run(page, str(tmp_path / "out"))


def test_results_are_sorted_by_seed():
    assert by_seed("x@0=A,y=B,x@1=C", "results", ("x", "y")) == {"x": {"0": "A", "1": "C"}, "y": {"": "B"}}


def test_runs_of_several_seeds_are_one_stage():
    stages = [
        ReportStage("a@0", [{"step": 1}], 2.0, "s"),
        ReportStage("b", (), 1.0),
        ReportStage("a@1", (), 4.0),
    ]
    one, other = mean_over_seeds(stages)
    assert (one.name, one.rows, one.seconds, one.summary) == ("a", [{"step": 1}], 3.0, "s, mean of 2 seeds")
    assert other == stages[1]
    assert mean_over_seeds([ReportStage("c@0"), ReportStage("c@1")])[0].seconds is None


def test_a_bar_has_its_name_above_it(study):
    """And not beside it, where a narrow screen would cut it off."""
    svg = "{http://www.w3.org/2000/svg}"
    root = ET.fromstring((study[1] / "figures/4_bars.svg").read_text())
    names = [one for one in root.iter(f"{svg}text") if one.get("class") == "label"]
    bars = [one for one in root.iter(f"{svg}rect") if one.get("class") == "bar"]
    assert len(names) == len(bars) > 1
    tops = [float(bar.get("y")) for bar in bars]
    for name, bar, before in zip(names, bars, [-20.0, *tops], strict=False):
        assert float(name.get("x")) == float(bar.get("x"))
        assert before + float(bar.get("height")) < float(name.get("y")) < float(bar.get("y"))
