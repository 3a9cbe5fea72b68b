"""Models that grow by one a round: what a strategy makes of that is easily said."""
