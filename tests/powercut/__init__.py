"""Power cuts, simulated: what a program really asked of the kernel, and every disk that may be left of it.

`trace` runs code under strace(1) and gives its file operations; `disk` makes of them the states that a power cut
may leave, whatever was not synced being there, half there, or not; `lives` has the code, and what must hold of it.
"""
