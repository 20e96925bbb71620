"""Read GPUs through NVML: time active, energy, throttling."""
