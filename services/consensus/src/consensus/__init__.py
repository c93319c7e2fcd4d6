"""Decides together: proposals with a frozen electorate, votes, and variables changed by decision."""
