"""A bastion, two targets, people and sshrecd on loopback: what tests, bin/try and benchmarks share.

Real OpenSSH programs in one temporary directory; nothing on the machine is changed and nothing is left.
"""

from tests.lab.lab import PROMPT, Lab, several_uids_reason
from tests.lab.parts import LabError
from tests.lab.people import Laptop

__all__ = ["PROMPT", "Lab", "LabError", "Laptop", "several_uids_reason"]
