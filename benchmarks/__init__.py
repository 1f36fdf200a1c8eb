"""sshrec beside its peers: ssh itself, and the recorders of terminals, interleaved in one run.

Run by `make bench`; a measurement, not a test: it fails for no figure. Knows sshrec by its programs alone.
"""
