"""Learning from preference feedback in JAX: SFT, reward models, PPO, DPO, LLM judges and automatic evaluation."""

__version__ = "0.1.0"
