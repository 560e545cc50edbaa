"""Judge and pool files: what ships loads, what is wrong is named, the id moves with what can move a label."""

import math
from pathlib import Path

import pytest
import yaml
from annotation_helpers import judge_spec

from rlhf_jax.annotation.answers.answers import Answer
from rlhf_jax.annotation.judges.requests import Judge, resolve_address
from rlhf_jax.annotation.judges.specs import Price, load_judge, load_pool
from rlhf_jax.annotation.parsing.parsers import ParserSpec, parse_all
from rlhf_jax.errors import UserError

JUDGES = Path(__file__).parents[2] / "configs" / "judges"
GOOD = {
    "name": "j",
    "provider": "openai",
    "model": "m",
    "template": "pairwise_choice",
    "parser": "choice",
    "max_tokens": 1,
}
RATING = {"kind": "rating", "parser": {"name": "rating", "high": 7}, "template": "rating_scale"}
LOGPROB = {"parser": "logprob", "top_logprobs": 5}
DECISION = {"api": "decisions", "parser": "decision", "template": "pairwise_decision"}
EXAMPLES = {
    "pairwise": ("i", "a", "b"),
    "rating": ("i", "a"),
    "ranking": ("i", ("a", "b", "c")),
    "completion": ("i", ""),
}


def _write(folder: Path, fields: object, name: str = "judge.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(fields))
    return path


@pytest.mark.parametrize("path", sorted(JUDGES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_loads_and_renders(path: Path) -> None:
    pool = load_pool(path)
    assert pool.name == path.stem
    for spec in pool.judges:
        judge = Judge(spec, {"local": "http://127.0.0.1:1"})
        body = judge.body([EXAMPLES[spec.kind]] * spec.batch_size)
        assert body["model"] == spec.model
        assert body.get("messages", body.get("input"))[-1]["role"] == "user"


def test_the_shipped_pool_is_as_varied_as_promised() -> None:
    pool = load_pool(JUDGES / "micro_pool.yaml")
    assert [spec.model for spec in pool.judges] == [f"micro-judge-{i:02d}" for i in range(1, 14)]
    assert sum(spec.provider == "anthropic" for spec in pool.judges) >= 2
    assert {spec.parser.name for spec in pool.judges} == {
        "choice",
        "sentence",
        "cot_json",
        "ranking",
        "logprob",
    }
    assert len({spec.prompt.sha for spec in pool.judges}) >= 6
    assert len({spec.judge_id for spec in pool.judges}) == 13
    assert all(spec.base_url == "local" and spec.price == Price(0.0, 0.0) for spec in pool.judges)


def test_alpaca_farms_thirteen_have_the_forms_of_the_paper() -> None:
    """Examples per request, token limits, biases and parsers, as AlpacaFarm's configuration has them."""
    pool = load_pool(JUDGES / "alpaca_farm.yaml")
    assert [spec.name for spec in pool.judges] == [
        *(f"gpt4_{i}" for i in range(1, 6)),
        *(f"chatgpt_{i}" for i in range(1, 5)),
        *(f"davinci003_{i}" for i in range(1, 5)),
    ]
    assert [spec.batch_size for spec in pool.judges] == [4, 5, 5, 1, 5, 1, 1, 1, 1, 4, 1, 5, 1]
    assert [spec.max_tokens for spec in pool.judges] == [
        *(600, 250, 250, 20, 250, 50, 150, 20, 20),
        *(200, 200, 200, 200),
    ]
    bias = {spec.name: set((spec.sampling.get("logit_bias") or {}).values()) for spec in pool.judges}
    both = {"gpt4_4", "chatgpt_1", "chatgpt_3", "chatgpt_4"}
    assert {name for name, values in bias.items() if values == {7, -100}} == both
    assert [name for name, values in bias.items() if values == {-100}] == ["chatgpt_2"]
    assert [name for name, values in bias.items() if values == {7}] == ["davinci003_1"]
    assert {spec.sampling["temperature"] for spec in pool.judges} == {1.0}
    assert {spec.parser.name for spec in pool.judges} == {"regex"}
    assert len({(spec.prompt.sha, str(spec.prompt.variables)) for spec in pool.judges}) == 10
    greedy = load_judge(JUDGES / "alpaca_farm_greedy.yaml")
    assert (greedy.batch_size, greedy.max_tokens, greedy.sampling["temperature"]) == (5, 250, 0)


@pytest.mark.parametrize("name", ["gpt4_1", "gpt4_2", "gpt4_5", "chatgpt_3", "davinci003_1", "davinci003_4"])
def test_alpaca_farms_parsers_read_the_form_their_prompts_ask_for(name: str) -> None:
    spec = next(spec for spec in load_pool(JUDGES / "alpaca_farm.yaml").judges if spec.name == name)
    n = spec.batch_size
    lines = {
        "gpt4_1": ['{"explanation": "x", "is_output_a_better": true}', '{"is_output_a_better": false}'],
        "davinci003_1": ["1. The former is complete. Better: (a)", "2. The latter is. Better: (b)"],
    }.get(name, ["Output (a)", "Output (b)"])
    said = "\n".join((lines * n)[:n])
    assert [one.preference for one in parse_all(Answer(said), spec.parser, n)] == ([1.0, 2.0] * n)[:n]
    assert parse_all(Answer(said + "\n" + lines[0]), spec.parser, n)[0].status == "parse_error"


def test_a_price_nobody_knows_is_none_and_never_zero() -> None:
    assert load_judge(JUDGES / "claude.yaml").price is None
    assert load_judge(JUDGES / "gpt4_weighted.yaml").price.usd(1_000_000, 100_000) == pytest.approx(1.2)
    assert Price(1.0, 1.0).usd(None, 5) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temprature": 0}, ["unknown field 'temprature'"]),
        ({"tempalte": "pairwise_choice", "template": None}, ["template", "text"]),
        ({"provider": "opena"}, ["provider", "'opena'", "did you mean 'openai'"]),
        ({"parser": "rankin"}, ["parser", "did you mean 'ranking'"]),
        ({"parser": {"name": "choice", "min_mass": 0.5}}, ["parser", "unknown field 'min_mass'"]),
        ({"parser": {"name": "choice", "first": ["x"], "second": ["x"]}}, ["parser", "share a name"]),
        ({"parser": {"name": "choice", "second": False}}, ["second", "False"]),
        ({"parser": "logprob"}, ["top_logprobs", "not given"]),
        ({"sampling": {"temprature": 0}}, ["sampling", "did you mean 'temperature'"]),
        ({"sampling": {"temperature": "0"}}, ["sampling: temperature", "'0'", "number"]),
        *(
            ({"sampling": {name: value}}, [f"sampling: {name}: found {value!r}; it must be a number"])
            for name, wrong in {
                "temperature": (-0.1, 2.5, math.nan, math.inf),
                "top_p": (0, 1.5, -0.5, math.nan),
                "presence_penalty": (-3, math.nan),
                "frequency_penalty": (2.1, math.inf),
            }.items()
            for value in wrong
        ),
        ({"sampling": {"logit_bias": {"11": 500}}}, ["sampling: logit_bias.11: found 500", "at most 100"]),
        ({"sampling": {"logit_bias": {"11": "x"}}}, ["sampling: logit_bias.11: found 'x'"]),
        (
            {"kind": "pairwise", "parser": {"name": "logprob", "min_mass": math.nan}, "top_logprobs": 5},
            ["min_mass: found nan"],
        ),
        ({"price": {"input": math.nan, "output": 1}}, ["price: input: found nan"]),
        ({"price": {"input": 1, "output": "2"}}, ["price: output: found '2'"]),
        ({"price": {"input": 1, "output": 1, "batch": -1}}, ["price: batch: found -1"]),
        ({"sampling": {"top_p": True}}, ["sampling: top_p: found True"]),
        ({"max_tokens": 1.5}, ["max_tokens: found 1.5"]),
        ({"batch_size": "4"}, ["batch_size: found '4'"]),
        ({"order": "ba"}, ["order: unknown 'ba'"]),
        ({"top_logprobs": 50}, ["top_logprobs", "50", "within 1 and 20"]),
        ({"max_tokens": 0}, ["max_tokens", "0"]),
        ({"max_tokens": True}, ["max_tokens", "True"]),
        ({"price": {"input": 1}}, ["price: output", "missing"]),
        ({"price": 3}, ["price", "3"]),
        ({"model": ""}, ["model", "empty"]),
        ({"provider": "anthropic", "sampling": {"temperature": 0}}, ["sampling.temperature", "no sampling"]),
        ({"provider": "anthropic", "top_logprobs": 5}, ["top_logprobs", "no log-probabilities"]),
        ({"provider": "anthropic", "max_tokens": None}, ["max_tokens", "requires"]),
        ({"template_vars": {"persona": "x"}}, ["persona", "not used"]),
        ({"template": "pairwise_persona"}, ["persona", "nobody gives"]),
        ({"kind": "ratings"}, ["kind", "'ratings'", "did you mean 'rating'"]),
        ({"kind": "rating"}, ["parser: name", "unknown 'choice'"]),
        ({"kind": "rating", "parser": "rating"}, ["parser: high", "missing"]),
        ({"kind": "rating", "parser": {"name": "rating", "low": 5, "high": 5}}, ["low", "below high"]),
        ({"kind": "rating", "parser": {"name": "ratings", "high": 5}}, ["aspects"]),
        ({"parser": {"name": "regex", "patterns": ["a"]}}, ["patterns", "found 1"]),
        ({"parser": {"name": "regex", "patterns": ["(", "b"]}}, ["patterns", "no regular expression"]),
        ({"parser": {"name": "choice", "high": 7}}, ["parser", "unknown field 'high'"]),
        ({"order": "both"}, ["order", "'both'", "known are"]),
        ({"order": "both_agree", **RATING}, ["order", "only pairwise"]),
        ({"batch_size": 4}, ["batch_size", "4", "pairwise_choice", "examples"]),
        ({"batch_size": 4, **LOGPROB, "template": "pairwise_farm_text"}, ["batch_size", "logprob", "set 1"]),
        ({"api": "messages"}, ["api", "'messages'"]),
        ({"api": "decisions"}, ["parser", "decisions"]),
        ({"parser": "decision"}, ["parser", "decisions"]),
        ({"api": "responses", "sampling": {"seed": 1}}, ["sampling", "unknown field 'seed'"]),
        ({**DECISION, "max_tokens": 5, "question": "q"}, ["decisions takes no max_tokens"]),
        ({**DECISION, "max_tokens": None}, ["question"]),
        ({**DECISION, "sampling": {"temperature": 0}}, ["sampling.temperature", "Decisions API"]),
        ({"question": "q"}, ["question"]),
        ({"kind": "completion", "parser": {"name": "text", "allow_cut": 1}}, ["allow_cut", "true or false"]),
    ],
)
def test_a_bad_judge_names_file_field_and_remedy(tmp_path: Path, changes: dict, words: list[str]) -> None:
    path = _write(tmp_path, {**GOOD, **changes})
    with pytest.raises(UserError) as caught:
        load_judge(path)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_a_missing_field_names_what_was_written_instead(tmp_path: Path) -> None:
    path = _write(
        tmp_path, {**{k: v for k, v in GOOD.items() if k != "template"}, "tempalte": "pairwise_choice"}
    )
    with pytest.raises(UserError, match=r"judge.yaml: template: missing; did you mean it by 'tempalte'"):
        load_judge(path)


def test_a_missing_or_broken_file(tmp_path: Path) -> None:
    _write(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"nobody.yaml: no such .* there is judge"):
        load_pool(tmp_path / "nobody.yaml")
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(UserError, match=r"broken.yaml: not valid YAML"):
        load_pool(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(UserError, match="holds list"):
        load_pool(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("temperature: 0.5", "temperature: stands below `sampling`"),
        ("sampling: {top_k: 4}", "top_k: not in every server's API; write it below extra_body"),
        ("sampling: {seed: 99999999999999999999}", "seed: found 99999999999999999999"),
        ("concurrency: 3", "concurrency: is no setting of a judge; give --config.max_concurrency"),
        ("timeout: 3", "give --config.timeout_s"),
        ("retries: 3", "failed requests are tried again anyway"),
        ("name: again", r"found a field a second time, line \d+, column 1"),
        ("sampling: {temperature: 1, temperature: 0}", "found a field a second time"),
        ("max_tokens: " + "9" * 5000, "not valid YAML"),
        ("extra_body: {day: 2020-13-45}", "not valid YAML"),
        ("extra_body: &x {y: *x}", "not valid YAML"),
    ],
)
def test_a_setting_that_stands_elsewhere_or_cannot_be(tmp_path: Path, more: str, said: str) -> None:
    path = _write(tmp_path, GOOD)
    path.write_text(f"{path.read_text()}\n{more}\n")
    with pytest.raises(UserError, match=said) as caught:
        load_pool(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_pool_mixes_files_inline_judges_defaults_and_weights(tmp_path: Path) -> None:
    _write(tmp_path, GOOD)
    inline = {k: v for k, v in GOOD.items() if k not in ("name", "model")}
    judges = ["judge.yaml", {"name": "two", "model": "m2", "weight": 3}, {"name": "three", "model": "m3"}]
    pool = load_pool(_write(tmp_path, {"name": "p", "defaults": inline, "judges": judges}, "pool.yaml"))
    assert [spec.name for spec in pool.judges] == ["j", "two", "three"]
    assert pool.weights == (1.0, 3.0, 1.0)


@pytest.mark.parametrize(
    ("judges", "words"),
    [
        ([], ["empty"]),
        ([GOOD, GOOD], ["two judges are named 'j'"]),
        ([{**GOOD, "weight": 0}], ["weights are 0"]),
        ([{**GOOD, "weight": -1}], ["judges[0]", "weight", "-1"]),
        ([{**GOOD, "modle": "x"}], ["judges[0]", "unknown field 'modle'", "'model'"]),
        (["nobody.yaml"], ["nobody.yaml", "no such"]),
        ([3], ["judges[0]", "3"]),
    ],
)
def test_a_bad_pool(tmp_path: Path, judges: list, words: list[str]) -> None:
    path = _write(tmp_path, {"judges": judges}, "pool.yaml")
    with pytest.raises(UserError) as caught:
        load_pool(path)
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_judge_id_moves_with_all_that_can_change_a_label_and_nothing_else() -> None:
    base = judge_spec().judge_id
    same = [judge_spec("other"), judge_spec(price=None), judge_spec(api_key_env="KEY")]
    assert {spec.judge_id for spec in same} == {base}
    moved = [
        judge_spec(model="m2"),
        judge_spec(template="pairwise_sentence"),
        judge_spec(parser=ParserSpec("choice", ("x",), ("y",))),
        judge_spec(sampling={"temperature": 0}),
        judge_spec(max_tokens=6),
        judge_spec(top_logprobs=5),
        judge_spec(extra_body={"x": 1}),
        judge_spec(base_url="https://elsewhere"),
        judge_spec(provider="anthropic"),
        judge_spec(protocol="responses"),
        judge_spec(order="both_agree"),
        judge_spec(batch_size=2),
        judge_spec(output_schema={"x": 1}),
        judge_spec(question="Which?"),
        judge_spec(kind="rating"),
    ]
    assert len({base, *(spec.judge_id for spec in moved)}) == 1 + len(moved)


def test_the_request_hash_ignores_a_local_port_and_heeds_the_rest() -> None:
    def request_hash(url: str = "http://127.0.0.1:1", output: str = "x", **changes: object) -> str:
        judge = Judge(judge_spec(**changes), {"local": url})
        return judge.request_hash(judge.body([("i", output, "y")]))

    base = request_hash()
    assert request_hash("http://127.0.0.1:2/v1/") == base
    others = [
        request_hash(output="z"),
        request_hash(model="m2"),
        request_hash(sampling={"temperature": 0}),
        request_hash(base_url="https://elsewhere"),
        request_hash(base_url="https://elsewhere/v2"),
        request_hash(provider="anthropic"),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    openai = resolve_address(judge_spec(), {"local": "http://127.0.0.1:5/"})
    assert (openai.url, openai.origin) == ("http://127.0.0.1:5/v1", "local")
    assert (
        resolve_address(judge_spec(provider="anthropic"), {"local": "http://127.0.0.1:5"}).url
        == "http://127.0.0.1:5"
    )
    assert resolve_address(judge_spec(base_url=""), {}).url == "https://api.openai.com/v1"
    secret = resolve_address(judge_spec(base_url="https://me:pass@Gate.example:8443/v1"), {})
    assert secret.origin == secret.shown == "https://gate.example:8443/v1"
    with pytest.raises(UserError, match="'local' has no address"):
        resolve_address(judge_spec(), {})
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="NO_SUCH_KEY is not set"):
        resolve_address(judge_spec(api_key_env="NO_SUCH_KEY", base_url=""), {}).key()
