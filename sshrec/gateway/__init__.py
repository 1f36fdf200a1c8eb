"""One visit, from sshd's request to the exit status."""
