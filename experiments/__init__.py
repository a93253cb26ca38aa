"""Everything around a run; `python -m experiments COMMAND` is a table in __main__.py."""
