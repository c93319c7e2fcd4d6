"""The tools that ship with Synod: one file a tool, listed in catalogue.py, run by runner.py."""
