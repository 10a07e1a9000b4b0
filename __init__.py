"""weft: merge language-model checkpoints through a per-tensor task graph, in the memory you allow."""

__version__ = "0.1.0"
