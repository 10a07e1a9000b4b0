"""What runs a traced program: NumPy, a compiled loop, or torch on a device."""
