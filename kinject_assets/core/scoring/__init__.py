"""Answering exams: prompts, the model behind them, and an answer for every question."""


def register() -> None:
    """Makes the model `hf-prefix` known to lm-evaluation-harness: `lm_eval --model hf-prefix`."""
    # lm-eval names its own models only as long as its registry is empty.
    import lm_eval.models  # noqa: F401

    import kinject_assets.core.scoring.hf_prefix  # noqa: F401
