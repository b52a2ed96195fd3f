import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_package_is_imported_without_torch() -> None:
    code = (
        "import sys, scheduler_search.evaluation\n"
        "from scheduler_search.evaluation import metrics, jsonl, samples, splits, sources\n"
        "print(sorted({'torch', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    import scheduler_search.evaluation as package

    with pytest.raises(AttributeError, match="RemoteExecutor"):
        package.RemoteExecutor  # noqa: B018
