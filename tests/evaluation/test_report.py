"""The report: complete, self-contained, well formed, and inert whatever the models wrote."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from rlhf_jax.evaluation.doctor.findings import Finding
from rlhf_jax.evaluation.leaderboards.leaderboard import LeaderboardRow
from rlhf_jax.evaluation.measures.agreement import agreement, biases, calibration
from rlhf_jax.evaluation.measures.bootstrap import paired_differences
from rlhf_jax.evaluation.measures.bradley_terry import Rating
from rlhf_jax.evaluation.measures.evaluators import evaluator
from rlhf_jax.evaluation.measures.win_rate import utility_win_rate, win_rate
from rlhf_jax.evaluation.report.charts import breakable_name, escape_html, number_text, ticks, track
from rlhf_jax.evaluation.report.page import render_page, write_report
from rlhf_jax.evaluation.report.report_data import JudgeResult, Report, ReportSample, ReportStage, Response
from rlhf_jax.evaluation.report.report_sections import duration

HOSTILE = (
    "</p></article></section><script>alert(1)</script><img src=\"https://evil.example/x\" onerror='a()'>"
    '\x00\u202e\ud800 & <svg onload=b()> ]]> " style="background:url(//evil.example)'
)
VOID = {"meta", "br", "wbr"}


class Page(HTMLParser):
    """Collects tags and attributes, and checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parse(html):
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def report():
    rng = np.random.default_rng(0)
    utility = rng.random(40)
    known = utility_win_rate(np.clip(utility + 0.1, 0, 1), utility)
    judged = win_rate([*rng.choice([1.0, 1.5, 2.0], 40), None])
    rows = (
        LeaderboardRow(HOSTILE, HOSTILE, "sft", judged, 100, 41, known, "sft"),
        LeaderboardRow("sft", HOSTILE, "sft", None, 90, 41, utility_win_rate(utility, utility), "sft"),
    )
    labels = rng.choice([1.0, 2.0], 50)
    texts = ["- a\n- b" if i % 3 else "y" * 60 for i in range(50)]
    result = JudgeResult(
        HOSTILE, agreement(labels, labels, clear=[True] * 50), biases(labels, texts, texts[::-1])
    )
    annotated = [
        {
            "instruction": f"i{i}",
            "output_1": "x",
            "output_2": HOSTILE,
            "generator_2": "m",
            "preference": label,
        }
        for i, label in enumerate(labels)
    ]
    ppo = [
        {"step": i, "objective/kl": 0.1 * i, "objective/scores": np.sin(i / 9), HOSTILE: 1.0}
        for i in range(1, 90)
    ]
    ppo += [{"step": i, "eval/utility": 0.5 + i / 500} for i in (10, 40, 80)]
    sft = [{"step": i, "loss": 3.0 / i if i != 5 else float("inf")} for i in range(1, 20)]
    sample = ReportSample(HOSTILE, HOSTILE, {HOSTILE: Response(HOSTILE, 0.25), "sft": Response("fine", 0.75)})
    return Report(
        title=HOSTILE,
        subtitle=HOSTILE,
        leaderboard=rows,
        facts={HOSTILE: HOSTILE},
        stages=(
            ReportStage("sft", sft, 12.3, HOSTILE),
            ReportStage("ppo", ppo, 240.0),
            ReportStage(HOSTILE, ppo),
        ),
        curves={"ppo": ["objective/*", "eval/*", "*script*"]},
        judges=(result, JudgeResult("longer", agreement(labels, labels[::-1]))),
        calibration=calibration(rng.random(60), rng.random(60), rng.choice([1, 2], 60)),
        samples=(sample,),
        differences=paired_differences({HOSTILE: labels, "sft": labels[::-1]}, n_bootstrap=50),
        against={HOSTILE: {"sft": 61.25}, "sft": {HOSTILE: 38.75}},
        evaluators=[
            evaluator(HOSTILE, annotated, annotated),
            evaluator("humans", annotated, annotated, is_gold=True),
        ],
        ratings=[
            Rating(HOSTILE, 1043.2, (980.0, 1120.0), 55.0, 40),
            Rating("sft", 956.8, (900.0, 1010.0), 45.0, 40),
        ],
        findings=[
            Finding("KL explodes", "problem", HOSTILE, ("objective/kl",), HOSTILE, HOSTILE, "ppo"),
            Finding(HOSTILE, "note", "e", (HOSTILE,), "c", "", HOSTILE),
        ],
        looked_for={HOSTILE: [HOSTILE], "ppo": ["KL explodes"], "nothing": []},
    )


def test_findings_have_their_curves_and_none_is_said(report):
    html = render_page(report)
    section = html[html.index('<section id="findings">') : html.index('<section id="ratings">')]
    problem, note, looked = re.split(r'(?=<article class="finding is-note">)|(?=<details)', section)
    assert "finding is-problem" in problem and "objective/kl" in problem and "<svg" in problem
    assert "Usual cause" in problem and "Decided by" in problem and "Decided by" not in note
    # A curve that never moved is a line, too; and what has no metrics has none.
    assert note.count("<svg") == 1 and "KL explodes" in looked and "nothing" not in looked
    none = render_page(Report("t", [], looked_for={"sft": ["held-out loss rises"]}))
    assert "No findings." in none and "<details open" in none and "held-out loss rises" in none
    assert "findings" not in render_page(Report("t", [], looked_for={"sft": []})).split("</style>")[1]


def test_every_section_is_there_and_linked(report):
    page = parse(render_page(report))
    ids = [v for k, v in page.attributes if k == "id"]
    assert ids[:5] == ["leaderboard", "findings", "ratings", "methods", "evaluators"]
    assert ids[5:] == ["curves", "frontier", "judges", "reward-model", "samples", "timings"]
    assert [v for k, v in page.attributes if k == "href"] == [f"#{i}" for i in ids]
    for text in (
        "n 40, 1 missing",
        "baseline, 50 by construction",
        "1 not finite",
        "Wilson",
        "4 min 00 s",
        "0.75 ★",
        "61.2",
        "Any method against any",
        "1043 [980, 1120]",
        "50 of 50",
    ):
        assert text in page.text
    assert page.text.count("objective/scores against objective/kl") >= 2
    # The KL of the rollout at the evaluation's step, not of the next.
    assert re.search(r"step 40: eval/utility 0\.58 at KL 4(?![.\d])", page.text)


def test_hostile_text_stays_text(report):
    html = render_page(report)
    page = parse(html)
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "nav",
        "main",
        "section",
        "article",
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "div",
        "span",
        "strong",
        "small",
        "b",
        "i",
        "em",
        "a",
        "dl",
        "dt",
        "dd",
        "details",
        "summary",
        "table",
        "thead",
        "tbody",
        "tfoot",
        "tr",
        "th",
        "td",
        "figure",
        "figcaption",
        "svg",
        "line",
        "circle",
        "path",
        "text",
        "g",
        "wbr",
    }
    assert set(page.tags) <= allowed
    assert not [
        k for k, _ in page.attributes if k.startswith("on") or k in ("src", "srcset", "action", "xlink:href")
    ]
    assert "<script>alert(1)</script>" in page.text
    assert "\x00" not in html and "\u202e" not in html and "⟨U+202E⟩" in html
    styles = [v for k, v in page.attributes if k == "style"]
    assert all(re.fullmatch(r"(--[tu]|width|left):[\d.]+%?", v) for v in styles)


def test_nothing_is_fetched(report):
    html = render_page(report)
    assert "default-src 'none'" in html
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert not re.search(r"<[^>]+(?:src|href)\s*=\s*[\"']?(?!#)\w", html)


def test_an_almost_empty_report_leaves_sections_out(tmp_path):
    path = write_report(tmp_path / "deep" / "report.html", Report("nothing yet", leaderboard=()))
    page = parse(path.read_text(encoding="utf-8"))
    assert "section" not in page.tags and "nothing yet" in page.text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_without_utility_the_table_has_no_utility_columns():
    rows = [LeaderboardRow("ppo", "gpt", "sft", win_rate([2, 1, 2]), 10, 3)]
    text = parse(render_page(Report("t", rows, samples=[ReportSample("q", "", {"ppo": Response("a")})]))).text
    assert "utility" not in text and "66.7 %" in text and "judge gpt, n 3" in text


def test_one_point_metrics_are_listed_and_long_texts_are_cut():
    stage = ReportStage("sft", [{"step": 3, "loss": 1.25}])
    sample = ReportSample("q", "", {"m": Response("z" * 9000), "empty": Response(" \n")})
    page = parse(render_page(Report("t", (), stages=[stage], samples=[sample])))
    assert "Logged once: loss 1.25." in page.text and "path" not in page.tags
    assert "5000 more characters" in page.text and "empty response" in page.text


def test_a_long_run_makes_a_small_page():
    rows = [{"step": i, "loss": 1.0 / (i + 1), "grad_norm": 1.0} for i in range(50_000)]
    assert len(render_page(Report("t", (), stages=[ReportStage("sft", rows)]))) < 60_000


def test_escape_number_ticks_and_duration():
    assert (
        escape_html("<a href=\"x\" b='y'>&\r\n\t") == "&lt;a href=&quot;x&quot; b=&#x27;y&#x27;&gt;&amp;\n\t"
    )
    assert [number_text(v) for v in (0, 0.12345, 12.345, 123.45, 12345.6, 1e-5, float("nan"))] == [
        "0",
        "0.123",
        "12.3",
        "123.5",
        "12,346",
        "1.00e-05",
        "–",
    ]
    assert ticks(0, 1) == pytest.approx([0, 0.25, 0.5, 0.75, 1]) and ticks(3, 3) == [3]
    assert [duration(s) for s in (4.25, 59.96, 185, 7800)] == [
        "4.2 s",
        "1 min 00 s",
        "3 min 05 s",
        "2 h 10 min",
    ]


def test_names_break_between_their_parts_and_only_very_long_parts_within():
    assert breakable_name("expert_iteration") == "expert_<wbr>iteration"
    assert breakable_name("best of 16") == "best of 16" and breakable_name("reference") == "reference"
    assert breakable_name("a/b-c.d@0 <i>") == "a/<wbr>b-<wbr>c.<wbr>d@<wbr>0 &lt;i&gt;"
    assert breakable_name("x" * 30) == "x" * 24 + "<wbr>" + "x" * 6
    for name in ("__a__", "-", "", "a  b"):
        assert breakable_name(name).replace("<wbr>", "") == name
    rows = [LeaderboardRow("reward_conditioning", "gpt", "sft", win_rate([2, 1, 2]), 10, 3)]
    assert "<th>reward_<wbr>conditioning</th>" in render_page(Report("t", rows))


def test_track_places_marks_in_percent_and_clips():
    svg = track(75, (60, 90), "t", low=50)
    assert 'cx="50.00%"' in svg and 'x1="20.00%" x2="80.00%"' in svg
    assert 'x1="0.00%" x2="100.00%"' in track(50, (-5, 130), "t")
