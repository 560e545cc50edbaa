"""PPO as every method is tested; its numbers are in test_golden, and an iteration by hand in jobs/test_ppo_by_hand."""

import tiny_losses
from method_suite import MethodSuite


class TestPpo(MethodSuite):
    job = "ppo"
    steps = {"steps": 13, "adaptive_kl": True}
    shows_its_driver = True

    def case(self):
        return tiny_losses.cases()["ppo"]
