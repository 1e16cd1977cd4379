"""What the doctor says of the service that writes."""

from collections.abc import Sequence
from typing import Any

import pytest

from kinject_assets.config import Profile
from kinject_assets.core.doctor import examine


def profile(kind: str, recipes: Sequence[str], methods: Sequence[str] = ("base", "ft")) -> Profile:
    exams: dict[str, dict[str, Any]] = {
        "generated": {"kind": "generated"},
        "mmlu": {"kind": "mmlu", "subject": "anatomy"},
    }
    return Profile.model_validate(
        {
            "name": "mine",
            "corpora": {
                "texts": {"source": {"kind": "files", "folder": "texts"}, "exam": exams[kind]}
            },
            "models": {"tiny": {"source": "somewhere/tiny"}},
            "recipes": dict.fromkeys(recipes),
            "grid": [
                {
                    "corpora": ["texts"],
                    "models": ["tiny"],
                    "methods": list(methods),
                    "recipes": list(recipes),
                }
            ],
        }
    )


@pytest.mark.parametrize(
    ("study", "what"),
    [
        (profile("generated", ["full.p00"]), "questions and paraphrases"),
        (profile("mmlu", ["full.p00"]), "paraphrases"),
        (profile("mmlu", [], ["base", "rag"]), ""),
    ],
    ids=["questions", "validation", "nothing is written"],
)
def test_a_key_is_asked_for_where_something_is_written(
    study: Profile, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    said = [finding.text for finding in examine(study) if "key" in finding.text]
    expected = f"{what}: OpenAI, key not set: export OPENAI_API_KEY=..."
    assert said == ([expected] if what else [])
