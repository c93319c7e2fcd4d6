"""Language models behind one contract: the contract of llm-gateway."""
