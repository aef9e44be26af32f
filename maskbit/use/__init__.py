"Commands, checkpoints, launchers, the demo and the explorers."
