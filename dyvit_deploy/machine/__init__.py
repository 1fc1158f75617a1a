"""The hardware that figures are measured on: processors, GPUs, their peaks, and the processes that share them."""
