"""What every contract shares: ids, money, the event base, subjects and definitions of agents."""
