"""DPO as every method is tested; its numbers are in test_golden, what it makes of rows in test_preferences."""

import tiny_losses
from method_suite import MethodSuite


class TestDpo(MethodSuite):
    job = "dpo"
    steps = {"epochs": 1.3}
    shows_its_driver = True

    def case(self):
        return tiny_losses.cases()["dpo"]
