"""The paper's experiments: arms that differ in one thing, run as users would run them, compared seed by seed."""
