"""Tests of `milopt diff` and `milopt.diff`."""
