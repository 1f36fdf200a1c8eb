"""The rules as they are now: policy, with the nodes that have been enrolled by then. Decides nothing itself."""

from __future__ import annotations

import logging
import threading

from sshrec.access.policy import Policy
from sshrec.atomic import stamp
from sshrec.config import Config, with_inventory
from sshrec.errors import SshrecError

log = logging.getLogger("sshrec.rules")


class Rules:
    """Of one configuration, whose inventory may grow. A broken inventory changes nothing."""

    def __init__(self, config: Config) -> None:
        self._config, self._one = config, threading.Lock()
        self._stamp = stamp(config.inventory)
        self._policy = Policy(config)

    def __call__(self) -> Policy:
        """The policy now."""
        with self._one:
            if (now := stamp(self._config.inventory)) != self._stamp:
                self._stamp = now
                try:
                    self._policy = Policy(with_inventory(self._config))
                except SshrecError as error:
                    log.warning("%s; the nodes known before stay", error)
            return self._policy
