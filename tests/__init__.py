"""Tests on tiny models, each process with one thread.

Two threads of torch wait for each other in busy loops: on tiny models, with a second process on the
same cores, they take three to eight times the processor time of one.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read as torch is imported
