"""The audit log: what happened, in an append-only chain of lines."""
