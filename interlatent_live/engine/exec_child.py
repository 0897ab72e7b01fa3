"""Runs between fork and the service: ties the child's life to its parent's, then becomes it.

Started by path with ``python -I -S`` and therefore made of the standard library only. A
``preexec_fn`` would do the same inside the forked child of a threaded process, where any lock may
be held for ever; a process of its own costs 20 ms and cannot deadlock.

Arguments: the parent's process id, the niceness to add, then the command.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Apply, check, become."""
    parent, nice, *command = sys.argv[1:]
    # The kernel kills this process when the thread that started it ends, even if that thread's
    # process was itself killed, and even if this one is frozen. It survives exec.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before the line above
        os._exit(1)
    # A shell that runs its child in the background has it ignore SIGINT, and that is inherited.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.nice(int(nice))
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is what is wanted
    except OSError as error:
        print(f"error: {command[0]} can't be run: {error.strerror}", file=sys.stderr)  # noqa: T201
        os._exit(127)


if __name__ == "__main__":
    main()
