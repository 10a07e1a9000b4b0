"""A plan becomes files: memory, I/O, devices, journal."""
