"""Ranges of values, and findings."""
