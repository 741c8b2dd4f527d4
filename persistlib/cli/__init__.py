"""The command line: one module a verb; each computes an answer and `output` alone prints it."""
