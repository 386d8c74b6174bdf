"""Decide whether the server is healthy, for probes and the lock file, and note whether a platform probes it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ..logs.setup import get_logger
from ..process.own_limits import OwnLimits
from ..settings.load import Configuration
from .lock_file import LockFile

log = get_logger("server")
# The health checks of OpenFaaS and Kubernetes are less frequent, and only several failures in a row count.
_LOCK_FILE_INTERVAL_S = 1.0
# If a script lowers limits of the server, other scripts run with these limits for at most this time.
_LIMITS_INTERVAL_S = 1.0


class Health:
    """The state of one server: healthy, draining, or in need of a restart.

    ``is_draining``: true as soon as a drain has started. ``lowered_limits``: the names of this process's own limits
    that a script has lowered and that the server cannot restore.
    """

    def __init__(self, configuration: Configuration, environ: Mapping[str, str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock_file = LockFile(environ) if not configuration.settings.suppress_lock else None
        self._limits = OwnLimits()
        self._healthcheck_interval_s = configuration.settings.healthcheck_interval_s
        self._is_interval_set = configuration.is_set("healthcheck_interval")
        self._is_on_kubernetes = "KUBERNETES_SERVICE_HOST" in environ
        self._last_probe_s: float | None = None
        self.is_draining = False
        self.lowered_limits: list[str] = []

    def start(self) -> None:
        """Write the lock file. From now on, regularly check the lock file and the limits of this process.

        Raises:
            ListenError: the lock file cannot be written.
        """
        self._keep_limits()
        if self._lock_file is not None:
            self._lock_file.write()
            self._keep_lock_file(self._lock_file)

    def drain(self) -> None:
        """Report the server as not healthy from now on, and remove the lock file."""
        self.is_draining = True
        if self._lock_file is not None:
            self._lock_file.remove()

    def status(self) -> tuple[int, str]:
        """Return the status and the text of the answer to a probe."""
        if self.is_draining:
            return 503, "draining"
        if self.lowered_limits:
            return 503, self.about_limits
        if self._lock_file is not None and not self._lock_file.restore():
            return 503, f"the lock file {self._lock_file.path} is gone and cannot be written again"
        return 200, "OK"

    @property
    def about_limits(self) -> str:
        names = ", ".join(self.lowered_limits)
        return f"a script has lowered limits of the server ({names}), and later scripts would get them; restart it"

    def note_probe(self) -> None:
        """Note that a platform has probed the server just now."""
        self._last_probe_s = self._loop.time()

    def may_get_calls(self) -> bool:
        """Return whether a platform may continue to send calls for a moment after SIGTERM.

        Kubernetes does that. If it probes with a command or over TCP, the server does not notice its probes.
        """
        return self._is_interval_set or self._is_on_kubernetes or self.is_probed()

    def is_probed(self) -> bool:
        """Return whether a probe arrived in the last two intervals."""
        if self._last_probe_s is None:
            return False
        return self._loop.time() - self._last_probe_s <= 2 * self._healthcheck_interval_s

    def _keep_lock_file(self, lock_file: LockFile) -> None:
        """Check the lock file, now and at regular intervals, until the server drains.

        A health check such as ``cat`` reads the file without the server. So the server checks the file regularly,
        without a request.
        """
        if not self.is_draining:
            # This comes first, so that an error in this check does not prevent the next check.
            self._loop.call_later(_LOCK_FILE_INTERVAL_S, self._keep_lock_file, lock_file)
            lock_file.restore()

    def _keep_limits(self) -> None:
        """Check, now and at regular intervals, whether a script has lowered the limits of this process."""
        if changed := self._limits.restored():
            lowered = self._limits.lowered()
            if lowered != self.lowered_limits:
                log.error("limits of the server were lowered", names=changed, not_restored=lowered)
            elif not lowered:
                log.warning("limits of the server were lowered and are restored", names=changed)
            self.lowered_limits = lowered
        self._loop.call_later(_LIMITS_INTERVAL_S, self._keep_limits)
