"""The memory and the disk that all bodies may use together."""

from bronze.errors import Outage, Unavailable
from bronze.settings import Settings


class Budget:
    """What the bodies in progress use. Used in the event loop only."""

    def __init__(self, settings: Settings) -> None:
        self._memory_bytes_max = settings.bodies_memory_bytes_max
        self._disk_bytes_max = settings.bodies_disk_bytes_max
        self.memory_bytes = 0
        self.disk_bytes = 0

    def hold(self, memory_bytes: int, disk_bytes: int) -> None:
        """Count further bytes, which may be negative. Raises `Unavailable` if a limit is reached; nothing is counted
        then.
        """
        for more, used, limit, what, setting in (
            (memory_bytes, self.memory_bytes, self._memory_bytes_max, "memory", "BRONZE_BODIES_MEMORY_BYTES_MAX"),
            (disk_bytes, self.disk_bytes, self._disk_bytes_max, "temporary files", "BRONZE_BODIES_DISK_BYTES_MAX"),
        ):
            if more > 0 and used + more > limit:
                raise Unavailable(
                    Outage.OVERLOADED,
                    f"The bodies that are being received need more than {limit} bytes of {what} together ({setting}). "
                    "Nothing was stored. Send it again later.",
                    retry_after_s=10,
                    limit=limit,
                    setting=setting,
                )
        self.memory_bytes += memory_bytes
        self.disk_bytes += disk_bytes


class BodyShare:
    """The part of the budget that one body uses."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._memory_bytes = 0
        self._disk_bytes = 0

    def hold(self, memory_bytes: int, disk_bytes: int) -> None:
        """The body uses this much from now on. Raises `Unavailable`."""
        if (memory_bytes, disk_bytes) != (self._memory_bytes, self._disk_bytes):
            self._budget.hold(memory_bytes - self._memory_bytes, disk_bytes - self._disk_bytes)
            self._memory_bytes = memory_bytes
            self._disk_bytes = disk_bytes

    def release(self) -> None:
        self.hold(0, 0)
