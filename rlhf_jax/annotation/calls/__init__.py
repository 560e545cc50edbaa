"""Sending requests to LLM endpoints: clients, their guards, rate limits, retries, and what each kind of error means."""
