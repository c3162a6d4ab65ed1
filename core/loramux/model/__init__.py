"""The base model on its device, with paged attention and LoRA: steps 8 to 10 of the walk."""
