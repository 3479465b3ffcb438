"""What `selector-server doctor` and `train-client doctor` share: findings, and the checks that both sides need."""
