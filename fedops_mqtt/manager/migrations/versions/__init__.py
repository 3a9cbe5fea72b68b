"""One module a step; its name says what the step is for."""
