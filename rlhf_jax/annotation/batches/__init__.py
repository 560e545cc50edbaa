"""Asking through the providers' batch services: shards of requests, submission, results and cancellation."""
