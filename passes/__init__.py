"""milopt's passes, one family per file. The table of names is in :mod:`milopt.registry`."""

if __name__ != "milopt.passes":
    raise ImportError(f"import milopt.passes, not {__name__}")
