"""Which model this is: its identity for schedules, its shape for the cost arithmetic, its vision tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from scheduler_search.runtime.families import Family, family_of, family_of_config
from scheduler_search.schedule.canonical import digest_of
from scheduler_search.schedule.cost import ModelShape
from scheduler_search.schedule.values import ModelIdentity


def identify(model_or_config: Any, *, id: str | None = None, revision: str | None = None) -> ModelIdentity:
    """The identity of a model.

    ``id`` defaults to the hub id the model was loaded from, or to the name of its local directory, never its path.
    ``revision`` defaults to the commit it was loaded at, or to "local". The digest covers the configuration fields that
    fix tensor shapes and the number of vision tokens: no paths, dtypes or library versions.

    Raises:
        UnsupportedError: a model that the runtime does not serve.
    """
    family, config = _family_and_config(model_or_config)
    known_id, known_revision = _origin(config)
    decoder_layers, vision_layers = family.layers(config)
    return ModelIdentity(
        id=id or known_id,
        revision=revision or known_revision,
        architecture=family.architecture,
        decoder_layers=decoder_layers,
        vision_layers=vision_layers,
        config_digest=digest_of(dict(family.shape_fields(config))),
    )


def model_shape(model_or_config: Any) -> ModelShape:
    """Widths of tower, projector and decoder; UnsupportedError for a model that the runtime does not serve."""
    family, config = _family_and_config(model_or_config)
    return family.shape(config)


def vision_tokens(model_or_config: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Where ``input_ids`` [B, S] stand for vision tokens: [B, S] bool.

    Raises:
        UnsupportedError: a model that the runtime does not serve.
    """
    family, config = _family_and_config(model_or_config)
    ids = torch.tensor(family.vision_token_ids(config), device=input_ids.device)
    return torch.isin(input_ids, ids)


def _family_and_config(model_or_config: Any) -> tuple[Family, Any]:
    if isinstance(model_or_config, nn.Module):
        return family_of(model_or_config), model_or_config.config
    return family_of_config(model_or_config), model_or_config


def _origin(config: Any) -> tuple[str, str]:
    """Id and revision of where the configuration was loaded from; a directory gives only its name."""
    name = str(getattr(config, "_name_or_path", "") or "")
    commit = str(getattr(config, "_commit_hash", None) or "")
    path = Path(name)
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        hub = path.parent.parent.name.removeprefix("models--").replace("--", "/")
        return hub, path.name
    if not name:
        return str(config.model_type), commit or "local"
    if path.is_absolute() or path.exists() or name.startswith(".") or name.count("/") > 1 or "\\" in name:
        return path.resolve().name, commit or "local"
    return name, commit or "main"
