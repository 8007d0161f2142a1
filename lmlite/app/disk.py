"""The models on disk, as the configuration says where they are: what a command needs that asks no server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..config import Config

if TYPE_CHECKING:
    from ..core.disk.catalog import Catalog


def open_catalog(config: Config) -> Catalog:
    """The models of `config`, or the bundled one where there are none."""
    from ..core.disk.catalog import Catalog
    from ..core.disk.model_files import definition_folders, hub_caches, model_folders
    from ..core.disk.model_settings import FILE_NAME
    from ..store.home import Home

    return Catalog(
        model_folders(config.home, config.models_dir, os.environ),
        config.models,
        caches=hub_caches(os.environ),
        definitions=definition_folders(config.home, os.environ),
        settings=config.home / FILE_NAME,
        state=config.home,
        aliases=dict(config.alias),
        bundled=True,
        approvals=Home(config.home).links,
    )
