from pathlib import Path

import pytest

from kinject_assets.lab.encoder import build_encoder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab-encoder")
    build_encoder(folder)
    return folder
