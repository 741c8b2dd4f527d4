"""Judging a model on labelled data: metrics, speed, and agreement between runtimes."""
