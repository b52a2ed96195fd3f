"""PostgreSQL passes the conformance of a study database, and its failures are clear."""

from __future__ import annotations

import pytest

from tests.conformance.store import StoreConformance

pytestmark = pytest.mark.slow


class TestPostgres(StoreConformance):
    @pytest.fixture
    def url(self, postgres_studies_url: str) -> str:
        return postgres_studies_url
