"""The versions of our schema: one file each in ``versions``, from the empty database on.

Knows: how Alembic is told where they are. Does not know: when a database is migrated (``schema``).

A new version is a new file ``versions/version_NNNN.py`` and its name at the end of ``schema.VERSIONS``. Tables are
changed with ``op.batch_alter_table``, which works on every server.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config

FOLDER = Path(__file__).parent


def configuration() -> Config:
    """Alembic's configuration for our versions."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def migrate(connection: sqlalchemy.Connection, version: str = "head") -> None:
    """Bring our tables to a version, within the transaction of ``connection``."""
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, version)
