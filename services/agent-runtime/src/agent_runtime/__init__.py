"""Runs agents and teams: decides the next step from events and has services carry it out.

A run is its stream. What it wants next is a pure function of the folded stream, recorded before it is done and done
under ids that derive from the run; so any worker can take it up after a crash, and a replay can check every step.
"""
