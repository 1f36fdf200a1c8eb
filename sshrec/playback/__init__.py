"""Showing recordings to people."""
