"""The parts of the rewriting engine behind :mod:`milopt.pattern`, :mod:`milopt.matching` and :mod:`milopt.rules`."""
