"""Model files of a task: versions in a local or remote folder, as safetensors."""
