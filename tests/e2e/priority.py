"""Threads that the kernel serves before all others (SCHED_RR), for tests that measure on shared machines.

What others compute, in the same process or next door, then takes no processor from those threads; what
is left is what they do themselves. Where this user may not ask for it nothing happens, ALLOWED is False.
"""

import contextlib
import os

_ROUND = os.SCHED_RR, os.sched_param(1)


def _may():
    own = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, *_ROUND)
        os.sched_setscheduler(0, *own)
    except PermissionError:
        return False
    return True


ALLOWED = _may()


def serve_me_first():
    """The calling thread."""
    if ALLOWED:
        os.sched_setscheduler(0, *_ROUND)


@contextlib.contextmanager
def me_first():
    """The calling thread, for a while: what it starts afterwards is as before."""
    own = os.sched_getscheduler(0), os.sched_getparam(0)
    serve_me_first()
    try:
        yield
    finally:
        if ALLOWED:
            os.sched_setscheduler(0, *own)


def serve_first(pid, name="", children=False):
    """Threads of a process whose names begin so; children: and threads that they start from now on."""
    policy, parameter = _ROUND
    for task in os.listdir(f"/proc/{pid}/task") if ALLOWED else ():
        try:
            with open(f"/proc/{pid}/task/{task}/comm", encoding="ascii") as f:
                if f.read().startswith(name):
                    os.sched_setscheduler(int(task), policy | (0 if children else os.SCHED_RESET_ON_FORK), parameter)
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            pass
