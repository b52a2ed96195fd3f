from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from tests.runtime import tiny


@pytest.fixture(scope="session")
def model_of() -> Callable[..., Any]:
    """``model_of(decoder, attention)``: one tiny model each; whoever hooks it removes the hooks."""
    return cache(tiny.build)


@pytest.fixture(autouse=True)
def _single_thread_without_gradients() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)
