"""Reserves money before it is spent, settles what was used, and answers what anything cost."""
