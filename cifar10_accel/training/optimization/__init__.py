"""Loss, optimizers, averaged weights and learning rate schedules."""
