"""examples/tour.ipynb from start to end, small: in one namespace, and while a loop is running as in a notebook."""

import asyncio
import json

import matplotlib
import tiny_farm

TOUR = json.loads((tiny_farm.ROOT / "examples/tour.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in TOUR["cells"] if cell["cell_type"] == "code"]
SMALL = {"SIZE = 1.0 ": "SIZE = 0.02 ", 'OUT = "runs/tour"': 'OUT = "OUTPUT"'}


def test_the_tour(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tiny_farm.ROOT)
    matplotlib.use("Agg")
    known = {}

    async def kernel():
        for number, text in enumerate(CODE, 1):
            if number == 1:
                for there, instead in SMALL.items():
                    assert text.count(there) == 1
                    text = text.replace(there, instead.replace("OUTPUT", str(tmp_path)))
            exec(compile(text, f"cell {number} of tour.ipynb", "exec"), known)

    asyncio.run(kernel())
    said = capsys.readouterr().out
    assert "win rate: judge micro_pool" in said and "against reference" in said
    assert {"sft", "dpo"} <= set(known["ranked"].summary["methods"])
    assert (tmp_path / "model/config.json").is_file()


def test_what_it_shows_names_no_machine():
    text = json.dumps(TOUR)
    assert not [word for word in ("/home/", "/root", "/tmp", "/usr") if word in text]
