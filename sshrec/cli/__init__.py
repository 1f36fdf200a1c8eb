"""The command line: parses, calls, prints. The only place that knows click."""
