"""From records to knowledge: the score matrix and what can be said of it. No torch, no engine."""
