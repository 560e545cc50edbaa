"""From a page to a running loop: start-up, models, rows, adapters, memory. Knows no method."""
