"""Conversations by a tokenizer's own chat template: text, tokens, and the mask of what is trained."""
