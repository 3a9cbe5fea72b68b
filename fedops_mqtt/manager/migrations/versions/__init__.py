"""One module a step; its name is what the step is for."""
