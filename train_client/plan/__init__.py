"""`train-client plan`: what a layout of trainers and selector devices will take, before anybody pays for it."""
