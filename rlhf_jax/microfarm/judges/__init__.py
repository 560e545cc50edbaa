"""Simulated LLM judges, and a local server that offers them by the protocols of OpenAI and Anthropic."""
