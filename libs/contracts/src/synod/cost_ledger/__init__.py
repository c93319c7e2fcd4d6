"""Money: the contract of cost-ledger."""
