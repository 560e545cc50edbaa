"""Prompts -> responses -> scores -> experience, shared by every online method."""
