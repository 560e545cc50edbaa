"""The embedded world: instructions, demonstrations, a known human utility and a local judge server."""
