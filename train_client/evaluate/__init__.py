"""Exact match on sets of questions: answers are generated, their programs run, and the results compared."""
