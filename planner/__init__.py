"""Config and checkpoint headers in, a plan out: reads kilobytes, never tensor data."""
