"""What a training run is: its state, its steps, its folder and what it writes there."""
