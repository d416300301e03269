"""`bronze` without group commit, to compare with: `python -m benchmarks.alone serve`."""

from bronze.__main__ import main
from bronze.servers.group_commit import GroupPublisher
from bronze.servers.jetstream import Outgoing
from bronze.servers.queue import NatsQueue


class Alone(GroupPublisher):
    """Publishes each message alone and at once."""

    async def publish(self, message: Outgoing, deadline_s: float) -> bool:  # noqa: ARG002
        await self._js.publish(message)
        return True


if __name__ == "__main__":
    NatsQueue.publisher = Alone
    main()
