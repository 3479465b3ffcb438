"""Families of math problems. A family makes one worked problem from a random generator; a source has several."""
