"""Tests; ``pytest`` runs them, ``make test`` runs all checks."""
