"""Property tests have no deadline: on a shared machine the first example may wait for an import or for a core."""

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
