"""Calls language models within budgets and limits, and reports what each call used."""
