"""Answering exams: prompts, the model behind them, and an answer for every question."""
