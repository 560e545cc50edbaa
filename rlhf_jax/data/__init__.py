"""Record schemas, prompt templates, tokenisation and index-addressed batches."""
