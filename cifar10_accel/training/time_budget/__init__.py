"""Time budget: timed steps choose the recipe and the number of epochs; a run that becomes late says so."""
