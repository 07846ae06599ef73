"""Every test of this room has tuning results of its own; compiled code is shared with the user's cache."""

from pathlib import Path

import pytest

from perwatt import settings


@pytest.fixture(autouse=True)
def own_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = settings.cache_folder() / "code"
    code.mkdir(parents=True, exist_ok=True)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "code").symlink_to(code, target_is_directory=True)
    monkeypatch.setenv("PERWATT_CACHE", str(cache))
