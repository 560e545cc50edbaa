"""What a user can run, one module each: read config, open files, wire rooms."""
