"""The start of the child process that reads columnar bodies: `python -m bronze.api.columnar_child`.

It leaves the network, and then is `columnar_worker`. The kernel allows that only to a process with one thread, and
pyarrow starts another when it is imported.
"""

import ctypes

#: Linux: a user namespace and, in it, a network without any interface (unshare(2)).
CLONE_NEWUSER, CLONE_NEWNET = 0x1000_0000, 0x4000_0000


def leave_network() -> bool:
    """Leave the network of the parent for an empty one, so that a body that takes this process over reaches no server.

    Returns False where the kernel or the container forbids it.
    """
    left: int = ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)
    return left == 0


if __name__ == "__main__":
    leave_network()
    from bronze.api.columnar_worker import main

    main()
