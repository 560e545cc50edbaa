"""What pages share is written once, in configs/common.py, and a reader finds it: in --help, and from any folder."""

import ast
import re
import shutil

import pytest
import tiny_farm
from test_config_pages import CONFIGS, PAGES, RECIPES

from rlhf_jax.errors import UserError
from rlhf_jax.settings import load_page
from rlhf_jax.settings.page_fields import inner_pages, own_fields, page_of_job
from rlhf_jax.settings.page_help import comments_for, comments_of, page_help

COMMON = CONFIGS / "common.py"
FILES = {page: CONFIGS / f"{page}.py" for page in (*PAGES, *RECIPES)}


def assigned(path):
    """(dotted name, value, line) of every field that a file sets to a value that stands there."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            name = ast.unparse(node.targets[0]).removeprefix("c.")
            try:
                yield name, ast.literal_eval(node.value), node.lineno
            except ValueError:  # Not a plain value: a group, or what a function was given.
                continue


@pytest.mark.parametrize("page", FILES)
def test_no_page_says_again_what_all_share(page):
    """A variant may set a value that its page has otherwise."""
    shared = {name: value for name, value, _ in assigned(COMMON)}
    built = load_page(f"{FILES[page]}")
    stock = tiny_farm.flat(load_page(str(page_of_job(built))))
    again = [
        f"{FILES[page]}:{line}: {name} = {value!r} stands in configs/common.py"
        for name, value, line in assigned(FILES[page])
        if name in shared and value == shared[name] == stock[name]
    ]
    assert not again


def test_every_shared_field_is_on_two_pages_or_more():
    pages = [tiny_farm.flat(load_page(f"{CONFIGS}/{page}.py")) for page in PAGES]
    for name in comments_of(COMMON.read_text()):
        assert sum(name in page for page in pages) > 1, name


@pytest.mark.parametrize("page", FILES)
def test_every_field_has_a_comment(page):
    built = load_page(f"{FILES[page]}")
    said = comments_for(built, FILES[page])
    assert not own_fields(built).keys() - said.keys() - {"job"}


@pytest.mark.parametrize("page", FILES)
def test_help_shows_what_a_page_is_and_every_field(page):
    shown, built = page_help(str(FILES[page])), load_page(f"{FILES[page]}")
    assert shown.startswith(ast.get_docstring(ast.parse(FILES[page].read_text())))
    for name, value in own_fields(built).items():
        assert name == "job" or f"\n  --config.{name}={value!r}\n" in shown
    for name, inner in inner_pages(built):
        assert f"\n  --config.{name}.FIELD: see configs/{inner.job}.py\n" in shown


def test_help_of_a_recipe_says_what_a_field_means_and_why_it_has_its_value():
    shown = " ".join(page_help(f"{CONFIGS}/papers/alpaca_farm/sft.py").split())
    assert "warmup_steps=8 Steps in which the rate rises to it. Here: 3 % of 235 steps. --config" in shown
    assert "--config.lora.rank=0 0: all parameters are trained. --config" in shown


TEXT = """
def f(c, data):
    c.a = 1

    # One
    # two.
    c.b.x = 2  # Three.
    data.y = "a # b"
    c.d = (
        1  # Four.
    )
    c.d = 2  # The first counts.
"""


def test_comments_are_those_above_a_field_and_behind_it():
    assert comments_of(TEXT) == {"b.x": "One two. Three.", "d": "Four."}


def test_it_is_no_page_itself(monkeypatch):
    monkeypatch.chdir(tiny_farm.ROOT)
    with pytest.raises(
        UserError,
        match=r"common\.py is no page; it holds what pages share; pages here: configs/annotate\.py, ",
    ) as refused:
        load_page(str(COMMON))
    assert "common.py" not in str(refused.value).partition("pages here:")[2]


NAMED = re.compile(r"\bconfigs/[\w/]+\.py(?::\w+)?")


def test_every_page_that_a_text_names_is_there():
    texts = [*tiny_farm.ROOT.glob("*.md"), *tiny_farm.ROOT.glob("docs/*"), *CONFIGS.rglob("*.*")]
    texts += [
        path for room in ("launch", "scripts", "rlhf_jax") for path in (tiny_farm.ROOT / room).rglob("*.*")
    ]
    found = {}
    for path in texts:
        if path.suffix in (".md", ".py", ".sh", ".sbatch", ".yaml"):
            found |= dict.fromkeys(NAMED.findall(path.read_text(encoding="utf8")), path)
    assert "configs/farm.py" in found and "configs/papers/alpaca_farm/sft.py" in found
    for spec in sorted(found.keys() - {"configs/common.py", "configs/NAME.py", "configs/NAME.py:VARIANT"}):
        try:
            load_page(f"{tiny_farm.ROOT}/{spec}")
        except UserError as error:
            pytest.fail(f"{found[spec]}: {error}")


HEAD = """
from ml_collections import ConfigDict
from rlhf_jax.settings import module_beside

common = module_beside(__file__, "common")

def get_config():
    c = ConfigDict()
    c.job = "sft"
    common.lora(c)
    return c
"""


def test_a_page_in_another_folder_gets_at_it(tmp_path):
    (tmp_path / "mine.py").write_text(HEAD)
    assert load_page(f"{tmp_path}/mine.py").lora.alpha == 16.0
    (tmp_path / "common.py").write_text(re.sub(r"alpha = 16\.0", "alpha = 8.0", COMMON.read_text()))
    assert load_page(f"{tmp_path}/mine.py").lora.alpha == 8.0  # One's own, where there is one.


def test_a_page_and_a_recipe_work_where_they_are_copied_to(tmp_path):
    for page in ("sft", "papers/alpaca_farm/ppo"):
        copy = tmp_path / "of/my/own.py"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FILES[page], copy)
        assert load_page(str(copy)).to_dict() == load_page(str(FILES[page])).to_dict()
