"""From texts to scores: the model contract, tokenising, planning and the jitted steps."""
