"""Which artifact of a checkpoint is best for a budget: keep ratio x precision x backend x batch."""
