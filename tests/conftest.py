"""What holds for every test: one thread per process, and no deadlines for property tests on shared machines."""

from __future__ import annotations

import os

# Before torch is imported by anything: two test processes with two threads each stall one another on two cores.
os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings

from tests.postgres import _studies_database, postgres, postgres_studies_url, postgres_url

__all__ = ["_studies_database", "postgres", "postgres_studies_url", "postgres_url"]

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
