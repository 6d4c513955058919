"""Jobs as durable facts: the agent, its ledger, submission, observation, and the backends that run them."""
