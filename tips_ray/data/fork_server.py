"""Imported by the server that forks data processes, and by nothing else: what it forks heeds a scheduler's signals.

The server itself has them blocked, and its children would inherit that: they could not be ended by SIGTERM.
"""

import os
import signal
from functools import partial

from tips_ray.data.local_stream import SIGNALS

os.register_at_fork(after_in_child=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, SIGNALS))
