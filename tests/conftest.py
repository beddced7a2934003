"""Settings of every test: repeatable examples, two threads, no network, no window."""

from __future__ import annotations

import os

from hypothesis import settings

# Before torch and the C++ library start their pools: tests run alike on a laptop and a server.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep, others share the cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"

# The same examples on every run; no deadline, since a shared machine may stall at any time.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
