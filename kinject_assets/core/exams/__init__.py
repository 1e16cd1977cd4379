"""Exams: MMLU as published, and exams written from a corpus."""
