"""What a run needs before a machine is held: memory, time, network, storage, cost; and how far such plans were off."""
