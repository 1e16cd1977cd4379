"""Profiles: the shipped ones load, and a wrong field is answered with file, field and mend."""

from pathlib import Path

import pytest
import yaml

from kinject_assets.config import PROFILES, Profile, RecipeSpec, load_profile, shipped
from kinject_assets.core.errors import ProfileError

MINIMAL = {
    "name": "mine",
    "corpora": {"docs": {"source": {"kind": "files", "folder": "texts"}}},
    "models": {"small": {"source": "some/model"}},
    "grid": [{"corpora": ["docs"], "models": ["small"], "methods": ["base", "rag"]}],
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **changes}))
    return path


@pytest.mark.parametrize("name", shipped())
def test_shipped_profiles_load(name: str) -> None:
    assert load_profile(name).path == PROFILES / f"{name}.yaml"


def test_the_paper_profile_holds_the_studys_values() -> None:
    paper = load_profile("paper")
    assert [m.source for m in paper.models.values()] == [
        "mistralai/Mistral-7B-v0.1",
        "meta-llama/Llama-2-7b-hf",
        "microsoft/Orca-2-7b",
    ]
    assert paper.retrieval.encoder.model == "BAAI/bge-large-en"
    assert (paper.training.piece_tokens, paper.training.batch_pieces) == (256, 64)
    assert paper.scoring.choice_format == "letter"
    assert paper.augmentation.validation_chunks == 240


def test_a_minimal_profile_loads(tmp_path: Path) -> None:
    profile = load_profile(str(write(tmp_path)))
    assert isinstance(profile, Profile)
    assert profile.folder == tmp_path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"modles": {}}, "modles: unknown field; did you mean `models`?"),
        (
            {"scoring": {"chioce_format": "text"}},
            "scoring.chioce_format: unknown field; did you mean `choice_format`?",
        ),
        ({"scoring": {"choice_format": "word"}}, "scoring.choice_format: Input should be"),
        ({"models": {}}, "models: Dictionary should have at least 1 item"),
        (
            {"grid": [{"corpora": ["dosc"], "models": ["small"]}]},
            "grid[0].corpora: `dosc` is not defined; did you mean `docs`?",
        ),
        ({"recipes": {"full.p1": None}}, "recipe `full.p1` is not METHOD.pNN"),
        ({"recipes": {"full.r10": None}}, "control of `full.p10`, which is not under `recipes`"),
        (
            {"corpora": {"docs": {"source": {"kind": "wiki", "categories": ["A"]}}}},
            "contact: needed when a wiki is read",
        ),
        (
            {"corpora": {"docs": {"source": {"kind": "wiki", "wiki": "wikipedia"}}}},
            "one of `categories`, `titles` or `frozen` is needed",
        ),
        ({"llm": {"base_url": "lab"}}, "llm.base_url: `lab` needs the part `lab:`"),
        ({"clock": {"mode": "fixed"}}, "mode `fixed` needs `now`"),
        ({"recipes": {"full.p01.2nd": None}}, "is not METHOD.pNN"),
        (
            {"recipes": {"full.p01": None, "full.r01.common": None}},
            "control of `full.p01.common`, which is not under `recipes`",
        ),
        ({"damage": {"facts": ["dosc"]}}, "damage.facts: `dosc` is not defined; did you mean"),
        ({"damage": {"facts": ["docs"], "shots": 3}}, "damage.shots: 3 is not among"),
        (
            {
                "recipes": {"full.p00": None},
                "damage": {"reading": ["docs"]},
                "grid": [
                    {
                        "corpora": ["docs"],
                        "models": ["small"],
                        "methods": ["ft"],
                        "recipes": ["full.p00"],
                    }
                ],
            },
            "damage.reading: `docs` is compared with its `rag` answers of small, which the grid",
        ),
        (
            {
                "corpora": {
                    **MINIMAL["corpora"],
                    "bones": {
                        "source": {"kind": "files", "folder": "texts"},
                        "exam": {"kind": "mmlu", "subject": "anatomy"},
                    },
                },
                "retrieval": {"retrievers": ["oracle"]},
                "damage": {"reading": ["bones"]},
            },
            "retrieval.retrievers: `oracle` knows no chunks of bones, as questions of mmlu",
        ),
        ({"exams": {"per_chunk": 2, "keep": 3}}, "keep (3) is more than per_chunk (2)"),
        (
            {"recipes": {"full.p04.qa": {"augmentation": "question_anser"}}},
            "recipes.full.p04.qa.augmentation: there is no `question_anser`; did you mean "
            "`question_answer`? allowed: implications, paraphrase, question_answer",
        ),
        (
            {"recipes": {"full.p00.qa": {"augmentation": "question_answer"}}},
            "recipes.full.p00.qa.augmentation: p00 trains on the text alone, so there is nothing",
        ),
        (
            {"training": {"replay_share": 0.2}},
            "training.replay_text: missing; training.replay_share mixes it in",
        ),
        (
            {"recipes": {"full.p00.replay": {"replay_share": 0.2}}},
            "training.replay_text: missing; recipes.full.p00.replay.replay_share mixes it in",
        ),
        (
            {"training": {"general_text": "a.txt", "replay_text": "a.txt", "replay_share": 0.2}},
            "training.replay_text: a.txt is also training.general_text",
        ),
        ({"training": {"replay_text": "a.txt", "replay_share": 1.0}}, "training.replay_share"),
        (
            {
                "training": {"replay_text": "a.txt"},
                "recipes": {"full.p01": None, "full.r01": {"replay_share": 0.3}},
            },
            "recipes.full.r01.replay_share: a control has that of `full.p01`; leave it out",
        ),
        (
            {"recipes": {"full.p04": {"augmentation": "question_answer"}}},
            "give one with `question_answer` a variant, e.g. full.p04.question-answer",
        ),
        (
            {"recipes": {"full.p04.x": {"augmentation": "implications"}, "full.p02.x.s1": None}},
            "recipes.full.p04.x.augmentation: `full.p04.x` has `implications` and `full.p02.x.s1` "
            "has `paraphrase`; recipes of one variant (`x`) differ in number and seed",
        ),
        (
            {"recipes": {"lora.p04": None, "lora.r04": {"augmentation": "implications"}}},
            "`lora.r04` trains on the text alone, as long as `lora.p04`, which has `paraphrase`",
        ),
    ],
)
def test_wrong_fields_are_named_with_their_mend(
    tmp_path: Path, changes: dict, expected: str
) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ProfileError) as caught:
        load_profile(str(path))
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ProfileError, match=r"no profile named `papr`; did you mean `paper`\?"):
        load_profile("papr")


def test_yaml_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: [")
    with pytest.raises(ProfileError, match="not readable as YAML"):
        load_profile(str(path))


def test_recipes_choose_their_augmentation(tmp_path: Path) -> None:
    qa = {"augmentation": "question_answer", "epochs": 2}
    recipes = {
        "full.p00": None,
        "full.p00.qa": {"epochs": 2},
        "full.p04": {"augmentation": "paraphrase"},
        "full.p02.common": None,
        "full.p02.qa": qa,
        "full.p04.qa.s1": qa,
        "full.r02.qa": qa,
        "full.r04.qa.s1": None,
    }
    profile = load_profile(str(write(tmp_path, recipes=recipes)))
    assert {name: profile.recipe_augmentation(name) for name in recipes} == {
        "full.p00": "",
        "full.p00.qa": "",
        "full.p04": "paraphrase",
        "full.p02.common": "paraphrase",
        "full.p02.qa": "question_answer",
        "full.p04.qa.s1": "question_answer",
        "full.r02.qa": "",
        "full.r04.qa.s1": "",
    }
    training = profile.recipe_training("full.p02.qa")
    assert training == profile.training.model_copy(update={"epochs": 2})


def test_a_control_follows_its_recipe(tmp_path: Path) -> None:
    own = {"epochs": 7, "lora_rank": 4, "lora_alpha": 8}
    recipes = {"lora.p02": own, "lora.r02": {"epochs": 7, "processes": 2}, "lora.p00": None}
    profile = load_profile(str(write(tmp_path, recipes=recipes)))
    control = profile.recipe_training("lora.r02")
    assert control == profile.training.model_copy(update={**own, "processes": 2})
    assert profile.recipe_training("lora.p00") == profile.training
    for field, value in {"epochs": 6, "lora_rank": 5, "lora_alpha": 9}.items():
        recipes["lora.r02"] = {field: value}
        with pytest.raises(ProfileError, match=rf"lora\.r02\.{field}: a control has that of"):
            load_profile(str(write(tmp_path, recipes=recipes)))


@pytest.mark.parametrize(
    ("name", "n", "control_of", "variant", "seed"),
    [
        ("full.p00", 0, None, "", 0),
        ("lora.p10", 10, None, "", 0),
        ("full.r10", 10, "full.p10", "", 0),
        ("full.r04.s2", 4, "full.p04.s2", "", 2),
        ("full.p04.common", 4, None, "common", 0),
        ("full.r04.common.s2", 4, "full.p04.common.s2", "common", 2),
        ("full.p04.slow-2", 4, None, "slow-2", 0),
    ],
)
def test_recipe_names(name: str, n: int, control_of: str | None, variant: str, seed: int) -> None:
    spec = RecipeSpec.parse(name)
    assert (spec.n_paraphrases, spec.control_of) == (n, control_of)
    assert (spec.variant, spec.seed) == (variant, seed)
