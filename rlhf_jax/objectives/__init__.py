"""Pure math on arrays: no models, no files, no config objects."""
