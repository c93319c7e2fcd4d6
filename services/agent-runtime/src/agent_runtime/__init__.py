"""Runs agents and teams: decides the next step from events and has services carry it out."""
