"""Sending requests to LLM endpoints: clients, rate limits, retries, and what each kind of error means."""
