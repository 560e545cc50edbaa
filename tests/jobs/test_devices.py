"""Every method's loss and gradient, and a rollout, on eight devices as on one. They need a process of their own."""

from pathlib import Path

import pytest
import tiny_farm
from found_suites import suites
from quick import EIGHT

pytestmark = pytest.mark.timeout(900)


def test_eight_devices_agree_with_one():
    script = str(Path(__file__).with_name("eight_devices.py"))
    lines = tiny_farm.finish(tiny_farm.start([script], XLA_FLAGS=EIGHT)).splitlines()
    for mesh in ("(1, 8, 1)", "(2, 2, 2)"):
        for name in ("experience", "lora", "packed", "shared", "by step"):
            assert f"{mesh} {name} agrees" in lines, lines
    for name in suites():
        assert {f"(2, 2, 2) {name} agrees", f"(2, 2, 2) {name} has no loss of its own"} & set(lines), lines
