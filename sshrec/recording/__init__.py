"""One recording, from event to file and back. No process, no network, no clock of its own."""
