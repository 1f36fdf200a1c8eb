"""Records what happens in SSH sessions, with stock OpenSSH on every machine."""

__version__ = "0.1.0"
