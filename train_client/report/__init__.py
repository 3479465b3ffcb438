"""`train-client report`: an experiment's folder → one HTML page that needs nothing else."""
