"""What is said of every kind of claim: that it shows, does not, cannot be told, or was not measured."""

import math

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.claims.published_claims import Claim, ColumnSpec, Publication, RowSpec, TableSpec
from rlhf_jax.evaluation.claims.seeded_tables import SeededTable, seeded_table
from rlhf_jax.evaluation.claims.seeded_values import Estimate
from rlhf_jax.evaluation.claims.verdicts import Measured, estimate_text, verdicts

SHOWS, NOT, OPEN, MISSING = "shows", "does not show", "cannot be told", "not measured"
NAN = math.nan
NOISE = np.random.default_rng(0).normal(size=(3, 1, 40))


def measured(values, *claims, at=(0.0,), percent=False):
    """One table `t`, one column `v` and the rows' values, each [S, X, N]."""
    table = SeededTable({(row, "v"): v for row, v in values.items()}, tuple(values), ("0",), np.array(at))
    rows = {row: RowSpec(row.upper()) for row in (*values, "gone")}
    columns = {name: ColumnSpec("V", "t", "v", percent) for name in ("v", "w")}
    return Measured(
        Publication("", "", "", {"t": TableSpec("row")}, columns, {}, rows, (), claims), {"t": table}
    )


def verdict(values, kind, of, **more):
    (found,) = verdicts(
        measured(
            values, Claim("it is said", kind, of, "v", **more), at=range(next(iter(values.values())).shape[1])
        )
    )
    assert found.evidence and "\n" not in found.evidence and "nan" not in found.evidence
    return found.verdict, found.evidence


def level(mean, seeds=3, noise=1.0):
    """Values of a row around a mean, the same noise for all rows but for a tenth of it."""
    own = np.random.default_rng(round(1000 * abs(mean))).normal(size=(seeds, 1, 40))
    return mean + noise * (NOISE[:seeds] + 0.1 * own)


def number(*of_seeds):
    """A row of which one number is known of each seed."""
    return np.array(of_seeds, float)[:, None, None]


@pytest.mark.parametrize("seeds", [1, 3])
def test_greater(seeds):
    rows = {"a": level(2, seeds), "b": level(1, seeds), "c": level(1.002, seeds)}
    assert verdict(rows, "greater", ("a", "b"))[0] == SHOWS
    assert verdict(rows, "greater", ("b", "a"))[0] == NOT
    found, told = verdict(rows, "greater", ("c", "b"))
    assert found == OPEN and told.startswith("C - B +0.0 [-")
    assert verdict(rows, "greater", ("a", "gone")) == (MISSING, "no value of GONE")


def test_greater_of_single_numbers():
    rows = {"a": number(2.0), "b": number(1.0)}
    assert verdict(rows, "greater", ("a", "b")) == (OPEN, "A - B +1.0")  # One seed: nobody knows.
    assert verdict({"a": number(2, 2.1, 2.05), "b": number(1, 1.1, 0.95)}, "greater", ("a", "b"))[0] == SHOWS
    apart = {"a": number(2, NAN), "b": number(NAN, 1)}
    assert verdict(apart, "greater", ("a", "b")) == (MISSING, "A - B nothing that both have")


def test_close_within_error():
    rows = {"a": level(1), "b": level(1.001), "c": level(1.002), "d": level(3)}
    found, told = verdict(rows, "close", ("a", "b", "c"))
    assert found == SHOWS and [part.split(" ")[:3] for part in told.split("; ")] == [
        ["A", "-", "B"],
        ["A", "-", "C"],
        ["B", "-", "C"],
    ]
    assert verdict(rows, "close", ("a", "b", "d"))[0] == NOT
    assert verdict(rows, "close", ("a", "gone")) == (MISSING, "no value of GONE")


def test_close_within_a_margin_has_to_be_sure():
    rows = {"a": level(1), "b": level(1.5), "c": level(4)}
    assert verdict(rows, "close", ("a", "b"), within=1.0)[0] == SHOWS
    assert verdict(rows, "close", ("a", "c"), within=1.0)[0] == NOT
    rng = np.random.default_rng(0)
    vague = {"a": rng.normal(size=(2, 1, 9)) * 20, "b": rng.normal(size=(2, 1, 9)) * 20}
    assert verdict(vague, "close", ("a", "b"), within=1.0)[0] == OPEN  # It could be anything.
    apart = {"a": number(1, NAN), "b": number(NAN, 1), "c": number(1, 1)}
    assert verdict(apart, "close", ("a", "b", "c"))[0] == MISSING


@pytest.mark.parametrize("within", [0.0, 100.0])
def test_close_without_an_interval_is_never_said_to_show(within):
    rows = {"a": number(1.0), "b": number(1.0)}
    assert verdict(rows, "close", ("a", "b"), within=within) == (OPEN, "A - B +0.0")


def test_near():
    rows = {"a": level(3), "b": number(3.2), "c": level(3, noise=20)}
    assert verdict(rows, "near", ("a",), value=3.5, within=1)[0] == SHOWS
    assert verdict(rows, "near", ("a",), value=30, within=1)[0] == NOT
    assert verdict(rows, "near", ("c",), value=3.5, within=1)[0] == OPEN
    assert verdict(rows, "near", ("a",), value=3 + NOISE.mean())[0] == SHOWS  # Within error.
    # A number without an interval is what it is: 3.2.
    assert verdict(rows, "near", ("b",), value=3, within=0.25) == (SHOWS, "3.2 against 3")
    assert verdict(rows, "near", ("b",), value=3, within=0.1)[0] == NOT
    assert verdict(rows, "near", ("gone",), value=3)[0] == MISSING


def curve(*heights, seeds=3):
    rng = np.random.default_rng(0)
    return np.array(heights, float)[None, :, None] + rng.normal(size=(seeds, len(heights), 40))


CURVES = [
    ("rises", (0, 3, 5, 4, 1), 0, SHOWS),
    ("rises", (5, 4, 3, 2, 1), 0, NOT),
    ("rises", (0, 0, 0, 0, 0), 0, OPEN),
    ("falls", (0, 3, 5, 4, 1), 0, SHOWS),
    ("falls", (1, 2, 3, 4, 5), 0, NOT),
    ("falls", (0, 0, 0, 0, 0), 0, OPEN),
    ("stays", (0, 3, 5, 5, 5), 1.0, SHOWS),
    ("stays", (1, 2, 3, 4, 5), 0, SHOWS),
    ("stays", (0, 3, 5, 3, 1), 1.0, NOT),
    ("stays", (0, 3, 5, 5, 4), 1.0, OPEN),
]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(("kind", "heights", "within", "wanted"), CURVES)
def test_curves(kind, heights, within, wanted, seeds):
    found, told = verdict({"a": curve(*heights, seeds=seeds)}, kind, ("a",), within=within)
    assert found == wanted, told
    assert " at 0, peak " in told and " at 4; " in told


def test_curves_that_were_not_measured_or_are_too_short():
    rows = {"a": curve(0, 3, 5), "b": np.full((3, 3, 40), NAN), "c": curve(0, NAN, 5)}
    assert verdict(rows, "rises", ("gone",)) == (MISSING, "no value of GONE")
    assert verdict(rows, "rises", ("b",)) == (MISSING, "no value of B")
    assert verdict(rows, "rises", ("c",))[0] == MISSING
    assert verdict(rows, "rises", ("a",))[0] == SHOWS


def test_a_curve_ends_where_it_ends_and_not_where_the_longest_does():
    rows = {"long": curve(0, 1, 2, 3, 4), "short": curve(0, 5, 1, NAN, NAN), "late": curve(NAN, 0, 3, 6, 9)}
    found, told = verdict(rows, "falls", ("short",))
    assert found == SHOWS and " at 2; fall +" in told
    found, told = verdict(rows, "rises", ("late",))
    assert found == SHOWS and " at 1, peak " in told
    assert verdict(rows, "greater", ("long", "short"))[0] == SHOWS
    of_short = measured(rows).estimate("short", "v")
    assert of_short.mean == pytest.approx(rows["short"][:, 2].mean())


def test_a_seed_that_failed_leaves_the_others():
    rows = {"a": curve(0, 3, 5, 4, 1), "b": level(1)}
    rows["a"][1] = NAN
    assert verdict(rows, "rises", ("a",))[0] == SHOWS


def ranked(noise, seeds=2):
    rng = np.random.default_rng(0)
    return {name: i + noise * rng.normal(size=(seeds, 1, 50)) for i, name in enumerate("abcde")}


def spearman(x, y):
    table = SeededTable(
        {(row, column): values for column, found in (("x", x), ("y", y)) for row, values in found.items()},
        tuple(x),
        ("0",),
        np.zeros(1),
    )
    columns = {name: ColumnSpec(name, "t", name) for name in "xy"}
    claim = Claim("they rank alike", "spearman", ("x", "y"))
    publication = Publication("", "", "", {"t": TableSpec("row")}, columns, {}, {}, (), (claim,))
    (found,) = verdicts(Measured(publication, {"t": table}))
    return found.verdict, found.evidence


def test_ranks():
    x, y = ranked(0.1), ranked(0.1)
    found, told = spearman(x, y)
    assert found == SHOWS and told == "Spearman 1.00 [1.00, 1.00], R² 1.00 [1.00, 1.00], 5 methods"
    assert spearman(x, {name: -v for name, v in y.items()})[0] == NOT
    rng = np.random.default_rng(1)
    assert spearman(x, {name: rng.normal(size=v.shape) for name, v in y.items()})[0] == OPEN


def test_ranks_of_single_numbers_cannot_be_told():
    one = {name: number(i) for i, name in enumerate("abc")}
    assert spearman(one, one) == (OPEN, "Spearman 1.00, R² 1.00, 3 methods")
    same = {name: number(1) for name in "abc"}
    assert spearman(one, same) == (OPEN, "Spearman –, R² –, 3 methods")


def test_methods_without_one_of_the_measures_are_not_ranked():
    x, y = ranked(0.1), ranked(0.1)
    y["e"] = np.full_like(y["e"], NAN)
    assert "4 methods" in spearman(x, y)[1]
    del y["a"], y["b"]
    found, told = spearman(x, y)
    assert found == MISSING and "2 of them have both measures" in told


def test_values_are_in_the_columns_unit():
    found = measured({"a": number(0.5, 0.6)}, percent=True)
    assert found.estimate("a", "v").mean == pytest.approx(55)
    assert 0 < found.estimate("a", "v").interval[0] < found.estimate("a", "v").interval[1] < 100
    assert found.rows() == ["a", "gone"] and found.label("a") == "A" and found.label("unnamed") == "unnamed"


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_per_cent_of_what_is_no_share_is_refused(value):
    found = measured({"a": number(0.5, value)}, percent=True)
    with pytest.raises(UserError, match=r"results: t: v of a goes from .* no shares of 1; leave percent out"):
        found.estimate("a", "v")


def test_an_estimate_in_words():
    assert estimate_text(Estimate(60.94, 1.0, (58.76, 63.0), 3, 9)) == "60.9 [58.8, 63.0]"
    assert estimate_text(Estimate(-0.04, 1.0, (-0.06, 0.0), 3, 9), signed=True) == "+0.0 [-0.1, +0.0]"
    assert estimate_text(Estimate(2.5, NAN, (NAN, NAN), 1, 1), 2, signed=True) == "+2.50"
    assert estimate_text(Estimate(NAN, NAN, (NAN, NAN), 0, 0)) == "–"


SPEC = TableSpec("method", ("instruction", "input"), "step")


def entry(method="a", instruction="i", step=1, **values):
    return {"method": method, "instruction": instruction, "input": None, "step": step, "win": 1.0} | values


def test_a_table_of_every_seed_is_one_array():
    by_seed = {
        "0": [entry(), entry(step=3, win=None), entry("b", win=0.25), entry(instruction="j", win=0)],
        "1": [entry(win=0.5), entry(instruction=0), entry(instruction="")],
    }
    found = seeded_table("t", SPEC, ["win"], by_seed)
    assert (found.rows, found.seeds, list(found.at_X)) == (("a", "b"), ("0", "1"), [1, 3])
    a = found.of("a", "win")
    assert a.shape == (2, 2, 4)  # Items i, j, 0 and "".
    assert np.array_equal(a[:, 0], [[1, 0, NAN, NAN], [0.5, NAN, 1, 1]], equal_nan=True)
    assert np.isnan(a[:, 1]).all() and found.of("b", "win")[0, 0, 0] == 0.25
    assert found.of("c", "win").shape == (0, 2, 1)


def test_an_item_that_is_asked_twice_meets_the_others_second():
    rows = [entry(win=1), entry(win=0), entry("b", win=0.5), entry("b", win=0.25)]
    found = seeded_table("t", SPEC, ["win"], {"": rows})
    assert found.of("a", "win")[0, 0].tolist() == [1, 0] and found.of("b", "win")[0, 0].tolist() == [
        0.5,
        0.25,
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "results: t@0: no column 'method'; it has no rows"),
        ([{"method": "a", "step": 1}], "results: t@0: no column 'instruction'; it has method, step"),
        ([entry(win="much")], "results: t: a: win: 'much' is no number"),
        ([entry(win=True)], "results: t: a: win: True is no number"),
        ([entry(win=math.inf)], "results: t: a: win: inf is no number"),
        ([entry(step="first")], "results: t: step: 'first' is no number"),
        ([entry(step=None)], "results: t: an entry without 'step'; every entry needs one"),
        ([entry(method=None)], "results: t: an entry without 'method'; every entry needs one"),
        ([entry(), {"instruction": "i"}], "results: t: an entry without 'method'; every entry needs one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_table_that_cannot_be_is_refused(rows, said):
    with pytest.raises(UserError) as error:
        seeded_table("t", SPEC, ["win"], {"0": rows})
    assert str(error.value) == said


def test_a_row_twice_where_nothing_tells_them_apart_is_refused():
    with pytest.raises(
        UserError, match=r"^results: t: a is there twice; say in tables\.t\.item of the claims"
    ):
        seeded_table("t", TableSpec("method"), ["win"], {"0": [entry(), entry()]})
