"""README.md and docs/: commands parse and load their pages, Python compiles and its imports and pages are there, and
what is linked or named exists.
"""

import ast
import re
import shlex
import subprocess

import pytest
from commands import parse_command
from fake_programs import ROOT

from rlhf_jax.programs import names
from rlhf_jax.settings import load_page
from rlhf_jax.settings.page_fields import leaves

DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"(?<![\w/.])(?:configs|docs|launch|scripts|benchmarks|rlhf_jax|examples)/[\w/.-]*\w")
PROGRAMS = (["python", "-m", "rlhf_jax.main"], [".venv/bin/python", "-m", "rlhf_jax.main"])


def fences(document, language):
    return [text for kind, text in FENCE.findall((ROOT / document).read_text()) if kind == language]


def commands(text):
    """The commands of a shell fence as lists of words, those joined by && apart."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield words


def check_command(words):
    """Raises for a command that could not be given as it stands."""
    for start in PROGRAMS:
        if words[: len(start)] == start:
            parse_command(words[len(start) :])
            return
    if words[0] in ("bash", "sbatch"):
        subprocess.run(["bash", "-n", words[1]], check=True)
        if "--" in words:
            parse_command(words[words.index("--") + 1 :])
        return
    assert words[0] == "export" or words[0].endswith(("bin/pip", "pip")), f"what is {words}?"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_shell_commands_can_be_given(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    for text in fences(document, "bash"):
        for words in commands(text):
            check_command(words)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_runs_as_far_as_it_asks_nobody(document, monkeypatch):
    """Imports are made and pages loaded; what they are then used for only has to compile."""
    monkeypatch.chdir(ROOT)
    for text in fences(document, "python"):
        known: dict = {}
        for node in ast.parse(text).body:
            calls = {
                getattr(x.func, "attr", getattr(x.func, "id", ""))
                for x in ast.walk(node)
                if isinstance(x, ast.Call)
            }
            if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef) or calls <= {"load_page"}:
                exec(compile(ast.Module([node], []), document, "exec"), known)
        if "get_config" in known:
            assert known["get_config"]().job in names()


def test_every_fence_is_of_a_language_that_is_checked():
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        assert {kind for kind, _ in FENCE.findall(text)} <= {"bash", "python", "text"}
        assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(FENCE.findall(text))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_named_is_there(document):
    """Links, paths in backticks, fields in commands, and variants of pages."""
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), target
    for path in PATH.findall(text):
        assert "NAME" in path or (ROOT / path).exists(), path
    files = [path for room in ("configs", "configs/studies") for path in (ROOT / room).glob("*.py")]
    pages = [load_page(str(path)) for path in files if path.stem not in ("common", "base")]
    fields = {name for page in pages for name in leaves(page)}
    for name in re.findall(r"--config\.([\w.]+)=", text):
        assert name in fields | {"NAME"}, name
    for page, variant in re.findall(r"(configs/[a-z]\S*\.py):(\w+)", text):
        load_page(f"{ROOT}/{page}:{variant}")
