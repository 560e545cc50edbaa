"""Scores of published benchmarks: of reward models and judges (RewardBench 2, JudgeBench), of models (Arena-Hard)."""
