"""What holds for every test: one thread, and no luck in generated examples."""

from __future__ import annotations

import os
import signal
import threading

from hypothesis import settings

# Before torch or a BLAS is first imported: tests run side by side, and none needs a second thread.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

settings.register_profile("sartor", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("sartor")

# A shell's background job ignores Ctrl-C, and so would every process that the tests start from it.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
