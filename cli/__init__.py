"""The command line: parses arguments and renders; no merging logic."""
